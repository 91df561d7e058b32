"""A grown network starts as the one it grew from, and its new channels learn."""

from __future__ import annotations

import pytest
import torch

from adl_monai.engines import Muon
from adl_monai.engines.start import hold_weights
from adl_monai.networks import EfficientUNet
from adl_monai.networks.growth import grown_weights, held_weights


def network(spatial_dims: int, filters: list[int], **options: object) -> EfficientUNet:
    return EfficientUNet(spatial_dims, filters=filters, **{"norm": None, "head": "residual", **options}).eval()


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("enhancer", [True, False])
@pytest.mark.parametrize("norm", ["batch", None])
@pytest.mark.parametrize("filters", [[8, 12, 16, 20], [12, 9, 22, 20], [16, 24, 32, 40]])
def test_it_computes_the_same(spatial_dims: int, enhancer: bool, norm: str | None, filters: list[int]) -> None:
    narrow = network(spatial_dims, [8, 9, 16, 20], content_enhancer=enhancer, norm=norm)
    wide = network(spatial_dims, filters, content_enhancer=enhancer, norm=norm)
    if norm:
        with torch.no_grad():  # statistics of its own for each channel
            for name, value in narrow.state_dict().items():
                if "norm" in name and value.is_floating_point():
                    value.uniform_(0.5, 1.5)
    fresh = {name: value.clone() for name, value in wide.state_dict().items()}
    state = grown_weights(narrow.state_dict(), wide)
    assert all(torch.equal(value, fresh[name]) for name, value in wide.state_dict().items()), "the network was changed"
    wide.load_state_dict(state)
    noisy = torch.rand(1, 1, *(16,) * spatial_dims)
    with torch.no_grad():
        for before, after in zip(narrow(noisy), wide(noisy), strict=True):
            torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("filters", [[8, 9, 16, 20], [12, 12, 16, 24]])
def test_a_content_enhancer_can_be_added(spatial_dims: int, filters: list[int]) -> None:
    plain = network(spatial_dims, [8, 9, 16, 20], content_enhancer=False)
    enhanced = network(spatial_dims, filters, content_enhancer=True)
    enhanced.load_state_dict(grown_weights(plain.state_dict(), enhanced))
    noisy = torch.rand(1, 1, *(16,) * spatial_dims)
    for before, after in zip(plain(noisy), enhanced(noisy), strict=True):
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    sum(image.square().mean() for image in enhanced(noisy)).backward()
    assert enhanced.decode1.block.conv1.weight.grad[:, -filters[0] :].abs().max() > 0


@pytest.mark.parametrize("enhancers", [(True, True), (False, True)])
@pytest.mark.parametrize("had_biases", [False, True])
@pytest.mark.parametrize("norm", ["batch", None])
@pytest.mark.parametrize("filters", [[8, 9, 16, 20], [12, 12, 16, 24]])
def test_biases_can_be_added_and_are_kept(
    enhancers: tuple[bool, bool], had_biases: bool, norm: str | None, filters: list[int]
) -> None:
    plain = network(2, [8, 9, 16, 20], content_enhancer=enhancers[0], norm=norm, bias=had_biases)
    biased = network(2, filters, content_enhancer=enhancers[1], norm=norm, bias=True)
    with torch.no_grad():
        for one in (plain, biased):
            for name, value in one.named_parameters():
                if name.endswith("conv1.bias"):
                    value.uniform_(0.1, 0.2)
    biased.load_state_dict(grown_weights(plain.state_dict(), biased))
    noisy = torch.rand(1, 1, 16, 16)
    for before, after in zip(plain(noisy), biased(noisy), strict=True):
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    sum(image.square().mean() for image in biased(noisy)).backward()
    assert biased.encoder.bridge.conv1.bias.grad.abs().max() > 0


@pytest.mark.parametrize("filters", [[8, 9, 16, 20], [12, 12, 16, 24]])
def test_it_grows_from_weights_in_half_precision(filters: list[int]) -> None:
    narrow = network(2, [8, 9, 16, 20])
    half = {name: value.half() for name, value in narrow.state_dict().items()}
    narrow.load_state_dict(half)
    wide = network(2, filters)
    wide.load_state_dict(grown_weights(half, wide))
    assert all(value.dtype == torch.float32 for value in grown_weights(half, wide).values())
    noisy = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(wide(noisy)[0], narrow(noisy)[0], atol=1e-5, rtol=1e-5)


def test_the_new_channels_learn() -> None:
    wide = network(3, [16, 24, 32, 40], content_enhancer=False)
    wide.load_state_dict(grown_weights(network(3, [8, 12, 16, 20], content_enhancer=False).state_dict(), wide))
    sum(image.square().mean() for image in wide(torch.rand(1, 1, 16, 16, 16))).backward()
    assert wide.encoder.encode2.conv1.weight.grad[:12, 8:].abs().max() > 0
    assert wide.decode1.block.conv2.weight.grad[:8, 8:].abs().max() > 0


def test_what_does_not_grow_is_refused() -> None:
    state = network(2, [8, 12, 16, 20]).state_dict()
    with pytest.raises(ValueError, match="would shrink"):
        grown_weights(state, network(2, [8, 8, 16, 20]))
    with pytest.raises(ValueError, match="built differently"):
        grown_weights(state, network(2, [8, 12, 16, 20], content_enhancer=False))
    with pytest.raises(ValueError, match="built differently"):
        grown_weights(state, network(2, [8, 12, 16, 20], norm="batch"))
    with pytest.raises(ValueError, match="built differently"):
        grown_weights(network(2, [8, 12, 16, 20], bias=True).state_dict(), network(2, [8, 12, 16, 20]))
    groups = ("group", {"num_groups": 4})
    with pytest.raises(ValueError, match="group norms"):
        grown_weights(network(2, [8, 12, 16, 20], norm=groups).state_dict(), network(2, [8, 16, 16, 20], norm=groups))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("enhancers", [(True, True), (False, False), (False, True)])
@pytest.mark.parametrize("filters", [[12, 16, 32, 28], [10, 9, 16, 20]])
@pytest.mark.parametrize("biases", [(False, False), (False, True), (True, True)])
def test_what_is_held_computes_the_same_after_training(
    spatial_dims: int, enhancers: tuple[bool, bool], filters: list[int], biases: tuple[bool, bool]
) -> None:
    old = network(spatial_dims, [8, 9, 16, 20], content_enhancer=enhancers[0], bias=biases[0])
    wide = network(spatial_dims, filters, content_enhancer=enhancers[1], bias=biases[1])
    state, held = grown_weights(old.state_dict(), wide), held_weights(old.state_dict(), wide)
    wide.load_state_dict(state)
    optimizer = Muon(wide.parameters(), lr=0.01, weight_decay=0.1)
    hold_weights(wide, state, held, optimizer)
    noisy = torch.rand(2, 1, *(16,) * spatial_dims)
    for _ in range(10):
        optimizer.zero_grad()
        sum((image - 0.5).square().mean() for image in wide(noisy)).backward()
        optimizer.step()
    with torch.no_grad():
        before, after = old(noisy), wide(noisy)
        assert (after[0] - before[0]).abs().max() > 1e-3
        # Once the image no longer listens to the new channels, the old network's result is what is left.
        for head, former in [(getattr(wide, f"head{n}"), getattr(old, f"head{n}")) for n in (1, 2, 3)]:
            head.project.weight[:, former.project.weight.shape[1] :] = 0
        for one, other in zip(wide(noisy), before, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    for name, weights in wide.named_parameters():
        if name in held:
            assert torch.equal(weights.detach()[held[name]], state[name][held[name]])


def test_what_cannot_be_held_is_refused() -> None:
    old = network(2, [8, 12, 16, 20])
    for filters in ([8, 12, 16, 20], [8, 16, 32, 24], [9, 12, 16, 20]):
        with pytest.raises(ValueError, match="no new channel"):
            held_weights(old.state_dict(), network(2, filters))
    norms = [network(2, filters, norm="batch") for filters in ([8, 12, 16, 20], [12, 16, 20, 24])]
    with pytest.raises(ValueError, match="batch norms follow new images"):
        held_weights(norms[0].state_dict(), norms[1])
