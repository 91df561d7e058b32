"""One closed series in the spool: the images that came, those derived from them, and a note about both."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adl_monai.data.output import sync
from adl_monai.files import replacing


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a small file whole, and onto the disk."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values), encoding="utf-8")
    sync(path.parent)


@dataclass(frozen=True)
class Job:
    """A folder ``<number>`` with ``source/``, ``note.json`` and, once denoised, ``derived/``."""

    path: Path

    @property
    def number(self) -> int:
        """By which messages name it; never used twice in one spool."""
        return int(self.path.name)

    @property
    def source(self) -> Path:
        """The folder of received images."""
        return self.path / "source"

    @property
    def derived(self) -> Path:
        """The folder of denoised images; it appears whole."""
        return self.path / "derived"

    @property
    def note(self) -> dict[str, Any]:
        """What is known beside the images.

        ``series``: the key of the series; ``missing``: images of it that were refused; ``suspect``: whether others may
        be missing; ``out``: its folder below --out; ``kills``: how often the program was killed over it.
        """
        return dict(json.loads((self.path / "note.json").read_text(encoding="utf-8")))

    def add_note(self, **values: Any) -> None:
        """Add to the note, on the disk."""
        write_json(self.path / "note.json", {**(self.note if (self.path / "note.json").exists() else {}), **values})

    def images(self) -> list[Path]:
        """The received files."""
        return sorted(self.source.glob("*.dcm"))

    def fingerprints(self) -> dict[str, str]:
        """The key of each received image and the SHA-256 of its file."""
        found = {}
        for path in self.images():
            with path.open("rb") as file:
                found[path.stem] = hashlib.file_digest(file, "sha256").hexdigest()
        return found
