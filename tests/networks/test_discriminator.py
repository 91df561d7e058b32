"""The discriminator: four masks, their sizes, and which of its parts each of them trains."""

import pytest
import torch

from adl_monai.networks import EfficientUNetDiscriminator

SMALL = (4, 6, 8, 10)


@pytest.mark.parametrize(("spatial_dims", "parameters"), [(2, 988_750), (3, 2_862_118)])
def test_paper_preset(spatial_dims: int, parameters: int) -> None:
    discriminator = EfficientUNetDiscriminator(spatial_dims)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == parameters
    with torch.no_grad():
        logits = discriminator(torch.rand(2, 1, *(16,) * spatial_dims))
    assert [tuple(mask.shape) for mask in logits] == [(2, 1, *(size,) * spatial_dims) for size in (16, 8, 4, 2)]


@pytest.mark.parametrize("norm", ["batch", ("group", {"num_groups": 4}), "instance", None])
@pytest.mark.parametrize("act", ["relu", ("leakyrelu", {"negative_slope": 0.1})])
def test_masks_reach_every_parameter_and_the_image(norm: object, act: object) -> None:
    discriminator = EfficientUNetDiscriminator(2, 2, filters=(8, 12, 16, 20), norm=norm, act=act)
    image = torch.rand(2, 2, 16, 24, requires_grad=True)
    sum(mask.square().mean() for mask in discriminator(image)).backward()
    assert [name for name, one in discriminator.named_parameters() if not one.grad.count_nonzero()] == []
    assert image.grad.count_nonzero() == image.numel()


def test_each_mask_trains_its_own_mapper() -> None:
    discriminator = EfficientUNetDiscriminator(2, filters=SMALL)
    mappers = ["mask1", "mask2", "mask3", "mask_bridge"]
    for scale, mine in enumerate(mappers):
        discriminator.zero_grad()
        discriminator(torch.rand(2, 1, 16, 16))[scale].square().mean().backward()
        moved = {name.split(".")[0] for name, one in discriminator.named_parameters() if one.grad is not None}
        assert moved & set(mappers) == {mine}
        assert ("decode3" in moved) == (mine != "mask_bridge")


def test_logits_are_not_squashed() -> None:
    discriminator = EfficientUNetDiscriminator(2, filters=SMALL, norm=None)
    logits = discriminator(1000 * torch.rand(1, 1, 16, 16))
    assert all(mask.abs().max() > 1 for mask in logits)


def test_it_learns_to_tell_two_kinds_of_image_apart() -> None:
    discriminator = EfficientUNetDiscriminator(2, filters=SMALL, act=("leakyrelu", {"negative_slope": 0.1}))
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    smooth = torch.nn.functional.interpolate(torch.rand(4, 1, 4, 4), scale_factor=4, mode="bilinear")
    rough = smooth + 0.2 * torch.randn(smooth.shape)
    losses = []
    for _ in range(15):
        logits = discriminator(torch.cat([smooth, rough]))
        loss = sum(torch.relu(1 - mask[:4]).mean() + torch.relu(1 + mask[4:]).mean() for mask in logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 4 positive integers"):
        EfficientUNetDiscriminator(2, filters=(8, 8))
    with pytest.raises(ValueError, match="spatial_dims is 4"):
        EfficientUNetDiscriminator(4)
    with pytest.raises(ValueError, match=r"shape \(12, 16\) is not divisible by 8; pad to \(16, 16\)"):
        EfficientUNetDiscriminator(2, filters=SMALL)(torch.rand(1, 1, 12, 16))
