"""Synthetic images and volumes: clean ones of endless supply, without a download or a patient, free to use.

For training the shipped models, for tests, demonstrations and benchmarks. Every kind is a function of a shape and a
random generator in a file of its own idea.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from adl_monai.data.synthetic.fields import clouds, layers
from adl_monai.data.synthetic.leaves import dead_leaves
from adl_monai.data.synthetic.photographs import photo
from adl_monai.data.synthetic.scan import scan
from adl_monai.data.synthetic.textures import textures
from adl_monai.data.synthetic.tissue import coarse_tissue, tissue
from adl_monai.data.synthetic.vessels import angiogram, vessels
from adl_monai.data.volume import Volume
from adl_monai.errors import UsageError
from adl_monai.files import SYNTHETIC

__all__ = ["KINDS", "read_synthetic", "synthetic_volume"]

MAX_VOXELS = 512**3
DEFAULTS = {"kind": "leaves", "shape": "64x64x64", "seed": "0"}
KINDS: dict[str, Callable[[tuple[int, ...], np.random.Generator], np.ndarray]] = {
    "leaves": dead_leaves,
    "clouds": clouds,
    "layers": layers,
    "scan": scan,
    "textures": textures,
    "vessels": vessels,
    "angiogram": angiogram,
    "tissue": tissue,
    "coarse_tissue": coarse_tissue,
    "photo": photo,
}


def synthetic_volume(shape: Sequence[int], seed: int, kind: str = "leaves") -> np.ndarray:
    """A clean image, the same for the same arguments.

    Args:
        shape: (H, W) or (H, W, D).
        seed: >= 0.
        kind: ``leaves``, ``clouds``, ``layers``, ``scan`` (all of them in one made-up scan), ``textures`` (leaves with
            stripes, weaves and grain), ``vessels`` (thin ones, and spots, on a smooth background or on leaves,
            layers and clouds), ``angiogram`` (vessels, thin and wide, where all else was cut away), ``tissue`` (a head
            of random contrast; needs nilearn), ``coarse_tissue`` (the same in voxels of 1.2 to 2.2 mm) or ``photo`` (a
            crop of a photograph, 2D only; needs scikit-image).

    Returns:
        float32 array of ``shape`` in [0, 1].

    Raises:
        UsageError: For an unknown kind, a shape that is neither 2D nor 3D, empty or beyond 512³ voxels, a volume of a
            kind that has images only, a package that the kind needs and that is missing, or a negative seed.
    """
    size = tuple(int(length) for length in shape)
    if len(size) not in (2, 3) or min(size) < 1 or math.prod(size) > MAX_VOXELS:
        given = "x".join(map(str, size))
        raise UsageError(
            f"synthetic shape {given!r} given; expected HxW or HxWxD, each at least 1, at most 512³ voxels in all."
        )
    if seed < 0:
        raise UsageError(f"synthetic seed {seed} given; expected an integer >= 0.")
    if kind not in KINDS:
        raise UsageError(f"synthetic kind {kind!r} is unknown; expected one of {', '.join(KINDS)}.")
    return KINDS[kind](size, np.random.default_rng(seed))


def read_synthetic(spec: str) -> Volume:
    """The volume that a specification such as ``synthetic:kind=leaves,shape=64x64x64,seed=3`` describes.

    Args:
        spec: ``synthetic:`` and any of ``kind``, ``shape``, ``seed``; what is left out is ``leaves``, ``64x64x64``,
            ``0``.

    Returns:
        A volume with identity affine (voxels of 1 mm), dtype float32, format ``synthetic`` and the specification as
        its path.

    Raises:
        UsageError: For an unknown or repeated field or a value that makes no sense, by name.
    """
    if not spec.startswith(SYNTHETIC):
        raise UsageError(f"{spec!r} is not a synthetic volume; expected {SYNTHETIC}kind=leaves,shape=64x64x64,seed=0.")
    given: dict[str, str] = {}
    for field in filter(None, spec.removeprefix(SYNTHETIC).split(",")):
        name, _, value = (part.strip() for part in field.partition("="))
        if name not in DEFAULTS or name in given or not value:
            raise UsageError(
                f"{spec!r}: field {field!r} is unknown, repeated or empty; expected {', '.join(DEFAULTS)}, each once."
            )
        given[name] = value
    fields = DEFAULTS | given
    if not re.fullmatch(r"[0-9]+(x[0-9]+){1,2}", fields["shape"]):
        raise UsageError(f"{spec!r}: shape={fields['shape']!r} given; expected whole numbers as in 64x64 or 64x64x32.")
    if not re.fullmatch(r"[0-9]+", fields["seed"]):
        raise UsageError(f"{spec!r}: seed={fields['seed']!r} given; expected a whole number >= 0.")
    shape = tuple(int(length) for length in fields["shape"].split("x"))
    image = synthetic_volume(shape, int(fields["seed"]), fields["kind"])
    return Volume(array=image, affine=np.eye(4), dtype=np.dtype(np.float32), format="synthetic", path=Path(spec))
