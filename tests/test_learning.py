"""The default model learns: a few minutes of training on generated volumes denoise a real scan it never saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from adl_monai.stages.evaluate import evaluate
from adl_monai.stages.train import train

DEMO = Path(__file__).parents[1] / "data_manifests" / "demo_real.json"


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("spatial_dims", "gain"), [(3, 4.0), (2, 3.0)])
def test_a_short_training_denoises_a_real_scan(spatial_dims: int, gain: float, tmp_path: Path) -> None:
    train(DEMO, tmp_path / "run", spatial_dims=spatial_dims, overrides={"max_epochs": 8, "val_interval": 4})
    mean = evaluate(DEMO, tmp_path / "metrics.json", model=tmp_path / "run")[-1]
    assert mean["case"] == "mean"
    assert mean["psnr"] - mean["psnr_noisy"] > gain
    assert mean["ssim"] > mean["ssim_noisy"]
