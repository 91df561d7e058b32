"""A process whose user has no name, as containers run under any user id have, can import MONAI all the same."""

from __future__ import annotations

import getpass
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def lend_monai_a_user() -> None:
    """Where nobody knows the user's name, ``USER`` is one while MONAI is imported, which asks for it and would fail.

    Nothing is imported now, and the environment is as it was before and after that import.
    """
    try:
        getpass.getuser()
    except (KeyError, ImportError, OSError):  # KeyError up to Python 3.12; ImportError on Windows
        sys.meta_path.insert(0, _Lender())


class _Lender:
    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "monai":
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_with_user(module: ModuleType) -> None:
                before = os.environ.get("USER")
                os.environ["USER"] = "nameless"
                try:
                    execute(module)
                finally:
                    os.environ.pop("USER", None)
                    if before is not None:  # set, and empty
                        os.environ["USER"] = before

            spec.loader.exec_module = execute_with_user  # type: ignore[method-assign]
        return spec
