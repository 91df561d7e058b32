"""Scripted and ONNX networks compute what the eager one does."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from adl_monai.networks import EfficientUNet, EfficientUNetDiscriminator

SMALL = (4, 6, 8, 10)
SIZES = (16, 24, 8)


def image(spatial_dims: int, batch: int = 1) -> Tensor:
    return torch.rand(batch, 1, *SIZES[:spatial_dims], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("multi_scale", [True, False])
@pytest.mark.parametrize(
    ("spatial_dims", "head", "content_enhancer", "norm", "bias"),
    [
        (2, "sigmoid", True, "batch", False),
        (3, "residual", True, None, False),
        (2, "residual", True, None, True),
        (2, "residual", False, ("group", {"num_groups": 4}), False),
        (3, "sigmoid", False, "instance", False),
    ],
)
def test_scripted_equals_eager(
    spatial_dims: int, head: str, content_enhancer: bool, norm: object, bias: bool, multi_scale: bool, tmp_path: Path
) -> None:
    denoiser = EfficientUNet(
        spatial_dims,
        filters=SMALL,
        norm=norm,
        head=head,
        content_enhancer=content_enhancer,
        multi_scale=multi_scale,
        bias=bias,
    ).eval()
    for name, value in denoiser.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(value)
    torch.jit.script(denoiser).save(str(tmp_path / "denoiser.ts"))
    scripted = torch.jit.load(str(tmp_path / "denoiser.ts"))
    noisy = image(spatial_dims)
    denoised = denoiser(noisy)
    assert isinstance(denoised, list) == multi_scale
    torch.testing.assert_close(scripted(noisy), denoised)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpointed_network_exports_as_any_other(tmp_path: Path) -> None:
    options = {"filters": SMALL, "multi_scale": False, "checkpointing": True}
    training = EfficientUNet(2, **options)
    scripted = torch.jit.script(training)
    learning = torch.rand(2, 1, 16, 24)
    torch.testing.assert_close(scripted(learning), training(learning))
    denoiser = training.eval()
    noisy = image(2)
    torch.jit.script(denoiser).save(str(tmp_path / "denoiser.ts"))
    torch.testing.assert_close(torch.jit.load(str(tmp_path / "denoiser.ts"))(noisy), denoiser(noisy))
    runtime = pytest.importorskip("onnxruntime")
    torch.onnx.export(denoiser, (noisy,), str(tmp_path / "denoiser.onnx"), input_names=["noisy"], verbose=False)
    session = runtime.InferenceSession(str(tmp_path / "denoiser.onnx"), providers=["CPUExecutionProvider"])
    (denoised,) = session.run(None, {"noisy": noisy.numpy()})
    torch.testing.assert_close(torch.from_numpy(denoised), denoiser(noisy).detach(), rtol=1e-4, atol=1e-5)


def test_scripted_network_still_refuses_a_bad_shape() -> None:
    scripted = torch.jit.script(EfficientUNet(2, filters=SMALL))
    with pytest.raises(torch.jit.Error, match=r"shape \(30, 45\) is not divisible by 8; pad to \(32, 48\)"):
        scripted(torch.rand(1, 1, 30, 45))


def test_discriminator_scripts() -> None:
    discriminator = EfficientUNetDiscriminator(2, filters=SMALL).eval()
    torch.testing.assert_close(torch.jit.script(discriminator)(image(2)), discriminator(image(2)))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_onnx_equals_eager(spatial_dims: int, dynamic: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    head, norm = ("residual", None) if dynamic else ("sigmoid", "batch")
    denoiser = EfficientUNet(spatial_dims, filters=SMALL, norm=norm, head=head, multi_scale=False).eval()
    noisy = image(spatial_dims)
    path = str(tmp_path / "denoiser.onnx")
    axes = {"noisy": {0: "batch", **{axis + 2: f"size{axis}" for axis in range(spatial_dims)}}} if dynamic else None
    torch.onnx.export(
        denoiser, (noisy,), path, input_names=["noisy"], output_names=["denoised"], dynamic_axes=axes, verbose=False
    )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = [noisy]
    if dynamic:
        images.append(torch.rand(2, 1, *(32, 8, 40)[:spatial_dims]))
    for one in images:
        (denoised,) = session.run(None, {"noisy": one.numpy()})
        torch.testing.assert_close(torch.from_numpy(denoised), denoiser(one).detach(), rtol=1e-4, atol=1e-5)
