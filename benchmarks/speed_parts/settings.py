"""What every part is given (how many rounds, how large) and gives back (rows and sentences)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""One line of a table: text, numbers, ``Spread``s, None."""


@dataclass(frozen=True)
class Sizes:
    """How large each case is, edges in voxels. The defaults are those that are quoted."""

    scan: int = 256
    """The command line's scan."""
    tile: int = 96
    """What a 3D network is run on, and MONAI's window."""
    swept: int = 160
    """What the inferer is given, where its rate is compared."""
    tile_2d: int = 256
    """What a 2D network is run on."""
    products: tuple[int, ...] = (512, 1024, 2048, 4096)
    """Square matrices whose product shows what the machine can do."""
    copied_floats: int = 2**26
    """float32 numbers whose copy shows the memory's rate."""
    volume: int = 168
    """What is tiled, and for the seam error also run in one piece; two tiles of a quarter's overlap fit exactly."""
    crop: int = 64
    """What the slow peers are given."""
    image: int = 512
    """The paper's 2D network."""
    steps: int = 16
    """Training steps in a round."""
    training_cases: int = 4
    memory: tuple[int, ...] = (128, 256, 384, 512)
    precision: int = 96
    profiled: int = 3
    """Forwards that the table of layers is the mean of."""
    least_seconds: float = 0.5
    """Of a turn on the clock."""


QUICK = Sizes(
    scan=40,
    tile=32,
    swept=40,
    tile_2d=32,
    products=(64, 128),
    copied_floats=2**16,
    volume=56,
    crop=24,
    image=64,
    steps=2,
    training_cases=1,
    memory=(24, 32),
    precision=32,
    profiled=1,
    least_seconds=0.0,
)
"""Everything once, to see that it runs; the figures mean nothing."""


@dataclass(frozen=True)
class Settings:
    """One run of the benchmark."""

    scratch: Path
    """An existing folder for what is made on the way."""
    sizes: Sizes = field(default_factory=Sizes)
    pairs: int = 5
    warmup: int = 1
    seed: int = 0
    scan: Path | None = None
    """A 3D scan for the command line, instead of a made one."""
    volumes: tuple[Path, ...] = ()
    """Clean scans that the precision is judged on, too."""
    max_memory: str = "2G"


@dataclass(frozen=True)
class Report:
    """What a part measured."""

    rows: list[Row]
    statements: tuple[str, ...] = ()
    """What the rows say, one sentence each."""
