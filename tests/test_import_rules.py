"""Imports go down only, and the rooms at the bottom do not know of one another (the layout's one hard rule)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "adl_monai"

# A room may import itself and rooms of a lower level; two rooms of one level stay apart.
LEVELS = {
    "errors": 0,
    "nameless": 0,
    "version": 0,
    "bars": 1,
    "compute": 1,
    "files": 1,
    "memory": 1,
    "quiet": 1,
    "networks": 2,
    "losses": 2,
    "data": 2,
    "metrics": 2,
    "engines": 3,
    "inferers": 3,
    "node": 3,
    "pipelines": 3,
    "bundle": 4,
    "manifest": 4,
    "stages": 5,
    "cli": 6,
    "__main__": 7,
    "__init__": 8,  # the package's own front door
}
SAME_ROOM = {
    "manifest_format": "manifest",
    "bundle_of_a_run": "bundle",
    "bundle_values": "bundle",
    "cli_options": "cli",
    "cli_streams": "cli",
}


def room_of(module: str) -> str:
    """``adl_monai.data.io`` is in ``data``; names of the package itself (``__version__``) count as ``version``."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else "version"
    return SAME_ROOM.get(name, name)


def imports(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and target of every import of this package's modules, also inside functions and ``TYPE_CHECKING``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # One dot is the module's package: the module itself where that is an __init__.
            base = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            # ``from adl_monai import data`` names a room only in what it imports.
            in_root = [f"{start}.{alias.name}" for alias in node.names if is_module(alias.name)]
            targets = (in_root or [start]) if start == "adl_monai" else [start]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            targets = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
        else:
            continue
        for target in targets:
            if target == "adl_monai" or target.startswith("adl_monai."):
                yield node.lineno, target


def is_module(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file() or name in LEVELS


def violations(root: Path) -> list[str]:
    found = []
    for file in sorted(root.rglob("*.py")):
        inner = file.relative_to(root)
        is_package = file.name == "__init__.py"
        names = inner.parent.parts if is_package else inner.with_suffix("").parts
        module = ".".join(["adl_monai", *names])
        own = room_of(module) if names else "__init__"
        for line, target in imports(file.read_text(encoding="utf-8"), module, is_package):
            other = room_of(target)
            place = f"adl_monai/{inner.as_posix()}:{line} ({own}) imports {target} ({other})"
            unknown = {own, other} - LEVELS.keys()
            if unknown:
                found.append(f"{place}: no level is set for {', '.join(sorted(unknown))}; add it to LEVELS")
            elif own != other and LEVELS[other] >= LEVELS[own]:
                found.append(f"{place}: imports go down only; pass it in as an argument, or move the shared part down")
    return found


def test_imports_go_down_only() -> None:
    found = violations(PACKAGE)
    assert not found, "\n" + "\n".join(found)


def test_the_whole_package_is_read() -> None:
    rooms = {path.stem if path.suffix else path.name for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert {"stages", "manifest", "data", "errors"} <= rooms
    targets = list(imports((PACKAGE / "manifest.py").read_text(encoding="utf-8"), "adl_monai.manifest", False))
    assert "adl_monai.data.io" in [target for _, target in targets], "imports inside functions must count"


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("data/io.py", "from adl_monai.losses import pyramid"),
        ("data/io.py", "import adl_monai.metrics"),
        ("data/io.py", "from adl_monai import networks"),
        ("data/io.py", "from ..networks import blocks"),
        ("data/__init__.py", "from ..networks import blocks"),
        ("data/io.py", "from .. import losses"),
        ("losses/histogram.py", "def f():\n    from adl_monai.stages.train import train"),
        ("metrics/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import adl_monai.manifest"),
        ("engines/a.py", "from adl_monai.inferers import tiles"),
        ("node/a.py", "from adl_monai.stages.infer import denoise"),
        ("node/a.py", "from adl_monai.inferers import tiled"),
        ("data/io.py", "import adl_monai.node.spool"),
        ("inferers/a.py", "import importlib\nimportlib.import_module('adl_monai.engines')"),
        ("networks/a.py", "import adl_monai.cli as c"),
        ("errors.py", "import adl_monai.version"),
        ("compute.py", "import adl_monai.data"),
        ("manifest.py", "from adl_monai.bundle import find"),
        ("manifest_format.py", "from adl_monai.stages import prepare"),
        ("attic/a.py", "import adl_monai.errors"),
        ("data/io.py", "import adl_monai.attic"),
    ],
)
def test_a_violation_is_caught_and_named(tmp_path: Path, file: str, source: str) -> None:
    target = tmp_path / file
    target.parent.mkdir(exist_ok=True)
    target.write_text(source, encoding="utf-8")
    found = violations(tmp_path)
    assert len(found) == 1
    assert f"adl_monai/{file}:" in found[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "data/io.py",
            "from adl_monai.data.nifti import read\nfrom . import dicom\nfrom .nifti import read\nimport monai.losses",
        ),
        ("data/__init__.py", "from .io import read_volume\nfrom adl_monai.compute import autocast"),
        ("engines/a.py", "from adl_monai.losses import pyramid\nfrom ..networks import blocks"),
        ("node/a.py", "from adl_monai.data.io import read_volume\nfrom adl_monai.files import replacing"),
        ("stages/listen.py", "from adl_monai.node.spool import Spool"),
        ("manifest.py", "from adl_monai.manifest_format import listing\ndef f():\n    import adl_monai.data.io"),
        ("stages/train.py", "from adl_monai import __version__, bundle, manifest\nfrom . import prepare"),
        ("__init__.py", "from adl_monai.stages.infer import denoise\nfrom .version import __version__"),
        ("__main__.py", "from adl_monai.cli import main"),
    ],
)
def test_what_is_allowed_passes(tmp_path: Path, file: str, source: str) -> None:
    target = tmp_path / file
    target.parent.mkdir(exist_ok=True)
    target.write_text(source, encoding="utf-8")
    assert violations(tmp_path) == []
