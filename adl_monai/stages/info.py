"""What is installed here: versions, devices, models at hand."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

from adl_monai.bundle import shipped_bundles
from adl_monai.compute import autocast_dtype, pick_device

PACKAGES = ("torch", "monai", "numpy", "nibabel", "pydicom", "SimpleITK", "pytorch-ignite")


def info() -> dict[str, Any]:
    """Facts for a bug report, free of paths and names."""
    device = pick_device("auto")
    dtype = autocast_dtype("auto", device)
    return {
        "adl_monai": version("adl_monai"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": str(device),
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "automatic_precision": "fp32" if dtype is None else str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "bundles": {
            name: "trained" if (root / "models" / "model.pt").is_file() else "no weights yet"
            for name, root in shipped_bundles().items()
        },
    }
