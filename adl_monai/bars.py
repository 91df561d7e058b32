"""Bars that show how far a long step is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def bar(total: int, unit: str, shown: bool, title: str | None = None) -> Iterator[Callable[[int], object]]:
    """Yields what to call with the number of steps just done.

    A bar that is not shown is none: one of tqdm's, disabled too, fixes how the process starts others (multiprocessing's
    start method).
    """
    if not shown:
        yield lambda steps: None
        return
    with tqdm(total=total, desc=title, unit=unit, leave=False) as shown_bar:
        yield shown_bar.update
