"""Where and in which arithmetic a network runs."""

from __future__ import annotations

import pytest
import torch

from adl_monai.compute import autocast, autocast_dtype, pick_device, training_precision
from adl_monai.errors import UsageError

CPU = torch.device("cpu")
NATIVE_BF16 = autocast_dtype("auto", CPU) is not None


@pytest.mark.parametrize("name", ["tpu9", "gpu", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        pick_device(name)


def test_precision_names() -> None:
    assert autocast_dtype("fp32", CPU) is None
    assert autocast_dtype("bf16", CPU) is torch.bfloat16
    for name in ("fp16", "half"):
        with pytest.raises(UsageError, match=name):
            autocast_dtype(name, CPU)


def test_small_patches_train_in_float32() -> None:
    # The convolution that bfloat16 would spoil; see training_precision.
    assert training_precision("auto", CPU, (32, 32, 32)) == "auto"
    assert training_precision("auto", CPU, (16, 16)) == "auto"
    assert training_precision("fp32", CPU, (16, 16, 16)) == "fp32"
    assert training_precision("auto", CPU, (16, 32, 32)) == ("fp32" if NATIVE_BF16 else "auto")
    with pytest.raises(UsageError, match="at least 24 voxels"):
        training_precision("bf16", CPU, (16, 32, 32))


@pytest.mark.skipif(not NATIVE_BF16, reason="needs a CPU that multiplies bfloat16")
def test_gradients_of_patches_that_are_allowed_are_right() -> None:
    # What the guard above relies on: from 3 voxels on, the bfloat16 weight gradient is that of float32.
    torch.manual_seed(0)
    convolution = torch.nn.Conv3d(16, 16, 3, padding=1, bias=False).to(memory_format=torch.channels_last_3d)
    features = torch.rand(4, 16, 3, 3, 3).to(memory_format=torch.channels_last_3d)
    gradients = []
    for precision in ("fp32", "bf16"):
        convolution.zero_grad()
        with autocast(precision, CPU):
            convolution(features).float().square().sum().backward()
        gradients.append(convolution.weight.grad.clone())
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[0].norm()
