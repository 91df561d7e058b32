"""A paired clock: methods take turns, A B A B ..., so that what disturbs the machine disturbs them alike.

A ratio is formed within each round and only then summarised. The ratio of two medians would compare moments at which
the machine may have been busy with other things.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Spread:
    """The figures of all rounds, in order, quoted as median (least-greatest).

    Args:
        values: One per round, at least one.

    Raises:
        ValueError: If there are none.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a spread of no figures; expected at least one round.")

    @property
    def median(self) -> float:
        """The middle figure, or the mean of the two in the middle."""
        return float(median(self.values))

    def __truediv__(self, other: Spread) -> Spread:
        """Ratios round by round.

        Raises:
            ValueError: If the two are not of the same rounds.
        """
        return Spread(tuple(a / b for a, b in zip(self.values, other.values, strict=True)))

    def __add__(self, other: Spread) -> Spread:
        """Sums round by round."""
        return Spread(tuple(a + b for a, b in zip(self.values, other.values, strict=True)))

    def __sub__(self, other: Spread) -> Spread:
        """Differences round by round."""
        return Spread(tuple(a - b for a, b in zip(self.values, other.values, strict=True)))

    def scaled(self, factor: float) -> Spread:
        """All of them times ``factor``."""
        return Spread(tuple(factor * value for value in self.values))

    def rate(self, amount: float) -> Spread:
        """``amount`` per figure: with figures in seconds, what was done in one."""
        return Spread(tuple(amount / value for value in self.values))

    def as_json(self) -> dict[str, Any]:
        """Median, least, greatest and all values."""
        low, high = min(self.values), max(self.values)
        return {"median": self.median, "min": low, "max": high, "values": list(self.values)}


def interleave(
    methods: Mapping[str, Callable[[], object]],
    pairs: int,
    *,
    warmup: int = 1,
    least_seconds: float = 0.0,
    synchronize: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Spread]:
    """Time methods that take turns in a fixed order.

    Args:
        methods: What is timed, by name. What a method returns is dropped before the next one starts.
        pairs: Rounds that are timed, at least 1.
        warmup: Rounds before, not counted.
        least_seconds: A method that is quicker is called several times in its turn; seconds are those of one call. How
            often follows from one call after the warm-up, and is the same in all rounds.
        synchronize: Waits for the device, before and after each turn.
        clock: Seconds.

    Returns:
        Seconds of one call by method, one value per round.

    Raises:
        ValueError: If there are no rounds.
    """
    if pairs < 1:
        raise ValueError(f"{pairs} rounds given; expected at least 1.")
    wait = synchronize or (lambda: None)

    def turn(method: Callable[[], object], calls: int) -> float:
        wait()
        start = clock()
        for _ in range(calls):
            method()
        wait()
        return (clock() - start) / calls

    for _ in range(warmup):
        for method in methods.values():
            turn(method, 1)
    calls = dict.fromkeys(methods, 1)
    if least_seconds > 0:
        calls = {name: calls_to_fill(turn(method, 1), least_seconds) for name, method in methods.items()}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(pairs):
        for name, method in methods.items():
            seconds[name].append(turn(method, calls[name]))
    return {name: Spread(tuple(values)) for name, values in seconds.items()}


def calls_to_fill(seconds: float, least_seconds: float) -> int:
    """How many calls of so many seconds last at least ``least_seconds``; 1 to 1000."""
    return min(1000, max(1, -int(-least_seconds // max(seconds, 1e-9))))
