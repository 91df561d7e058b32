"""What a training is given, looked at before anything is read, built or written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from adl_monai.compute import DIVISOR
from adl_monai.errors import AdlError, UsageError
from adl_monai.manifest import Case, Manifest
from adl_monai.manifest_format import listing
from adl_monai.stages.run_options import Options


def check_values(root: Path, configs: Sequence[str], options: Options) -> None:
    """Hold the options to the configs' values: their names, and what kind of value each is.

    Raises:
        UsageError: Naming the first that is not usable.
    """
    known = ConfigParser.load_config_files([str(root / "configs" / f"{name}.json") for name in configs])
    for name, value in options.overrides.items():
        _refuse_unknown(name, known)
        _refuse_another_kind(name, value, _look_up(name, known))
        if name.endswith("_def#spatial_dims") and value != options.spatial_dims:
            raise UsageError(f"{name} is {value}, and a {options.spatial_dims}D model is to be trained; use --dims.")
    for name, (usable, expected) in _RANGES.items():
        value = options.overrides.get(name)
        if _is_data(value) and not usable(value):
            raise UsageError(f"{name} is {value}; expected {expected}.")
    _check_patches({**known, **options.overrides}, options.spatial_dims)


def check_dims(manifest: Manifest, spatial_dims: int) -> None:
    """Refuse 2D scans where a 3D model is to be trained; a 2D model takes volumes too, slice by slice.

    Raises:
        UsageError: Naming them, and the way out.
    """
    cases = (*manifest.training, *manifest.validation)
    flat = [case.image for case in cases if _is_flat(case)] if spatial_dims == 3 else []
    if flat:
        way_out = "pass --dims 2 to train a 2D model"
        if len(flat) < len(cases):
            way_out += " (it takes slices of the volumes too), or leave them out"
        raise UsageError(
            f"{manifest.path}: {len(flat)} of {len(cases)} scans are 2D, and a 3D model is to be trained: "
            f"{listing(flat)}; {way_out}."
        )


def _refuse_unknown(name: str, known: Mapping[str, Any]) -> None:
    """MONAI would add what no config mentions and nothing reads: a typing error would train something else."""
    section, *rest = name.split("#")
    values: Any = known
    for part in (section, *rest[:1]) if section in ("train", "validate") else (section,):  # below, new arguments
        if part not in values:
            alike = get_close_matches(part, values, n=1)
            advice = f"did you mean {alike[0]}?" if alike else f"known are {', '.join(sorted(values))}."
            raise UsageError(f"{name} is no value of the bundle's train.json; {advice}")
        values = values[part]
    for length in range(1, len(rest) + 1):  # what MONAI would set a part of has to have parts
        above = "#".join([section, *rest][:length])
        value = _look_up(above, known)
        if _is_plain(value):
            advice = "leave --device out: each process has its own" if name == "device#name" else f"set {above}"
            raise UsageError(f"{name} cannot be set, for {above} is {value!r} in the bundle's configs; {advice}.")


def _refuse_another_kind(name: str, value: Any, usual: Any) -> None:
    """Where the config has numbers, a text or NaN would end in an error that names neither, or in none."""
    if not _is_data(value):
        return
    if isinstance(usual, bool):
        if value not in (True, False):
            raise UsageError(f"{name} is {value!r}; expected True or False.")
    elif isinstance(usual, list) and usual and all(_is_number(item) for item in usual):
        if isinstance(value, str) or (isinstance(value, list | tuple) and not all(map(_is_number, value))):
            raise UsageError(f"{name} is {value!r}; expected a list of numbers, such as {usual}.")
        if name in _PER_AXIS and (not isinstance(value, list | tuple) or len(value) != len(usual)):
            raise UsageError(f"{name} is {value!r}; expected {len(usual)} numbers, such as {usual}.")
    elif _is_number(usual) and (isinstance(value, str | list | tuple) or value != value or value in _INFINITE):
        raise UsageError(f"{name} is {value!r}; expected a number, such as {usual}.")
    elif _is_whole(usual) and isinstance(value, float) and not value.is_integer():
        raise UsageError(f"{name} is {value}; expected a whole number, such as {usual}.")


def _check_patches(values: Mapping[str, Any], spatial_dims: int) -> None:
    size = values["patch_size"]
    if _is_data(size):
        axes = size[:spatial_dims]
        if not all(_is_whole(axis) and axis > 0 for axis in size):
            raise UsageError(f"patch_size is {size}; expected whole numbers of at least 1.")
        if any(axis % DIVISOR for axis in axes):
            pad = [*(math.ceil(axis / DIVISOR) * DIVISOR for axis in axes), *size[spatial_dims:]]
            raise UsageError(f"patch_size is {size}; expected multiples of {DIVISOR}, such as {pad}.")
        if spatial_dims == 2 and size[2] != 1:
            raise UsageError(f"patch_size is {size}; a 2D model learns from slices, so expected {[*axes, 1]}.")
    patches, batch = values["patches_per_epoch"], values["batch_size"]
    if _is_whole(patches) and _is_whole(batch) and 0 < patches < batch:
        raise UsageError(
            f"patches_per_epoch is {patches} and batch_size {batch}, so an epoch has not one batch; raise the one or "
            "lower the other."
        )


def _is_flat(case: Case) -> bool:
    """Whether an image is 2D, by its header; a scan that cannot be read is refused later, with all the others."""
    if case.synthetic_axes:
        return case.synthetic_axes == 2
    from adl_monai.data.dicom.read import locate
    from adl_monai.data.formats import scan_format
    from adl_monai.data.nifti.file import peek_header
    from adl_monai.data.tiff.file import tiff_shape

    path = Path(case.image)
    kind = scan_format(path)
    try:
        if kind == "nifti":
            return len(peek_header(path).shape) == 2
        if kind == "dicom":
            single = path.is_file() or len(list(islice(path.iterdir(), 3))) < 3  # else a series, to be read only once
            return single and len(locate(path).shape) == 2
        if kind == "tiff":
            return len(tiff_shape(path)) == 2
        if kind in ("png", "jpeg", "bmp"):
            return True
        import SimpleITK as sitk

        reader = sitk.ImageFileReader()
        reader.SetFileName(case.image)
        reader.ReadImageInformation()
        return int(reader.GetDimension()) == 2
    except (AdlError, OSError, RuntimeError):
        return False


def _look_up(name: str, known: Mapping[str, Any]) -> Any:
    value: Any = known
    for part in name.split("#"):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _is_data(value: Any) -> bool:
    """Whether a value is given, and no expression of MONAI's."""
    return value is not None and not (isinstance(value, str) and value.startswith(("$", "@", "%")))


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_INFINITE = (math.inf, -math.inf)
_PER_AXIS = ("patch_size", "validation_size", "intensity_percentiles", "noise_sigma")
_RANGES = {
    "seed": (lambda value: _is_whole(value) and 0 <= value < 2**32, "a whole number from 0 to 2^32 - 1"),
    "cache_rate": (lambda value: 0 <= value <= 1, "a share from 0 to 1"),
    "range_jitter": (lambda value: 0 <= value <= 1, "a share from 0 to 1"),
    "intensity_percentiles": (
        lambda value: 0 <= value[0] < value[1] <= 100,
        "two numbers that rise, from 0 to 100, such as [0.5, 99.5]",
    ),
    "intensity_range": (
        lambda value: (
            isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value)) and value[0] < value[1]
        ),
        "two numbers that rise, in the unit of the scans, such as [-1024, 3071]",
    ),
}
