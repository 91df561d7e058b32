"""What is no scan, or too coarse, is told of before it is denoised."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from adl_monai.errors import ScanFileError
from adl_monai.stages.infer import infer
from adl_monai.stages.unsuited import warn_of_content
from tests.data.conftest import build_nifti
from tests.streaming import stand_in

Model = Callable[..., Path]


def label_map() -> np.ndarray:
    """Three nested tissues, one of them thin, as integers."""
    distance = np.linalg.norm(np.indices((40, 36, 30)) - np.array([20, 18, 15]).reshape(3, 1, 1, 1), axis=0)
    return np.select([distance < 6, distance < 9, distance < 11], [41, 1012, 2], 0).astype(np.int16)


def said_of(values: np.ndarray, caplog: pytest.LogCaptureFixture, rounded: bool = True) -> str:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_of_content(Path("scan.nii"), values.astype(np.float32), rounded)
    return caplog.text


def test_labels_are_told_from_scans(caplog: pytest.LogCaptureFixture, rng: np.random.Generator) -> None:
    assert "as in a label map" in said_of(label_map(), caplog)
    assert "as in a label map" in said_of(label_map() > 0, caplog)
    assert "as in a label map" in said_of(label_map()[:, :, 15], caplog)
    in_the_middle = np.pad(label_map(), ((180, 180), (0, 0), (0, 0)))
    assert "as in a label map" in said_of(in_the_middle, caplog)
    scan = nib.load(Path(nib.__file__).parent / "tests/data/anatomical.nii").get_fdata()
    assert said_of(scan, caplog) == ""
    assert said_of(np.kron(rng.integers(0, 999, (20, 20, 20)), np.ones((2, 2, 2))), caplog) == ""  # enlarged
    assert said_of(label_map() + rng.normal(0, 0.1, label_map().shape), caplog) == ""  # a phantom with noise
    assert said_of(np.zeros((8, 8, 8)), caplog, rounded=False) == ""


def test_few_counts_are_better_kept_as_fractions(caplog: pytest.LogCaptureFixture, rng: np.random.Generator) -> None:
    counts = rng.poisson(np.where(label_map() > 0, 3.0, 0.3))
    assert "--dtype float32" in said_of(counts, caplog)
    assert said_of(counts, caplog, rounded=False) == ""
    assert said_of(rng.poisson(300.0, (24, 24, 24)), caplog) == ""


def test_a_phase_image_is_told(caplog: pytest.LogCaptureFixture, rng: np.random.Generator) -> None:
    phase = np.angle(np.exp(1j * rng.normal(0, 3, (24, 24, 24))))
    assert "phase image" in said_of(phase, caplog, rounded=False)
    assert said_of(rng.normal(0, 1, (24, 24, 24)).clip(-3, 3), caplog, rounded=False) == ""


@pytest.mark.parametrize("budget", [1 << 40, 0])
@pytest.mark.parametrize("time_series", [False, True])
def test_infer_tells_whichever_way_it_goes(
    tmp_path: Path,
    identity_model: Model,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    budget: int,
    time_series: bool,
) -> None:
    stand_in(monkeypatch)
    stored = np.stack([label_map()] * 2, -1) if time_series else label_map()
    source = build_nifti(tmp_path / "aparc.nii.gz", stored)
    with caplog.at_level(logging.WARNING):
        infer([source], tmp_path / "out.nii.gz", model=identity_model(3), max_memory=budget, time_series=time_series)
    assert caplog.text.count("as in a label map") == 1


@pytest.mark.parametrize("budget", [1 << 40, 0])
@pytest.mark.parametrize("time_series", [False, True])
def test_what_says_that_it_is_a_label_map_is_refused(
    tmp_path: Path, identity_model: Model, budget: int, time_series: bool
) -> None:
    stored = np.stack([label_map()] * 2, -1) if time_series else label_map()
    source = build_nifti(tmp_path / "labels.nii", stored, fields={"intent_code": 1002})
    output = tmp_path / "out.nii"
    with pytest.raises(ScanFileError, match="intent_code is 1002, a label map"):
        infer([source], output, model=identity_model(3), max_memory=budget, time_series=time_series)
    assert not output.exists()
    twin = build_nifti(tmp_path / "twin.nii", stored, fields={"intent_code": 1002})
    with pytest.raises(ScanFileError, match="intent_code is 1002, a label map"):  # beside others: read ahead
        infer([source, twin], tmp_path / "out", model=identity_model(3), max_memory=budget, time_series=time_series)
