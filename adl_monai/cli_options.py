"""What the commands' options have in common: types of values, and options that several commands take."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
DEVICE = click.option(
    "--device", default="auto", metavar="NAME", show_default=True, help="auto, cpu, cuda, cuda:N, mps."
)
PRECISION = click.option(
    "--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), default="auto", show_default=True
)
MODEL = click.option(
    "--model",
    metavar="NAME|DIR|FILE",
    help="Run folder, bundle, model.pt, adl3d or adl2d.  [default: adl3d; adl2d for 2D images and thick slices]",
)
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace existing outputs.")


class Settings(click.ParamType):
    """``KEY=VALUE``, the value a Python literal or plain text."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Split and parse."""
        key, separator, text = str(value).partition("=")
        if not separator or not key:
            self.fail(f"{value!r} is not KEY=VALUE, such as max_epochs=10.", param, ctx)
        try:
            return key, ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return key, text


class ByteSize(click.ParamType):
    """A number of bytes, or one with K, M, G or T for powers of 1024."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", str(value).strip(), re.IGNORECASE)
        size = float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " ") if found else 0
        if size < 2**20:
            self.fail(f"{value!r} is not a size of at least 1M, such as 4G or 512M.", param, ctx)
        return int(size)
