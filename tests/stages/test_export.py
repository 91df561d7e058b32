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
from adl_monai.errors import UsageError

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


def test_packages_that_torch_does_not_know_are_told(
    identity_model: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As onnxscript 0.5, which has nothing for torch 2.11."""
    from adl_monai.stages.export import export

    def unfit(**options: object) -> None:
        raise ModuleNotFoundError("No module named 'onnxscript._framework_apis.torch_2_11'")

    monkeypatch.setattr("adl_monai.stages.export.find_spec", lambda name: name)
    monkeypatch.setattr("monai.bundle.scripts.onnx_export", unfit)
    with pytest.raises(UsageError, match=r"do not fit torch 2\.\d+\.\d+.*torch_2_11.*--upgrade onnx onnxscript"):
        export(identity_model(3), tmp_path / "m.onnx", kind="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["identity_3d"]
    monkeypatch.setattr("adl_monai.stages.export.find_spec", lambda name: None if name == "onnx" else name)
    with pytest.raises(UsageError, match="needs the packages onnx and onnxscript"):
        export(identity_model(3), tmp_path / "m.onnx", kind="onnx")
