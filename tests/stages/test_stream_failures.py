"""What goes wrong while a volume is denoised box by box comes out in words and leaves nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adl_monai.data.output import publish
from adl_monai.errors import OutputError
from adl_monai.stages.infer import infer
from tests.data.conftest import build_nifti
from tests.streaming import stand_in, voxels

Model = Callable[..., Path]


@pytest.mark.parametrize("where", ["read", "write", "network"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_failure_on_the_way_comes_out_and_leaves_nothing(
    tmp_path: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch, where: str, suffix: str
) -> None:
    """Whichever thread it happens in."""
    stand_in(monkeypatch)
    source = build_nifti(tmp_path / f"scan{suffix}", voxels("int16"))
    model = identity_model(3)
    places = {
        "read": ("adl_monai.data.nifti.stream.NiftiSource.read", KeyError),
        "write": ("adl_monai.data.nifti.sink.quantise", OSError),
        "network": ("tests.streaming.brighter", KeyError),
    }
    name, kind = places[where]
    calls: list[int] = []

    def fail(*arguments: Any) -> None:
        calls.append(threading.get_ident())
        raise kind(28, "No space left on device")

    monkeypatch.setattr(name, fail)
    before = {*tmp_path.rglob("*"), tmp_path / "out"}
    threads = set(threading.enumerate())
    with pytest.raises(OutputError if kind is OSError else kind, match="No space left"):
        infer([source], tmp_path / "out" / f"o{suffix}", model=model, max_memory=0)
    assert calls
    assert (threading.get_ident() in calls) is (where != "write")
    assert set(tmp_path.rglob("*")) == before
    assert set(threading.enumerate()) == threads


def test_what_the_disk_did_not_keep_is_noticed(
    tmp_path: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    source = build_nifti(tmp_path / "scan.nii", voxels("int16"))
    model = identity_model(3)

    def damage(place: int, path: Path) -> None:
        raw = bytearray(path.read_bytes())
        raw[place] ^= 1
        path.write_bytes(raw)

    in_description = 150
    for suffix, place, words in (
        (".nii", -1, "differs in voxels"),
        (".nii", in_description, "differs in header"),
        (".nii.gz", -1, "cannot be read back"),
    ):
        monkeypatch.setattr("adl_monai.data.nifti.sink.sync", partial(damage, place))
        with pytest.raises(OutputError, match=words):
            infer([source], tmp_path / "out" / f"o{suffix}", model=model, max_memory=0)
    assert not list((tmp_path / "out").iterdir())


def test_of_two_writers_one_wins(tmp_path: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    source = build_nifti(tmp_path / "scan.nii", voxels("int16"))
    target = tmp_path / "out" / "o.nii"

    def meanwhile(temporary: Path, path: Path, overwrite: bool) -> None:
        path.write_bytes(b"another's")
        publish(temporary, path, overwrite)

    monkeypatch.setattr("adl_monai.data.output.publish", meanwhile)
    with pytest.raises(OutputError, match="another process"):
        infer([source], target, model=identity_model(3), max_memory=0)
    assert target.read_bytes() == b"another's"
    assert list(target.parent.iterdir()) == [target]
