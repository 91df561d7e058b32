"""A run that is killed goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adl_monai.engines import checkpoint
from adl_monai.engines.checkpoint import CheckpointHandler, write_atomically
from adl_monai.errors import ModelError, OutputError
from adl_monai.stages.train import train
from tests.conftest import TINY


def assert_same(first: Any, second: Any, where: str = "") -> None:
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{where}/{index}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where


def final_state(run: Path) -> tuple[Any, Any]:
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    return state, torch.load(run / "bundle" / "models" / "model.pt", weights_only=True)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    write_atomically({"epoch": 1}, path)

    def full_disk(state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomically({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_what_a_name_says_is_on_the_disk_before_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut leaves a whole name with half a file, and both checkpoints are lost."""
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append("sync of a folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync of a file")
        sync(descriptor)

    def replaced(old: Path, new: Path) -> None:
        done.append(f"rename to {new.name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    for epoch in (1, 2):
        done.clear()
        write_atomically({"epoch": epoch}, tmp_path / "last.pt", keep=tmp_path / "previous.pt")
    assert done == ["sync of a file", "rename to previous.pt", "rename to last.pt", "sync of a folder"]
    kept = [torch.load(tmp_path / name, weights_only=True) for name in ("previous.pt", "last.pt")]
    assert kept == [{"epoch": 1}, {"epoch": 2}]


def test_the_last_checkpoint_is_written_last(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed before it repeats the epoch, and so writes the others again."""
    written: list[str] = []

    def recorded(state: Any, path: Path, keep: Path | None = None) -> None:
        written.append(path.name)
        write_atomically(state, path, keep)

    monkeypatch.setattr(checkpoint, "write_atomically", recorded)
    train(manifest, tmp_path / "run", overrides={**TINY, "max_epochs": 1})
    assert written == ["model.pt", "best.pt", "last.pt"]


def test_of_several_processes_one_writes_and_what_it_wrote_is_held_to_the_run(tmp_path: Path) -> None:
    network = torch.nn.Linear(2, 2)
    engine: Any = SimpleNamespace(state=SimpleNamespace(epoch=1, iteration=2, max_epochs=3, epoch_length=2))
    places = tmp_path / "checkpoints", {"network": network}, network, tmp_path / "model.pt"
    CheckpointHandler(*places, active=False).save(engine)
    assert not list(tmp_path.iterdir())
    CheckpointHandler(*places).save(engine)
    assert (tmp_path / "checkpoints" / "last.pt").exists()
    assert (tmp_path / "model.pt").exists()
    more = CheckpointHandler(places[0], {**places[1], "ema": network}, *places[2:], resume=True)
    with pytest.raises(ModelError, match=r"it holds \['network'\], expected \['ema', 'network'\]"):
        more.load(engine)


def test_a_killed_run_resumes_bit_for_bit(manifest: Path, tmp_path: Path) -> None:
    options = {**TINY, "max_epochs": 6, "patches_per_epoch": 16}
    train(manifest, tmp_path / "whole", overrides=options)

    settings = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "adl_monai", "train", str(manifest), "-o", str(killed), *settings]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (killed / "checkpoints" / "previous.pt").exists() and process.poll() is None:
            assert time.monotonic() < deadline, "no second checkpoint after two minutes"
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    # Killed between the two renames of a checkpoint, only previous.pt is there.
    newest = next(p for p in (killed / "checkpoints" / name for name in ("last.pt", "previous.pt")) if p.exists())
    assert 1 <= torch.load(newest, weights_only=True)["epoch"] < 6

    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=dict(os.environ), check=False)
    assert resumed.returncode == 0, resumed.stderr
    for whole, again in zip(final_state(tmp_path / "whole"), final_state(killed), strict=True):
        assert_same(whole, again)


def test_another_manifest_or_seed_cannot_resume_a_run(manifest: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(manifest, run, overrides={**TINY, "max_epochs": 1})
    with pytest.raises(ModelError, match="seed"):
        train(manifest, run, resume=True, overrides={**TINY, "max_epochs": 2, "seed": 5})
    # The refused seed left no trace: the run's own options still resume it.
    assert train(manifest, run, resume=True, overrides={"max_epochs": 2}).epochs == 2
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(ModelError, match="manifest"):
        train(manifest, run, resume=True, overrides={**TINY, "max_epochs": 3})


def test_a_folder_with_a_run_is_not_overwritten(manifest: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(manifest, run, overrides={**TINY, "max_epochs": 1})
    with pytest.raises(OutputError, match="holds a training run"):
        train(manifest, run, overrides={**TINY, "max_epochs": 1})
