"""A file given as a model is used or refused, never another in its place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adl_monai
from adl_monai.bundle import find_bundle, shipped_bundle
from adl_monai.errors import ModelError
from adl_monai.stages.evaluate import evaluate
from adl_monai.stages.export import export
from adl_monai.stages.train import train

Model = Callable[..., Path]


def test_the_weights_of_a_bundle_name_it(identity_model: Model, tmp_path: Path, monkeypatch: Any) -> None:
    root = identity_model(3)
    weights = root / "models" / "model.pt"
    assert find_bundle(weights) == root
    monkeypatch.chdir(weights.parent)
    assert find_bundle("model.pt") == root
    (tmp_path / "link.pt").symlink_to(weights)
    assert find_bundle(tmp_path / "link.pt") == root
    stored = tmp_path / "store" / "0123"  # as in a store of versioned data, where the bundle holds links
    stored.parent.mkdir()
    os.replace(weights, stored)
    weights.symlink_to(stored)
    assert find_bundle(weights) == root
    assert find_bundle(shipped_bundle(2) / "models" / "model.pt") == shipped_bundle(2)


@pytest.mark.parametrize("name", ["bundle/models/zeros.pt", "checkpoints/last.pt", "tensorboard/events", "bundle/x.pt"])
def test_any_other_file_is_refused(name: str, identity_model: Model, manifest: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(identity_model(3), run / "bundle")
    path = run / name
    path.parent.mkdir(exist_ok=True)
    shutil.copy(run / "bundle" / "models" / "model.pt", path)
    refused = (
        rf"{path.name}' is a file, but not a bundle's models/model\.pt.*Pass the folder that adl-monai train wrote"
    )
    with pytest.raises(ModelError, match=refused):
        adl_monai.denoise(np.zeros((16, 16, 16)), path)
    with pytest.raises(ModelError, match=refused):
        export(path, tmp_path / "m.ts", kind="torchscript")
    with pytest.raises(ModelError, match=refused):
        evaluate(manifest, tmp_path / "metrics.json", model=path)
    for option in ({"init": path}, {"hold": path}, {"teachers": [path]}):
        with pytest.raises(ModelError, match=refused):
            train(manifest, tmp_path / "new", **option)
    assert not (tmp_path / "new").exists()
    assert find_bundle(run) == run / "bundle"


def test_an_archive_is_to_be_unpacked(identity_model: Model, tmp_path: Path) -> None:
    for kind in ("zip", "gztar"):
        archive = shutil.make_archive(str(tmp_path / "mine"), kind, identity_model(3))
        with pytest.raises(ModelError, match="unpack it"):
            find_bundle(archive)
