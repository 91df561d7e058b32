"""A run that is killed goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from adl_monai.engines.checkpoint import write_atomically
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
