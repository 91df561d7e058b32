"""Keep what the libraries beneath us say out of the user's sight while they work for us, and no longer."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from types import ModuleType

LIBRARIES = ("monai", "ignite", "tifffile")

_lock = Lock()
_levels: dict[str, int] = {}  # of the loggers that are quiet now: what they had before
_users = 0


@contextmanager
def quiet_libraries(*names: str) -> Iterator[None]:
    """MONAI, ignite and tifffile, or only the libraries named, log nothing within. Their loggers get their levels back.

    Threads may be within at the same time: the levels come back when the last has left. A level that someone else sets
    meanwhile stays.
    """
    global _users
    roots = names or LIBRARIES
    with _lock:
        # The libraries' roots are for what is made within; what was made before may have a level of its own.
        # A copy: other threads make loggers meanwhile.
        known = [name for name in list(logging.root.manager.loggerDict) if name.split(".")[0] in roots]
        for name in {*roots, *known} - _levels.keys():
            library = logging.getLogger(name)
            _levels[name] = library.level
            library.setLevel(logging.CRITICAL)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                for name, level in _levels.items():
                    library = logging.getLogger(name)
                    if library.level == logging.CRITICAL:
                        library.setLevel(level)
                _levels.clear()


def without_tensorflow() -> None:
    """Keep TensorBoard from importing TensorFlow, for a process of our own.

    MONAI imports TensorBoard, which takes TensorFlow where that is installed: seconds, and lines of its log on the
    standard error. Whether it shall, it learns from a module of this name; its own stand-in does without.
    """
    sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
