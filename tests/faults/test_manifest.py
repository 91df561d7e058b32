"""Rows 63 to 67 of the table in tests/README.md: manifests, by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import TINY

from .conftest import WORKING, Command, Refused

OVERRIDES = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of two scans on one grid, one on another, and one beside the folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, shape, shift in (("a", 16, 0.0), ("b", 16, 0.0), ("larger", 17, 0.0), ("moved", 16, 3.0)):
        affine = np.eye(4)
        affine[0, 3] = shift
        voxels = np.random.default_rng(shape).normal(100, 9, (shape, 16, 16)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, affine), folder / f"{name}.nii")
    (tmp_path / "outside.nii").write_bytes((folder / "a.nii").read_bytes())
    (folder / "link.nii").symlink_to(tmp_path / "outside.nii")
    return folder


MANIFESTS: list[tuple[str, Any, list[str]]] = [
    ("63", '{"training": [\n  {"image": "a.nii",}\n]}', ["m.json:2:", "not valid JSON", "mend the manifest there"]),
    ("63-unknown-key", {"training": [{"image": "a.nii", "lable": "b.nii"}]}, ["training[0].lable: unknown key"]),
    (
        "64",
        {"training": [{"image": "gone1.nii"}, {"image": "a.nii", "label": "gone2.nii"}]},
        ["2 of its files do not exist", "training[0].image gone1.nii", "training[1].label gone2.nii", "mend the paths"],
    ),
    (
        "65-file",
        {"training": [{"image": "a.nii"}], "validation": [{"image": "a.nii"}]},
        ["training", "validation", "share one subject", "one of the two"],
    ),
    (
        "65-patient",
        {"training": [{"image": "a.nii", "patient": "p1"}], "validation": [{"image": "b.nii", "patient": "p1"}]},
        ["share patient 'p1'", "belongs to one split"],
    ),
    ("66-shape", {"training": [{"image": "a.nii", "label": "larger.nii"}]}, ["(16, 16, 16) and (17, 16, 16)"]),
    ("66-affine", {"training": [{"image": "a.nii", "label": "moved.nii"}]}, ["affines apart by up to 3", "resample"]),
    ("67-dots", {"training": [{"image": "../outside.nii"}]}, ["leaves", "by '..' or through a link", "absolute path"]),
    ("67-link", {"training": [{"image": "link.nii"}]}, ["'link.nii' leaves", "through a link"]),
]


@pytest.mark.parametrize("content, words", [case[1:] for case in MANIFESTS], ids=[f"row_{c[0]}" for c in MANIFESTS])
def test_a_bad_manifest_is_refused(data: Path, refused: Refused, content: Any, words: list[str]) -> None:
    path = data / "m.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    refused(2, ["m.json", *words], "train", path, "-o", "run", *OVERRIDES)


def test_row_67_relative_paths_start_at_the_manifest(data: Path, command: Command) -> None:
    (data / "m.json").write_text(json.dumps({"test": [{"image": "a.nii"}]}))
    outcome = command("infer", data / "m.json", "-o", "out")
    assert outcome.code == 0, outcome.err
    assert [path.name for path in (data.parent / WORKING / "out").iterdir()] == ["a_denoised.nii"]
