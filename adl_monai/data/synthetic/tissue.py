"""Heads of random contrast, after SynthSeg (Billot et al., Medical Image Analysis 86:102789, 2023).

The tissue maps are those of the ICBM 152 (2009) template inside nilearn, which is needed for training only: it is in
the extra ``adl_monai[train]``.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np

from adl_monai.data.synthetic.fields import blur, smooth_field
from adl_monai.data.synthetic.scan import as_scanned
from adl_monai.errors import UsageError

FILES = ("t1", "gm", "wm")
ENOUGH_HEAD = 0.25  # of the box; emptier boxes are drawn anew
MOST_TRIES = 20
VOXEL_SIZES = (1.2, 2.2)  # mm


def tissue(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A random box out of the head template, or a slice of it for 2D, its tissues in random greys.

    Args:
        shape: (H, W) or (H, W, D); what is longer than the head is filled with background.
        rng: Source of the randomness.

    Returns:
        float32 in [0, 1].

    Raises:
        UsageError: If nilearn is not installed.
    """
    return as_scanned(_head(shape, rng), rng, cut_out=0.0)


def coarse_tissue(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A head in larger voxels, as most scans have them: fine folds a voxel or two wide, and thick slices.

    The voxels of ``tissue`` are the template's, 1 mm, in which an averaged head is smooth. Here they are 1.2 to 2.2 mm,
    along every axis or, in one half, each axis its own, and sharp up to their own limit, as MRI samples them: of the
    finer head's frequencies the lowest are kept, with mirrored borders.

    Args:
        shape: As in ``tissue``.
        rng: Source of the randomness.

    Returns:
        float32 in [0, 1].

    Raises:
        UsageError: If nilearn is not installed.
    """
    sizes = rng.uniform(*VOXEL_SIZES, 1 if rng.uniform() < 0.5 else len(shape))
    sizes = np.broadcast_to(sizes, len(shape))
    head = _head(tuple(math.ceil(length * size) for length, size in zip(shape, sizes, strict=True)), rng)
    return as_scanned(_resampled(head, shape), rng, cut_out=0.0)


def _resampled(fine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The image in fewer voxels, without what is finer than they are."""
    from scipy.fft import dctn, idctn  # comes with nilearn

    kept = dctn(fine, norm="ortho")[tuple(slice(length) for length in shape)]
    return idctn(kept * math.sqrt(kept.size / fine.size), norm="ortho").astype(np.float32)


def _head(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """The head in random greys, as sharp as the template."""
    t1, grey, white = _templates()
    box = (*shape, 1) if len(shape) == 2 else shape
    order = rng.permutation(3)
    cut = [np.transpose(volume, order) for volume in (t1, grey, white)]
    for _ in range(MOST_TRIES):
        start = [int(rng.integers(0, max(1, full - size + 1))) for full, size in zip(cut[0].shape, box, strict=True)]
        window = tuple(slice(a, a + size) for a, size in zip(start, box, strict=True))
        if (cut[0][window] > 0.1).mean() > ENOUGH_HEAD:
            break
    t1, grey, white = (_fill(volume[window], box).reshape(shape).astype(np.float32) for volume in cut)

    # Every voxel is a mixture: grey matter, white matter, and the rest by its brightness on T1 (fluid, bone, skin).
    rest = np.clip(1 - grey - white, 0, 1)
    ramps = np.linspace(0, 1, 6)
    greys = np.concatenate([[0.0], rng.uniform(0.0, 1.0, len(ramps) - 1)])
    image = rest * np.interp(t1, ramps, greys).astype(np.float32)
    image += rng.uniform(0.1, 1) * grey + rng.uniform(0.1, 1) * white
    detail = t1 - blur(blur(blur(t1, 0.8), 0.8), 0.8)
    image += rng.uniform(-1, 1) * detail + rng.uniform(0, 0.03) * smooth_field(shape, rng, rng.uniform(3, 12)) * t1
    return image


def _fill(part: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.pad(part, [(0, length - have) for length, have in zip(shape, part.shape, strict=True)])


@lru_cache(maxsize=1)
def _templates() -> tuple[np.ndarray, ...]:
    """T1, grey and white matter at 1 mm, each float16 in [0, 1]."""
    try:
        import nilearn.datasets
    except ImportError as error:
        raise UsageError(
            "synthetic kind 'tissue' needs the ICBM template inside nilearn: pip install nilearn, or use another kind."
        ) from error
    from nibabel.nifti1 import Nifti1Image

    folder = Path(nilearn.datasets.__file__).parent / "data"
    maps = []
    for name in FILES:
        path = folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
        values = np.asarray(Nifti1Image.from_filename(path).dataobj, dtype=np.float32)
        maps.append(np.clip(values / values.max(), 0, 1).astype(np.float16))
    return tuple(maps)
