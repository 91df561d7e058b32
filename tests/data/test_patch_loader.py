"""What goes wrong while patches are drawn ends the loop that takes them."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from monai.data import DistributedSampler
from monai.transforms import Transform
from torch.multiprocessing import get_sharing_strategy
from torch.utils.data import Dataset

from adl_monai.data import PatchDataset, PatchLoader
from adl_monai.errors import OutOfMemoryError, OutputError, ScanFileError, UsageError, is_out_of_memory, system_error


class Numbers(Dataset):
    """0 to 7; one of them raises, or has its process killed."""

    def __init__(self, fault: BaseException | int | None = None, at: int = 5) -> None:
        self.fault = fault
        self.at = at

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if index == self.at and isinstance(self.fault, int):
            os.kill(os.getpid(), self.fault)
        if index == self.at and isinstance(self.fault, BaseException):
            raise self.fault
        return index


class Faulty(Transform):
    """Raises what a case says."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        if "fault" in data:
            raise data["fault"]
        return {"image": torch.zeros(1, 8, 8, 8)}


def take(loader: PatchLoader, seen: list[int]) -> None:
    for batch in loader:
        seen.append(int(batch))


def drawing_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "enqueue_values" in thread.name]


@pytest.mark.parametrize("processes", [0, 2])
def test_an_error_comes_after_the_batches_before_it(processes: int) -> None:
    loader = PatchLoader(Numbers(ValueError("patch 5")), batch_size=1, num_workers=processes, buffer_size=4)
    seen: list[int] = []
    with pytest.raises(ValueError, match="patch 5") as caught:
        take(loader, seen)
    assert seen == [0, 1, 2, 3, 4]
    assert "__getitem__" in "".join(traceback.format_exception(caught.value))
    assert not drawing_threads()


def test_batches_come_as_from_any_loader() -> None:
    loader = PatchLoader(Numbers(), batch_size=4, buffer_size=2, repeats=2)
    for _ in range(2):
        assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]] * 2


@pytest.mark.parametrize("processes", [0, 1])
def test_who_stops_early_ends_the_thread(processes: int) -> None:
    loader = PatchLoader(Numbers(ValueError("patch 5")), batch_size=1, num_workers=processes, buffer_size=8)
    batches = iter(loader)
    next(batches)
    batches.close()
    assert not drawing_threads()


@pytest.mark.parametrize("processes", [0, 1])
@pytest.mark.parametrize(
    ("fault", "kind", "told"),
    [
        (ScanFileError("cut.nii: it is cut short.\nMend it."), ScanFileError, "cut.nii: it is cut short.\nMend it."),
        (OSError(28, "No space left on device"), OutputError, "No space left on device"),
        (MemoryError("unable to allocate 9 GiB"), MemoryError, "applying transform"),
        (TypeError("a mistake of ours"), RuntimeError, "applying transform"),
    ],
)
def test_a_fault_in_a_case_comes_as_itself(fault: Exception, kind: type[Exception], told: str, processes: int) -> None:
    """Also from another process, which hands on no causes, and MONAI wraps all in a ``RuntimeError``."""
    cases = [{"name": "whole"}, {"name": "other"}, {"name": "cut", "fault": fault}]
    patches = PatchDataset(cases, [Faulty()], 6, cache_num=2)
    with pytest.raises(kind) as caught:
        list(PatchLoader(patches, batch_size=1, num_workers=processes, buffer_size=4))
    assert type(caught.value) is kind
    if kind is ScanFileError:
        assert str(caught.value) == told
    assert told in str(caught.value)
    assert "Faulty" in "".join(traceback.format_exception(caught.value)), "where it was raised is told, too"


def test_a_killed_process_is_a_lack_of_memory() -> None:
    loader = PatchLoader(Numbers(int(signal.SIGKILL)), batch_size=1, num_workers=2, buffer_size=4)
    with pytest.raises(RuntimeError, match=r"killed by signal: Killed|exited unexpectedly") as caught:
        list(loader)
    assert is_out_of_memory(caught.value)


class HandedOverLast(Numbers):
    """What hands over its tensor lets go of the connection, then is killed: in between, no one knows that it dies."""

    def __getitem__(self, index: int) -> torch.Tensor:
        def hand_over(connection: Connection, *_: Any) -> None:
            connection.close()
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)

        if index == self.at:
            reduction.send_handle = hand_over
        return torch.full((2,), index)


@pytest.mark.skipif(get_sharing_strategy() != "file_descriptor", reason="tensors are not handed over by a connection")
def test_a_process_killed_while_it_hands_over_a_batch_is_a_lack_of_memory() -> None:
    loader = PatchLoader(HandedOverLast(), batch_size=1, num_workers=1, buffer_size=4)
    seen: list[torch.Tensor] = []
    with pytest.raises(RuntimeError, match=r"killed by signal: Killed|exited unexpectedly") as caught:
        seen.extend(loader)
    assert is_out_of_memory(caught.value)
    assert isinstance(user_facing := system_error(caught.value), OutOfMemoryError), user_facing


@pytest.mark.parametrize("processes", [0, 1])
def test_a_lost_connection_of_the_datasets_own_is_no_lack_of_memory(processes: int) -> None:
    lost = ConnectionResetError(104, "Connection reset by peer")
    loader = PatchLoader(Numbers(lost), batch_size=1, num_workers=processes, buffer_size=4)
    with pytest.raises(ConnectionResetError, match="reset by peer") as caught:
        list(loader)
    assert not is_out_of_memory(caught.value)


def test_an_epoch_without_a_batch_is_refused() -> None:
    with pytest.raises(UsageError, match=r"patches_per_epoch=8 with batch_size=9 leaves .* patches_per_epoch=9"):
        PatchLoader(Numbers(), batch_size=9, drop_last=True)
    sampler = DistributedSampler(Numbers(), even_divisible=True, shuffle=False, num_replicas=2, rank=0)
    told = "batch_size=5, shared by 2 processes, leaves .* patches_per_epoch=10"
    with pytest.raises(UsageError, match=told):
        PatchLoader(Numbers(), batch_size=5, sampler=sampler, drop_last=True)
    assert len(PatchLoader(Numbers(), batch_size=4, sampler=sampler, drop_last=True)) == 1
    assert len(PatchLoader(Numbers(), batch_size=9)) == 1
