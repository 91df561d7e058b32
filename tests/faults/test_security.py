"""What SECURITY.md promises: files from elsewhere are data, and no patient's data gets into logs and names."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from pydicom.data import get_testdata_file

import adl_monai
from adl_monai.data.formats import is_scan
from adl_monai.data.io import read_volume
from adl_monai.errors import ScanFileError, UsageError
from adl_monai.stages.train import train
from tests.conftest import TINY
from tests.data.conftest import build_nifti, build_series

from .conftest import WORKING, Command, Refused, contents

PACKAGE = Path(adl_monai.__file__).parent
Model = Callable[..., Path]
EVEN = [0.0, 2.5, 5.0, 7.5, 10.0]


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return build_nifti(tmp_path / "scan.nii", np.random.default_rng(0).integers(0, 90, (16, 16, 16)).astype(np.uint8))


def calls(name: str) -> list[tuple[str, ast.Call]]:
    """Every call of a name, or of an attribute of that dotted name, in the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                found.append((f"{path.name}:{node.lineno}", node))
    return found


def test_torch_load_takes_weights_only() -> None:
    loads = calls("torch.load")
    assert len(loads) >= 2
    for place, call in loads:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("weights_only") == "True", place


@pytest.mark.parametrize("name", ["eval", "exec", "pickle.load", "pickle.loads", "os.system", "torch.jit.load"])
def test_nothing_else_runs_what_a_file_says(name: str) -> None:
    assert calls(name) == []


class Evil:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
@pytest.mark.parametrize("command_name", ["infer", "export", "evaluate", "init"])
def test_weights_that_are_code_are_refused(
    tmp_path: Path, scan: Path, manifest: Path, identity_model: Model, refused: Refused, how: str, command_name: str
) -> None:
    model, proof = identity_model(3), tmp_path / "ran"
    weights = model / "models" / "model.pt"
    if how == "torch":
        torch.save({"a": Evil(proof)}, weights)
    else:
        weights.write_bytes(pickle.dumps(Evil(proof)))
    arguments: dict[str, list[object]] = {
        "infer": ["infer", scan, "--model", model],
        "export": ["export", model, "-o", "model.ts", "--format", "torchscript"],
        "evaluate": ["evaluate", manifest, "--model", model],
        "init": ["train", manifest, "--init", model],
    }
    refused(2, ["model.pt", "cannot be read"], *arguments[command_name])
    assert not proof.exists()


def change_config(model: Path, **values: Any) -> None:
    path = model / "configs" / "inference.json"
    config = json.loads(path.read_text())
    network = {**config["network_def"], **values.pop("network_def", {})}
    path.write_text(json.dumps({**config, "network_def": network, **values}))


CONFIGS: list[tuple[dict[str, Any], list[str]]] = [
    ({"network_def": {"filters": "$CODE"}}, ["plain values", "not run"]),
    ({"network_def": {"filters": [4, 4, 4, {"_target_": "os.mkdir", "path": "PROOF"}]}}, ["'_target_'", "not run"]),
    ({"network_def": {"norm": "@device"}}, ["'@device'"]),
    ({"network_def": {"norm": "%/etc/passwd"}}, ["plain values"]),
    ({"network_def": {"_mode_": "debug"}}, ["'_mode_'"]),
    ({"network_def": {"_target_": "os.mkdir", "path": "PROOF"}}, ["network_def must name", "no other network"]),
    ({"tile": "$CODE"}, ["plain values"]),
    ({"network_def": {"filters": [10**9] * 4}}, ["network_def|do not load"]),
    ({"network_def": {"filters": "many"}}, ["network_def"]),
    ({"network_def": {"no_such_argument": 1}}, ["no_such_argument"]),
    ({"tile": [7, 7, 7]}, ["tile", "not usable"]),
    ({"overlap": "much"}, ["not usable"]),
    ({"intensity_percentiles": [99, 1]}, ["must rise", "not usable"]),
    ({"intensity_range": [255, 0]}, ["numbers that rise", "not usable"]),
    ({"intensity_range": "$CODE"}, ["plain values"]),
]


@pytest.mark.parametrize("values, words", CONFIGS, ids=[str(case[0])[:40] for case in CONFIGS])
def test_a_strangers_config_is_data(
    tmp_path: Path, scan: Path, identity_model: Model, refused: Refused, values: dict[str, Any], words: list[str]
) -> None:
    proof = tmp_path / "ran"
    text = json.dumps(values).replace("PROOF", str(proof)).replace("CODE", f"__import__('os').mkdir('{proof}')")
    model = identity_model(3)
    change_config(model, **json.loads(text))
    message = refused(2, [], "infer", scan, "--model", model)
    for word in words:
        assert any(choice in message for choice in word.split("|")), message
    assert not proof.exists()


def test_expressions_elsewhere_in_a_strangers_bundle_are_never_read(
    tmp_path: Path, scan: Path, identity_model: Model, command: Command
) -> None:
    model, proof = identity_model(3), tmp_path / "ran"
    code = f"$__import__('os').mkdir({str(proof)!r})"
    keys = ["imports", "initialize", "run", "preprocessing", "postprocessing", "handlers", "device", "checkpoint"]
    change_config(model, **dict.fromkeys(keys, code))
    (model / "configs" / "metadata.json").write_text(json.dumps({"version": code}))
    assert command("infer", scan, "--model", model).code == 0
    assert not proof.exists()


def test_a_runs_recorded_options_run_no_code_unless_given_again(manifest: Path, tmp_path: Path) -> None:
    run, proof = tmp_path / "run", tmp_path / "ran"
    train(manifest, run, overrides={**TINY, "max_epochs": 1})
    path = run / "options.json"
    recorded = json.loads(path.read_text())
    code = f"$[__import__('os').mkdir({str(proof)!r}), 5][1]"
    for key, value in (("val_interval", code), ("loss", {"_target_": "os.mkdir"}), ("loss#_target_", "os.mkdir")):
        path.write_text(json.dumps({**recorded, "overrides": {**recorded["overrides"], key: value}}))
        with pytest.raises(UsageError, match="run as code"):
            train(manifest, run, resume=True, overrides={"max_epochs": 2})
        assert not proof.exists()
    path.write_text(json.dumps({**recorded, "overrides": {**recorded["overrides"], "val_interval": code}}))
    train(manifest, run, resume=True, overrides={"max_epochs": 2, "val_interval": code})
    assert proof.exists(), "what the user gives is the user's own code"


def test_an_index_of_a_disc_is_not_followed(tmp_path: Path, refused: Refused) -> None:
    series = Path(str(get_testdata_file("CT_small.dcm"))).parent / "dicomdirtests"
    shutil.copy(series / "DICOMDIR", tmp_path / "DICOMDIR")
    assert not is_scan(tmp_path / "DICOMDIR")
    refused(2, ["DICOMDIR is not a scan"], "infer", tmp_path / "DICOMDIR")
    refused(2, [["no DICOM image among 1 files", "holds no scans"][1]], "infer", tmp_path)
    build_series(tmp_path / "series", EVEN)
    whole = read_volume(tmp_path / "series").array
    shutil.copy(series / "DICOMDIR", tmp_path / "series" / "DICOMDIR")
    assert np.array_equal(read_volume(tmp_path / "series").array, whole)


def test_a_metaimage_header_names_files_beside_it_only(tmp_path: Path) -> None:
    header = "ObjectType = Image\nNDims = 2\nDimSize = 2 2\nElementType = MET_UCHAR\nBinaryData = True\n"
    (tmp_path / "private").write_bytes(b"abcd")
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("../private", str(tmp_path / "private"), "sub/../../private"):
        (folder / "scan.mhd").write_text(f"{header}ElementDataFile = {name}\n")
        with pytest.raises(ScanFileError, match="one file beside it"):
            read_volume(folder / "scan.mhd")


SECRETS = {
    "PatientName": "Zzyzx^Quixote", "PatientID": "QX-771-SECRET", "PatientBirthDate": "19010203",
    "AccessionNumber": "ACC99SECRET", "InstitutionName": "Hidden Hospital", "ReferringPhysicianName": "Doe^Hidden",
    "StudyInstanceUID": "1.2.77777.1", "FrameOfReferenceUID": "1.2.77777.2", "StudyDescription": "hidden study",
    "SeriesDescription": "hidden series",
}  # fmt: skip
SERIES_UID = "1.2.77777.3"


def faulty(paths: list[Path], number: int) -> None:
    """Many ways to make a reader talk about a slice."""
    path = paths[2]
    raw = path.read_bytes()
    dataset = pydicom.dcmread(path)
    if number < 5:
        names = ["PatientID", "FrameOfReferenceUID", "SeriesInstanceUID", "ImagePositionPatient", "PixelSpacing"]
        del dataset[names[number]]
        dataset.save_as(path)
    elif number == 5:
        path.write_bytes(raw[: len(raw) // 2])
    elif number == 6:
        path.write_bytes(raw.replace(b"0.75\\0.5", b"Zzyzx^Qu"))
    elif number == 7:
        path.write_bytes(raw.replace(b"1.2.77777.2", b"QX-771-SECR"))
    elif number == 8:
        paths[3].unlink()
    else:
        damaged = bytearray(raw)
        rng = np.random.default_rng(number)
        for place in rng.integers(132, len(raw), 6):
            damaged[place] = int(rng.integers(256))
        path.write_bytes(damaged)


@pytest.mark.parametrize("number", range(24))
def test_rows_50_and_51_nothing_of_a_patient_is_said_or_named(tmp_path: Path, command: Command, number: int) -> None:
    folder = tmp_path / "series"
    faulty(build_series(folder, EVEN, SeriesInstanceUID=SERIES_UID, **SECRETS), number)
    said = ""
    for arguments in (["infer", folder, "-o", "out.nii.gz"], ["prepare", folder, "-o", "m.json"]):
        outcome = command(*arguments)
        assert outcome.code in (0, 2, 3, 4)
        assert "Traceback" not in outcome.err
        said += outcome.out + outcome.err
    # The list of a folder's several series names their UIDs: --series takes them.
    listed = [line for line in said.splitlines() if line.startswith("  SeriesNumber ")]
    for line in listed:
        said = said.replace(line, "")
    said += "".join(contents(tmp_path / WORKING))
    if (tmp_path / WORKING / "m.json").exists():
        said += (tmp_path / WORKING / "m.json").read_text()
    for secret in [SERIES_UID, *SECRETS.values(), "QX-771", "Zzyzx"]:
        assert secret not in said
