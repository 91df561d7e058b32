"""Folders of scans in, a manifest out: find the scans, pair them, split them by patient.

``adl_monai.stages.patients`` says whose scan it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adl_monai.errors import ManifestError, OutputError, UsageError
from adl_monai.files import named_path, replacing
from adl_monai.manifest import Manifest, check_pairs, load_manifest, stays_in
from adl_monai.manifest_format import SPLITS, listing
from adl_monai.stages.patients import Scan, name_patients

logger = logging.getLogger(__name__)

_ROLE = re.compile(r"[_\-. ](noisy|clean|low_?dose|full_?dose|input|target)$", re.IGNORECASE)


def prepare(
    sources: Sequence[Path],
    output: Path,
    *,
    clean: Path | None = None,
    noisy: Path | None = None,
    split: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    overwrite: bool = False,
) -> Manifest:
    """Write a manifest for the scans of some folders.

    Args:
        sources: Files, and folders searched for scans that are clean enough to learn from.
        output: The manifest to write. Scans below its folder get relative paths; others, and links that lead out of it,
            absolute ones. A link is written under its own name.
        clean: A folder of clean scans, each with its noisy twin in ``noisy``: the same path in it, but for the suffix
            and an ending ``_noisy``, ``_clean``, ``_lowdose``, ``_fulldose``, ``_input`` or ``_target``.
        noisy: The folder of the noisy twins.
        split: Fractions of the *patients* for training, validation and test.
        seed: Another seed, another split; the same seed and patients, the same split.
        overwrite: Replace ``output`` if it exists.

    Returns:
        The manifest, loaded back from what was written.

    Raises:
        UsageError: For missing sources, sources without scans, or fractions that do not sum up to 1.
        ManifestError: For scans without a twin, or twins on different voxel grids.
        OutputError: If ``output`` exists and ``overwrite`` is not set, or cannot be written.
    """
    output = Path(output).absolute()
    fractions = _checked_fractions(split)
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists; choose another name or allow overwriting it.")
    if not output.parent.is_dir():
        raise OutputError(f"the folder of {output} does not exist; create it first.")

    twins: dict[Scan, Path | None] = dict(_pairs(clean, noisy))
    taken = {path.resolve() for scan, twin in twins.items() for path in (scan.path, twin) if path}
    twins |= {scan: None for scan in _find(sources) if scan.path.resolve() not in taken}
    cases = [_case(scan, twins[scan], patient) for scan, patient in name_patients(twins).items()]
    if not cases:
        raise UsageError("no scan was given; expected folders of scans, or a clean and a noisy folder.")
    chosen = split_patients({case["patient"] for case in cases}, fractions, seed)

    root = output.parent.resolve()
    content: dict[str, Any] = {"name": output.stem}
    for name, patients in zip(SPLITS, chosen, strict=True):
        members = sorted((case for case in cases if case["patient"] in patients), key=lambda case: case["image"])
        content[name] = [{key: _written(value, root) for key, value in case.items()} for case in members]
    return _write(content, output, overwrite)


def split_patients(patients: Iterable[str], fractions: Sequence[float], seed: int) -> list[set[str]]:
    """Deal patients out by fractions; every split with a fraction gets one, training first, as long as there are any.

    Args:
        patients: Their names; the order does not matter.
        fractions: Of training, validation and test; they sum up to 1.
        seed: Decides who goes where.

    Returns:
        Three sets without a common patient, in the order of ``fractions``.
    """

    def rank(patient: str) -> str:  # a digest, not ``random``: the same on every Python and for every set of others
        return hashlib.sha256(f"{seed}:{patient}".encode()).hexdigest()

    queue = sorted(set(patients), key=rank)
    wanted = [index for index, fraction in enumerate(fractions) if fraction > 0]
    if len(queue) < len(wanted):
        empty = ", ".join(SPLITS[index] for index in wanted[len(queue) :])
        logger.warning(
            "Patients found: %d, too few for the split: no scan goes to %s. If there are more, give the folder that "
            "holds one folder or file for each patient.",
            len(queue),
            empty,
        )
    counts = [int(index in wanted[: len(queue)]) for index in range(len(fractions))]
    while sum(counts) < len(queue):
        owed = [fraction * len(queue) - count for fraction, count in zip(fractions, counts, strict=True)]
        counts[owed.index(max(owed))] += 1
    starts = [sum(counts[:index]) for index in range(len(counts))]
    return [set(queue[start : start + count]) for start, count in zip(starts, counts, strict=True)]


def _checked_fractions(split: Sequence[float]) -> tuple[float, ...]:
    fractions = tuple(float(fraction) for fraction in split)
    complete = len(fractions) == 3 and math.isclose(sum(fractions), 1, abs_tol=1e-6)
    if not (complete and all(0 <= fraction <= 1 for fraction in fractions)):
        raise UsageError(f"split {fractions} given; expected three fractions that sum up to 1, such as 0.8 0.1 0.1.")
    return fractions


def _find(sources: Iterable[Path]) -> list[Scan]:
    """The scans of folders, and those that are named themselves, each once."""
    from adl_monai.data.formats import INPUT_SUFFIXES, find_scans, is_scan, scan_stem

    sources = list(dict.fromkeys(named_path(Path(source)) for source in sources))
    scans: dict[Path, Scan] = {}
    for source in sources:
        if not source.exists():
            raise UsageError(f"{source} does not exist; expected a scan or a folder of scans.")
        found = sorted(find_scans(source)) if source.is_dir() else [source] * is_scan(source)
        if not found:
            raise UsageError(f"{source} holds no scan; expected DICOM, or files in {', '.join(INPUT_SUFFIXES)}.")
        siblings = sum(other.parent == source.parent for other in sources) > 1
        base = source if source.is_dir() and not siblings else source.parent
        for path in found:
            inner = path.relative_to(base).parts if path.is_relative_to(base) and path != base else (path.name,)
            name = path.name if path.is_dir() else scan_stem(path)
            scans.setdefault(path.resolve(), Scan(path, base, (*inner[:-1], name)))
    return _without_results(list(scans.values()), {source for source in sources if source.is_dir()})


def _without_results(scans: list[Scan], named: set[Path]) -> list[Scan]:
    """Leave out what ``infer`` made of other scans: no network should learn from its own results."""
    from adl_monai.data.results import results_among

    made = results_among(scan.path for scan in scans) - named
    if made:
        logger.warning(
            "%d files are left out as results of denoising other scans, such as %s. Rename what is none, or name the "
            "folder of a DICOM series itself.",
            len(made),
            min(map(str, made)),
        )
    return [scan for scan in scans if scan.path not in made]


def _pairs(clean: Path | None, noisy: Path | None) -> dict[Scan, Path]:
    """The clean scans, each with its noisy twin."""
    if clean is None and noisy is None:
        return {}
    if clean is None or noisy is None:
        raise UsageError("only one of the clean and noisy folders was given; give both, or neither.")
    clean_scans, noisy_scans = _by_key(clean), _by_key(noisy)
    lone = [scan for key, scan in clean_scans.items() if key not in noisy_scans]
    lone += [scan for key, scan in noisy_scans.items() if key not in clean_scans]
    if lone:
        raise ManifestError(
            f"{len(lone)} scans have no twin: {listing([str(scan.path) for scan in lone])}. Expected one noisy and one "
            f"clean scan of each name; rename or remove them."
        )
    return {scan: noisy_scans[key].path for key, scan in clean_scans.items()}


def _by_key(folder: Path) -> dict[tuple[str, ...], Scan]:
    scans: dict[tuple[str, ...], Scan] = {}
    for scan in _find([folder]):
        other = scans.setdefault(_key(scan), scan)
        if other is not scan:
            raise ManifestError(
                f"{other.path} and {scan.path} have one name but for their endings; keep one of them in {folder}."
            )
    return scans


def _key(scan: Scan) -> tuple[str, ...]:
    """What a noisy scan and its clean twin have in common; empty where the source is itself one DICOM series."""
    return () if scan.path == scan.base else tuple(_ROLE.sub("", name) for name in scan.below)


def _case(scan: Scan, twin: Path | None, patient: str) -> dict[str, str]:
    paths = {"image": str(twin), "label": str(scan.path)} if twin else {"image": str(scan.path)}
    return {**paths, "patient": patient}


def _written(value: str, root: Path) -> str:
    """As `load_manifest` takes it: no relative path leaves the manifest's folder, not even through a link."""
    path = Path(value)
    below = path.is_absolute() and path.is_relative_to(root) and stays_in(root, path)
    return path.relative_to(root).as_posix() if below else value


def _write(content: dict[str, Any], output: Path, overwrite: bool) -> Manifest:
    """Write under another name, load it back, and only then give it its name."""
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        try:
            manifest = load_manifest(temporary).model_copy(update={"path": output})
            check_pairs(manifest)
        except ManifestError as error:
            raise ManifestError(str(error).replace(str(temporary), str(output))) from error
        if output.exists() and not overwrite:
            raise OutputError(f"{output} was written by someone else meanwhile; choose another name.")
    return manifest
