"""Rows 61 and 68 of the table in tests/README.md, and what else a training run can meet."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adl_monai.engines.checkpoint import write_atomically
from adl_monai.losses import ADLLoss
from adl_monai.stages.train import train
from tests.conftest import TINY

from .conftest import Command, Refused

SETTINGS = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]


def killed_while_writing(path: Path, written: int) -> int:
    """Saves a checkpoint in a child process that is killed after so many bytes; returns how the child ended."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    save = torch.save

    def interrupted(state: Any, file: Any) -> None:
        save(state, file)
        file.truncate(written)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = interrupted
    write_atomically({"epoch": 2, "weights": torch.ones(5000)}, path, keep=path.with_name("previous.pt"))
    os._exit(0)


@pytest.mark.parametrize("written", [0, 500, 20_000])
def test_row_61_a_kill_while_a_checkpoint_is_written_leaves_the_old_one(tmp_path: Path, written: int) -> None:
    path = tmp_path / "last.pt"
    write_atomically({"epoch": 1, "weights": torch.zeros(5000)}, path)
    assert killed_while_writing(path, written) == signal.SIGKILL
    assert torch.load(path, weights_only=True)["epoch"] == 1
    # What the dead process left is removed by the next one.
    (left,) = tmp_path.glob(".last.pt.*.tmp")
    assert left.stat().st_size == written
    write_atomically({"epoch": 2}, path)
    assert [item.name for item in tmp_path.iterdir()] == ["last.pt"]
    assert torch.load(path, weights_only=True) == {"epoch": 2}


@pytest.fixture
def finished(manifest: Path, tmp_path: Path) -> Path:
    """A run of one epoch."""
    train(manifest, tmp_path / "run", overrides={**TINY, "max_epochs": 1})
    return tmp_path / "run"


def test_row_68_a_loss_that_is_no_number(
    finished: Path, manifest: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = (finished / "checkpoints" / "last.pt").read_bytes()
    monkeypatch.setattr(
        "adl_monai.losses.ADLLoss.total", lambda self, terms: sum(terms.values()) * torch.tensor(float("nan"))
    )
    outcome = command("train", manifest, "-o", finished, "--resume", "--epochs", "2", "--set", "phases#discriminator=0")
    assert outcome.code == 6, outcome.err
    for word in ("the loss became nan in epoch 2, iteration 3", "last good checkpoint is kept", "learning rate"):
        assert word in outcome.err
    assert "Traceback" not in outcome.err
    assert (finished / "checkpoints" / "last.pt").read_bytes() == kept


def test_a_full_disk_keeps_the_old_checkpoint(finished: Path, manifest: Path, command: Command) -> None:
    last = finished / "checkpoints" / "last.pt"
    kept, limits = last.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) // 2, limits[1]))
    try:
        outcome = command("train", manifest, "-o", finished, "--resume", "--epochs", "2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert outcome.code == 5, outcome.err
    for word in ("checkpoint of epoch 2", "File too large", "the one before is kept", "--resume"):
        assert word in outcome.err
    assert "Traceback" not in outcome.err
    assert last.read_bytes() == kept
    assert not list(finished.rglob("*.tmp"))
    assert command("train", manifest, "-o", finished, "--resume", "--epochs", "2").code == 0


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:999])


@pytest.mark.parametrize(
    "damage",
    [cut, lambda path: path.write_bytes(b""), lambda path: torch.save([1, 2], path)],
    ids=["cut", "empty", "x"],
)
def test_a_damaged_checkpoint_is_refused_with_the_way_out(
    finished: Path, manifest: Path, command: Command, damage: Callable[[Path], object]
) -> None:
    assert command("train", manifest, "-o", finished, "--resume", "--epochs", "2").code == 0
    last = finished / "checkpoints" / "last.pt"
    damage(last)
    words = [str(last), "cannot be read", "Remove it and pass --resume again"]
    outcome = command("train", manifest, "-o", finished, "--resume", "--epochs", "2")
    assert outcome.code == 2, outcome.err
    assert all(word in outcome.err for word in words)
    assert "Traceback" not in outcome.err
    last.unlink()
    assert command("train", manifest, "-o", finished, "--resume", "--epochs", "2").code == 0
    assert torch.load(last, weights_only=True)["epoch"] == 2


def test_too_little_memory_to_train(manifest: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("adl_monai.losses.ADLLoss.total", allocate)
    outcome = command("train", manifest, "-o", "run", *SETTINGS)
    assert outcome.code == 7, outcome.err
    assert "not enough memory to train" in outcome.err
    assert "--batch-size" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("cached", [(), ("--set", "cache_dir=cache")])
@pytest.mark.parametrize(("split", "count"), [("training", 5), ("validation", 3)])
def test_all_damaged_scans_are_named_at_once(
    tmp_path: Path, manifest: Path, command: Command, split: str, count: int, cached: tuple[str, ...]
) -> None:
    content = json.loads(manifest.read_text())
    for name in ("one.nii.gz", "two.nii.gz"):
        (tmp_path / name).write_bytes(b"no scan")
        content[split].append({"image": str(tmp_path / name)})
    manifest.write_text(json.dumps(content))
    outcome = command("train", manifest, "-o", "run", *SETTINGS, *cached)
    assert outcome.code == 3, outcome.err
    for word in (f"2 of {count} scans cannot be used", str(tmp_path / "one.nii.gz"), str(tmp_path / "two.nii.gz")):
        assert word in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("processes", [0, 1])
def test_a_damaged_scan_that_is_read_while_training_ends_it(
    tmp_path: Path, manifest: Path, command: Command, processes: int
) -> None:
    """It used to end the epoch, and every later one, in silence: "3 epochs", nothing learned, code 0."""
    content = json.loads(manifest.read_text())
    (tmp_path / "cut.nii.gz").write_bytes(b"no scan")
    content["training"].append({"image": str(tmp_path / "cut.nii.gz")})
    manifest.write_text(json.dumps(content))
    values = ("--set", "cache_rate=0.5", "--set", f"num_workers={processes}", "--set", "patches_per_epoch=9")
    outcome = command("train", manifest, "-o", "run", *SETTINGS, *values, "--batch-size", "1")
    assert outcome.code == 3, outcome.err
    (told,) = outcome.err.splitlines()
    assert told.startswith(f"Error: {tmp_path / 'cut.nii.gz'}: ")


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (MemoryError("unable to allocate 9 GiB"), 7, "not enough memory to train"),
        (OSError(28, "No space left on device"), 5, "No space left on device"),
    ],
)
def test_what_the_system_refuses_while_patches_are_drawn(
    manifest: Path, command: Command, monkeypatch: pytest.MonkeyPatch, fault: Exception, code: int, words: str
) -> None:
    def refuse(self: Any, case: Any) -> None:
        raise fault

    monkeypatch.setattr("adl_monai.data.RandDegraded.__call__", refuse)
    outcome = command("train", manifest, "-o", "run", *SETTINGS)
    assert outcome.code == code, outcome.err
    assert words in outcome.err
    assert "Traceback" not in outcome.err


def test_fewer_patches_than_a_batch(manifest: Path, command: Command) -> None:
    outcome = command("train", manifest, "-o", "run", *SETTINGS, "--batch-size", "16")
    assert outcome.code == 2, outcome.err
    assert "patches_per_epoch is 8 and batch_size 16" in outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert not Path("run", "checkpoints").exists()


def test_a_run_with_a_gradient_that_is_no_number_goes_on_from_sound_weights(
    finished: Path, manifest: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spoiled(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, loss: torch.Tensor) -> torch.Tensor:
            return loss.clone()

        @staticmethod
        def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * float("nan")

    kept = (finished / "checkpoints" / "last.pt").read_bytes()
    total = ADLLoss.total
    again = ("train", manifest, "-o", finished, "--resume", "--epochs", "2", "--set", "phases#discriminator=0")
    with monkeypatch.context() as patch:
        patch.setattr(ADLLoss, "total", lambda self, terms: Spoiled.apply(total(self, terms)))
        outcome = command(*again)
    assert outcome.code == 6, outcome.err
    for word in ("the gradients became nan", "in epoch 2, iteration 3", "last good checkpoint is kept"):
        assert word in outcome.err
    assert (finished / "checkpoints" / "last.pt").read_bytes() == kept
    assert command(*again).code == 0
    weights = torch.load(finished / "bundle" / "models" / "model.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_evaluate_names_all_damaged_scans_before_it_measures_any(
    tmp_path: Path, manifest: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(self: Any) -> None:
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr("monai.bundle.ConfigWorkflow.run", run)
    content = json.loads(manifest.read_text())
    for name in ("one.nii.gz", "two.nii.gz"):
        (tmp_path / name).write_bytes(b"no scan")
        content["test"].append({"image": str(tmp_path / name)})
    manifest.write_text(json.dumps(content))
    outcome = command("evaluate", manifest, "--model", "adl3d")
    assert outcome.code == 3, outcome.err
    for word in ("2 of 4 scans cannot be used", str(tmp_path / "one.nii.gz"), str(tmp_path / "two.nii.gz")):
        assert word in outcome.err
    assert not (tmp_path / "metrics.json").exists()


def test_scans_that_would_fill_the_memory(manifest: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adl_monai.data.training.case_cache.available_memory", lambda: 1)
    outcome = command("train", manifest, "-o", "run", *SETTINGS)
    assert outcome.code == 7, outcome.err
    for word in ("not enough memory to keep the scans", "--set cache_dir=FOLDER", "--set cache_rate=0.5"):
        assert word in outcome.err
    assert "Traceback" not in outcome.err
    on_disk = command("train", manifest, "-o", "run", *SETTINGS, "--set", "cache_dir=cache")
    assert on_disk.code == 0, on_disk.err


def test_a_run_that_died_before_its_first_checkpoint_resumes_with_its_own_options(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else ``--resume`` alone would start another, much longer, run of the default network."""

    def die(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("adl_monai.stages.train.open_workflow", die)
        with pytest.raises(KeyboardInterrupt):
            train(manifest, tmp_path / "run", overrides=TINY)
    result = train(manifest, tmp_path / "run", resume=True)
    assert result.epochs == TINY["max_epochs"]
    network = json.loads((result.bundle / "configs" / "inference.json").read_text())["network_def"]
    assert network["filters"] == TINY["network_def#filters"]


def test_an_export_deletes_nothing_but_an_older_export(finished: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("precious")
    refused(5, ["folder", "no bundle"], "export", finished, "-o", tmp_path / "folder", "--overwrite")
    for target in (finished, finished / "bundle", finished / "bundle" / "copy"):
        refused(5, ["holds the model", "another -o"], "export", finished, "-o", target, "--overwrite")


def test_an_export_that_fails_leaves_nothing_and_copies_no_links(
    finished: Path, tmp_path: Path, refused: Refused, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "private.txt").write_text("private")
    (finished / "bundle" / "docs" / "extra.txt").symlink_to(tmp_path / "private.txt")
    assert command("export", finished, "-o", tmp_path / "copy").code == 0
    assert (tmp_path / "copy" / "models" / "model.pt").is_file()
    assert not (tmp_path / "copy" / "docs" / "extra.txt").exists()

    def full_disk(*arguments: Any, **named: Any) -> None:
        shutil.copytree_(*arguments, **named)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree_", shutil.copytree, raising=False)
    monkeypatch.setattr(shutil, "copytree", full_disk)
    refused(5, ["again", "No space left"], "export", finished, "-o", tmp_path / "again")
    refused(5, ["copy", "No space left"], "export", finished, "-o", tmp_path / "copy", "--overwrite")


def test_where_nothing_was_saved_yet_nothing_is_said_to_be_kept(manifest: Path, command: Command) -> None:
    outcome = command("train", manifest, "-o", "run", *SETTINGS, "--learning-rate", "1e30")
    assert outcome.code == 6
    assert "in epoch 1" in outcome.err
    assert "No epoch was saved yet" in outcome.err
    assert not Path("run", "checkpoints").exists()
