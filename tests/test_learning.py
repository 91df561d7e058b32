"""The default model learns: some minutes of training on generated volumes denoise scans it never saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from adl_monai.stages.evaluate import evaluate
from adl_monai.stages.train import train

DEMO = Path(__file__).parents[1] / "data_manifests" / "demo_real.json"


@pytest.mark.slow
@pytest.mark.timeout(10800)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_short_training_denoises_what_it_never_saw(spatial_dims: int, tmp_path: Path) -> None:
    train(DEMO, tmp_path / "run", spatial_dims=spatial_dims, overrides={"max_epochs": 8, "val_interval": 4})
    real, generated, _ = evaluate(DEMO, tmp_path / "metrics.json", model=tmp_path / "run")
    # The real scan's own noise, 5 % of its range, bounds what can be gained on it to 5.7 dB.
    assert real["psnr"] - real["psnr_noisy"] > 2.0
    assert real["ssim"] > real["ssim_noisy"]
    assert generated["psnr"] - generated["psnr_noisy"] > 5.0
    assert generated["ssim"] > generated["ssim_noisy"]
