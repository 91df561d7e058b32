"""Small manifests, options and models that the tests share. Nothing here needs a network or data from outside."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every run and in any order, so that a failure can be repeated."""
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A manifest of generated volumes."""
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(generated_manifest()))
    return path


def generated_manifest(shape: tuple[int, ...] = (24, 24, 24)) -> dict[str, Any]:
    def cases(count: int, seed: int) -> list[dict[str, Any]]:
        return [{"synthetic": {"kind": "leaves", "shape": list(shape), "count": count, "seed": seed}}]

    return {"training": cases(3, 0), "validation": cases(1, 100), "test": cases(2, 200)}


TINY: dict[str, Any] = {
    "max_epochs": 3,
    "patches_per_epoch": 8,
    "batch_size": 4,
    "patch_size": [16, 16, 16],
    "validation_size": [16, 16, 16],
    "precision": "fp32",
    "network_def#filters": [4, 4, 4, 4],
    "discriminator_def#filters": [4, 4, 4, 4],
    "phases#denoiser": 0.34,
    "phases#discriminator": 0.33,
}
"""Overrides that make a training run of all three phases last seconds."""

TINY_2D = {**TINY, "patch_size": [16, 16, 1], "validation_size": [16, 16, 1]}


@pytest.fixture
def identity_model(tmp_path: Path) -> Callable[[int], Path]:
    """Makes a bundle whose network subtracts nothing (what goes in must come out) or, with a strength, something."""

    def make(spatial_dims: int, strength: float = 0.0) -> Path:
        import torch

        from adl_monai.bundle import shipped_bundle
        from adl_monai.bundle_of_a_run import write_bundle
        from adl_monai.networks import EfficientUNet

        arguments = {
            "spatial_dims": spatial_dims,
            "filters": [4, 4, 4, 4],
            "norm": None,
            "head": "residual",
            "content_enhancer": False,
        }
        root = tmp_path / f"identity_{spatial_dims}d"
        network_def = {"_target_": "adl_monai.networks.EfficientUNet", **arguments}
        write_bundle(shipped_bundle(spatial_dims), root, network_def, {"tile": [32] * spatial_dims})
        torch.manual_seed(0)
        network = EfficientUNet(**arguments)
        state = network.state_dict()
        state["head1.project.weight"] *= 100 * strength  # small in a fresh network
        torch.save(state, root / "models" / "model.pt")
        return root

    return make


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
