"""Whose scan is whose: folders of patients against folders of modalities, and what is done where both may be."""

from __future__ import annotations

import logging
from itertools import product
from pathlib import Path

import pytest

from adl_monai.stages.patients import Scan, name_patients
from adl_monai.stages.prepare import prepare

from .test_prepare import patients_of, save, save_series


def groups(tmp_path: Path, files: list[str]) -> set[frozenset[str]]:
    """The files, grouped by patient; they need not exist."""
    scans: dict[Scan, Path | None] = {
        Scan(tmp_path / "set" / name, tmp_path / "set", tuple(name.split("/"))): None for name in files
    }
    found: dict[str, set[str]] = {}
    for scan, patient in name_patients(scans).items():
        found.setdefault(patient, set()).add("/".join(scan.below))
    return {frozenset(names) for names in found.values()}


def grid(folders: str, names: str) -> list[str]:
    return [f"{folder}/{name}" for folder, name in product(folders.split(), names.split())]


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        ("T1 T2", "p1 p2 p3"),
        ("T1 T2", "a b c"),
        ("T1w FLAIR", "001 002 003 004"),
        ("t1-gd axial_t2 ADC", "anna berta"),
        ("CT MR", "BRATS_001 BRATS_002"),
        ("T1/visit1 T1/visit2 T2/ses-01", "p1 p2"),
        ("2019-03-01 2020-04-02 20210503", "anna"),
        ("train val", "p1 p2"),
        ("upper lower", "p1 p2 p3"),
        ("x y", "patient_1 patient_2"),
    ],
)
def test_folders_that_are_modalities_keep_a_patient_together(
    tmp_path: Path, folders: str, names: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = {frozenset(grid(folders, name)) for name in names.split()}
    assert groups(tmp_path, grid(folders, names)) == expected
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        ("sub-01 sub-02", "T1 T2"),
        ("sub-01 sub-02", "x1 x2 x3 x4"),
        ("p1 p2", "T1 T2"),
        ("p1 p2", "001 002 003 004 005 006"),
        ("patient_1 patient_2", "a b c"),
        ("anna berta", "T1w scan ax_t2 visit1/flair"),
        ("100307 100408", "T1w"),
        ("p07 p08", "visit1/scan visit2/scan"),
        ("anna berta carla", "x"),
        ("anna berta carla doris", "x y"),
    ],
)
def test_folders_that_are_patients_stay_apart(
    tmp_path: Path, folders: str, names: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = {frozenset(grid(folder, names)) for folder in folders.split()}
    assert groups(tmp_path, grid(folders, names)) == expected
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        ("x y", "a"),
        ("x y", "a b c d e f"),
        ("x y z", "a b"),
        ("p1 p2", "case1 case2"),
        ("x y z", "anna/b berta/b"),
    ],
)
def test_in_doubt_they_are_one_patient_and_that_is_said(
    tmp_path: Path, folders: str, names: str, caplog: pytest.LogCaptureFixture
) -> None:
    files = grid(folders, names)
    assert groups(tmp_path, files) == {frozenset(files)}
    assert "taken for one patient's" in caplog.text
    assert "sub-NAME" in caplog.text


def test_doubt_concerns_only_the_folders_that_share_names(tmp_path: Path) -> None:
    files = ["x/a", "y/a", "x/b", "p1/T1", "p2/T1", "q/c", "d"]
    assert groups(tmp_path, files) == {
        frozenset({"x/a", "y/a", "x/b"}),
        *(frozenset({name}) for name in ("p1/T1", "p2/T1", "q/c", "d")),
    }


def test_where_nobody_is_named_there_is_one_patient(tmp_path: Path) -> None:
    files = ["T1", "T2", "visit2/T1", "CT/scan", "slice_001"]
    assert groups(tmp_path, files) == {frozenset(files)}
    given: dict[Scan, Path | None] = {}
    for name in ("anna/T1/scan", "anna/T2/scan", "berta/T1/scan", "berta/t2"):
        path = tmp_path / name
        given[Scan(path, path.parent, (path.name,))] = None
    assert list(name_patients(given).values()) == ["anna", "anna", "berta", "berta"]


def test_a_scan_beside_the_folders_belongs_to_its_name(tmp_path: Path) -> None:
    assert groups(tmp_path, ["p1", "T2/p1", "p2"]) == {frozenset({"p1", "T2/p1"}), frozenset({"p2"})}
    assert groups(tmp_path, ["a", "x/a", "b"]) == {frozenset({"a", "x/a"}), frozenset({"b"})}
    assert groups(tmp_path, ["T1_anna", "T2_anna", "T1_berta"]) == {
        frozenset({"T1_anna", "T2_anna"}),
        frozenset({"T1_berta"}),
    }
    assert groups(tmp_path, ["T1/P1", "T2/p1"]) == {frozenset({"T1/P1", "T2/p1"})}


@pytest.mark.parametrize("together", [True, False])
def test_modalities_do_not_split_people(tmp_path: Path, together: bool) -> None:
    """Two folders, ten people: as one source or as two."""
    data = tmp_path / "data"
    save(*(data / folder / f"p{number}.nii.gz" for folder in ("T1", "T2") for number in range(10)))
    manifest = prepare([data] if together else [data / "T1", data / "T2"], tmp_path / "m.json")
    found = patients_of(manifest)
    assert [len(patients) for patients in found] == [8, 1, 1]
    assert len(set.union(*found)) == 10
    assert [len(cases) for cases in (manifest.training, manifest.validation, manifest.test)] == [16, 2, 2]


def test_in_doubt_nobody_is_in_two_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(*(tmp_path / "data" / folder / f"{name}.nii" for folder in ("x", "y") for name in ("a", "b", "c")))
    with caplog.at_level(logging.WARNING):
        manifest = prepare([tmp_path / "data"], tmp_path / "m.json")
    assert (len(manifest.training), len(manifest.validation), len(manifest.test)) == (6, 0, 0)
    assert "The same names (a, b, c) are in several places (x, y)" in caplog.text


def test_the_patient_id_outranks_folders_and_names_what_lies_beside_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for modality, person in product(("CT", "MR"), ("a", "b")):
        save_series(tmp_path / "data" / modality / person, f"ID-{modality}-{person}")
    assert len(set.union(*patients_of(prepare([tmp_path / "data"], tmp_path / "m.json", split=(1, 0, 0))))) == 4
    save_series(tmp_path / "more/p1/ct", "ID1")
    save_series(tmp_path / "more/sub-02/ct", "ID2")
    save(tmp_path / "more/p1/T1.nii", tmp_path / "more/sub-02/T1.nii")
    found = patients_of(prepare([tmp_path / "more"], tmp_path / "n.json", split=(0.5, 0.5, 0)))
    assert [len(patients) for patients in found] == [1, 1, 0]
    for person, name in product(("x", "y"), ("a", "b")):
        save_series(tmp_path / "known" / person / name, f"ID-{person}")
    prepare([tmp_path / "known"], tmp_path / "o.json", split=(0.5, 0.5, 0))
    assert "taken for one patient's" not in caplog.text


def test_pairs_and_single_scans_are_dealt_out_together(tmp_path: Path) -> None:
    save(*(tmp_path / folder / f"p{number}.nii" for folder in ("low", "full", "more/T2") for number in range(6)))
    manifest = prepare(
        [tmp_path / "more"], tmp_path / "m.json", clean=tmp_path / "full", noisy=tmp_path / "low", split=(0.5, 0.5, 0)
    )
    training, validation, _ = patients_of(manifest)
    assert (len(training), len(validation), training & validation) == (3, 3, set())
