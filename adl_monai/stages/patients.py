"""Whose scan is whose: what headers, names and folders say of it, before scans are dealt out by patient.

By the first rule that answers:

1. DICOM: the PatientID, kept as ``dcm-`` and the first 12 digits of its SHA-256. The ID itself is never stored; but
   whoever can list all IDs of a site can match such a digest, so it is a pseudonym, not an anonymous number. A scan
   without a PatientID has that of the scans which the next rules give to the same patient, if they have only one.
2. BIDS: ``sub-XXX`` in the name of the file or of a folder, the innermost first. Else the subject, not the visit, in a
   name that BraTS, OASIS, ADNI, IXI or HCP gave: ``BraTS-GLI-00005-001`` is a scan of ``BraTS-GLI-00005``.
3. The leading token (up to ``_``, ``-``, ``.`` or a space) of the first name below the source, folder or file, that
   says more than what kind of scan it is (``T1``, ``CT``, ``visit2``, ``train``; such tokens in front are passed
   over): ``p07_t1.nii`` and ``p07/t2.nii`` are one patient, and so are ``T1/p07.nii`` and ``T2/p07.nii``. A word that
   leads every name of a source and is followed by a number is the data set's: ``BRATS_001``, ``BRATS_002`` are two.
   Several sources side by side count as folders below their parent: ``prepare p07 p08`` has two patients.
4. Scans of which all names say their kind only are those of one patient, called as the source is, or as the first
   folder around it that says more.

Where several folders hold the same names, rule 3 takes the folders for patients if they are called so (``p1``,
``patient_02``) and the names are not, or if there are three of them or more and half as many names at most. The names
are the patients if they are called so and the folders are not. Else all these scans go as one patient, with a warning.

In doubt, these rules take two people for one: that costs balance, not an honest score. The exception is a folder of
one person's scans called ``name_1``, ``name_2``, which rule 3 takes for two people: name them ``sub-XXX``.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from adl_monai.files import files_of

logger = logging.getLogger(__name__)

_BIDS = re.compile(r"(?:^|_)(sub-[A-Za-z0-9]+)")
_PUBLISHED = [
    (re.compile(rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])", re.IGNORECASE), name)
    for pattern, name in (
        (r"BraTS1[789]_([A-Z0-9]+_[A-Z0-9]+)_\d+", "BraTS_{}"),  # the years share their patients
        (r"BraTS20_((?:Training|Validation)_\d{3})", "BraTS20_{}"),
        (r"BraTS2021_(\d{5})", "BraTS-GLI-{}"),  # so they were called from 2023 on
        (r"BraTS-((?:[A-Z]+-)+\d{4,5})", "BraTS-{}"),
        (r"(OAS[12]_\d{4}|OAS[34]\d{4})", "{}"),
        (r"(\d{3}_S_\d{4})", "{}"),  # ADNI
        (r"(IXI\d{3})", "{}"),
    )
]
_HCP = re.compile(r"([1-9]\d{5})/(?:unprocessed/|MNINonLinear/|T1w/T[12]w_acpc)")
_TOKENS = re.compile(r"[^_\-. ]+")
_PERSON = re.compile(
    r"(?:p|pt|pat|sub|subj)_?\d.*|(?:patient|subject|person|participant|volunteer|proband|case)(?:_|\d).*"
)
_DATE = re.compile(r"(?<!\d)(?:19|20)\d\d([_\-. ]?)(?:0\d|1[0-2])\1(?:[0-2]\d|3[01])(?!\d)")
_NUMBERED = re.compile(r"(visit|session|ses|timepoint|tp|baseline|followup|run|echo|slice|frame|phase|fold)\d*")
_WORDS = """
    t1 t2 t1w t2w t1wi t2wi t1c t1ce t1gd t1n t2f t2s t2star flair pd pdw dwi dti adc swi asl bold fmri smri mr mri mra
    mprage tof stir dixon gre tse epi ct cta cbct ldct pet spect us xray dx mg
    brain head neck chest thorax lung heart cardiac abdomen liver pelvis spine knee
    ax axial cor coronal sag sagittal tra transverse transversal
    anat func perf fmap raw derived derivatives nii nifti dcm dicom data image images imagestr imagests img scan scans
    series sequence volume volumes modality pre post contrast gd
    clean noisy low high full quarter dose lowdose fulldose normal standard input target label labels labelstr
    train training val valid validation test
"""
_KINDS = frozenset(_WORDS.split())


@dataclass(frozen=True)
class Scan:
    """A scan that was found, and the names on the way to it."""

    path: Path  # absolute, under the name that the user gave: a link is not followed
    base: Path  # its source, or the parent of several
    below: tuple[str, ...]  # the names from the base (not included) down to the scan, which has no suffix


def name_patients(scans: Mapping[Scan, Path | None]) -> dict[Scan, str]:
    """Whose scans these are, by the rules at the top of this file.

    Args:
        scans: Each with its twin, if it has one, of which a DICOM header counts too.

    Returns:
        A name for each scan's patient. Folders that may hold one person's scans are warned of.
    """
    headers = {
        scan: _dicom_patient(scan.path) or (_dicom_patient(twin) if twin else None) for scan, twin in scans.items()
    }
    sure = {scan: found for scan in scans if (found := _bids(scan) or _published(scan))}
    names = _by_names([scan for scan in scans if scan not in sure], {scan for scan in scans if headers[scan]}) | sure
    identities: dict[str, set[str]] = {}
    for scan, header in headers.items():
        if header:
            identities.setdefault(names[scan].casefold(), set()).add(header)
    spelled: dict[str, str] = {}
    patients = {}
    for scan, header in headers.items():
        name = spelled.setdefault(names[scan].casefold(), names[scan])
        # Beside a series whose PatientID is known, what has the same name is that person's.
        beside = identities.get(name.casefold(), set())
        patients[scan] = header or (next(iter(beside)) if len(beside) == 1 else name)
    return patients


@dataclass(frozen=True)
class _Names:
    """What may be a scan's patient: the first folder that tells, if there is one, or a name further in."""

    folder: str | None
    inner: tuple[str, ...]  # the first that is called as patients are, else all

    @property
    def label(self) -> str:
        return self.folder or self.inner[0]


def _by_names(scans: Iterable[Scan], known: set[Scan]) -> dict[Scan, str]:
    """Rules 3 and 4. Doubt is warned of where it concerns scans that are not known by other means."""
    patients: dict[Scan, str] = {}
    named: dict[Scan, list[list[str]]] = {}
    for scan in scans:
        telling = {name: words for name in scan.below if (words := _telling(name))}
        undated = [words for name, words in telling.items() if not _DATE.search(name)]
        if telling:
            named[scan] = undated or list(telling.values())
        else:
            around = (_telling(folder.name) for folder in (scan.base, *scan.base.parents) if folder.name)
            patients[scan] = next((words[0] for words in around if words), scan.below[0])
    names = dict(_candidates(named))
    folders_of: dict[str, set[str | None]] = {}
    for item in names.values():
        for key in item.inner:
            folders_of.setdefault(key.casefold(), set()).add(item.folder)
    shared = {key: folders for key, folders in folders_of.items() if len(folders) > 1}
    patients |= {scan: item.label for scan, item in names.items()}
    for folders, keys in _groups(shared):
        members = {
            scan: item
            for scan, item in names.items()
            if item.folder in folders and (item.folder or {key.casefold() for key in item.inner} & keys)
        }
        called = [folder for folder in folders if folder and _PERSON.fullmatch(folder.casefold())]
        people = [key for key in keys if _PERSON.fullmatch(key)]
        inside = folders - {None}
        if known.issuperset(members) or (len(called) == len(inside) and len(people) < len(keys)):
            continue
        if len(people) == len(keys) and not called:
            patients |= {scan: item.inner[0] for scan, item in members.items()}
        elif None in folders or len(folders) < max(3, 2 * len(keys)):
            _warn_of_doubt(sorted(filter(None, folders)), sorted(keys))
            patients |= dict.fromkeys(members, min(filter(None, folders)))
    return patients


def _candidates(named: Mapping[Scan, list[list[str]]]) -> Iterator[tuple[Scan, _Names]]:
    """Cut names to what may be a patient: their leading token, or two where the first is the data set's."""
    together: dict[Path, tuple[list[list[str]], list[list[str]]]] = {}
    for scan, words in named.items():
        first, later = together.setdefault(scan.base, ([], []))
        first.append(words[0])
        later += words[1:]
    lead = {base: (1 + _has_prefix(first), 1 + _has_prefix(later)) for base, (first, later) in together.items()}
    for scan, words in named.items():
        outer_lead, inner_lead = lead[scan.base]
        outer = "_".join(words[0][:outer_lead])
        if len(words) == 1:
            yield scan, _Names(None, (outer,))
            continue
        inner = ["_".join(word[:inner_lead]) for word in words[1:]]
        people = [key for key in inner if _PERSON.fullmatch(key.casefold())][:1]
        yield scan, _Names(outer, tuple(people or inner))


def _groups(shared: Mapping[str, set[str | None]]) -> Iterator[tuple[set[str | None], set[str]]]:
    """Folders that shared names connect, each group with these names."""
    groups: list[tuple[set[str | None], set[str]]] = []
    for key, folders in shared.items():
        touched = [group for group in groups if group[0] & folders - {None}]
        groups = [group for group in groups if group not in touched]
        groups.append((folders.union(*(group[0] for group in touched)), {key}.union(*(group[1] for group in touched))))
    yield from groups


def _warn_of_doubt(folders: list[str], keys: list[str]) -> None:
    def some(names: list[str]) -> str:
        return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")

    logger.warning(
        "The same names (%s) are in several places (%s): the folders may be the patients, or the names. All these "
        "scans are taken for one patient's, and go into one split. To split them, rename the patients' folders or "
        "files to sub-NAME (sub-01/..., .../sub-01.nii.gz).",
        some(keys),
        some(folders),
    )


def _telling(name: str) -> list[str]:
    """The tokens of a name from the first that says more than the kind of scan; empty if none does."""
    tokens = _TOKENS.findall(name) or [name]
    while tokens:
        numbered = _NUMBERED.fullmatch(tokens[0].casefold())
        if not numbered and tokens[0].casefold() not in _KINDS:
            break
        # The number of a visit, but not that of an image, which may be a patient's.
        tokens = tokens[2:] if numbered and tokens[1:] and tokens[1].isdigit() else tokens[1:]
    return tokens


def _has_prefix(names: list[list[str]]) -> bool:
    """Whether all names, split into tokens, begin with one word and go on with numbers that tell them apart."""
    same = len({name[0] for name in names}) == 1 and len({tuple(name) for name in names}) > 1
    return same and names[0][0].isalpha() and all(name[1:] and name[1][0].isdigit() for name in names)


def _bids(scan: Scan) -> str | None:
    names = reversed((scan.base.name, *scan.below))
    return next((found[1] for name in names if (found := _BIDS.search(name))), None)


def _published(scan: Scan) -> str | None:
    for name in reversed((scan.base.name, *scan.below)):
        for pattern, called in _PUBLISHED:
            if found := pattern.search(name):
                return called.format(found[1])
    hcp = _HCP.match("/".join(scan.below))  # only from the start: further in, six digits may be a date
    return hcp[1] if hcp else None


def _dicom_patient(scan: Path) -> str | None:
    import pydicom

    from adl_monai.data.dicom.parse import discreet

    for file in sorted(files_of(scan)):
        try:
            with discreet():
                header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["PatientID"])
                patient_id = str(header.get("PatientID") or "").strip()
        except Exception:  # not DICOM, or damaged in any way: whoever reads the scan will say so
            continue
        if patient_id:
            return f"dcm-{hashlib.sha256(patient_id.encode()).hexdigest()[:12]}"
    return None
