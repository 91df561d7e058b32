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


@pytest.mark.parametrize(
    ("scans", "people"),
    [
        ("{0}_t1 {0}_t1ce", "BraTS2021_00000 BraTS2021_00002"),
        ("{0}/{0}_t1 {0}/{0}_seg", "BraTS2021_00000 BraTS2021_00002 BraTS2021_00003"),
        ("{0}-000/{0}-000-t1n {0}-001/{0}-001-t1n", "BraTS-GLI-00005 BraTS-GLI-00006 BraTS-MEN-00005"),
        ("{0}-1/{0}-1_t1c", "BraTS-MEN-RT-0001 BraTS-MEN-RT-0002"),
        ("{0}/{0}_t1 {0}/{0}_t2", "BraTS20_Training_001 BraTS20_Training_002 BraTS20_Validation_001"),
        ("HGG/Brats18_{0}_1/Brats18_{0}_1_t1 BraTS19_{0}_1_t2", "2013_2 CBICA_AAB CBICA_AAG TCIA01_131"),
        ("disc1/{0}_MR1/RAW/{0}_MR1_mpr-1_anon disc1/{0}_MR2/x", "OAS1_0001 OAS1_0002 OAS2_0003"),
        ("{0}_MR_d0129/anat1/{0}_MR_d0129_T1w {0}_MR_d0757/anat1/x", "OAS30001 OAS30002"),
        ("ADNI/{0}/MPRAGE/2006-05-02/I1/x ADNI_{0}_MR_MPRAGE_br_raw_I2 {0}_I3", "002_S_0413 002_S_0559 011_S_0002"),
        ("IXI-T1/{0}-Guys-0828-T1 IXI-T2/{0}-Guys-0828-T2", "IXI002 IXI003"),
        ("{0}/T1w/T1w_acpc_dc {0}/unprocessed/3T/T1w_MPR1/{0}_3T_T1w_MPR1", "100307 100408"),
        ("{0}_T1w {0}_T2w", "100307 100408"),
        ("{0}", "1 2 3"),
        ("{0}_t1 {0}_t2", "001 002"),
    ],
)
def test_published_names(tmp_path: Path, scans: str, people: str, caplog: pytest.LogCaptureFixture) -> None:
    """As data sets call their patients, whose visits are not patients."""
    expected = {frozenset(scans.format(person).split()) for person in people.split()}
    assert groups(tmp_path, [name for person in expected for name in person]) == expected
    assert caplog.text == ""


def test_the_years_of_brats_share_their_patients(tmp_path: Path) -> None:
    files = ["BraTS2021_00005/BraTS2021_00005_t1", "BraTS-GLI-00005-000/BraTS-GLI-00005-000-t1n"]
    assert groups(tmp_path, files) == {frozenset(files)}


@pytest.mark.parametrize(
    "scans",
    [
        ["anna2021_1", "anna2021_2"],
        grid("190301 200402", "T1w/anna"),
        grid("anna/190301 anna/200402", "T1w/T1w_acpc_dc unprocessed/3T/x"),
        grid("2_S_0413_1", "a b"),
    ],
)
def test_what_only_looks_like_published_names_stays_one_person(tmp_path: Path, scans: list[str]) -> None:
    assert groups(tmp_path, scans) == {frozenset(scans)}
