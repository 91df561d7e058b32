"""MONAI's side of the doors: an ImageReader for `LoadImaged`, and a transform that saves like the source."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor
from monai.transforms import LoadImaged, SaveImaged

from adl_monai.data.derivation import Derivation
from adl_monai.data.formats import OUTPUT_SUFFIXES, output_format, scan_format, scan_stem, scan_suffix
from adl_monai.data.io import read_volume, write_volume
from adl_monai.data.noise_floor import keeps_means
from adl_monai.data.output import make_folder_of
from adl_monai.data.volume import Volume
from adl_monai.errors import ScanFileError, UsageError
from adl_monai.files import SYNTHETIC
from adl_monai.quiet import quiet_libraries

logger = logging.getLogger(__name__)

OUTPUT = "output"  # where an item may name its own output
_FILTERS = Lock()  # threads share the filters of warnings, and each puts back those that it found
_FALLBACK_SUFFIX = {"dicom": ".dcm", "jpeg": ".png", "bmp": ".png", "mha": ".mha"}


class VolumeReader(ImageReader):
    """Reads every format of `adl_monai.data.io.read_volume`, for ``LoadImaged(keys, reader=VolumeReader())``.

    The padding of a DICOM image (PixelPaddingValue) comes as the smallest value of the image proper, so that it neither
    sets the intensity range nor makes an edge; `SaveImageLiked` puts it back, as it does NaN voxels that are kept.

    The metadata holds ``affine`` and ``original_affine`` (4x4, RAS mm; for 2D images too), ``spatial_shape``,
    ``original_channel_dim`` ("no channel"), ``filename_or_obj``, ``stored_dtype``, ``scan_format``, ``modality`` (of
    DICOM; else empty) and ``series``.
    Names that start with ``synthetic:`` are generated instead of read.

    Args:
        series: SeriesInstanceUID or SeriesNumber to take from folders of several DICOM series.
        nan_policy: As in `read_volume`.
    """

    def __init__(self, series: str | None = None, nan_policy: str = "refuse") -> None:
        super().__init__()
        self.series = series
        self.nan_policy = nan_policy

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        """Whether every name is of a format that `read_volume` reads."""
        names = [filename] if isinstance(filename, str | Path) else list(filename)
        return all(str(name).startswith(SYNTHETIC) or bool(scan_format(Path(name))) for name in names)

    def read(self, data: Sequence[Any] | Any, **kwargs: Any) -> list[str]:
        """Note the file to read; `get_data` reads it.

        `LoadImage` answers any error of ``read`` by trying MONAI's own, more forgiving readers on the same file. A scan
        that is refused here must stay refused.
        """
        return [str(data)] if isinstance(data, str | Path) else [str(name) for name in data]

    def get_data(self, img: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
        """The float32 array (columns, rows[, slices]) and its metadata.

        Raises:
            AdlError: As `read_volume` does; UsageError for more than one file.
        """
        if len(img) != 1:
            raise UsageError(f"{len(img)} files given for one image; expected one scan (one channel).")
        name = img[0]
        volume = self._load(name)
        meta = {
            "affine": volume.affine.copy(),
            "original_affine": volume.affine.copy(),
            "spatial_shape": np.array(volume.array.shape),
            "original_channel_dim": float("nan"),
            "space": "RAS",
            "filename_or_obj": name,
            "stored_dtype": volume.dtype.str,
            "scan_format": volume.format,
            "modality": volume.modality,
            "series": self.series or "",
        }
        return volume.without_padding(), meta

    def _load(self, name: str) -> Volume:
        if name.startswith(SYNTHETIC):
            from adl_monai.data.synthetic import read_synthetic

            return read_synthetic(name)
        return read_volume(Path(name), self.series, self.nan_policy)


class StrictLoadImaged(LoadImaged):
    """`LoadImaged` that knows `VolumeReader` alone, in float32.

    Args:
        keys: Keys of the names to load.
        series: SeriesInstanceUID or SeriesNumber to take from folders of several DICOM series.
        ensure_channel_first: Add the channel axis at once.
        allow_missing_keys: As in every MONAI transform.
        nan_policy: As in `adl_monai.data.io.read_volume`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        series: str | None = None,
        ensure_channel_first: bool = False,
        allow_missing_keys: bool = False,
        nan_policy: str = "refuse",
    ) -> None:
        reader = VolumeReader(series, nan_policy)
        with _FILTERS, warnings.catch_warnings(), quiet_libraries("monai"):
            # About the optional parts of readers that are thrown away below.
            warnings.simplefilter("ignore")
            super().__init__(
                keys,
                reader,  # type: ignore[arg-type]  # MONAI takes instances too
                ensure_channel_first=ensure_channel_first,
                allow_missing_keys=allow_missing_keys,
            )
        self._loader.readers = [reader]


class SaveImageLiked(SaveImaged):
    """Write an image like the scan it came from: same format, geometry, type and scale.

    It is a `SaveImaged`, whose own writing it replaces, so that MONAI Label, which writes by itself, leaves it out.

    The output is ``<output_dir>/<source's name>_<output_postfix><source's suffix>``, or the path in
    ``data["output"]``. A DICOM series gives a folder with a derived series, a DICOM file a derived file. Adds
    ``<key>_path`` (str) and ``<key>_clipped`` (number of saturated voxels).

    Args:
        keys: Images to write: channel-first tensors (1, H, W[, D]) in the source's orientation and shape.
        source_key: The image whose metadata names the source.
        output_dir: Made if it does not exist.
        output_postfix: Added to the name after an underscore; may be empty.
        output_ext: Suffix of the output; None takes the source's (JPEG and BMP become .png).
        dtype: ``same`` or a type, see `adl_monai.data.io.write_volume`.
        overwrite: Whether existing files may be replaced; an item may bring its own ``overwrite``.
        checkpoint: The weights that made the images, ``<bundle>/models/model.pt``: DICOM outputs name the model and the
            SHA-256 of this file.
        settings: What else decided about the images, ``ensemble``, ``strength`` and ``noise_floor``, for the same.
        allow_missing_keys: As in every MONAI transform.
        nan_policy: With which the sources are read.
    """

    def __init__(
        self,
        keys: KeysCollection,
        source_key: str = "image",
        output_dir: str | Path = ".",
        output_postfix: str = "denoised",
        output_ext: str | None = None,
        dtype: str | np.dtype = "same",
        overwrite: bool = False,
        checkpoint: str | Path | None = None,
        allow_missing_keys: bool = False,
        nan_policy: str = "refuse",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys=allow_missing_keys)
        self.settings = settings
        self.nan_policy = nan_policy
        self.checkpoint = checkpoint
        self.source_key = source_key
        self.output_dir = Path(output_dir)
        self.output_postfix = output_postfix
        self.output_ext = output_ext
        self.dtype = dtype
        self.overwrite = overwrite

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write ``data[key]`` for every key.

        Raises:
            ScanFileError: If an image has more than one channel.
            OutputError: If the output exists, is the source, or cannot be written.
        """
        item = dict(data)
        for key in self.key_iterator(item):
            path, clipped = self._save(item[key], item)
            item[f"{key}_path"], item[f"{key}_clipped"] = str(path), clipped
        return item

    def _save(self, image: torch.Tensor, item: Mapping[Hashable, Any]) -> tuple[Path, int]:
        meta = getattr(item[self.source_key], "meta", {})
        name = meta.get("filename_or_obj")
        if not name:
            raise UsageError(f"{self.source_key!r} has no filename_or_obj; load it with VolumeReader to save like it.")
        if image.shape[0] != 1:
            raise ScanFileError(f"{name}: the image to save has {image.shape[0]} channels; expected 1.")
        source = None if str(name).startswith(SYNTHETIC) else Path(name)
        if given := item.get(OUTPUT):
            path = Path(given)
        else:
            path = default_output_path(name, self.output_dir, self.output_postfix, self.output_ext)
        make_folder_of(path)
        affine = image.affine if isinstance(image, MetaTensor) else meta["original_affine"]
        clipped = write_volume(
            path,
            torch.as_tensor(image)[0].detach().float().cpu().numpy(),
            like=source,
            affine=np.asarray(affine, np.float64),
            dtype=self.dtype,
            series=meta.get("series") or None,
            overwrite=bool(item.get("overwrite", self.overwrite)),
            derivation=self._derivation(path, str(meta.get("modality", ""))),
            nan_policy=self.nan_policy,
        )
        logger.info("wrote %s", path)
        return path, clipped

    def _derivation(self, path: Path, modality: str) -> Derivation | None:
        if self.checkpoint is None or output_format(path) != "dicom":
            return None
        return Derivation.of_checkpoint(self.checkpoint, _in_words(modality, **(self.settings or {})))


def _in_words(modality: str, ensemble: int = 1, strength: float = 1.0, noise_floor: str = "remove") -> str:
    images = f"mean of {ensemble} mirror images, " if ensemble > 1 else ""
    floor = "local means kept" if keeps_means(noise_floor, modality) else "noise floor removed"
    return f"{images}strength {strength:g}, {floor}"


def default_output_path(
    source: str | Path, output_dir: str | Path, postfix: str = "denoised", ext: str | None = None
) -> Path:
    """``<output_dir>/<source's name>_<postfix><ext>``.

    Args:
        source: A scan, a DICOM folder (its name is taken) or a ``synthetic:`` specification.
        output_dir: The folder of the output.
        postfix: Empty for none.
        ext: None takes the source's own suffix where that can be written, else .png for photographs, .dcm for a DICOM
            file, none for a DICOM folder.
    """
    text = str(source)
    if text.startswith(SYNTHETIC):
        stem, suffix = re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-"), ".nii.gz"
    else:
        path = Path(os.path.abspath(source))  # names the folder "." and keeps the names of links
        is_folder = path.is_dir()
        stem, suffix = (path.name, "") if is_folder else (scan_stem(path), scan_suffix(path))
        if not is_folder and suffix.lower() not in OUTPUT_SUFFIXES:
            suffix = _FALLBACK_SUFFIX.get(scan_format(path), ".nii.gz")
    return Path(output_dir) / f"{stem}{'_' if postfix else ''}{postfix}{suffix if ext is None else ext}"
