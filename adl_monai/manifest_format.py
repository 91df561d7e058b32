"""The manifest's JSON: its keys, its schema, and a parser that says where a mistake stands.

The format is MONAI's (decathlon) data list with a few additions, described in ``data_manifests/README.md``. Whether
the files exist and the splits can be trusted is the business of ``adl_monai.manifest``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from adl_monai.errors import ManifestError

Split = Literal["training", "validation", "test"]
SPLITS: tuple[Split, ...] = ("training", "validation", "test")
LISTED = 20  # an error lists at most so many items, then counts the rest


class Frozen(BaseModel):
    """Base of all that a manifest holds: immutable, unknown keys refused, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SyntheticSpec(Frozen):
    """Made-up clean images; case number ``i`` of an entry has the seed ``seed + i``."""

    shape: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(
        min_length=2, max_length=3, description="Voxels along each axis: two numbers for images, three for volumes."
    )
    count: int = Field(default=1, ge=1, le=100_000, description="How many cases this entry stands for.")
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Seed of the first case; the next have the next ones.")
    kind: str = Field(default="leaves", pattern=r"^[a-z][a-z0-9_]*$", description="Name of the generator.")


class ImageEntry(Frozen):
    """A scan: clean when ``image`` stands alone (degraded on the fly), a noisy/clean pair with ``label``."""

    image: str = Field(min_length=1, description="File or DICOM folder: clean when alone, noisy beside a label.")
    label: str | None = Field(default=None, min_length=1, description="The clean scan on the same voxel grid.")
    patient: str | None = Field(default=None, min_length=1, description="Whose scan it is; never in two splits.")


class SyntheticEntry(Frozen):
    """Stands for ``count`` synthetic cases."""

    synthetic: SyntheticSpec


def _entry_kind(entry: Any) -> str:
    synthetic = "synthetic" in entry if isinstance(entry, dict) else isinstance(entry, SyntheticEntry)
    return "synthetic" if synthetic else "image"


Entry = Annotated[
    Annotated[ImageEntry, Tag("image")] | Annotated[SyntheticEntry, Tag("synthetic")], Discriminator(_entry_kind)
]


class ManifestFile(Frozen):
    """A manifest as written in its JSON file."""

    name: str | None = None
    description: str | None = None
    training: tuple[Entry, ...] = ()
    validation: tuple[Entry, ...] = ()
    test: tuple[Entry, ...] = ()


def parse_manifest(path: Path, raw: bytes) -> ManifestFile:
    """Parse a manifest's bytes; ``path`` only names the file in messages.

    Raises:
        ManifestError: For a syntax error (with line and column), a key that stands twice, an unknown or missing key,
            or a value of the wrong type or range.
    """
    try:
        text = raw.decode("utf-8-sig")
        json.loads(text, object_pairs_hook=lambda pairs: _refuse_duplicates(path, pairs))
        return ManifestFile.model_validate_json(text)
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}:{error.colno}"
        raise ManifestError(f"{place}: not valid JSON ({error.msg}); mend the manifest there.") from error
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors(include_url=False, include_input=False)]
        raise ManifestError(
            f"{path}: {listing(problems)}. Expected what data_manifests/README.md describes."
        ) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of thousands of digits, endless nesting
        raise ManifestError(f"{path} is not a manifest ({type(error).__name__}); expected JSON in UTF-8.") from error


def manifest_schema() -> dict[str, Any]:
    """The JSON schema of a manifest file, as kept in ``data_manifests/manifest.schema.json``."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | ManifestFile.model_json_schema()


def listing(items: Sequence[str]) -> str:
    """The first 20 items and the number of the rest, for one line of an error."""
    rest = len(items) - LISTED
    return "; ".join(items[:LISTED]) + (f"; and {rest} more" if rest > 0 else "")


def _refuse_duplicates(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ManifestError(f"{path}: the key {twice!r} stands twice in one object; keep one of them.")
    return content


def _problem(item: Any) -> str:
    place = [*item["loc"][:2], *item["loc"][3:]]  # the third names the kind of entry, which the file does not hold
    name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).lstrip(".")
    message = {"extra_forbidden": "unknown key", "missing": "required, but not there"}.get(item["type"], item["msg"])
    return f"{name}: {message}" if name else message
