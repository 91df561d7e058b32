"""Checkpointing changes what is kept, and nothing that is computed."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from adl_monai.networks import EfficientUNet
from adl_monai.networks.recompute import Recomputable, counted_once

SMALL = (4, 6, 8, 10)
GROUP = ("group", {"num_groups": 4})
INSTANCE = ("instance", {"affine": True, "track_running_stats": True})


def twins(spatial_dims: int, **options: object) -> tuple[EfficientUNet, EfficientUNet]:
    torch.manual_seed(0)
    plain = EfficientUNet(spatial_dims, **{"filters": SMALL, **options})
    checkpointed = EfficientUNet(spatial_dims, **{"filters": SMALL, **options, "checkpointing": True})
    checkpointed.load_state_dict(plain.state_dict(), strict=True)
    return plain, checkpointed


def noisy_images(spatial_dims: int) -> Tensor:
    return torch.rand(2, 1, *(16, 24, 8)[:spatial_dims], generator=torch.Generator().manual_seed(1))


def learn(network: torch.nn.Module, noisy: Tensor) -> list[Tensor]:
    denoised = network(noisy)
    sum(one.square().mean() for one in denoised).backward()
    return [one.detach() for one in denoised]


@pytest.mark.parametrize("content_enhancer", [True, False])
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("norm", ["batch", INSTANCE, GROUP, None])
def test_gradients_and_statistics_are_the_same(spatial_dims: int, norm: object, content_enhancer: bool) -> None:
    plain, checkpointed = twins(spatial_dims, norm=norm, content_enhancer=content_enhancer)
    for _ in range(2):
        expected, found = learn(plain, noisy_images(spatial_dims)), learn(checkpointed, noisy_images(spatial_dims))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    gradients = dict(checkpointed.named_parameters())
    for name, parameter in plain.named_parameters():
        assert parameter.grad.count_nonzero() > 0, name
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-5, atol=1e-8, msg=name)
    # A forward that is run twice would count its batch twice.
    state = checkpointed.state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-7, msg=name)


def test_gradients_are_the_same_in_bfloat16() -> None:
    plain, checkpointed = twins(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, found = plain(noisy_images(2)), checkpointed(noisy_images(2))
    for network, denoised in ((plain, expected), (checkpointed, found)):
        sum(one.mean() for one in denoised).backward()  # outside of autocast, as in training
        assert network.encoder.encode1.conv1.weight.grad.isfinite().all()
    gradients = dict(checkpointed.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-5, atol=1e-8, msg=name)


def kept_bytes(network: torch.nn.Module, noisy: Tensor) -> int:
    """What a forward keeps for its backward, each memory once, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        denoised = network(noisy)
    assert denoised
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_far_less_is_kept(spatial_dims: int) -> None:
    plain, checkpointed = twins(spatial_dims, filters=(24, 32, 40, 48))  # the paper's proportions
    noisy = torch.rand(1, 1, *[32] * spatial_dims)
    assert kept_bytes(checkpointed, noisy) < 0.3 * kept_bytes(plain, noisy)


@pytest.mark.parametrize("mode", ["inference", "evaluation"])
def test_nothing_changes_where_nothing_is_learned(mode: str) -> None:
    plain, checkpointed = twins(2)
    noisy = noisy_images(2)
    if mode == "evaluation":
        plain.eval(), checkpointed.eval()
        assert kept_bytes(checkpointed, noisy) == kept_bytes(plain, noisy)
    with torch.no_grad():
        assert all(torch.equal(*pair) for pair in zip(checkpointed(noisy), plain(noisy), strict=True))


def test_no_unit_lies_in_another_that_is_computed_again() -> None:
    network = EfficientUNet(2, filters=SMALL, checkpointing=True)
    again = [unit for unit in network.modules() if isinstance(unit, Recomputable) and unit.recomputed]
    assert len(again) == 4 + 1 + 3 + 3
    for unit in again:
        assert not any(other.recomputed for other in unit.modules() if hasattr(other, "recomputed") and other != unit)
    assert not any(getattr(unit, "recomputed", False) for unit in EfficientUNet(2, filters=SMALL).modules())


def test_a_copy_of_the_network_is_independent_of_it() -> None:
    _, checkpointed = twins(2)
    average = copy.deepcopy(checkpointed)
    learn(average, noisy_images(2))
    assert all(parameter.grad is None for parameter in checkpointed.parameters())
    assert all(parameter.grad is not None for parameter in average.parameters())


def test_statistics_are_released_when_the_block_fails() -> None:
    norm = torch.nn.BatchNorm2d(1)

    def stopped() -> None:  # as checkpointing ends its second pass once it has what it needs
        with counted_once(norm):
            norm(torch.rand(1, 1, 4, 4))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert norm.num_batches_tracked == 0
    assert norm.running_mean == 0
    norm(torch.rand(1, 1, 4, 4))
    assert norm.num_batches_tracked == 1
    assert norm.running_mean > 0


def test_it_learns_across_processes(tmp_path: Path) -> None:
    plain, checkpointed = twins(2)
    learn(plain, noisy_images(2))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        learn(torch.nn.parallel.DistributedDataParallel(checkpointed), noisy_images(2))
    finally:
        torch.distributed.destroy_process_group()
    gradients = dict(checkpointed.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-5, atol=1e-8, msg=name)
