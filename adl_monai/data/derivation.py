"""What made an image: the model, and the SHA-256 of its weights, for outputs that can say so."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pydicom

from adl_monai.version import __version__

TOOL = "adl_monai"


@dataclass(frozen=True)
class Derivation:
    """How a denoised image came about.

    Attributes:
        model: The model's name.
        weights_sha256: Of its file of weights, in hexadecimal digits.
        settings: What else decided about the values, in words.
    """

    model: str
    weights_sha256: str
    settings: str = ""

    @classmethod
    def of_checkpoint(cls, checkpoint: str | Path, settings: str = "") -> Derivation:
        """The derivation by the weights in ``<bundle>/models/model.pt``."""
        path = Path(checkpoint)
        status = path.stat()
        return cls(model_name(path.parent.parent), _sha256(path, status.st_mtime_ns, status.st_size), settings)


def model_name(bundle: Path) -> str:
    """The name of a bundle: its folder's, or the training run's that holds it."""
    return bundle.parent.name if bundle.name == "bundle" else bundle.name


def describe(derivation: Derivation | None) -> str:
    """One line for people: tool, version, model and weights."""
    made = f"Denoised with {TOOL} {__version__}"
    if derivation is None:
        return made
    settings = f", {derivation.settings}" if derivation.settings else ""
    return f"{made}, model {derivation.model}, weights SHA-256 {derivation.weights_sha256}{settings}"


def names_this_tool(header: pydicom.Dataset) -> bool:
    """Whether the header of a DICOM image says that this program has made it."""
    return any(item.get("Manufacturer") == TOOL for item in header.get("ContributingEquipmentSequence") or [])


@lru_cache(maxsize=8)
def _sha256(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
