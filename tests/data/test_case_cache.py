"""Cases that are prepared ahead: all faults at once, and no more than the memory holds."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.transforms import Transform

from adl_monai.data import CaseCache, PatchDataset
from adl_monai.data.training.case_cache import Refusals
from adl_monai.errors import AdlError, OutOfMemoryError, OutputError, ScanFileError, SeriesGeometryError


class Faulty(Transform):
    """Raises what a case says."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        if "fault" in data:
            raise data["fault"]
        return {"image": torch.zeros(1, 8, 8, 8)}


class Faultless(Transform):
    """Leaves a case as it is."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        return data


def cases(**faults: Exception) -> list[dict[str, Any]]:
    return [{"name": "whole"}, *({"name": name, "fault": fault} for name, fault in faults.items()), {"name": "last"}]


def make(kind: str, data: list[dict[str, Any]]) -> CaseCache:
    return CaseCache(data, Faulty()) if kind == "cases" else PatchDataset(data, [Faulty()], 1)


@pytest.mark.parametrize("kind", ["cases", "patches"])
def test_all_faulty_scans_are_told_at_once(kind: str) -> None:
    faults = {"cut": ScanFileError("cut.nii is cut short"), "tilted": SeriesGeometryError("series 3 is tilted")}
    with pytest.raises(ScanFileError) as caught:
        make(kind, cases(**faults))
    assert str(caught.value).splitlines() == [
        "2 of 4 scans cannot be used; mend or remove them:",
        "  cut.nii is cut short",
        "  series 3 is tilted",
    ]


@pytest.mark.parametrize("kind", ["cases", "patches"])
def test_a_single_fault_is_told_as_it_is(kind: str) -> None:
    fault = SeriesGeometryError("series 3 is tilted")
    with pytest.raises(SeriesGeometryError) as caught:
        make(kind, cases(tilted=fault))
    assert caught.value is fault


def test_of_many_faults_the_first_are_listed() -> None:
    with pytest.raises(ScanFileError, match="25 of 27 scans cannot be used") as caught:
        CaseCache(cases(**{f"n{number}": ScanFileError(f"scan {number}.") for number in range(25)}), Faulty())
    lines = str(caught.value).splitlines()
    assert len(lines) == 22
    assert lines[-1].strip() == "and 5 more"


def test_as_many_faults_as_a_list_holds_leave_no_more() -> None:
    with pytest.raises(ScanFileError, match="20 of 22") as caught:
        CaseCache(cases(**{f"n{number}": ScanFileError(f"scan {number}.") for number in range(20)}), Faulty())
    assert str(caught.value).splitlines()[-1].strip() == "scan 19."


@pytest.mark.parametrize("fault", [OutputError("the disk is full"), ValueError("a mistake of ours")])
def test_what_is_not_a_scans_fault_ends_it_at_once(fault: Exception) -> None:
    with pytest.raises((AdlError, RuntimeError)) as caught:
        CaseCache(cases(cut=ScanFileError("cut short"), other=fault), Faulty())
    causes = [caught.value, caught.value.__cause__]
    assert fault in causes
    assert "cut short" not in str(caught.value)


def test_faulty_scans_do_not_stay_in_memory() -> None:
    kept = []

    def read() -> None:
        voxels = torch.zeros(8)
        kept.append(weakref.ref(voxels))
        raise ScanFileError("a voxel is NaN")

    refusals = Refusals(1)
    with refusals.collecting():
        try:
            read()
        except ScanFileError as fault:
            raise RuntimeError("as MONAI wraps it") from fault
    assert [str(error) for error in refusals.errors] == ["a voxel is NaN"]
    assert kept[0]() is None


def test_sound_cases_are_there() -> None:
    cache = CaseCache(cases(), Faulty())
    assert [cache[index]["image"].shape for index in range(2)] == [(1, 8, 8, 8)] * 2


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the bytes that are left."""
    module = "adl_monai.data.training.case_cache"
    monkeypatch.setattr(f"{module}.sys.platform", "linux")
    return lambda size: monkeypatch.setattr(f"{module}.available_memory", lambda: size)


def test_scans_that_fill_the_memory_are_refused_before_the_last(left: Callable[[int], None]) -> None:
    """Small ones, as long as as much is left as they take."""
    left(3000)  # a case takes 2048
    CaseCache(cases(), Faulty())
    with pytest.raises(OutOfMemoryError, match="2 of 3 take"):
        CaseCache([{}, {}, {}], Faulty())


def test_the_largest_scan_says_what_preparing_one_takes(
    left: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adl_monai.data.training.case_cache.LEAST_LEFT", 0)
    left(9000)
    scans = [{"image": torch.zeros(size)} for size in (2048, 512, 512)]  # 8192 bytes, then 10240 in all
    with pytest.raises(OutOfMemoryError, match="2 of 3 take"):
        CaseCache(scans, Faultless())
