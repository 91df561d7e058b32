"""What the commands' options have in common: types of values, and options that several commands take."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
DEVICE = click.option(
    "--device",
    default="auto",
    metavar="NAME",
    show_default=True,
    help="Where the network runs: auto (a GPU if there is one), cpu, cuda, cuda:N, mps.",
)
PRECISION_HELP = "The network's arithmetic; auto: bf16 where the hardware is faster with it, else fp32."
PRECISION = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help=PRECISION_HELP,
)
ENSEMBLE = click.option(
    "--ensemble",
    type=click.Choice(["1", "2", "4", "8"]),
    default="2",
    callback=lambda ctx, param, value: int(value),
    help="Average over this many mirror images: the more, the better, and as many times slower than 1.  [default: 2]",
)
NOISE_FLOOR = click.option(
    "--noise-floor",
    type=click.Choice(["auto", "remove", "keep"]),
    default="auto",
    show_default=True,
    help="What lifts the mean: removed in MRI, kept with the means in CT, PET, counts. auto asks DICOM's Modality.",
)
NOISE_KINDS = (  # of adl_monai.data.noise, which takes seconds to import
    "gaussian",
    "rician",
    "poisson",
    "speckle",
    "mixed",
    "correlated",
    "correlated_rician",
    "correlated_poisson",
    "clipped",
    "nonstationary",
    "nonstationary_rician",
    "masked",
)
MODEL = click.option(
    "--model",
    metavar="NAME|DIR|FILE",
    help="Run folder, bundle folder, model.pt, adl3d or adl2d.  [default: adl3d; adl2d for 2D images and thick slices]",
)
STRENGTH = click.option(
    "--strength",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="How much of the noise is removed: from 0, the input, to 1.",
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


class NoiseLevel(click.ParamType):
    """A share of the intensity range: a number, a fraction or a percentage."""

    name = "LEVEL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse."""
        number, _, divisor = str(value).strip().removesuffix("%").partition("/")
        try:
            level = float(number) / float(divisor or 1) / (100 if str(value).strip().endswith("%") else 1)
        except (ValueError, ZeroDivisionError):
            level = math.nan
        if not 0 <= level <= 1:
            self.fail(
                f"{value!r} is not a share of the intensity range, from 0 to 1, such as 25/255, 0.1 or 5%.", param, ctx
            )
        return level


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
