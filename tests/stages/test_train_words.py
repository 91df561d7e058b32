"""What is said of a training that cannot be judged, has won nothing, or was none."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from adl_monai.manifest import load_manifest
from adl_monai.stages.train import train
from adl_monai.stages.train_words import warn_of_result, warn_of_validation
from tests.conftest import TINY

GAUSSIAN = ("gaussian", 0.1, {"gaussian": 1.0}, [0.0, 0.2])


def test_a_run_says_what_it_validates_on_and_that_it_was_over(
    manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    poisson = {"noise_kinds": {"poisson": 1.0, "gaussian": 0.0}, "noise_sigma": [0.0, 0.05], "noise_least_sigma": {}}
    with caplog.at_level(logging.WARNING, "adl_monai.stages.train_words"):
        first = train(manifest, tmp_path / "run", overrides={**TINY, "max_epochs": 1, **poisson})
    advice = caplog.messages[0]
    assert "validation adds gaussian noise of level 0.098" in advice
    assert "(poisson, levels 0 to 0.05)" in advice
    assert "--set validation_noise=poisson --set validation_sigma=0.025" in advice
    log = (tmp_path / "run" / "train.log").read_text()
    assert advice in log
    assert f"psnr {first.best_psnr:.4f}" in log
    caplog.clear()
    with caplog.at_level(logging.WARNING, "adl_monai.stages.train_words"):
        again = train(
            manifest,
            tmp_path / "run",
            resume=True,
            overrides={"validation_noise": "poisson", "validation_sigma": 0.025},
        )
    assert caplog.messages == [
        "the run has had its 1 epochs before: nothing was trained. A larger --epochs makes it longer."
    ]
    assert (again.best_epoch, again.best_psnr) == (1, first.best_psnr)


def test_a_manifest_without_validation_is_warned_of(
    manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads(manifest.read_text())
    del content["validation"]
    manifest.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING, "adl_monai.stages.train_words"):
        result = train(manifest, tmp_path / "run", overrides={**TINY, "max_epochs": 1})
    (warned,) = caplog.messages
    assert "no case under 'validation'" in warned
    assert "last epoch" in warned
    assert (result.best_epoch, result.best_psnr) == (None, None)


@pytest.mark.parametrize(
    ("changed", "advice"),
    [
        ({}, None),
        ({"kinds": ["rician", "gaussian"]}, None),
        ({"kinds": "gaussian"}, None),
        ({"kinds": ["rician"]}, "Pass --set validation_noise=rician."),
        ({"levels": [0.2, 0.4]}, "Pass --set validation_sigma=0.3."),
        ({"levels": [0.1, 0.1]}, None),
    ],
)
def test_validation_is_held_to_what_is_trained(
    manifest: Path, caplog: pytest.LogCaptureFixture, changed: dict[str, object], advice: str | None
) -> None:
    values = {**dict(zip(("kind", "sigma", "kinds", "levels"), GAUSSIAN, strict=True)), **changed}
    warn_of_validation(load_manifest(manifest), **values)
    assert len(caplog.messages) == (advice is not None)
    assert advice is None or caplog.messages[0].endswith(advice)


def test_real_pairs_have_their_own_noise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in "abcd":
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / f"{name}.nii")
    pairs = [{"image": "a.nii", "label": "b.nii"}], [{"image": "c.nii", "label": "d.nii"}]
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(dict(zip(("training", "validation"), pairs, strict=True))))
    warn_of_validation(load_manifest(path), "gaussian", 0.1, ["rician"], [0.2, 0.3])
    assert not caplog.messages


@pytest.mark.parametrize(
    ("epochs", "done", "best", "noisy", "start", "words"),
    [
        (4, 0, 20.1, 20.1, None, "no better than the noisy images (20.10 dB)"),
        (4, 0, 18.0, 20.1, None, "the best epoch (PSNR 18.00 dB)"),
        (4, 0, 20.2, 20.1, None, None),
        (4, 0, None, None, None, None),
        (4, 0, 33.75, 20.1, 33.83, "started from (33.83 dB)"),
        (4, 0, 18.0, 20.1, 18.5, "started from (18.50 dB)"),
        (4, 0, 33.83, 20.1, 33.75, None),
        (4, 0, 33.83, 20.1, 33.83, "started from (33.83 dB)"),
        (4, 4, 18.0, None, 19.0, "had its 4 epochs before"),
    ],
)
def test_a_result_is_told_by_its_worth(
    caplog: pytest.LogCaptureFixture,
    epochs: int,
    done: int,
    best: float | None,
    noisy: float | None,
    start: float | None,
    words: str | None,
) -> None:
    warn_of_result(epochs, done, best, noisy, start)
    assert len(caplog.messages) == (words is not None)
    assert words is None or words in caplog.messages[0]
