"""Where and in which arithmetic a network runs."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from adl_monai.compute import (
    autocast,
    autocast_dtype,
    loading_processes,
    multiplies_bfloat16,
    pick_device,
    training_precision,
)
from adl_monai.errors import UsageError

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu9", "gpu", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        pick_device(name)


def test_processes_draw_patches_beside_a_gpu_where_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    assert loading_processes(CPU) == 0
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**33))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert loading_processes(CPU) == 0
    assert loading_processes(gpu) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # four GPUs share the cores
    assert loading_processes(gpu) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    assert loading_processes(gpu) == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**26))  # a container of Docker's
    assert loading_processes(gpu) == 0


def test_precision_names() -> None:
    assert autocast_dtype("fp32", CPU) is None
    assert autocast_dtype("bf16", CPU) is torch.bfloat16
    for name in ("fp16", "half"):
        with pytest.raises(UsageError, match=name):
            autocast_dtype(name, CPU)


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "name", "dtype"),
    [
        (True, True, "Intel Xeon", torch.bfloat16),
        (False, True, "Intel Xeon", None),  # half the rate of float32
        (False, True, "AMD EPYC", torch.bfloat16),
        (False, True, None, torch.bfloat16),  # a torch that does not name the processor
        (False, False, "AMD EPYC", None),
    ],
)
def test_the_default_is_bfloat16_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512_bf16: bool, name: str | None, dtype: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    if name is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name}, raising=False)
    assert autocast_dtype("auto", CPU) is dtype


@pytest.mark.skipif(
    not hasattr(torch.cpu, "get_capabilities") or platform.machine() not in ("x86_64", "AMD64"),
    reason="needs a torch that names x86 processors",
)
def test_torch_names_the_processor() -> None:
    # Not documented; without it an Intel processor would count as one that is faster in bfloat16.
    assert torch.cpu.get_capabilities()["cpu_name"]


def test_small_patches_train_in_float32() -> None:
    # The convolution that bfloat16 would spoil; see training_precision.
    assert training_precision("auto", CPU, (32, 32, 32)) == "auto"
    assert training_precision("auto", CPU, (16, 16)) == "auto"
    assert training_precision("fp32", CPU, (16, 16, 16)) == "fp32"
    assert training_precision("auto", CPU, (16, 32, 32)) == ("auto" if autocast_dtype("auto", CPU) is None else "fp32")
    with pytest.raises(UsageError, match="at least 24 voxels"):
        training_precision("bf16", CPU, (16, 32, 32))


@pytest.mark.skipif(not multiplies_bfloat16(CPU), reason="needs a CPU that multiplies bfloat16")
def test_gradients_of_patches_that_are_allowed_are_right() -> None:
    # What the guard above relies on: from 3 voxels on, the bfloat16 weight gradient is that of float32.
    torch.manual_seed(0)
    convolution = torch.nn.Conv3d(16, 16, 3, padding=1, bias=False).to(memory_format=torch.channels_last_3d)
    features = torch.rand(4, 16, 3, 3, 3).to(memory_format=torch.channels_last_3d)
    gradients = []
    for precision in ("fp32", "bf16"):
        convolution.zero_grad()
        with autocast(precision, CPU):
            convolution(features).float().square().sum().backward()
        gradients.append(convolution.weight.grad.clone())
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[0].norm()
