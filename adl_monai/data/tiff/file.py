"""The TIFF door, through tifffile: one grey 2D or 3D image, in any encoding.

Each page is looked at by itself: tifffile goes on without what it cannot find, logs it at most, and fills up with the
first page's words (measured with 2026.3). Which number is white (MINISWHITE) is left as it is, as in DICOM's
MONOCHROME1, and pixels come and go in the order in which they are stored.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adl_monai.data.geometry import lps_to_ras
from adl_monai.data.tiff.checks import check_pages
from adl_monai.data.tiff.words import check_words, in_one_run, is_ome, ome_fits, voxel_size
from adl_monai.data.volume import Volume, WritePlan, bare_spacing, plan_values, require_shape
from adl_monai.data.voxels import keeps_type, quantise, to_float32, warn_lost_digits
from adl_monai.errors import AdlError, OutputError, ScanFileError
from adl_monai.files import require_file
from adl_monai.quiet import quiet_libraries

logger = logging.getLogger("adl_monai")

# What a page says of itself beside its pixels: names, description, device, orientation, place, date, people, and what
# ImageJ keeps (overlays, slice labels, lookup tables).
_DESCRIPTION, _ORIENTATION = 270, 274
_DESCRIPTIVE = (269, _DESCRIPTION, 271, 272, _ORIENTATION, 285, 286, 287, 297, 305, 306, 315, 316, 33432, 50838, 50839)
_WRITABLE_TYPES = [np.dtype(code) for code in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")]
_CLASSIC_LIMIT = 2**32 - 2**25  # bytes that a file with offsets of 32 bits may have, less room for the directories
_BACKWARDS = {1: (False, False), 2: (True, False), 3: (True, True), 4: (False, True)}  # columns, rows, by orientation


@dataclass(frozen=True)
class _Scan:
    """An open file whose pages were found to be the slices of one volume."""

    file: Any
    pages: list[Any]
    texts: list[str]

    @property
    def shape(self) -> tuple[int, ...]:
        columns, rows = self.pages[0].imagewidth, self.pages[0].imagelength
        return (columns, rows, len(self.pages)) if len(self.pages) > 1 else (columns, rows)

    @property
    def size(self) -> list[float]:
        upper, lower = zip(*_resolution(self.pages[0]), strict=True)
        return voxel_size(self.texts, [upper[0] / lower[0], upper[1] / lower[1]], self.pages[0].resolutionunit)


def read_tiff(path: Path) -> Volume:
    """Read a grey TIFF: one page, or pages that are the slices of one volume.

    Voxel sizes are those of ImageJ's or OME's words, or the resolution; a size that is unknown counts as that of the
    other axes, or as 1 mm.

    Raises:
        UsageError: If there is no such file.
        ScanFileError: If it is damaged or cut short, or holds colour, several samples a pixel, channels, time points or
            several images, or NaN or infinite values.
    """
    volume = _read(path)
    warn_lost_digits(volume.array, volume.dtype, path)
    return volume


def tiff_shape(path: Path) -> tuple[int, ...]:
    """(columns, rows[, slices]) of what `read_tiff` would read."""
    with _opened(path) as scan:
        return scan.shape


def warn_inverted(path: Path, like: Path) -> None:
    """Warn if 0 is white in the TIFF ``like``, which no other format can say, where it is to be written as one."""
    with _opened(like) as scan:
        if scan.pages[0].photometric == 0:
            logger.warning("%s: 0 is white in %s, but black in this format: it will be shown inverted.", path, like)


def plan_tiff(path: Path, array: np.ndarray, like: Path, dtype: str | np.dtype) -> WritePlan:
    """Plan a TIFF that says of itself what ``like`` does, in its byte order, uncompressed.

    OME-XML, which names the pixels' type and often files, is left out with a warning where it would be wrong; ImageJ's
    words then keep the voxel size.
    """
    with _opened(like) as scan:
        own, texts = scan.pages[0].dtype.newbyteorder("="), scan.texts
        target = own if keeps_type(dtype) else np.dtype(dtype)
        require_shape(array, scan.shape, like)
        later = [tag.code for page in scan.pages[1:] for tag in page.tags if tag.code in _DESCRIPTIVE]
        one_run = set(later) <= {_ORIENTATION} or any(in_one_run(text) for text in texts)
        pages = [_words(page) for page in (scan.pages[:1] if one_run else scan.pages)]
        if any(is_ome(text) and not ome_fits(text, target, scan.shape) for text in texts):
            logger.warning("%s: the OME-XML of %s does not describe this file and was left out.", path, like)
            tags = [tag for tag in pages[0]["extratags"] if tag[0] != _DESCRIPTION]
            pages = [{**pages[0], **_imagej_words(scan.size, len(scan.pages)), "extratags": tags}]
        return _plan(array, target, pages, scan.file.byteorder, scan.file.is_bigtiff)


def plan_tiff_from_affine(path: Path, array: np.ndarray, affine: np.ndarray, dtype: str | np.dtype) -> WritePlan:
    """Plan a new TIFF that ImageJ reads with the voxel size of an affine; position and orientation are lost."""
    words = _imagej_words(bare_spacing(affine, path), array.shape[2] if array.ndim == 3 else 1)
    return _plan(array, np.dtype(dtype), [{"photometric": 1, **words}])


def _plan(
    array: np.ndarray, dtype: np.dtype, pages: list[dict[str, Any]], order: Literal["<", ">"] = "<", big: bool = False
) -> WritePlan:
    """Plan pages, each with `TiffWriter.write`'s options; with the first's for all in one run if there are no more."""
    if dtype not in _WRITABLE_TYPES:
        names = ", ".join(known.name for known in _WRITABLE_TYPES)
        raise OutputError(f"tiff files hold {names}; got {dtype.name}. Write .mha or .nii.gz instead.")
    if array.shape[2:] == (1,):
        raise OutputError(f"tiff files cannot hold shape {array.shape}; write .mha or .nii.gz instead.")
    stored, clipped = quantise(array, dtype.newbyteorder("="))
    runs = [stored.T] if len(pages) == 1 else list(stored.T)
    words = sum(len(tag[3]) for page in pages for tag in page.get("extratags", ())) + 512 * stored[0, 0].size
    big = big or stored.nbytes + words > _CLASSIC_LIMIT

    def write(path: Path) -> None:
        import tifffile

        with quiet_libraries("tifffile"), tifffile.TiffWriter(path, bigtiff=big, byteorder=order) as file:
            for run, options in zip(runs, pages, strict=True):
                file.write(run, contiguous=False, metadata=None, software=False, **options)

    return plan_values(write, "tiff", stored, clipped, None, _read)


def _read(path: Path) -> Volume:
    with _opened(path) as scan:
        stored = np.stack([page.asarray() for page in scan.pages]).reshape(scan.shape[::-1]).T
        affine = np.diag([*scan.size, 1.0])
        for axis, backwards in enumerate(_BACKWARDS[scan.pages[0].tags.valueof(_ORIENTATION, default=1)]):
            if backwards:
                affine[axis, 3] = affine[axis, axis] * (scan.shape[axis] - 1)
                affine[axis, axis] *= -1
    return Volume(to_float32(stored, path), lps_to_ras(affine), stored.dtype, "tiff", path)


@contextmanager
def _opened(path: Path) -> Iterator[_Scan]:
    import tifffile

    require_file(path)
    try:
        # The flags keep tifffile from calculating where pages lie.
        with (
            quiet_libraries("tifffile"),
            tifffile.TiffFile(path, is_scanimage=False, is_lsm=False, is_ndpi=False) as file,
        ):
            pages = check_pages(path, file)
            texts = [_text(_raw(tag)) for tag in pages[0].tags if tag.code == _DESCRIPTION]
            check_words(path, texts, len(pages))
            yield _Scan(file, pages, texts)
    except (AdlError, MemoryError):
        raise
    except Exception as error:  # of many kinds, as many as there are ways to damage a file
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise ScanFileError(f"{path}: this TIFF file is damaged, cut short or of a rare kind ({reason}).") from error


def _words(page: Any) -> dict[str, Any]:
    """`TiffWriter.write`'s options for what a page says of itself."""
    tags = [tag for tag in page.tags if tag.code in _DESCRIPTIVE]
    options = {
        "photometric": int(page.photometric),
        "extratags": [(tag.code, int(tag.dtype), tag.count, _raw(tag), tag.code != _ORIENTATION) for tag in tags],
    }
    if _resolution(page)[0][0]:
        unit = page.resolutionunit
        options |= {"resolution": _resolution(page), "resolutionunit": unit if unit in range(1, 6) else 1}
    return options


def _imagej_words(size: Sequence[float], slices: int) -> dict[str, Any]:
    many = f"images={slices}\nslices={slices}\n" if slices > 1 else ""
    words = f"ImageJ=1.11a\n{many}unit=mm\nspacing={size[2]:.10g}\n"
    return {"description": words, "resolution": (1 / size[0], 1 / size[1]), "resolutionunit": 1}


def _resolution(page: Any) -> list[tuple[int, int]]:
    """Pixels per unit along x and y as fractions; 0 / 1 if they are not usable."""
    found = [page.tags.valueof(code) for code in (282, 283)]
    usable = all(isinstance(one, tuple) and len(one) == 2 and min(one) > 0 for one in found)
    return found if usable else [(0, 1), (0, 1)]


def _raw(tag: Any) -> bytes:
    """A tag's bytes, in the file's order."""
    handle = tag.parent.filehandle
    handle.seek(tag.valueoffset)
    return bytes(handle.read(tag.valuebytecount))


def _text(raw: bytes) -> str:
    try:
        return raw.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        return raw.rstrip(b"\0").decode("latin-1")
