"""A run that is killed again and again, at random moments and in the middle of checkpoint writes, ends bit-equal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY_2D, generated_manifest
from tests.engines.test_checkpoint import assert_same, final_state

KILLS = 30
EPOCHS = 160
OPTIONS = {**TINY_2D, "max_epochs": EPOCHS, "patches_per_epoch": 4}

# Imports once, then forks a child for each start of the run, so that the kills hit training and not importing.
DRIVER = """
import json, os, random, signal, sys, time
from pathlib import Path
manifest, run, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
options = json.loads(sys.argv[5])
from adl_monai import cli
import adl_monai.stages.train, monai.bundle, monai.engines, torch
torch.set_num_threads(1)
settings = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]

def start():
    # Once its options are on the disk, --resume alone goes on; before that nothing has begun.
    more = ["--resume"] if (run / "options.json").exists() else ["--dims", "2", *settings]
    child = os.fork()
    if child == 0:
        sys.argv = ["adl-monai", "-q", "train", str(manifest), "-o", str(run), *more]
        cli.main()
    return child

def writing(since):
    for path in (*run.glob("bundle/models/.model.pt.*.tmp"), *run.glob("checkpoints/.*.pt.*.tmp")):
        try:
            if path.stat().st_mtime > since:
                return True
        except FileNotFoundError:
            pass
    return False

def stamp():
    try:
        return (run / "checkpoints" / "last.pt").stat().st_mtime_ns
    except FileNotFoundError:  # not yet, or between two names
        return 0

def ended(child, options=os.WNOHANG):
    pid, status = os.waitpid(child, options)
    return os.waitstatus_to_exitcode(status) if pid else None

def finish(child):
    code = ended(child, 0)
    assert code == 0, f"the run ended with {code}"

def epoch():
    path = run / "checkpoints" / "last.pt"
    path = path if path.exists() else path.with_name("previous.pt")
    return torch.load(path, weights_only=True)["epoch"] if path.exists() else 0

began = time.monotonic()
child = start()
while not (run / "checkpoints" / "last.pt").exists():
    time.sleep(0.002)
first = time.monotonic() - began
finish(child)
whole = time.monotonic() - began
report = {"seconds": whole, "first": first, "kills": []}
if kills:
    os.rename(run, run.with_name("whole"))
    random.seed(seed)
    pace = (whole - first) / (options["max_epochs"] - 1)
    while len(report["kills"]) < kills:
        # By turns: at any moment of the start, of some epoch, and while a checkpoint is written.
        kind = len(report["kills"]) % 3
        wanted, pause = random.randrange(4), random.uniform(0, first if kind == 0 else 1.5 * pace)
        child, began, since, code, hit, saved, seen = start(), time.monotonic(), time.time(), None, False, 0, stamp()
        reached = began if kind == 0 or wanted == 0 else None
        while code is None and not hit:
            code, now = ended(child), stamp()
            saved, seen = saved + (now != seen), now
            if reached is None and saved >= wanted:
                reached = time.monotonic()
            ready = reached is not None and (kind == 2 or time.monotonic() - reached > pause)
            hit = saved > 4 or (ready and (kind != 2 or writing(since)))
            time.sleep(0.0002)
        assert code is None, f"the run ended with {code} before kill {len(report['kills']) + 1}"
        os.kill(child, signal.SIGKILL)
        assert ended(child, 0) == -signal.SIGKILL
        torn = [path.name for path in run.rglob("*.tmp") if path.stat().st_mtime > since]
        report["kills"].append({"after": time.monotonic() - began, "epoch": epoch(), "torn": torn})
    finish(start())
print(json.dumps(report))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thirty_kills_change_nothing(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(generated_manifest((24, 24))))
    command = [
        sys.executable,
        "-c",
        DRIVER,
        str(manifest),
        str(tmp_path / "run"),
        str(KILLS),
        "11",
        json.dumps(OPTIONS),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    kills = report["kills"]
    assert len(kills) == KILLS
    torn = [kill for kill in kills if kill["torn"]]
    epochs = [kill["epoch"] for kill in kills]
    print(f"{len(kills)} kills, {len(torn)} during a write, epochs {epochs}, {report['seconds']:.1f} s uninterrupted")
    assert epochs == sorted(epochs), "a kill took back what was saved"
    assert len(set(epochs)) > 5, "the kills hit one moment only"
    assert len(torn) >= 5, "hardly a kill hit a write"
    for whole, again in zip(final_state(tmp_path / "whole"), final_state(tmp_path / "run"), strict=True):
        assert_same(whole, again)
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["epoch"] == EPOCHS
    assert not list((tmp_path / "run").rglob("*.tmp"))
