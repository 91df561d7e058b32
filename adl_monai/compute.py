"""Devices, precision and memory layout: where and in which arithmetic a network runs.

Both training engines and inferers use these; they import nothing else of the package but the errors.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch

from adl_monai.errors import UsageError

DIVISOR = 8  # of the sizes that the networks take
MOST_LOADING_PROCESSES = 8
LEAST_SHARED_MEMORY = 2**30  # bytes; Docker gives a container 2**26


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` into a device that exists here.

    Args:
        name: ``auto`` takes CUDA where there is one, else the CPU.

    Raises:
        UsageError: If the named device does not exist on this machine.
    """
    if isinstance(name, torch.device):
        return name
    if not isinstance(name, str):
        raise UsageError(f"device is {name!r}; expected a name: auto, cpu, cuda, cuda:N or mps.")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name!r} is not a device name; expected auto, cpu, cuda, cuda:N or mps.") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UsageError(f"device {name!r} is not on this machine ({torch.cuda.device_count()} CUDA devices); use cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device 'mps' is not available on this machine; use cpu.")
    return device


def loading_processes(device: torch.device | str) -> int:
    """How many processes should draw training patches: none beside a CPU, whose cores all train; some beside a GPU.

    A GPU learns hundreds of patches a second, one core draws a few hundred. Processes hand over patches in shared
    memory, of which a container may have next to none; then a thread draws them, as on a CPU.

    Args:
        device: Where the network is trained.

    Returns:
        At most 8 for a process that trains; 0 for a thread.
    """
    if pick_device(device).type != "cuda" or sys.platform != "linux":
        return 0
    try:
        shared_memory = shutil.disk_usage("/dev/shm").free
    except OSError:
        return 0
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) // sharing
    return 0 if shared_memory < LEAST_SHARED_MEMORY * sharing else max(0, min(MOST_LOADING_PROCESSES, cores - 1))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype a network's convolutions run in, or None for plain float32.

    Args:
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``. ``auto`` takes bfloat16 where the hardware multiplies it
            faster (CPUs with AMX, or with AVX512-BF16 unless Intel's; CUDA from compute capability 8.0), else float32.
        device: Where the network runs.

    Raises:
        UsageError: For an unknown precision, or float16 on a CPU.
    """
    if precision == "fp32":
        return None
    if precision == "bf16":
        return torch.bfloat16
    if precision == "fp16":
        if device.type == "cpu":
            raise UsageError("precision fp16 is for GPUs; on a CPU use auto, bf16 or fp32.")
        return torch.float16
    if precision == "auto":
        return torch.bfloat16 if _faster_in_bfloat16(device) else None
    raise UsageError(f"precision {precision!r} is unknown; expected auto, fp32, bf16 or fp16.")


def training_precision(precision: str, device: torch.device, patch: Sequence[int]) -> str:
    """The precision in which patches of a size can be trained.

    oneDNN's bfloat16 weight gradient of a 3D convolution reads memory that nobody wrote where the feature map's first
    axis has fewer than 3 voxels (torch 2.13 on a CPU with AVX512-BF16: gradients differ from run to run, some are NaN).
    The network's coarsest features are ``DIVISOR`` times smaller than the patch, so small patches need float32.

    Args:
        precision: As in ``autocast_dtype``.
        device: Where the network runs.
        patch: Spatial size of the patches.

    Returns:
        ``precision``, or ``fp32`` where that is ``auto`` and bfloat16 would be wrong.

    Raises:
        UsageError: If ``bf16`` was asked for where it would be wrong.
    """
    affected = len(patch) == 3 and device.type == "cpu" and min(patch) < 3 * DIVISOR
    if not affected or autocast_dtype(precision, device) is None:
        return precision
    if precision == "auto":
        return "fp32"
    raise UsageError(
        f"precision {precision} gives wrong gradients for patches of {tuple(patch)} on a CPU; "
        f"use patches of at least {3 * DIVISOR} voxels along each axis, or precision fp32."
    )


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The autocast context of ``autocast_dtype``; float32 is kept within a caller's autocast too."""
    dtype = autocast_dtype(precision, device)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def channels_last(spatial_dims: int) -> torch.memory_format:
    """The memory format in which convolutions of 2D or 3D images run fastest."""
    return torch.channels_last if spatial_dims == 2 else torch.channels_last_3d


def place(network: torch.nn.Module, device: torch.device, spatial_dims: int) -> torch.nn.Module:
    """Move a network to its device, in the memory format of ``channels_last``; returns the same module."""
    return network.to(device=device, memory_format=channels_last(spatial_dims))  # type: ignore[call-overload]


def unwrap(network: torch.nn.Module) -> torch.nn.Module:
    """The network inside a ``DistributedDataParallel``, or the network itself."""
    if isinstance(network, torch.nn.parallel.DistributedDataParallel):
        return network.module
    return network


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16: CUDA from compute capability 8.0, CPUs with AMX or AVX512-BF16.

    Not whether they are faster than float32's: see ``autocast_dtype``.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def _faster_in_bfloat16(device: torch.device) -> bool:
    if device.type == "cpu" and not torch.cpu._is_amx_tile_supported() and _is_intel():
        # Without AMX, which virtual machines may hide, a Xeon multiplied bfloat16 at half the rate of float32.
        return False
    return multiplies_bfloat16(device)


def _is_intel() -> bool:
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.10 has none
    return str(capabilities.get("cpu_name", "")).startswith("Intel")
