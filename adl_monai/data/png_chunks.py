"""The chunks of a PNG file that say how large its pixels are, from one file to another."""

from __future__ import annotations

from pathlib import Path

_SIZES = (b"pHYs", b"sCAL")  # pixels a metre; and what ITK writes, even where it read none


def copy_pixel_size(source: Path, target: Path) -> None:
    """Give a PNG file the source's resolution (pHYs) and scale (sCAL) in place of its own.

    Args:
        source: A whole PNG file.
        target: Another, which is written anew.

    Raises:
        OSError: If it cannot be written.
    """
    kept = b"".join(whole for name, whole in _chunks(source.read_bytes()) if name in _SIZES)
    content = target.read_bytes()
    others = [(name, whole) for name, whole in _chunks(content) if name not in _SIZES]
    target.write_bytes(content[:8] + others[0][1] + kept + b"".join(whole for _, whole in others[1:]))


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Name and whole bytes of each chunk, in their order."""
    found, place = [], 8
    while place < len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        found.append((content[place + 4 : place + 8], content[place:end]))
        place = end
    return found
