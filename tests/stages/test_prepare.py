"""Preparing a manifest: whose scan is whose, who goes where, what is written and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from adl_monai.data.io import read_volume
from adl_monai.errors import ManifestError, OutputError, UsageError
from adl_monai.manifest import SPLITS, Manifest, load_manifest
from adl_monai.stages import prepare as module
from adl_monai.stages.prepare import prepare, split_patients

THIRDS = (0.4, 0.3, 0.3)


def save(*paths: Path, shape: tuple[int, ...] = (4, 5, 6)) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), np.eye(4)), path)


def save_series(folder: Path, patient_id: str, slices: int = 3) -> None:
    """A CT series whose file names say nothing."""
    folder.mkdir(parents=True)
    template = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    template.PatientID = patient_id
    template.PatientName = "Secret^Name"
    template.SeriesInstanceUID = generate_uid()
    for index in range(slices):
        template.SOPInstanceUID = template.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        template.InstanceNumber = index + 1
        template.ImagePositionPatient = [0, 0, 5.0 * index]
        template.save_as(folder / f"IM{index}")


def patients_of(manifest: Manifest) -> list[set[str | None]]:
    return [{case.patient for case in getattr(manifest, split)} for split in SPLITS]


def names_by_patient(manifest: Manifest) -> dict[str | None, set[str]]:
    found: dict[str | None, set[str]] = {}
    for split in SPLITS:
        for case in getattr(manifest, split):
            found.setdefault(case.patient, set()).add(Path(case.image).name)
    return found


# What is written


def test_scans_below_the_manifest_get_relative_paths(tmp_path: Path) -> None:
    save(tmp_path / "here/data/p1.nii", tmp_path / "there/p2.nii")
    output = tmp_path / "here" / "manifest.json"
    manifest = prepare([tmp_path / "here/data", tmp_path / "there"], output, split=(1, 0, 0))
    written = [case["image"] for case in json.loads(output.read_text(encoding="utf-8"))["training"]]
    assert sorted(written) == sorted(["data/p1.nii", str(tmp_path / "there/p2.nii")])
    assert manifest == load_manifest(output)
    assert manifest.path == output
    assert [item.name for item in (tmp_path / "here").iterdir() if item.name.startswith(".")] == []


def test_a_scan_linked_into_the_folder_is_written_so_that_it_loads(tmp_path: Path) -> None:
    save(tmp_path / "there/p1.nii")
    (tmp_path / "here").mkdir()
    (tmp_path / "here/p1.nii").symlink_to(tmp_path / "there/p1.nii")
    manifest = prepare([tmp_path / "here/p1.nii"], tmp_path / "here" / "m.json")
    assert manifest.training[0].image == str(tmp_path / "here/p1.nii"), "under the name that was given"
    assert read_volume(Path(manifest.training[0].image)).array.shape == (4, 5, 6)


@pytest.mark.parametrize("given", [".", "ln", "ln/sub-01_T1w.nii.gz", "ln/../ln", "other"])
def test_links_keep_their_names(tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As DataLad and git-annex lay out their files: a name that links to a key."""
    for number in (1, 2):
        save(tmp_path / "made.nii.gz")
        (tmp_path / "annex").mkdir(exist_ok=True)
        (tmp_path / "made.nii.gz").rename(tmp_path / f"annex/cdef012{number}")
        (tmp_path / "ln").mkdir(exist_ok=True)
        (tmp_path / f"ln/sub-0{number}_T1w.nii.gz").symlink_to(f"../annex/cdef012{number}")
    (tmp_path / "other").symlink_to("ln")
    monkeypatch.chdir(tmp_path)
    manifest = prepare([Path(given)], tmp_path / "m.json", split=(1, 0, 0))
    names = ["sub-01_T1w.nii.gz", "sub-02_T1w.nii.gz"][: 1 if "sub-01" in given else 2]
    written = [case["image"] for case in json.loads((tmp_path / "m.json").read_text())["training"]]
    assert written == [f"{'other' if given == 'other' else 'ln'}/{name}" for name in names]
    assert [(case.patient, Path(case.image).name) for case in manifest.training] == [(n[:6], n) for n in names]
    for case in manifest.training:
        assert read_volume(Path(case.image)).array.shape == (4, 5, 6)


def test_a_scan_and_links_to_it_are_one(tmp_path: Path) -> None:
    save(tmp_path / "data/p1.nii", tmp_path / "data/p2.nii")
    (tmp_path / "data/p3.nii").symlink_to("p1.nii")
    manifest = prepare([tmp_path / "data", tmp_path / "data/p3.nii"], tmp_path / "m.json", split=(1, 0, 0))
    assert [Path(case.image).name for case in manifest.training] == ["p1.nii", "p2.nii"]


def test_an_existing_manifest_is_kept_unless_told(tmp_path: Path) -> None:
    save(tmp_path / "p1.nii")
    output = tmp_path / "m.json"
    output.write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match=r"m\.json exists"):
        prepare([tmp_path / "p1.nii"], output)
    assert output.read_text(encoding="utf-8") == "mine"
    assert len(prepare([tmp_path / "p1.nii"], output, overwrite=True).training) == 1
    assert load_manifest(output).training[0].patient == "p1"


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: Any) -> None:
    save(tmp_path / "p1.nii")
    output = tmp_path / "m.json"
    output.write_text("mine", encoding="utf-8")

    def refuse(path: Path) -> Manifest:
        assert json.loads(Path(path).read_text(encoding="utf-8"))["training"], "it is read before it gets its name"
        raise ManifestError("no")

    monkeypatch.setattr(module, "load_manifest", refuse)
    with pytest.raises(ManifestError):
        prepare([tmp_path / "p1.nii"], output, overwrite=True)
    assert output.read_text(encoding="utf-8") == "mine"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["m.json", "p1.nii"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    save(tmp_path / "p1.nii")
    with pytest.raises(OutputError, match="does not exist"):
        prepare([tmp_path / "p1.nii"], tmp_path / "nowhere" / "m.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(OutputError, match=r"folder\.json cannot be written"):
        prepare([tmp_path / "p1.nii"], tmp_path / "folder.json", overwrite=True)
    assert not list(tmp_path.glob(".*"))


# Whose scan


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            ("sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz"),
            {"sub-01": 2, "sub-02": 1},
        ),
        (("derived/sub-01/T1w.nii", "raw/sub-01/T1w.nii"), {"sub-01": 2}),
        (("p07_t1.nii", "p07_t2.nii", "p08-t1.nii"), {"p07": 2, "p08": 1}),
        (("p07/visit1/scan.nii", "p07/visit2/scan.nii", "p08/visit1/scan.nii"), {"p07": 2, "p08": 1}),
        (
            ("BRATS_001.nii.gz", "BRATS_002.nii.gz", "BRATS_010.nii.gz"),
            {"BRATS_001": 1, "BRATS_002": 1, "BRATS_010": 1},
        ),
        (("pat_1/a.nii", "pat_1/b.nii", "pat_2/a.nii"), {"pat_1": 2, "pat_2": 1}),
        (("p1_1.nii", "p1_2.nii"), {"p1": 2}),
        (("john_a.nii", "john_b.nii"), {"john": 2}),
        (("anna_1.nii", "anna_2.nii", "berta_1.nii"), {"anna": 2, "berta": 1}),
        (("IXI002-Guys-0828-T1.nii.gz", "IXI012-HH-1211-T1.nii.gz"), {"IXI002": 1, "IXI012": 1}),
    ],
)
def test_patients_are_told_apart_by_names(tmp_path: Path, files: tuple[str, ...], expected: dict[str, int]) -> None:
    data = tmp_path / "data"
    save(*(data / name for name in files))
    manifest = prepare([data], tmp_path / "m.json", split=(1, 0, 0))
    found: dict[str | None, int] = {}
    for case in manifest.training:
        found[case.patient] = found.get(case.patient, 0) + 1
    assert found == expected


def test_sources_side_by_side_are_patients_and_single_files_are_one_source(tmp_path: Path) -> None:
    save(*(tmp_path / name for name in ("p1/t1.nii", "p1/t2.nii", "p2/t1.nii", "set_1.nii", "set_2.nii")))
    manifest = prepare([tmp_path / "p1", tmp_path / "p2"], tmp_path / "m.json", split=(0.5, 0.5, 0))
    assert names_by_patient(manifest) == {"p1": {"t1.nii", "t2.nii"}, "p2": {"t1.nii"}}
    manifest = prepare([tmp_path / "set_1.nii", tmp_path / "set_2.nii"], tmp_path / "n.json", split=(1, 0, 0))
    assert names_by_patient(manifest) == {"set_1": {"set_1.nii"}, "set_2": {"set_2.nii"}}


def test_a_dicom_series_is_one_scan_of_its_patient_and_the_id_is_not_stored(tmp_path: Path) -> None:
    for name, patient_id in (("a", "HOSP-4711"), ("b", "HOSP-4711"), ("c", "HOSP-4712"), ("d", " HOSP-4711 ")):
        save_series(tmp_path / "data" / name, patient_id)
    output = tmp_path / "m.json"
    manifest = prepare([tmp_path / "data"], output, split=(0.5, 0.5, 0))
    groups = names_by_patient(manifest)
    assert sorted(map(sorted, groups.values())) == [["a", "b", "d"], ["c"]]
    for patient in groups:
        assert str(patient).startswith("dcm-")
        assert len(str(patient)) == 16
    assert not any(word in output.read_text(encoding="utf-8") for word in ("HOSP", "471", "Secret"))


def test_the_dicom_id_outranks_names_and_the_sources_own_name_counts(tmp_path: Path) -> None:
    save_series(tmp_path / "data/sub-01/ct", "ID1")
    save_series(tmp_path / "data/sub-02/ct", "ID1")
    manifest = prepare([tmp_path / "data"], tmp_path / "m.json", split=(0.5, 0.5, 0))
    assert len(names_by_patient(manifest)) == 1
    save(tmp_path / "sub-09/t1.nii", tmp_path / "sub-09/t2.nii")
    manifest = prepare([tmp_path / "sub-09"], tmp_path / "n.json")
    assert names_by_patient(manifest) == {"sub-09": {"t1.nii", "t2.nii"}}


def test_a_dicom_series_without_an_id_goes_by_its_name(tmp_path: Path) -> None:
    save_series(tmp_path / "data" / "p5_ct", "")
    manifest = prepare([tmp_path / "data"], tmp_path / "m.json")
    assert names_by_patient(manifest) == {"p5": {"p5_ct"}}


def test_a_scan_beside_series_of_two_people_is_given_to_neither(tmp_path: Path) -> None:
    save_series(tmp_path / "data/p1/ct", "ID1")
    save_series(tmp_path / "data/p1/mr", "ID2")
    save(tmp_path / "data/p1/t1.nii")
    groups = names_by_patient(prepare([tmp_path / "data"], tmp_path / "m.json"))
    assert groups.pop("p1") == {"t1.nii"}
    assert sorted(map(sorted, groups.values())) == [["ct"], ["mr"]]


# Who goes where


def test_a_patient_is_never_split(tmp_path: Path) -> None:
    save(*(tmp_path / "data" / f"p{patient}_{scan}.nii" for patient in range(10) for scan in range(4)))
    for seed in range(5):
        manifest = prepare([tmp_path / "data"], tmp_path / "m.json", split=THIRDS, seed=seed, overwrite=True)
        groups = patients_of(manifest)
        assert [len(group) for group in groups] == [4, 3, 3]
        assert len(set.union(*groups)) == 10
        assert sum(len(getattr(manifest, split)) for split in SPLITS) == 40


def test_the_seed_decides(tmp_path: Path) -> None:
    save(*(tmp_path / "data" / f"p{patient}.nii" for patient in range(12)))
    written = []
    for seed in (0, 0, 1):
        prepare([tmp_path / "data"], tmp_path / "m.json", split=THIRDS, seed=seed, overwrite=True)
        written.append((tmp_path / "m.json").read_text(encoding="utf-8"))
    assert written[0] == written[1]
    assert written[0] != written[2]


def test_the_split_is_the_same_on_every_machine() -> None:
    chosen = split_patients([f"p{index}" for index in range(6)], (0.5, 0.25, 0.25), seed=7)
    assert chosen == split_patients([f"p{index}" for index in reversed(range(6))], (0.5, 0.25, 0.25), seed=7)
    assert [sorted(group) for group in chosen] == [["p0", "p1", "p2"], ["p3", "p5"], ["p4"]]


@pytest.mark.parametrize(
    ("patients", "fractions", "expected"),
    [
        (100, (0.8, 0.1, 0.1), [80, 10, 10]),
        (10, (0.8, 0.1, 0.1), [8, 1, 1]),
        (5, (0.8, 0.1, 0.1), [3, 1, 1]),
        (3, (0.8, 0.1, 0.1), [1, 1, 1]),
        (2, (0.8, 0.1, 0.1), [1, 1, 0]),
        (1, (0.8, 0.1, 0.1), [1, 0, 0]),
        (2, (0.8, 0.0, 0.2), [1, 0, 1]),
        (4, (0.0, 0.0, 1.0), [0, 0, 4]),
        (7, (1.0, 0.0, 0.0), [7, 0, 0]),
    ],
)
def test_each_split_gets_its_share(patients: int, fractions: tuple[float, ...], expected: list[int]) -> None:
    chosen = split_patients([str(index) for index in range(patients)], fractions, seed=0)
    assert [len(group) for group in chosen] == expected


def test_too_few_patients_are_warned_about(tmp_path: Path, caplog: Any) -> None:
    save(tmp_path / "data/p1_a.nii", tmp_path / "data/p1_b.nii")
    with caplog.at_level(logging.WARNING):
        manifest = prepare([tmp_path / "data"], tmp_path / "m.json")
    assert (len(manifest.training), len(manifest.validation), len(manifest.test)) == (2, 0, 0)
    assert "no scan goes to validation, test" in caplog.text


# What is no clean scan


def test_results_of_an_earlier_run_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "data"
    save(*(data / name for name in ("a.nii.gz", "a_denoised.nii.gz", "b.nii", "b_denoised.nii.gz", "c_denoised.nii")))
    save(data / "results/a_denoised.nii.gz")
    save_series(data / "ct", "ID1")
    save_series(data / "ct_denoised", "ID1")
    for name in ("a_denoised_preview", "ct_denoised_preview", "lone_denoised_preview"):
        Image.fromarray(np.zeros((9, 8), np.uint8)).save(data / f"{name}.png")
    with caplog.at_level(logging.WARNING):
        manifest = prepare([data], tmp_path / "m.json", split=(1, 0, 0))
    assert sorted(Path(case.image).relative_to(data).as_posix() for case in manifest.training) == [
        "a.nii.gz",
        "b.nii",
        "c_denoised.nii",
        "ct",
        "lone_denoised_preview.png",
    ]
    assert "6 files are left out as results" in caplog.text
    prepare([*data.glob("*.nii*")], tmp_path / "n.json", split=(1, 0, 0))
    assert len(load_manifest(tmp_path / "n.json").training) == 3, "by name too, where both are given"
    prepare([data / "a_denoised.nii.gz"], tmp_path / "o.json", split=(1, 0, 0))
    assert len(load_manifest(tmp_path / "o.json").training) == 1, "alone, it is what was asked for"


# Pairs


def test_pairs_are_matched_by_name(tmp_path: Path) -> None:
    clean, noisy = tmp_path / "clean", tmp_path / "noisy"
    save(clean / "p1_clean.nii", clean / "p2.nii.gz", clean / "deep/p3_FullDose.nii")
    save(noisy / "p1_noisy.nii", noisy / "p2-noisy.nii", noisy / "deep/p3_lowdose.nii.gz")
    manifest = prepare([], tmp_path / "m.json", clean=clean, noisy=noisy, split=(1, 0, 0))
    pairs = {(Path(case.image).name, Path(str(case.label)).name) for case in manifest.training}
    assert pairs == {
        ("p1_noisy.nii", "p1_clean.nii"),
        ("p2-noisy.nii", "p2.nii.gz"),
        ("p3_lowdose.nii.gz", "p3_FullDose.nii"),
    }
    assert {case.patient for case in manifest.training} == {"p1", "p2", "deep"}


def test_two_series_folders_are_one_pair(tmp_path: Path) -> None:
    save_series(tmp_path / "standard", "ID1")
    save_series(tmp_path / "quick", "ID1")
    manifest = prepare([], tmp_path / "m.json", clean=tmp_path / "standard", noisy=tmp_path / "quick")
    assert (manifest.training[0].image, manifest.training[0].label) == (
        str(tmp_path / "quick"),
        str(tmp_path / "standard"),
    )


def test_the_dicom_half_of_a_pair_tells_the_patient(tmp_path: Path) -> None:
    save_series(tmp_path / "noisy/a", "ID1")
    save_series(tmp_path / "more/b", "ID1")
    series = read_volume(tmp_path / "noisy/a")
    (tmp_path / "clean").mkdir()
    nib.save(nib.Nifti1Image(series.array, series.affine), tmp_path / "clean" / "a.nii")
    manifest = prepare([tmp_path / "more"], tmp_path / "m.json", clean=tmp_path / "clean", noisy=tmp_path / "noisy")
    assert len(manifest.training) == 2, "one patient, so all in one split"


def test_scans_of_pairs_are_not_taken_twice(tmp_path: Path) -> None:
    clean, noisy = tmp_path / "data/clean", tmp_path / "data/noisy"
    save(clean / "p1.nii", noisy / "p1.nii", tmp_path / "data/extra/p2.nii")
    manifest = prepare([tmp_path / "data"], tmp_path / "m.json", clean=clean, noisy=noisy, split=(1, 0, 0))
    assert sorted((Path(case.image).name, case.label is None) for case in manifest.training) == [
        ("p1.nii", False),
        ("p2.nii", True),
    ]


def test_scans_without_a_twin_are_all_listed(tmp_path: Path) -> None:
    clean, noisy = tmp_path / "clean", tmp_path / "noisy"
    save(clean / "p1.nii", clean / "p2.nii", noisy / "p1.nii", noisy / "p3.nii", noisy / "deep/p2.nii")
    with pytest.raises(ManifestError) as caught:
        prepare([], tmp_path / "m.json", clean=clean, noisy=noisy)
    message = str(caught.value)
    assert "3 scans" in message
    for path in (clean / "p2.nii", noisy / "p3.nii", noisy / "deep/p2.nii"):
        assert str(path) in message
    assert "p1.nii" not in message


def test_two_scans_of_one_name_are_refused(tmp_path: Path) -> None:
    clean, noisy = tmp_path / "clean", tmp_path / "noisy"
    save(clean / "p1.nii", noisy / "p1.nii", noisy / "p1_noisy.nii")
    with pytest.raises(ManifestError, match="one name but for their endings"):
        prepare([], tmp_path / "m.json", clean=clean, noisy=noisy)


def test_pairs_on_two_grids_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    clean, noisy = tmp_path / "clean", tmp_path / "noisy"
    save(clean / "p1.nii")
    save(noisy / "p1.nii", shape=(4, 5, 7))
    with pytest.raises(ManifestError, match=r"m\.json.*one voxel grid"):
        prepare([], tmp_path / "m.json", clean=clean, noisy=noisy)
    assert not [item for item in tmp_path.iterdir() if item.is_file()]


# What is refused


def test_what_is_refused_names_the_manifest_and_not_its_temporary_file(tmp_path: Path) -> None:
    save(tmp_path / "scans" / "a.nii")
    (tmp_path / "scans" / "b.nii").hardlink_to(tmp_path / "scans" / "a.nii")
    with pytest.raises(ManifestError, match="share one subject") as caught:
        prepare([tmp_path / "scans"], tmp_path / "m.json")
    assert str(caught.value).startswith(str(tmp_path / "m.json"))
    assert ".tmp" not in str(caught.value)


def test_sources_without_scans_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty holds no scan"):
        prepare([tmp_path / "empty"], tmp_path / "m.json")
    (tmp_path / "notes.txt").write_text("no scan", encoding="utf-8")
    with pytest.raises(UsageError, match=r"notes\.txt holds no scan"):
        prepare([tmp_path / "notes.txt"], tmp_path / "m.json")
    with pytest.raises(UsageError, match="gone does not exist"):
        prepare([tmp_path / "gone"], tmp_path / "m.json")
    with pytest.raises(UsageError, match="no scan was given"):
        prepare([], tmp_path / "m.json")
    with pytest.raises(UsageError, match="only one of"):
        prepare([], tmp_path / "m.json", clean=tmp_path / "empty")
    assert not (tmp_path / "m.json").exists()


@pytest.mark.parametrize("split", [(0.5, 0.5, 0.5), (1.2, -0.1, -0.1), (0.5, 0.5), (float("nan"), 0.5, 0.5)])
def test_fractions_must_sum_up_to_one(tmp_path: Path, split: tuple[float, ...]) -> None:
    save(tmp_path / "p1.nii")
    with pytest.raises(UsageError, match="sum up to 1"):
        prepare([tmp_path / "p1.nii"], tmp_path / "m.json", split=split)
