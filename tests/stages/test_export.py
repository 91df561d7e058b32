"""An exported network computes what the model does, at the shapes that users have."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from adl_monai.bundle import load_denoiser

SHAPES = ((1, 64, 64, 64), (1, 72, 16, 24), (3, 8, 32, 16))  # batch and sizes; the first is that of the export


def exported(model: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    kind = {".onnx": "onnx", ".ts": "torchscript"}[output.suffix]
    command = [sys.executable, "-m", "adl_monai", *options, "export", str(model), "--format", kind, "-o", str(output)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_onnx_takes_any_batch_and_size(
    spatial_dims: int, identity_model: Callable[[int, float], Path], tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = identity_model(spatial_dims, 1.0)
    done = exported(model, tmp_path / "m.onnx", *(["-q"] if spatial_dims == 2 else []))
    # Nothing of torch's own on either stream.
    assert done.stdout == ("" if spatial_dims == 2 else f"{tmp_path / 'm.onnx'}\n")
    assert done.stderr == ""
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    network = load_denoiser(model, device="cpu").network
    for batch, *sizes in SHAPES:
        noisy = torch.rand(batch, 1, *sizes[:spatial_dims])
        with torch.no_grad():
            expected = network(noisy).numpy()
        (denoised,) = session.run(["denoised"], {"noisy": noisy.numpy()})
        assert np.abs(expected - noisy.numpy()).max() > 0.01, "the model does something"
        np.testing.assert_allclose(denoised, expected, atol=1e-5)


def test_onnx_of_a_network_with_norms(identity_model: Callable[[int, float], Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    from adl_monai.networks import EfficientUNet
    from adl_monai.stages.export import export

    model = identity_model(3, 1.0)
    config = json.loads((model / "configs" / "inference.json").read_text())
    config["network_def"].update(norm=["group", {"num_groups": 2}], head="sigmoid", content_enhancer=True)
    (model / "configs" / "inference.json").write_text(json.dumps(config))
    arguments = {key: value for key, value in config["network_def"].items() if key != "_target_"}
    network = EfficientUNet(**arguments).eval()
    torch.save(network.state_dict(), model / "models" / "model.pt")
    export(model, tmp_path / "m.onnx", kind="onnx")
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    noisy = torch.rand(2, 1, 24, 16, 40)
    (denoised,) = session.run(None, {"noisy": noisy.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(denoised, network(noisy).numpy(), atol=1e-5)
