"""What the comparison with other denoisers rests on."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from peers import without_rician_bias


@pytest.mark.parametrize("sigma", [0.01, 0.1])
def test_the_mean_of_rician_noise_is_mapped_back_to_the_clean_value(sigma: float) -> None:
    rng = np.random.default_rng(0)
    for clean in (0.5 * sigma, 2 * sigma, 10 * sigma, 1.0):
        real, imaginary = rng.normal(0, sigma, (2, 400_000))
        mean = np.mean(np.hypot(clean + real, imaginary))
        assert without_rician_bias(np.array([mean]), sigma)[0] == pytest.approx(clean, abs=0.02 * sigma + 1e-4 * clean)
    assert without_rician_bias(np.array([0.0]), sigma)[0] == 0.0
