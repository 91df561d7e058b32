"""What the comparison with other denoisers rests on."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import TINY, generated_manifest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import loader
import quality
from peers import without_rician_bias


@pytest.mark.parametrize("sigma", [0.01, 0.1])
def test_the_mean_of_rician_noise_is_mapped_back_to_the_clean_value(sigma: float) -> None:
    rng = np.random.default_rng(0)
    for clean in (0.5 * sigma, 2 * sigma, 10 * sigma, 1.0):
        real, imaginary = rng.normal(0, sigma, (2, 400_000))
        mean = np.mean(np.hypot(clean + real, imaginary))
        assert without_rician_bias(np.array([mean]), sigma)[0] == pytest.approx(clean, abs=0.02 * sigma + 1e-4 * clean)
    assert without_rician_bias(np.array([0.0]), sigma)[0] == 0.0


def test_every_method_gets_the_same_noisy_image_and_a_line_in_the_table(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(generated_manifest((32, 32, 32))))
    options = argparse.Namespace(
        manifest=str(tmp_path / "manifest.json"),
        model=["adl3d"],
        ensemble=[1, 2],
        peers=["TV"],
        noise=["gaussian:25/255", "rician:5/100"],
        split="test",
        crop=24,
        range=None,
        device="cpu",
        precision="fp32",
        seed=0,
        output=tmp_path,
    )
    results = quality.run(options)
    rows = results["rows"]
    assert len(rows) == 2 * 2 * 4
    assert {row["method"] for row in rows} == {"noisy", "TV", "adl3d", "adl3d, 2 mirror images"}
    for case, level in {(row["case"], row["level"]) for row in rows}:
        psnr = {row["method"]: row["psnr"] for row in rows if (row["case"], row["level"]) == (case, level)}
        assert min(psnr["adl3d, 2 mirror images"], psnr["adl3d"]) > psnr["noisy"]
        if level == "25/255":  # at the other one, total variation flattens more texture than noise
            assert psnr["TV"] > psnr["noisy"]
    noisy = [row for row in rows if row["method"] == "noisy" and row["noise"] == "gaussian"]
    assert all(abs(row["psnr"] - 20.17) < 0.2 for row in noisy)
    assert all(abs(row["flat_bias"]) < 0.01 for row in noisy)
    lines = quality.table(rows).splitlines()
    assert len(lines) == 2 + 2 + 1
    assert "adl3d" in lines[0]


@pytest.mark.parametrize(
    "spec, sigma", [("gaussian:25/255", 25 / 255), ("gaussian:2.5/255", 2.5 / 255), ("rician:0.05", 0.05)]
)
def test_noise_is_a_kind_and_a_level(spec: str, sigma: float) -> None:
    assert quality.parse_noise(spec) == (*spec.split(":"), sigma)
    assert quality.checked_noise(spec) == spec


@pytest.mark.parametrize("spec", ["gaussian", "gaussian:", "gaussian:1/0", "gaussian:x/255", "gaussian:-1", "gaus:0.1"])
def test_other_noise_is_refused_before_anything_is_measured(spec: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not kind:level"):
        quality.checked_noise(spec)


def test_the_cost_of_patches_is_set_against_that_of_steps(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(generated_manifest()))
    cost = loader.measure(tmp_path / "manifest.json", 3, "default", 1, TINY)
    assert cost["batch"] > 0
    assert cost["step"] > 0
