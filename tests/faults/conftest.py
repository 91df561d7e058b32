"""Runs the real command line in this process, and holds every refusal to the same standard."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from adl_monai import cli
from adl_monai.data import io as io_module
from adl_monai.errors import AdlError
from adl_monai.inferers import TiledInferer

WORKING = "work"  # the folder that commands run in, below the test's own


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Command = Callable[..., Outcome]
Refused = Callable[..., str]


class Left(BaseException):
    """Stands for the end of the process."""


def leave(code: object) -> None:
    raise Left(code)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """``command("infer", path, ...)`` runs ``adl_monai.cli.main`` to its exit code, in a folder of its own."""
    handlers = logging.getLogger().handlers
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    working = tmp_path / WORKING
    working.mkdir(exist_ok=True)
    monkeypatch.chdir(working)
    monkeypatch.setattr(cli, "_leave", leave)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["adl-monai", *map(str, arguments)])
        capfd.readouterr()
        try:
            with warnings.catch_warnings():
                cli.main()
        except (Left, SystemExit) as left:
            code = left.args[0] if left.args else 0
        finally:
            logging.getLogger().handlers = handlers
        written = capfd.readouterr()
        return Outcome(int(code or 0), written.out, written.err)

    yield run
    for number, handler in signals.items():
        signal.signal(number, handler)


@pytest.fixture
def refused(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """``refused(3, ["scan.nii", "magic"], "infer", path)``: that exit code, one paragraph with these words, no trace.

    No file of the test's folder may appear, vanish or change, and the network may not run. Returns the message.
    """

    def check(code: int, words: list[str], *arguments: object, early: bool = True) -> str:
        def forbidden(*given: object, **named: object) -> None:
            raise AssertionError("the network ran before the refusal")

        before = contents(tmp_path)
        with monkeypatch.context() as patch:
            if early:
                patch.setattr(TiledInferer, "__call__", forbidden)
            outcome = command(*arguments)
        assert outcome.code == code, outcome.err
        assert outcome.out == ""
        assert "Traceback" not in outcome.err
        errors = [line for line in outcome.err.splitlines() if line.startswith("Error: ")]
        assert len(errors) == 1, outcome.err
        message = outcome.err[outcome.err.index("Error: ") :]
        for word in words:
            assert word in message, (word, message)
        assert contents(tmp_path) == before
        return message

    return check


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder, hidden ones too; empty folders do not count."""
    return {
        str(path.relative_to(folder)): None if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def outcome_of_reading(path: Path) -> AdlError | None:
    """The refusal of a scan, or None if it can be read."""
    try:
        io_module.read_volume(path)
    except AdlError as error:
        return error
    return None


def assert_warned_and_kept(command: Command, path: Path, words: list[str]) -> None:
    """A scan with something odd is warned of in these words, and given back to the byte at strength 0."""
    output = path.with_name("out.nii")
    outcome = command("infer", path, "-o", output, "--strength", "0")
    assert outcome.code == 0
    for word in ["WARNING", str(path), *words]:
        assert word in outcome.err
    assert output.read_bytes() == path.read_bytes()


def assert_a_signal_leaves_only(
    name: str, process: subprocess.Popen[bytes], work: Path, number: int, code: int
) -> None:
    """Interrupt a program once it has made the file ``name``: it ends with its code, its temporary file is gone."""
    deadline = time.monotonic() + 120
    while not (work / name).exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(contents(work)) == 2, "the temporary file is there"
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (code, b"interrupted\n")
    assert list(contents(work)) == [name]
