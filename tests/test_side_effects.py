"""Who denoises from Python finds the process as it was: its log, random numbers, filters of warnings, threads."""

from __future__ import annotations

import ast
import json
import logging
import random
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events

import adl_monai
from adl_monai.bundle import load_denoiser
from adl_monai.quiet import quiet_libraries
from adl_monai.stages.evaluate import evaluate
from adl_monai.stages.export import export
from adl_monai.stages.train import train
from tests.conftest import TINY, generated_manifest

Model = Callable[..., Path]


def levels() -> dict[str, int]:
    return {
        name: logging.getLogger(name).level
        for name in ("monai", "ignite", *logging.root.manager.loggerDict)
        if name.split(".")[0] in ("monai", "ignite")
    }


@pytest.mark.parametrize("model", [None, "own"])
def test_denoising_draws_no_random_numbers(model: str | None, identity_model: Model) -> None:
    root = None if model is None else identity_model(3, 0.3)
    noisy = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    adl_monai.denoise(noisy, root)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_denoising_starts_no_thread_and_leaves_the_start_method_open(tmp_path: Path) -> None:
    """Which a caller may fix once only: multiprocessing.set_start_method would fail after it."""
    code = """
import multiprocessing, sys, threading
import numpy as np
import adl_monai
from adl_monai.stages.infer import infer
noisy = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
adl_monai.denoise(noisy)
adl_monai.denoise(noisy[0])
infer([sys.argv[1]], sys.argv[2])
infer([sys.argv[3]], sys.argv[2], time_series=True)
assert multiprocessing.get_start_method(allow_none=True) is None
print([thread.name for thread in threading.enumerate()])
multiprocessing.set_start_method("spawn")
"""
    voxels = np.random.default_rng(0).normal(100, 20, (9, 10, 11, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels[..., 0], np.eye(4)), tmp_path / "scan.nii")
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "series.nii")
    command = [sys.executable, "-c", code, tmp_path / "scan.nii", tmp_path / "out", tmp_path / "series.nii"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['MainThread']\n"


def test_monai_and_ignite_may_speak_again(
    identity_model: Model, manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("ignite").setLevel(logging.INFO)
    logging.getLogger("ignite.engine.engine.Engine").setLevel(logging.DEBUG)
    try:
        before = levels()
        model = identity_model(3, 0.3)
        adl_monai.denoise(np.random.default_rng(0).normal(size=(16, 16, 16)), model)
        export(model, tmp_path / "model.ts", kind="torchscript")
        train(manifest, tmp_path / "run", overrides={**TINY, "max_epochs": 1})
        (tmp_path / "small.json").write_text(json.dumps(generated_manifest((16, 16, 16))))
        evaluate(tmp_path / "small.json", tmp_path / "metrics.json", model=tmp_path / "run")
        assert {name: level for name, level in levels().items() if name in before} == before
        assert not [record for record in caplog.records if record.name.split(".")[0] in ("monai", "ignite")]
        engine = Engine(lambda engine, batch: batch)  # a caller's own
        engine.add_event_handler(Events.COMPLETED, lambda: logging.getLogger("monai.handlers").warning("heard"))
        engine.run([0], max_epochs=1)
        assert "heard" in caplog.text
        assert re.search("Engine run (finished|complete)", caplog.text), "ignite 0.5.0 calls it complete"
    finally:
        logging.getLogger("ignite").setLevel(logging.NOTSET)
        logging.getLogger("ignite.engine.engine.Engine").setLevel(logging.NOTSET)


def test_threads_parse_one_after_the_other(identity_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI parses expressions of a bundle; two threads at it can raise a SystemError in Python 3.11 (ast.parse)."""
    model, parse, within, most = identity_model(3), ast.parse, [], []

    def watched(*given: Any, **named: Any) -> ast.AST:
        within.append(1)
        most.append(len(within))
        time.sleep(0.01)
        within.pop()
        return parse(*given, **named)

    load_denoiser(model)
    monkeypatch.setattr("monai.bundle.config_item.ast.parse", watched)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: load_denoiser(model), range(4)))
    assert len(most) >= 4
    assert max(most) == 1


def test_threads_share_the_quiet() -> None:
    library = logging.getLogger("monai.test_quiet")
    library.setLevel(logging.INFO)
    with quiet_libraries():
        with quiet_libraries():
            assert not library.isEnabledFor(logging.ERROR)
        assert not library.isEnabledFor(logging.ERROR), "another is still within"
        late = logging.getLogger("ignite.test_quiet")
        assert not late.isEnabledFor(logging.ERROR)
        chosen = logging.getLogger("monai.test_chosen")
        chosen.setLevel(logging.DEBUG)  # by somebody else, meanwhile
    assert library.level == logging.INFO
    assert late.isEnabledFor(logging.ERROR)
    assert chosen.level == logging.DEBUG
    with pytest.raises(KeyError), quiet_libraries():
        raise KeyError
    assert library.level == logging.INFO


def test_threads_leave_the_filters_of_warnings(identity_model: Model) -> None:
    model = identity_model(3, 0.3)
    noisy = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    adl_monai.denoise(noisy, model)  # what is imported at the first time sets filters of its own
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: adl_monai.denoise(noisy, model), range(16)))
    assert warnings.filters == before
    assert all(np.array_equal(result, results[0]) for result in results)
