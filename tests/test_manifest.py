"""The manifest: what it expands to, what it refuses, and what its errors say."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import nibabel as nib
import numpy as np
import pydantic
import pytest

from adl_monai.errors import ManifestError, UsageError
from adl_monai.manifest import Case, check_pairs, load_cases, load_manifest, manifest_hash
from adl_monai.manifest_format import manifest_schema

MANIFESTS = Path(__file__).parents[1] / "data_manifests"


def write(folder: Path, content: Any, files: tuple[str, ...] = ()) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    path = folder / "manifest.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def save(path: Path, shape: tuple[int, ...] = (5, 6, 7), shift: float = 0.0) -> None:
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    affine[0, 3] = 10 + shift
    nib.save(nib.Nifti1Image(np.ones(shape, np.float32), affine), path)


def refusal(path: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        load_manifest(path)
    message = str(caught.value)
    assert path.name in message, "an error names the file"
    return message


# What a good manifest gives


def test_cases_get_absolute_paths(tmp_path: Path) -> None:
    content = {
        "name": "n",
        "training": [{"image": "a/one.nii", "patient": "p1"}, {"image": "./b.nii", "label": "c.nii"}],
        "test": [{"image": str(tmp_path / "d.nii")}],
    }
    path = write(tmp_path, content, ("a/one.nii", "b.nii", "c.nii", "d.nii"))
    manifest = load_manifest(path)
    assert manifest.path == path
    assert manifest.name == "n"
    assert manifest.training == (
        Case(image=str(tmp_path / "a/one.nii"), patient="p1"),
        Case(image=str(tmp_path / "b.nii"), label=str(tmp_path / "c.nii")),
    )
    assert manifest.validation == ()
    assert load_cases(path, "training", check=False) == [
        {"image": str(tmp_path / "a/one.nii")},
        {"image": str(tmp_path / "b.nii"), "label": str(tmp_path / "c.nii")},
    ]
    assert load_cases(path, "validation") == []
    assert load_cases(path, "test") == [{"image": str(tmp_path / "d.nii")}]


def test_a_manifest_is_frozen(tmp_path: Path) -> None:
    manifest = load_manifest(write(tmp_path, {"test": [{"image": "a.nii"}]}, ("a.nii",)))
    with pytest.raises(pydantic.ValidationError):
        manifest.name = "other"  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError):
        manifest.test[0].image = "other"  # type: ignore[misc]


def test_relative_paths_follow_the_manifest_not_the_working_folder(tmp_path: Path, monkeypatch: Any) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    data.mkdir()
    elsewhere.mkdir()
    write(data, {"test": [{"image": "a.nii"}]}, ("a.nii",))
    (elsewhere / "link.json").symlink_to(data / "manifest.json")
    monkeypatch.chdir(tmp_path)
    expected = [{"image": str(data / "a.nii")}]
    assert load_cases("data/manifest.json", "test") == expected
    assert load_cases(elsewhere / "link.json", "test") == expected


def test_synthetic_entries_expand(tmp_path: Path) -> None:
    content = {
        "training": [{"synthetic": {"shape": [8, 9, 10], "count": 3, "seed": 5, "kind": "leaves"}}],
        "test": [{"synthetic": {"shape": [16, 12]}}],
    }
    path = write(tmp_path, content)
    images = [f"synthetic:kind=leaves,shape=8x9x10,seed={seed}" for seed in (5, 6, 7)]
    assert load_cases(path, "training") == [{"image": image} for image in images]
    assert load_cases(path, "test") == [{"image": "synthetic:kind=leaves,shape=16x12,seed=0"}]


def test_a_file_of_an_installed_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: Any) -> None:
    package = tmp_path / "site" / "scans_in_a_package"
    (package / "series").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    (package / "a.nii").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    content = {
        "training": [{"image": "package:scans_in_a_package/a.nii"}],
        "test": [{"image": "package:scans_in_a_package/series"}],
    }
    manifest = load_manifest(write(tmp_path, content))
    assert (manifest.training[0].image, manifest.test[0].image) == (str(package / "a.nii"), str(package / "series"))


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = write(tmp_path, '{"training": []}')
    assert manifest_hash(path) == hashlib.sha256(b'{"training": []}').hexdigest()


def test_loading_a_manifest_needs_neither_torch_nor_monai() -> None:
    code = (
        "import sys, adl_monai.manifest as m; m.load_manifest(sys.argv[1]);"
        "print([name for name in ('torch', 'monai', 'SimpleITK', 'pydicom') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(MANIFESTS / "demo_real.json")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


# What is refused


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{\n  "training": [\n}', "manifest.json:3:1"),
        ("", "manifest.json:1:1"),
        ('{"training": [], "training": []}', "'training' stands twice"),
        ('{"training": [{"image": "a", "image": "b"}]}', "'image' stands twice"),
        ("[" * 100_000, "RecursionError"),
        ('{"name": ' + "1" * 5000 + "}", "ValueError"),
    ],
)
def test_json_faults_are_located(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(write(tmp_path, text))


def test_what_is_not_text_or_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    assert "cannot be read" in refusal(path)
    assert "cannot be read" in refusal(tmp_path)
    path.write_bytes(b'{"name": "\xff"}')
    assert "UTF-8" in refusal(path)


WRONG_SHAPES: list[tuple[Any, str]] = [
    ([], "manifest.json: "),
    ({"trainig": []}, "trainig: unknown key"),
    ({"training": [{"image": "a.nii", "lable": "b.nii"}]}, "training[0].lable: unknown key"),
    ({"training": [{"label": "a.nii"}]}, "training[0].image: required"),
    ({"training": ["a.nii"]}, "training[0]: "),
    ({"training": {"image": "a.nii"}}, "training: "),
    ({"test": [{"image": 3}]}, "test[0].image: "),
    ({"test": [{"image": ""}]}, "test[0].image: "),
    ({"test": [{"synthetic": {"shape": [8, 8]}, "patient": "p"}]}, "test[0].patient: unknown key"),
    ({"test": [{"synthetic": {"shape": [8, 8]}, "image": "a.nii"}]}, "test[0].image: unknown key"),
    ({"test": [{"synthetic": {}}]}, "test[0].synthetic.shape: required"),
    ({"test": [{"synthetic": {"shape": [8]}}]}, "test[0].synthetic.shape: "),
    ({"test": [{"synthetic": {"shape": [8, 8, 8, 8]}}]}, "test[0].synthetic.shape: "),
    ({"test": [{"synthetic": {"shape": [8, 0]}}]}, "test[0].synthetic.shape[1]: "),
    ({"test": [{"synthetic": {"shape": [8, "8"]}}]}, "test[0].synthetic.shape[1]: "),
    ({"test": [{"synthetic": {"shape": [8, 8], "count": 0}}]}, "test[0].synthetic.count: "),
    ({"test": [{"synthetic": {"shape": [8, 8], "seed": -1}}]}, "test[0].synthetic.seed: "),
    ({"test": [{"synthetic": {"shape": [8, 8], "kind": "a,seed=3"}}]}, "test[0].synthetic.kind: "),
]


@pytest.mark.parametrize(("content", "expected"), WRONG_SHAPES)
def test_wrong_shapes_are_named_and_fail_the_schema_too(tmp_path: Path, content: Any, expected: str) -> None:
    assert expected in refusal(write(tmp_path, content, ("a.nii", "b.nii")))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, manifest_schema())


def test_all_missing_files_are_listed_at_once(tmp_path: Path) -> None:
    content = {
        "training": [{"image": "there.nii"}, {"image": "gone1.nii", "label": "gone2.nii"}],
        "test": [{"image": "/nowhere/gone3.nii"}, {"image": "package:no_such_package/gone4.nii"}],
    }
    message = refusal(write(tmp_path, content, ("there.nii",)))
    assert message.startswith(f"{tmp_path / 'manifest.json'}: 4 of its files")
    for item in (
        "training[1].image gone1.nii",
        "training[1].label gone2.nii",
        "gone3.nii",
        "no_such_package/gone4.nii",
    ):
        assert item in message
    assert "there.nii" not in message


def test_a_long_list_of_missing_files_is_cut(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, {"training": [{"image": f"gone{i:03}.nii"} for i in range(50)]}))
    assert "50 of its files" in message
    assert "gone019.nii; and 30 more" in message
    assert "gone020" not in message


@pytest.mark.parametrize("image", ["a\x00b.nii", "a" * 5000, "loop/a.nii", "pipe"])
def test_paths_that_no_file_can_have_are_missing(tmp_path: Path, image: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    assert "do not exist" in refusal(write(tmp_path, {"test": [{"image": image}]}))


@pytest.mark.parametrize(
    "image", ["../out.nii", "link.nii", "folder/out.nii", "in/../../out.nii", "series", "../nothing.nii"]
)
def test_relative_paths_stay_below_the_manifest(tmp_path: Path, image: str) -> None:
    folder = tmp_path / "data"
    (folder / "series").mkdir(parents=True)
    (folder / "in").mkdir()
    (tmp_path / "out.nii").touch()
    (folder / "link.nii").symlink_to(tmp_path / "out.nii")
    (folder / "folder").symlink_to(tmp_path)
    (folder / "series" / "slice.dcm").symlink_to(tmp_path / "out.nii")
    for content in ({"test": [{"image": image}]}, {"test": [{"image": "in", "label": image}]}):
        message = refusal(write(folder, content))
        assert image in message
        assert "leaves" in message


def test_links_and_dots_that_stay_inside_are_fine(tmp_path: Path) -> None:
    path = write(tmp_path, {"training": [{"image": "in/../link.nii"}]}, ("in/a.nii",))
    (tmp_path / "link.nii").symlink_to(tmp_path / "in/a.nii")
    assert load_cases(path, "training") == [{"image": str(tmp_path / "link.nii")}], "under its own name"


def test_a_link_keeps_its_name_and_dots_go_through_links(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    content = {"training": [{"image": "far/../link.nii.gz"}], "test": [{"image": str(tmp_path / "out.nii.gz")}]}
    folder.mkdir()
    path = write(folder, content, ("deep/in/key",))
    (folder / "far").symlink_to("deep/in")
    (folder / "deep/link.nii.gz").symlink_to("in/key")
    (tmp_path / "out.nii.gz").symlink_to(folder / "manifest.json")
    assert load_cases(path, "training") == [{"image": str(folder / "deep/link.nii.gz")}]
    assert load_cases(path, "test") == [{"image": str(tmp_path / "out.nii.gz")}]


@pytest.mark.parametrize(
    "image",
    [
        "package:nibabel",
        "package:nibabel/",
        "package:",
        "package:nibabel/../x",
        "package:nib.abel/x",
        "package:nibabel//etc",
    ],
)
def test_package_paths_stay_in_their_package(tmp_path: Path, image: str) -> None:
    assert "package:NAME/PATH" in refusal(write(tmp_path, {"test": [{"image": image}]}))


def test_synthetic_strings_are_not_taken_as_paths(tmp_path: Path) -> None:
    image = "synthetic:kind=leaves,shape=8x8,seed=0"
    assert '"synthetic"' in refusal(write(tmp_path, {"test": [{"image": image}]}))


@pytest.mark.parametrize("content", [{}, {"name": "n"}, {"training": [], "validation": [], "test": []}])
def test_a_manifest_without_a_case_is_refused(tmp_path: Path, content: Any) -> None:
    assert "no case" in refusal(write(tmp_path, content))


@pytest.mark.parametrize("label", ["./a.nii", "link.nii", "hard.nii"])
def test_a_pair_of_one_file_is_refused(tmp_path: Path, label: str) -> None:
    (tmp_path / "a.nii").touch()
    (tmp_path / "link.nii").symlink_to("a.nii")
    (tmp_path / "hard.nii").hardlink_to(tmp_path / "a.nii")
    content = {"training": [{"image": "a.nii", "label": label}]}
    assert "training[0] names one file twice" in refusal(write(tmp_path, content, ("a.nii",)))


# No subject in two splits

FILES = ("a.nii", "b.nii", "c.nii", "series/1.dcm")
LEAKS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"image": "a.nii"}, {"image": "a.nii"}),
    ({"image": "a.nii"}, {"image": "link.nii"}),
    ({"image": "a.nii"}, {"image": "hard.nii"}),
    ({"image": "a.nii"}, {"image": "b.nii", "label": "a.nii"}),
    ({"image": "b.nii", "label": "a.nii"}, {"image": "c.nii", "label": "a.nii"}),
    ({"image": "b.nii", "label": "a.nii"}, {"image": "b.nii"}),
    ({"image": "a.nii", "patient": "p1"}, {"image": "b.nii", "patient": "p1"}),
    ({"image": "series"}, {"image": "series/1.dcm"}),
    ({"image": "series"}, {"image": "slice.dcm"}),
    ({"image": "a.nii"}, {"image": "."}),
    ({"synthetic": {"shape": [8, 8], "count": 4}}, {"synthetic": {"shape": [8, 8], "seed": 3}}),
    ({"synthetic": {"shape": [8, 8]}}, {"synthetic": {"shape": [9, 9]}}),
]


@pytest.mark.parametrize(("one", "other"), LEAKS)
@pytest.mark.parametrize(
    "splits", [("training", "validation"), ("validation", "training"), ("training", "test"), ("test", "validation")]
)
def test_a_subject_in_two_splits_is_refused(tmp_path: Path, one: Any, other: Any, splits: tuple[str, str]) -> None:
    content = {splits[0]: [one], splits[1]: [other]}
    path = write(tmp_path, content, FILES)
    (tmp_path / "link.nii").symlink_to(tmp_path / "a.nii")
    (tmp_path / "hard.nii").hardlink_to(tmp_path / "a.nii")
    (tmp_path / "slice.dcm").symlink_to("series/1.dcm")
    message = refusal(path)
    assert splits[0] in message
    assert splits[1] in message
    assert ("patient 'p1'" in message) == ("patient" in one)
    path = write(tmp_path, {splits[0]: [one, other]})
    assert getattr(load_manifest(path), splits[0]), "in one split they are fine"


def test_other_subjects_do_not_leak(tmp_path: Path) -> None:
    content = {
        "training": [{"image": "a.nii", "patient": "p1"}, {"synthetic": {"shape": [8, 8], "kind": "leaves"}}],
        "validation": [{"image": "b.nii", "patient": "p2"}, {"synthetic": {"shape": [8, 8], "kind": "blobs"}}],
        "test": [{"image": "c.nii"}, {"image": "series"}, {"synthetic": {"shape": [8, 8], "seed": 1}}],
    }
    assert len(load_manifest(write(tmp_path, content, FILES)).test) == 3


# Pairs


def test_pairs_must_share_their_grid(tmp_path: Path) -> None:
    save(tmp_path / "clean.nii")
    save(tmp_path / "same.nii", shift=1e-6)
    save(tmp_path / "shifted.nii", shift=0.5)
    save(tmp_path / "larger.nii", shape=(5, 6, 8))
    path = write(tmp_path, {"training": [{"image": "same.nii", "label": "clean.nii"}, {"image": "shifted.nii"}]})
    check_pairs(load_manifest(path))
    assert len(load_cases(path, "training")) == 2
    names = ("same", "shifted", "larger")
    path = write(tmp_path, {"test": [{"image": f"{name}.nii", "label": "clean.nii"} for name in names]})
    for check in (lambda: check_pairs(load_manifest(path)), lambda: load_cases(path, "test")):
        with pytest.raises(ManifestError) as caught:
            check()
        message = str(caught.value)
        assert "2 noisy/clean pairs" in message
        assert "shifted.nii" in message
        assert "(5, 6, 8)" in message
        assert "same.nii" not in message
    assert len(load_cases(path, "test", check=False)) == 3
    assert load_cases(path, "training") == [], "other splits' pairs are not read"


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"test": [{"image": "a.nii"}]}, ("a.nii",))
    with pytest.raises(UsageError, match=r"'train'.*training, validation, test"):
        load_cases(path, "train")


# The manifests that come with the project


def test_the_schema_file_is_current() -> None:
    stored = json.loads((MANIFESTS / "manifest.schema.json").read_text(encoding="utf-8"))
    assert stored == manifest_schema(), "write it anew from adl_monai.manifest_format.manifest_schema()"
    jsonschema.Draft202012Validator.check_schema(stored)


@pytest.mark.parametrize("name", ["demo_real", "demo_generated"])
def test_the_demo_manifests_are_valid(name: str) -> None:
    path = MANIFESTS / f"{name}.json"
    jsonschema.validate(json.loads(path.read_text(encoding="utf-8")), manifest_schema())
    manifest = load_manifest(path)
    assert manifest.name == name
    assert len(manifest.training) == 16
    for split in (manifest.validation, manifest.test):
        assert len(split) >= 2


def test_the_real_scans_are_volumes_and_one_subject_is_in_one_split() -> None:
    from adl_monai.data.io import read_volume

    manifest = load_manifest(MANIFESTS / "demo_real.json")
    real = [case for case in (*manifest.validation, *manifest.test) if not case.image.startswith("synthetic:")]
    assert len(real) == 2
    for case in real:
        volume = read_volume(Path(case.image))
        assert volume.array.ndim == 3
        assert min(volume.array.shape) >= 5
        assert volume.array.std() > 0
    assert len({case.patient for case in real}) == 2
