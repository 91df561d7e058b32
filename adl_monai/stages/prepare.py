"""Folders of scans in, a manifest out: find the scans, pair them, split them by patient.

Whose scan it is, by the first rule that answers:

1. DICOM: the PatientID, kept as ``dcm-`` and the first 12 digits of its SHA-256. The ID itself is never stored; but
   whoever can list all IDs of a site can match such a digest, so it is a pseudonym, not an anonymous number.
2. BIDS: ``sub-XXX`` in the name of the file or of a folder, the innermost first.
3. The leading token (up to ``_``, ``-``, ``.`` or a space) of the first folder below the source, or of the file's name
   when it lies right in the source: ``p07_t1.nii`` and ``p07_t2.nii`` are one patient. A word that leads every name
   of a source and is followed by a number is the data set's, not the patient's: ``BRATS_001``, ``BRATS_002`` are two.
   Several sources side by side count as folders below their parent: ``prepare p07 p08`` has two patients.

In doubt, rules 2 and 3 take two people for one: that costs balance, not an honest score. The exception is a folder of
one person's scans called ``name_1``, ``name_2``, which rule 3 takes for two people: give their ``patient`` by hand.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adl_monai.errors import ManifestError, OutputError, UsageError
from adl_monai.manifest import Manifest, check_pairs, load_manifest
from adl_monai.manifest_format import SPLITS, listing

logger = logging.getLogger(__name__)

_ROLE = re.compile(r"[_\-. ](noisy|clean|low_?dose|full_?dose|input|target)$", re.IGNORECASE)
_BIDS = re.compile(r"(?:^|_)(sub-[A-Za-z0-9]+)")
_TOKENS = re.compile(r"[^_\-. ]+")


@dataclass(frozen=True)
class _Scan:
    path: Path  # absolute, links followed
    base: Path  # its source, or the parent of several
    below: tuple[str, ...]  # the names from the base (not included) down to the scan, which has no suffix

    @property
    def key(self) -> tuple[str, ...]:
        """What a noisy scan and its clean twin have in common; empty where the source is itself one DICOM series."""
        return () if self.path == self.base else tuple(_ROLE.sub("", name) for name in self.below)


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
        output: The manifest to write. Scans below its folder get relative paths, others absolute ones.
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

    cases = _pairs(clean, noisy)
    taken = {path for case in cases for path in (case["image"], case.get("label"))}
    singles = _patients(scan for scan in _find(sources) if str(scan.path) not in taken)
    cases += [{"image": str(scan.path), "patient": patient} for scan, patient in singles.items()]
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


def _find(sources: Iterable[Path]) -> list[_Scan]:
    """The scans of folders, and those that are named themselves, each once."""
    from adl_monai.data.formats import INPUT_SUFFIXES, find_scans, is_scan, scan_stem

    sources = list(dict.fromkeys(Path(source).resolve() for source in sources))
    scans: dict[Path, _Scan] = {}
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
            scans.setdefault(path.resolve(), _Scan(path.resolve(), base, (*inner[:-1], name)))
    return list(scans.values())


def _pairs(clean: Path | None, noisy: Path | None) -> list[dict[str, str]]:
    if clean is None and noisy is None:
        return []
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
    pairs = []
    for scan, named in _patients(clean_scans.values()).items():
        twin = noisy_scans[scan.key].path
        patient = named if named.startswith("dcm-") else _dicom_patient(twin) or named
        pairs.append({"image": str(twin), "label": str(scan.path), "patient": patient})
    return pairs


def _by_key(folder: Path) -> dict[tuple[str, ...], _Scan]:
    scans: dict[tuple[str, ...], _Scan] = {}
    for scan in _find([folder]):
        other = scans.setdefault(scan.key, scan)
        if other is not scan:
            raise ManifestError(
                f"{other.path} and {scan.path} have one name but for their endings; keep one of them in {folder}."
            )
    return scans


def _patients(scans: Iterable[_Scan]) -> dict[_Scan, str]:
    """Whose scans these are, by the rules at the top of this file."""
    tokens = {scan: _TOKENS.findall(scan.below[0]) or [scan.below[0]] for scan in scans}
    bases = {scan.base for scan in tokens}
    lead = {base: 1 + _has_prefix([mine for scan, mine in tokens.items() if scan.base == base]) for base in bases}
    patients = {}
    for scan, mine in tokens.items():
        names = reversed((scan.base.name, *scan.below))
        bids = next((found[1] for name in names if (found := _BIDS.search(name))), None)
        patients[scan] = _dicom_patient(scan.path) or bids or "_".join(mine[: lead[scan.base]])
    return patients


def _has_prefix(names: list[list[str]]) -> bool:
    """Whether all names, split into tokens, begin with one word and go on with numbers that tell them apart."""
    same = len({name[0] for name in names}) == 1 and len({tuple(name) for name in names}) > 1
    return same and names[0][0].isalpha() and all(name[1:] and name[1][0].isdigit() for name in names)


def _dicom_patient(scan: Path) -> str | None:
    import pydicom

    from adl_monai.data.dicom_header import discreet

    for file in sorted(item for item in scan.iterdir() if item.is_file()) if scan.is_dir() else [scan]:
        try:
            with discreet():
                header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["PatientID"])
                patient_id = str(header.get("PatientID") or "").strip()
        except Exception:  # not DICOM, or damaged in any way: whoever reads the scan will say so
            continue
        if patient_id:
            return f"dcm-{hashlib.sha256(patient_id.encode()).hexdigest()[:12]}"
    return None


def _written(value: str, root: Path) -> str:
    path = Path(value)
    return path.relative_to(root).as_posix() if path.is_absolute() and path.is_relative_to(root) else value


def _write(content: dict[str, Any], output: Path, overwrite: bool) -> Manifest:
    """Write under another name, load it back, and only then give it its name."""
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        manifest = load_manifest(temporary).model_copy(update={"path": output})
        check_pairs(manifest)
        if output.exists() and not overwrite:
            raise OutputError(f"{output} was written by someone else meanwhile; choose another name.")
        os.replace(temporary, output)
    except ManifestError as error:
        raise ManifestError(str(error).replace(str(temporary), str(output))) from error
    except OSError as error:
        raise OutputError(f"{output} cannot be written ({error.strerror or error}); choose another place.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return manifest
