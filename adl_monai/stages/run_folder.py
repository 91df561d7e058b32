"""A training run's folder: nothing of an old run goes before the new one has learned its first batch."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Mapping
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.handlers import TensorBoardHandler

from adl_monai.bundle_of_a_run import write_bundle
from adl_monai.bundle_values import PLAIN_KEYS
from adl_monai.errors import OutputError, UsageError
from adl_monai.stages.run_options import Options, record_options

logger = logging.getLogger(__name__)

STATE = ("checkpoints", "bundle")  # what makes a folder hold a run
REPLACING, REPLACED = ".replacing", ".replaced"  # where the old run lies: to come back after a kill; to be deleted


class RunFolder:
    """The folder, as the process sees it that writes there.

    Where it replaces a run, ``begin`` deletes that one. Until then the old run stays whole: lines for the log wait in
    memory, and what the new run's components write into ``tensorboard/`` is removed if the run does not begin. A kill
    leaves the old run (see ``restore``) or the new one, which ``--resume`` then starts.

    Args:
        path: The folder; made if there is none.
        resume: Go on with the run that it holds.
        overwrite: Replace the run that it holds.

    Raises:
        OutputError: If the folder holds a run already, or cannot be written.
    """

    def __init__(self, path: Path, resume: bool, overwrite: bool) -> None:
        self.path = path
        holds_run = any((path / name).exists() for name in STATE)
        if holds_run and not (resume or overwrite):
            raise OutputError(f"{path} holds a training run; use --resume to go on, --overwrite, or another folder.")
        if resume and not (path / "checkpoints").exists():
            logger.warning("%s holds no checkpoint yet: starting from the beginning", path)
        self.replaces = holds_run and not resume
        self._old_events = self._events()
        self._handler: logging.Handler | None = None
        self._begun = False
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / ".write_test"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror}); choose another folder with -o.") from error

    def open_log(self) -> None:
        """Send the package's log lines to ``train.log``, once what is replaced is gone."""
        if self.replaces and not self._begun:
            self._log_to(MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False))
        else:
            self._log_to(self._log_file())

    def begin(self, source: Path, parser: ConfigParser, options: Options) -> None:
        """Write what the run was started with, and its bundle as yet without weights; what is replaced goes.

        Raises:
            OutputError: If the folder cannot be written; what was to be replaced is there as before.
        """
        if self.replaces:
            self._replace(options)
        else:
            record_options(self.path, options)
        self._begun = True
        plain = {key: parser[key] for key in PLAIN_KEYS if key in parser}
        write_bundle(source, self.path / "bundle", parser["network_def"], plain, parser[""])
        shutil.rmtree(self.path / REPLACED, ignore_errors=True)

    def close(self, components: Mapping[str, Any]) -> None:
        """End the log; leave no trace in a run that was to be replaced.

        Args:
            components: The run's, those that write to TensorBoard among them.
        """
        if self._handler is not None:
            logging.getLogger("adl_monai").removeHandler(self._handler)
            self._handler.close()
        if self.replaces and not self._begun:
            for item in components.values():
                if isinstance(item, TensorBoardHandler):
                    item.close()  # else it would write its file again
            _remove(self._events() - self._old_events)

    def _replace(self, options: Options) -> None:
        """Set the old run aside and record the new one's options; one rename, at the end, makes that final."""
        aside = self.path / REPLACING
        try:
            aside.mkdir()
            for name in (*STATE, "train.log", "options.json"):
                if (self.path / name).exists():
                    os.rename(self.path / name, aside / name)
            file = self._log_file()
            record_options(self.path, options)
            shutil.rmtree(self.path / REPLACED, ignore_errors=True)
            os.rename(aside, self.path / REPLACED)
        except (OSError, OutputError) as error:
            with contextlib.suppress(OSError):
                restore(self.path)
            reason = error.strerror if isinstance(error, OSError) else error
            raise OutputError(
                f"the run in {self.path} cannot be replaced ({reason}); it stays as it was. Make room, or choose "
                "another folder with -o."
            ) from error
        _remove(self._old_events)
        waiting = self._handler
        if isinstance(waiting, MemoryHandler):
            logging.getLogger("adl_monai").removeHandler(waiting)
            waiting.setTarget(file)
            waiting.flush()
        self._log_to(file)

    def _log_file(self) -> logging.Handler:
        handler = logging.FileHandler(self.path / "train.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        return handler

    def _log_to(self, handler: logging.Handler) -> None:
        self._handler = handler
        package = logging.getLogger("adl_monai")
        package.addHandler(handler)
        if package.level == logging.NOTSET or package.level > logging.INFO:
            package.setLevel(logging.INFO)

    def _events(self) -> set[Path]:
        return {path for path in (self.path / "tensorboard").rglob("*") if path.is_file()}


def restore(path: Path) -> None:
    """Give a folder back the run whose replacement a kill has interrupted."""
    aside = path / REPLACING
    if aside.is_dir():
        for item in aside.iterdir():
            os.replace(item, path / item.name)
        aside.rmdir()


def refuse_own_models(run_dir: Path, overrides: Mapping[str, Any]) -> None:
    """A run may not start from, hold or learn from the very run that it replaces: resumed, it would find its own.

    Raises:
        UsageError: Naming the option.
    """
    teachers = overrides.get("teachers")
    given = [("init", overrides.get("init")), ("hold", overrides.get("hold"))]
    given += [("teacher", teacher.get("weights")) for teacher in teachers or () if isinstance(teacher, Mapping)]
    for name, weights in given:
        if isinstance(weights, str) and any(Path(weights).resolve().is_relative_to(run_dir / own) for own in STATE):
            raise UsageError(
                f"--{name} {weights} lies in the run that --overwrite replaces; write the new run to another folder "
                "with -o, or copy the model first (adl-monai export)."
            )


def _remove(files: set[Path]) -> None:
    for path in files:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
