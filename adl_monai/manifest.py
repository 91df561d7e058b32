"""The manifest: which scans train, validate and test a model; parsed once, frozen, and held to what can be trusted.

Its files exist, its relative paths stay in its folder, and no subject is in two splits. A manifest is data: it never
passes through MONAI's ``ConfigParser``, so nothing in it is ever evaluated.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from adl_monai.errors import ManifestError, UsageError
from adl_monai.files import SYNTHETIC, named_path
from adl_monai.manifest_format import SPLITS, Frozen, ManifestFile, Split, SyntheticEntry, listing, parse_manifest

PACKAGE_PREFIX = "package:"


class Case(Frozen):
    """One case with absolute paths, or with a ``synthetic:kind=...,shape=...,seed=...`` string as its image.

    A path that is a link keeps its own name.
    """

    image: str
    label: str | None = None
    patient: str | None = None

    @property
    def synthetic_axes(self) -> int:
        """How many axes a synthetic image has; 0 for a scan."""
        return self.image.split(",")[1].count("x") + 1 if self.image.startswith(SYNTHETIC) else 0  # kind, shape, seed


class Manifest(Frozen):
    """A manifest whose files exist and whose splits share no subject."""

    path: Path
    name: str | None
    description: str | None
    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]


def load_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a manifest and check all that can be checked without reading an image.

    Args:
        path: The JSON file. Relative paths in it start at its folder (of the file itself, if ``path`` is a link).

    Raises:
        ManifestError: For a JSON error, a duplicate or unknown key, a path that leaves the manifest's folder, missing
            files (all of them in one message), a subject in two splits, or no case at all.
    """
    path = Path(path)
    content = parse_manifest(path, _read_bytes(path))
    folder = path.resolve().parent
    missing: list[str] = []
    splits = {split: tuple(_resolve_split(path, folder, content, split, missing)) for split in SPLITS}
    if missing:
        raise ManifestError(
            f"{path}: {len(missing)} of its files do not exist: {listing(missing)}. Expected files or folders, "
            f"relative to {folder}; mend the paths, fetch the data, or install the package that package: names."
        )
    if not any(splits.values()):
        raise ManifestError(f"{path} lists no case; expected at least one under {', '.join(SPLITS)}.")
    _check_subjects(path, splits)
    return Manifest(path=path, name=content.name, description=content.description, **splits)


def load_cases(
    path: str | os.PathLike[str], split: str, *, check: bool = True, pairs: bool | None = None
) -> list[dict[str, str]]:
    """One split as MONAI's datasets take it; bundle configs name this function as ``_target_``.

    Args:
        path: The manifest.
        split: ``training``, ``validation`` or ``test``.
        check: Read the split's noisy/clean pairs once to see that they lie on the same grid (``check_pairs``).
        pairs: Only the noisy/clean pairs, or only the cases that stand alone; None takes both.

    Returns:
        A list of ``{"image": ..., "label": ...}`` with absolute paths; ``label`` only for pairs. May be empty.

    Raises:
        UsageError: For an unknown split.
        ManifestError: As ``load_manifest`` and ``check_pairs``.
    """
    if split not in SPLITS:
        raise UsageError(f"split {split!r} is unknown; expected one of {', '.join(SPLITS)}.")
    manifest = load_manifest(path)
    cases: tuple[Case, ...] = getattr(manifest, split)
    if check:
        _check_grids(manifest.path, cases)
    chosen = [case for case in cases if pairs is None or pairs == (case.label is not None)]
    return [case.model_dump(include={"image", "label"}, exclude_none=True) for case in chosen]


def check_pairs(manifest: Manifest) -> None:
    """Read every noisy/clean pair and hold its two scans to one grid.

    The affines may differ by rounding (``adl_monai.data.geometry.same_affine``). Pairs whose intensities do not go
    together are warned of (``adl_monai.data.pair_intensities``).

    Raises:
        ManifestError: For pairs that differ in shape or affine; all of them in one message.
        ScanFileError: For a scan that cannot be read.
    """
    _check_grids(manifest.path, [case for split in SPLITS for case in getattr(manifest, split)])


def stays_in(folder: Path, path: Path) -> bool:
    """Whether a file, or a folder with what lies right in it, is in a (resolved) folder, wherever links lead."""
    return all(item.is_relative_to(folder) for item in _reached(path.resolve()))


def manifest_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the manifest file's bytes, as hexadecimal; it says nothing of the scans' content."""
    return hashlib.sha256(_read_bytes(Path(path))).hexdigest()


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ManifestError(f"manifest {path} cannot be read ({reason}); expected a JSON file.") from error


def _resolve_split(path: Path, folder: Path, content: ManifestFile, split: Split, missing: list[str]) -> Iterator[Case]:
    for index, entry in enumerate(getattr(content, split)):
        if isinstance(entry, SyntheticEntry):
            spec = entry.synthetic
            shape = "x".join(str(size) for size in spec.shape)
            for seed in range(spec.seed, spec.seed + spec.count):
                yield Case(image=f"{SYNTHETIC}kind={spec.kind},shape={shape},seed={seed}")
            continue
        found: dict[str, str] = {}
        for key, text in (("image", entry.image), ("label", entry.label)):
            resolved = _resolve(f"{path}: {split}[{index}].{key}", text, folder) if text else None
            if resolved:
                found[key] = str(resolved)
            elif text:
                missing.append(f"{split}[{index}].{key} {text}")
        if len(found) == 2 and os.path.samefile(found["image"], found["label"]):
            raise ManifestError(f"{path}: {split}[{index}] names one file twice; a clean image stands without a label.")
        yield Case(image=found.get("image", ""), label=found.get("label"), patient=entry.patient)


def _resolve(place: str, text: str, folder: Path) -> Path | None:
    """The absolute path of a file or folder that exists, or None."""
    if text.startswith(SYNTHETIC):
        raise ManifestError(f'{place}: write synthetic cases as {{"synthetic": {{"shape": [64, 64, 64]}}}}.')
    packaged = text.startswith(PACKAGE_PREFIX)
    path = _in_package(place, text) if packaged else folder / text
    if path is None:
        return None
    try:
        confined = not (packaged or Path(text).is_absolute())
        escapes = confined and not stays_in(folder, path)
        exists = path.is_file() or path.is_dir()
        found = named_path(path)
    except (OSError, ValueError, RuntimeError):  # a name too long, a null character, links in a circle
        return None
    if escapes:
        raise ManifestError(
            f"{place}: the relative path {text!r} leaves {folder} by '..' or through a link; move the data below that "
            f"folder or give an absolute path."
        )
    return found if exists else None


def _reached(resolved: Path) -> Iterator[Path]:
    """The path itself and, for a folder, where the links right in it lead."""
    yield resolved
    if resolved.is_dir():
        yield from (item.resolve() for item in resolved.iterdir() if item.is_symlink())


def _in_package(place: str, text: str) -> Path | None:
    """Where an installed package keeps a file (the package is found without being imported), or None without it."""
    package, _, inner = text.removeprefix(PACKAGE_PREFIX).partition("/")
    parts = PurePosixPath(inner)
    if not package.isidentifier() or not parts.name or parts.is_absolute() or ".." in parts.parts:
        raise ManifestError(f"{place}: {text!r} names no file of a package; expected package:NAME/PATH/IN/IT.")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or []) if spec else []
    return Path(folders[0], *parts.parts) if folders else None


def _check_subjects(path: Path, splits: dict[Split, tuple[Case, ...]]) -> None:
    cases = [(split, case) for split in SPLITS for case in splits[split]]
    owners: dict[object, tuple[Split, Case]] = {}
    for split, case in cases:
        for key in _subjects(case):
            owners.setdefault(key, (split, case))
    for split, case in cases:
        # A folder around a file may be another case's DICOM series.
        around = [
            _inode(folder)
            for scan in _files(case)
            for folder in dict.fromkeys((*Path(scan).parents, *Path(scan).resolve().parents))
        ]
        for key in [*_subjects(case), *around]:
            other_split, other = owners.get(key, (split, case))
            if other_split != split:
                shared = f"patient {case.patient!r}" if key == case.patient else "one subject"
                raise ManifestError(
                    f"{path}: {other_split} ({other.image}) and {split} ({case.image}) share {shared}; a subject "
                    f"belongs to one split, else the scores flatter the model. Move its scans to one of the two."
                )


def _subjects(case: Case) -> list[object]:
    """What makes two cases one subject: the patient, a file (by inode, so links count), a synthetic seed."""
    keys: list[object] = [] if case.patient is None else [case.patient]
    if case.image.startswith(SYNTHETIC):
        kind, _, seed = case.image.split(",")  # whatever the shape, one seed draws one scene
        return [*keys, (kind, seed)]
    return keys + [_inode(scan) for scan in _files(case)]


def _files(case: Case) -> list[str]:
    return [scan for scan in (case.image, case.label) if scan and not scan.startswith(SYNTHETIC)]


def _inode(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _check_grids(path: Path, cases: Sequence[Case]) -> None:
    pairs = [(case.image, case.label) for case in cases if case.label is not None]
    if not pairs:
        return
    from adl_monai.data.geometry import same_affine
    from adl_monai.data.io import read_volume  # not at the top: it needs the imaging libraries, a manifest does not
    from adl_monai.data.pair_intensities import compare_pair, warn_of_pairs

    differing, compared = [], []
    for image, label in pairs:
        noisy, clean = read_volume(Path(image)), read_volume(Path(label))
        if noisy.array.shape != clean.array.shape:
            differing.append(f"{image} and {label} (shapes {noisy.array.shape} and {clean.array.shape})")
        elif not same_affine(noisy.affine, clean.affine):
            differing.append(
                f"{image} and {label} (affines apart by up to {abs(noisy.affine - clean.affine).max():.3g})"
            )
        elif found := compare_pair(image, noisy.without_padding(), clean.without_padding()):
            compared.append(found)
    if differing:
        raise ManifestError(
            f"{path}: {len(differing)} noisy/clean pairs do not lie on one voxel grid: {listing(differing)}. Expected "
            f"the same shape and affine; resample one of the two, or drop the pair."
        )
    warn_of_pairs(compared)
