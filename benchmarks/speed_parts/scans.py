"""The images that are measured on: made on the spot, of a seed."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import torch

from adl_monai.data.degradations import Degradation
from adl_monai.data.synthetic import synthetic_volume

BLOCK = 128  # voxels; larger volumes are mirror images of a block of this edge, which would take long to make
SIGMA = 0.05  # of the intensity range
GREY_LEVELS = 1000  # int16 steps of the range


def clean_volume(edge: int, seed: int, kind: str = "scan") -> np.ndarray:
    """(edge, edge, edge) float32, about [0, 1]."""
    block = synthetic_volume((min(edge, BLOCK),) * 3, seed, kind)
    return np.pad(block, ((0, edge - block.shape[0]),) * 3, mode="symmetric")


def noisy_copy(clean: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    """With Gaussian noise of standard deviation ``sigma``."""
    return np.asarray(Degradation("gaussian", sigma, seed).apply(torch.from_numpy(clean)).numpy())


def write_scan(path: Path, edge: int, seed: int) -> Path:
    """Write a noisy int16 scan of ``edge`` voxels each way, slab by slab, so that any size can be made.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        edge: Voxels along each axis.
        seed: Of image and noise.

    Returns:
        ``path``.
    """
    size = min(edge, BLOCK)
    block = np.rint(noisy_copy(clean_volume(size, seed), SIGMA, seed) * GREY_LEVELS).astype(np.int16)
    slab = np.pad(block, ((0, edge - size), (0, edge - size), (0, 0)), mode="symmetric")
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((edge, edge, edge))
    header.set_sform(np.eye(4), code=1)
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352
    with gzip.open(path, "wb", compresslevel=6) if path.suffix == ".gz" else path.open("wb") as file:
        file.write(header.binaryblock + bytes(4))
        for start in range(0, edge, size):
            file.write(slab[..., : min(size, edge - start)].tobytes(order="F"))
    return path
