"""``train --overwrite``: the old run is there, whole, until the new one has learned its first batch."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from adl_monai.errors import OutputError
from adl_monai.stages import run_folder
from adl_monai.stages.run_folder import restore
from adl_monai.stages.train import train
from tests.conftest import TINY

from .conftest import Command, contents

SETTINGS = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
SHORT = {**TINY, "max_epochs": 1}


@pytest.fixture
def finished(manifest: Path, tmp_path: Path) -> Path:
    """A run of one epoch."""
    train(manifest, tmp_path / "run", overrides=SHORT)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("code", "option", "words"),
    [
        (3, "patch_size=[16, 16, 16]", "damaged.nii.gz"),  # a scan's fault, while cases are prepared
        (2, "patch_size=[15, 15, 15]", "multiples of 8"),  # before anything is built
        (2, "ema#decay=2", "EMA decay 2"),  # while the run is built, after TensorBoard's files
        (2, "train#trainer#nonsense=2", "nonsense"),
        (2, "patch_size=$[15] * 3", "not divisible by 8"),  # by the first batch
    ],
)
def test_a_refused_run_leaves_the_old_one(
    code: int, option: str, words: str, finished: Path, manifest: Path, command: Command
) -> None:
    if code == 3:
        content = json.loads(manifest.read_text())
        damaged = manifest.with_name("damaged.nii.gz")
        damaged.write_bytes(b"no scan")
        content["training"].append({"image": str(damaged)})
        manifest.write_text(json.dumps(content))
    before = contents(finished)
    outcome = command("train", manifest, "-o", finished, "--overwrite", *SETTINGS, "--set", option)
    assert outcome.code == code, outcome.err
    assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert contents(finished) == before


def test_a_loss_that_is_no_number_at_once_leaves_the_old_run(
    finished: Path, manifest: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(finished)
    monkeypatch.setattr("adl_monai.losses.ADLLoss.total", lambda self, terms: sum(terms.values()) * float("nan"))
    assert command("train", manifest, "-o", finished, "--overwrite", *SETTINGS).code == 6
    assert contents(finished) == before


def test_the_new_run_takes_its_place(finished: Path, manifest: Path, command: Command) -> None:
    old = contents(finished)
    (finished / "notes.txt").write_text("the user's own")
    assert command("train", manifest, "-o", finished, "--overwrite", *SETTINGS, "--set", "max_epochs=2").code == 0
    new = contents(finished)
    kept = [name for name in old if new.get(name) == old[name] and "bundle/" not in name]
    assert kept == [], "nothing of the old run is left"
    assert (
        len([name for name in new if name.startswith("tensorboard/")])
        == len([name for name in old if name.startswith("tensorboard/")]) + 1
    ), "those of two validations' previews, not of one"
    assert len((finished / "train.log").read_text().splitlines()) == 2
    assert json.loads((finished / "options.json").read_text())["overrides"]["max_epochs"] == 2
    assert (finished / "notes.txt").exists()
    assert not [path for path in finished.iterdir() if path.name.startswith(".")]


def test_what_is_told_before_the_first_batch_is_in_the_new_log(finished: Path, manifest: Path, tmp_path: Path) -> None:
    train(manifest, tmp_path / "start", overrides=SHORT)
    package = logging.getLogger("adl_monai")
    before = list(package.handlers)
    train(manifest, finished, init=tmp_path / "start", overwrite=True, overrides=SHORT)
    told = (finished / "train.log").read_text().splitlines()
    assert "start, psnr" in told[0]
    assert "epoch 1/1" in told[1]
    assert package.handlers == before, "it goes on logging to a run that is over"


@pytest.mark.parametrize("name", ["checkpoints", "bundle"])
def test_either_part_of_a_run_is_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(OutputError, match="holds a training run"):
        run_folder.RunFolder(tmp_path / "run", resume=False, overwrite=False)


@pytest.mark.parametrize("option", ["init", "hold", "teachers"])
def test_a_run_is_not_replaced_by_one_that_starts_from_it(
    option: str, finished: Path, manifest: Path, command: Command, tmp_path: Path
) -> None:
    before = contents(finished)
    (tmp_path / "link").symlink_to(finished)
    for name in (finished, finished / "bundle" / "models" / "model.pt", tmp_path / "link"):
        given = [f"--{option.removesuffix('s')}", name]
        outcome = command("train", manifest, "-o", finished, "--overwrite", *given, *SETTINGS)
        assert outcome.code == 2, outcome.err
        assert "lies in the run that --overwrite replaces" in outcome.err
        assert contents(finished) == before
    # Another run may.
    given = {option: [finished] if option == "teachers" else finished}
    values = {**SHORT, "network_def#filters": [8, 8, 8, 8]}
    train(manifest, tmp_path / "other", **given, overwrite=True, overrides=values)  # type: ignore[arg-type]


def in_a_child(work: Callable[[], object], kill: Callable[[], object]) -> int:
    """Runs in a child process, in which ``kill`` arranges the end; how it ended."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        kill()
        work()
    finally:
        os._exit(1)


@pytest.mark.parametrize("renames", range(6))
def test_a_kill_leaves_the_old_run_or_the_new_one(renames: int, manifest: Path, finished: Path, tmp_path: Path) -> None:
    """Five renames replace a run, the last makes it final; the kill comes before one of them, or after the last."""
    before = contents(finished)
    old = json.loads((finished / "options.json").read_text())
    folder = run_folder.RunFolder(finished, resume=False, overwrite=True)
    new = run_folder.Options(overrides={**TINY, "max_epochs": 2, "init": "x"})

    def arrange() -> None:
        rename, done = os.rename, 0

        def killing(*names: Any) -> None:
            nonlocal done
            if done == renames:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*names)
            done += 1

        os.rename = killing
        run_folder.write_bundle = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)

    parser = ConfigParser({"network_def": {}})
    assert in_a_child(lambda: folder.begin(tmp_path, parser, new), arrange) == signal.SIGKILL
    restore(finished)
    assert not (finished / run_folder.REPLACING).exists(), "or no later run could replace this one"
    options = json.loads((finished / "options.json").read_text())
    if renames < 5:
        assert options == old
        assert contents(finished) == before
        assert train(manifest, finished, resume=True, overrides={"max_epochs": 2}).epochs == 2
    else:
        assert options["overrides"]["init"] == "x"
        assert not (finished / "checkpoints").exists()
        assert not (finished / "bundle").exists()


def test_a_folder_that_refuses_the_new_options_keeps_the_old_run(
    finished: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(finished)

    def full(*arguments: object) -> None:
        raise OutputError("No space left on device")

    monkeypatch.setattr(run_folder, "record_options", full)
    with pytest.raises(OutputError, match=r"cannot be replaced \(No space left on device\); it stays as it was"):
        train(manifest, finished, overwrite=True, overrides=SHORT)
    assert contents(finished) == before
