"""What the command line prints, on streams that may refuse it: a full disk, a closed pipe, a console of few letters."""

from __future__ import annotations

import io
import sys

import click

from adl_monai.errors import OutputError

_refused: list[OSError] = []


def take_any_letter() -> None:
    r"""Letters that a stream's encoding lacks are spelled out (``\u65e5``) from now on, instead of ending the run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def say(line: object, err: bool = False) -> None:
    """Print a line. That a stream takes no more is no reason to stop working: see ``refusal``."""
    try:
        click.echo(line, err=err)
    except OSError as error:
        if not err:
            _refused.append(error)


def refusal() -> OutputError | None:
    """What to tell of lines that the standard output did not take; None if it took all."""
    if not _refused:
        return None
    return OutputError(
        f"the standard output did not take {len(_refused)} of the lines to print ({_refused[0].strerror}); the work "
        "itself is done."
    )
