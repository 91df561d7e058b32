"""The parts of ``speed.py``, one comparison a file: each has ``measure(settings)``, which returns a ``Report``."""
