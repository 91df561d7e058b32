"""A grown network starts as the one it grew from, and its new channels learn."""

from __future__ import annotations

import pytest
import torch

from adl_monai.networks import EfficientUNet
from adl_monai.networks.growth import grown_weights


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
    wide.load_state_dict(grown_weights(narrow.state_dict(), wide))
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
    groups = ("group", {"num_groups": 4})
    with pytest.raises(ValueError, match="group norms"):
        grown_weights(network(2, [8, 12, 16, 20], norm=groups).state_dict(), network(2, [8, 16, 16, 20], norm=groups))
