"""Both sides of the game: values by hand, directions, and who gets a gradient."""

import math

import pytest
import torch
from torch import Tensor

from adl_monai.losses.adversarial import AdversarialLoss

SIZES = (8, 4, 2, 1)


def masks(value: float, spatial_dims: int = 2) -> list[Tensor]:
    return [torch.full((2, 1, *(size,) * spatial_dims), value) for size in SIZES]


def random_masks(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 1, size, size, generator=generator).requires_grad_() for size in SIZES]


def test_bce_is_the_paper_formula() -> None:
    real, fake = random_masks(0), random_masks(1)
    loss = AdversarialLoss()
    expected_d = sum(
        -torch.sigmoid(x).log().mean() - (1 - torch.sigmoid(gy)).log().mean() for x, gy in zip(real, fake, strict=True)
    )
    expected_g = sum(-torch.sigmoid(gy).log().mean() for gy in fake)
    torch.testing.assert_close(loss.discriminator(real, fake), expected_d / 4)
    torch.testing.assert_close(loss.denoiser(fake), expected_g / 4)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_hinge_by_hand(spatial_dims: int) -> None:
    loss = AdversarialLoss("hinge")
    assert loss.discriminator(masks(0.25, spatial_dims), masks(-3.0, spatial_dims)).item() == 0.75
    assert loss.discriminator(masks(2.0, spatial_dims), masks(0.5, spatial_dims)).item() == 1.5
    assert loss.denoiser(masks(0.5, spatial_dims)).item() == -0.5


def test_every_mask_weighs_the_same() -> None:
    for kind in ("bce", "hinge"):
        changes = []
        for scale in range(4):
            fake = masks(0.0)
            fake[scale] = fake[scale] + 1
            changes.append((AdversarialLoss(kind).denoiser(fake) - AdversarialLoss(kind).denoiser(masks(0.0))).item())
        assert changes == pytest.approx([changes[0]] * 4)
        assert changes[0] < 0


@pytest.mark.parametrize("kind", ["bce", "hinge"])
def test_both_sides_pull_in_opposite_directions(kind: str) -> None:
    loss = AdversarialLoss(kind)
    assert loss.discriminator(masks(0.9), masks(-0.9)) < loss.discriminator(masks(-0.9), masks(0.9))
    assert loss.denoiser(masks(0.9)) < loss.denoiser(masks(-0.9))
    fake = random_masks(0)
    loss.denoiser(fake).backward()
    assert all((mask.grad < 0).all() for mask in fake)  # minimising raises the logits of denoised images
    real, fake = random_masks(1), random_masks(2)
    loss.discriminator(real, fake).backward()
    assert all((mask.grad <= 0).all() and (mask.grad < 0).any() for mask in real[:2])
    assert all((mask.grad >= 0).all() and (mask.grad > 0).any() for mask in fake[:2])


def test_bce_is_stable_at_extreme_logits() -> None:
    loss = AdversarialLoss()
    assert loss.discriminator(masks(-1e4), masks(1e4)).item() == pytest.approx(2e4)
    assert loss.discriminator(masks(1e4), masks(-1e4)).item() == 0
    assert loss.denoiser(masks(0.0)).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("kind", ["bce", "hinge"])
def test_half_precision_logits_are_judged_in_float32(kind: str) -> None:
    loss = AdversarialLoss(kind)
    real = [mask.detach().bfloat16() for mask in random_masks(0)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss.discriminator(real, real)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, loss.discriminator([mask.float() for mask in real], [m.float() for m in real]))


def test_calling_it_is_the_denoiser_side() -> None:
    assert AdversarialLoss()(masks(0.3)) == AdversarialLoss().denoiser(masks(0.3))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of bce, hinge"):
        AdversarialLoss("wasserstein")
    with pytest.raises(ValueError, match="4 masks of real logits and 3 of fake"):
        AdversarialLoss().discriminator(masks(0.0), masks(0.0)[:3])
    with pytest.raises(ValueError, match="no logit mask"):
        AdversarialLoss().denoiser([])
