"""Time and greatest resident memory of one command, of it alone.

Linux starts a program's greatest resident memory at that of the process it was forked from, so a command started from
a process that holds gigabytes seems to use them too. This file is therefore also a script: a small interpreter that
starts the command, waits for it and prints what it used.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LAST_WORDS = 2000  # characters of the error stream that are kept


@dataclass(frozen=True)
class Usage:
    """What one run of a command used."""

    code: int
    """Exit code; minus the signal's number for a process that was killed."""
    seconds: float
    """Wall clock, from its start to its end."""
    cpu_seconds: float
    """User and system time of all its threads."""
    peak_bytes: int
    """Greatest resident memory."""
    output: str
    """What it wrote to its output stream."""
    errors: str
    """The end of its error stream."""


def run_alone(command: Sequence[str], check: bool = True) -> Usage:
    """Run a command in a process tree of its own.

    Args:
        command: Program and arguments.
        check: Whether an exit code other than 0 is an error.

    Raises:
        RuntimeError: If it fails and ``check`` is set, or on Windows, which keeps no such account.
    """
    if not hasattr(os, "wait4"):
        raise RuntimeError("the greatest resident memory of a command is known on Linux and macOS only; use one.")
    launcher = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), *command]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stream:
        done = subprocess.run(launcher, stdout=subprocess.PIPE, stderr=stream, text=True, check=False)
        stream.seek(0)
        errors = stream.read()[-LAST_WORDS:]
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} could not be started: {errors.strip()}")
    output, _, account = done.stdout.rstrip("\n").rpartition("\n")
    usage = Usage(**json.loads(account), output=output, errors=errors)
    if check and usage.code != 0:
        raise RuntimeError(f"{' '.join(command)} ended with code {usage.code}: {errors.strip()}")
    return usage


def main() -> None:
    """Run the command of the arguments and print its account as the last line."""
    start = time.perf_counter()
    process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
    _, status, used = os.wait4(process, 0)
    seconds = time.perf_counter() - start
    account = {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }
    print(f"\n{json.dumps(account)}")


if __name__ == "__main__":
    main()
