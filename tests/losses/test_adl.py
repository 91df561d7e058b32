"""The whole loss: which terms, which scales, which weights, and who learns from it."""

import itertools
from unittest.mock import patch

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from adl_monai.losses import ADLLoss, AdversarialLoss, HistogramLoss, PyramidalTexturalLoss, area_pyramid

TERMS = ("l1", "l2", "texture", "histogram", "adversarial")


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def logits(spatial_dims: int) -> list[Tensor]:
    return [image(2, 1, *(size,) * spatial_dims, seed=9) for size in (16, 8, 4, 2)]


def scales(clean: Tensor, noise: float, seed: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [one + noise * torch.randn(one.shape, generator=generator) for one in area_pyramid(clean)]


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("kind", ["bce", "hinge"])
def test_terms_and_total_by_hand(spatial_dims: int, kind: str) -> None:
    clean = image(2, 1, *(16,) * spatial_dims)
    denoised, fake = scales(clean, 0.1), logits(spatial_dims)
    loss = ADLLoss(2.0, 3.0, 0.5, 0.25, kind, planes=2, bins=64, scale_weights=(1.0, 0.5, 0.25), l2=4.0)

    def over_scales(measure: object) -> Tensor:
        targets = area_pyramid(clean)
        return sum(weight * measure(denoised[s], targets[s]) for s, weight in enumerate((1.0, 0.5, 0.25)))

    terms = loss.terms(denoised, clean, fake)
    assert tuple(terms) == TERMS
    torch.testing.assert_close(terms["l1"], over_scales(l1_loss))
    torch.testing.assert_close(terms["l2"], over_scales(lambda a, b: ((a - b) ** 2).flatten(1).mean(1).sqrt().mean()))
    torch.testing.assert_close(terms["texture"], over_scales(PyramidalTexturalLoss(2)))
    torch.testing.assert_close(terms["histogram"], over_scales(HistogramLoss(64)))
    torch.testing.assert_close(terms["adversarial"], AdversarialLoss(kind).denoiser(fake))
    total = (
        2 * terms["l1"]
        + 4 * terms["l2"]
        + 3 * terms["texture"]
        + 0.5 * terms["histogram"]
        + 0.25 * terms["adversarial"]
    )
    torch.testing.assert_close(loss.total(terms), total)
    torch.testing.assert_close(loss(denoised, clean, fake), total)
    assert total.shape == ()


@pytest.mark.parametrize("off", TERMS)
def test_a_term_without_weight_is_not_computed(off: str) -> None:
    clean = image(2, 1, 16, 16)
    denoised = scales(clean, 0.1)
    targets = {
        "l1": "adl_monai.losses.adl.absolute_error",
        "l2": "adl_monai.losses.adl.root_mean_square_error",
        "texture": "adl_monai.losses.pyramid.PyramidalTexturalLoss.forward",
        "histogram": "adl_monai.losses.histogram.HistogramLoss.forward",
        "adversarial": "adl_monai.losses.adversarial.AdversarialLoss.denoiser",
    }
    loss = ADLLoss(**{"l2": 1.0, off: 0.0})
    for name, target in targets.items():
        with patch(target, side_effect=RuntimeError("computed")):
            if name == off:
                terms = loss.terms(denoised, clean, logits(2))
                assert set(terms) == set(TERMS) - {off}
            else:
                with pytest.raises(RuntimeError, match="computed"):
                    loss.terms(denoised, clean, logits(2))


def test_a_scale_without_weight_is_not_computed() -> None:
    clean = image(2, 1, 16, 16)
    denoised = scales(clean, 0.1)
    full = ADLLoss(scale_weights=(1.0, 0.0, 0.0))
    with patch.object(
        PyramidalTexturalLoss, "forward", autospec=True, side_effect=PyramidalTexturalLoss.forward
    ) as spy:
        several = full(denoised, clean)
    assert spy.call_count == 1
    assert torch.equal(several, full(denoised[0], clean))


def test_with_a_noise_floor_every_image_counts_by_the_share_of_noise_left() -> None:
    clean = image(2, 1, 32, 32)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    strength = torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)
    noisy, denoised = clean + strength * noise, clean + 0.5 * strength * noise
    loss = ADLLoss(1.0, 1.0, 0.0, 0.0, noise_floor=1e-6, l2=1.0)
    for term in ("l1", "l2", "texture"):
        each = [loss.terms(denoised[i : i + 1], clean[i : i + 1], noisy=noisy[i : i + 1])[term] for i in (0, 1)]
        torch.testing.assert_close(each[0], each[1], rtol=0.2, atol=0)
        torch.testing.assert_close(loss.terms(denoised, clean, noisy=noisy)[term], torch.stack(each).mean())
        plain = [ADLLoss(l2=1.0).terms(denoised[i : i + 1], clean[i : i + 1])[term] for i in (0, 1)]
        assert plain[0] > 8 * plain[1]
    # Noise of the usual strength weighs 1, with any floor; the weights get no gradient.
    usual = (clean + 20 / 255 * noise / noise.abs().mean((1, 2, 3), keepdim=True) * (2 / torch.pi) ** 0.5).detach()
    torch.testing.assert_close(
        ADLLoss(noise_floor=0.05).terms(denoised, clean, noisy=usual)["l1"], ADLLoss().terms(denoised, clean)["l1"]
    )
    noisy.requires_grad_(True)
    assert not loss(denoised, clean, noisy=noisy).requires_grad


def test_a_noise_floor_needs_the_noisy_images() -> None:
    clean = image(2, 1, 16, 16)
    with pytest.raises(ValueError, match="pass the noisy images"):
        ADLLoss(noise_floor=0.02)(clean, clean)
    with pytest.raises(ValueError, match="pass the noisy images"):
        ADLLoss(noise_floor=0.02)(clean, clean, noisy=clean[:1])
    with pytest.raises(ValueError, match="noise_floor"):
        ADLLoss(noise_floor=0.0)


def test_the_l2_term_is_what_psnr_measures_image_by_image() -> None:
    clean = image(3, 1, 9, 10, 11)
    noise = image(*clean.shape, seed=1) - 0.5
    denoised = (clean + torch.tensor([0.1, 0.02, 0.0]).view(3, 1, 1, 1, 1) * noise).requires_grad_()
    term = ADLLoss(l1=0.0, texture=0.0, histogram=0.0, l2=1.0)(denoised, clean)
    psnr = [peak_signal_noise_ratio(clean[i].numpy(), denoised[i].detach().numpy(), data_range=1.0) for i in (0, 1)]
    assert term.item() == pytest.approx(sum(10 ** (-decibels / 20) for decibels in psnr) / 3, rel=1e-5)
    (gradient,) = torch.autograd.grad(term, denoised)
    assert gradient[:2].abs().sum() > 0
    assert torch.equal(gradient[2], torch.zeros_like(clean[2]))  # nothing is left to learn there, and no NaN


def test_one_image_is_the_full_scale_alone() -> None:
    clean = image(2, 1, 16, 16)
    denoised = scales(clean, 0.1)
    loss = ADLLoss()
    assert torch.equal(loss(denoised[0], clean), loss(denoised[:1], clean))
    assert loss(denoised[0], clean) < loss(denoised, clean)


def test_warm_up_leaves_the_adversarial_term_out() -> None:
    clean = image(2, 1, 16, 16)
    assert "adversarial" not in ADLLoss().terms(scales(clean, 0.1), clean)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("term", TERMS[:-1])
def test_closer_images_cost_less(spatial_dims: int, term: str) -> None:
    clean = 0.2 + 0.6 * image(2, 1, *(16,) * spatial_dims)
    loss = ADLLoss(bins=64, l2=1.0)
    losses = [loss.terms(scales(clean, noise), clean)[term].item() for noise in (0.0, 0.03, 0.1, 0.3)]
    assert losses[0] == pytest.approx(0, abs=1e-6)
    assert losses == sorted(losses)
    assert len(set(losses)) == 4


@pytest.mark.parametrize(("term", "scale"), itertools.product(TERMS[:-1], range(3)))
def test_every_term_sends_a_gradient_to_every_scale(term: str, scale: int) -> None:
    clean = image(2, 1, 16, 16)
    denoised = [one.requires_grad_() for one in scales(clean, 0.1)]
    ADLLoss(l2=1.0).terms(denoised, clean)[term].backward()
    assert denoised[scale].grad.isfinite().all()
    # À-trous planes of a small image may cancel in single voxels, and values outside [0, 1] move no histogram.
    assert denoised[scale].grad.count_nonzero() > 0.5 * denoised[scale].numel()


class ToyDenoiser(nn.Conv2d):
    """One convolution with a head per scale, so that gradients are easy to follow."""

    def __init__(self) -> None:
        super().__init__(1, 1, 3, padding=1)
        self.heads = nn.ModuleList(nn.Conv2d(1, 1, 1) for _ in range(3))

    def forward(self, noisy: Tensor) -> list[Tensor]:
        return [head(scale) for head, scale in zip(self.heads, area_pyramid(super().forward(noisy)), strict=True)]


def moved(network: nn.Module) -> set[str]:
    return {name for name, one in network.named_parameters() if one.grad is not None and one.grad.count_nonzero()}


@pytest.mark.parametrize("kind", ["bce", "hinge"])
def test_who_learns_from_which_loss(kind: str) -> None:
    torch.manual_seed(0)
    clean = image(2, 1, 16, 16)
    noisy = clean + 0.1 * torch.randn(clean.shape)
    denoiser, discriminator = ToyDenoiser(), nn.Conv2d(1, 1, 3)
    loss = ADLLoss(adversarial_kind=kind)
    names = {name for name, _ in denoiser.named_parameters()}

    loss(denoiser(noisy), clean).backward()
    assert moved(denoiser) == names
    assert moved(discriminator) == set()

    denoiser.zero_grad()
    denoised = denoiser(noisy)
    loss.terms(denoised, clean, [discriminator(denoised[0])])["adversarial"].backward()
    assert moved(denoiser) == {"weight", "bias", "heads.0.weight", "heads.0.bias"}

    denoiser.zero_grad()
    discriminator.zero_grad()
    fake = denoiser(noisy)[0].detach()
    loss.discriminator_loss([discriminator(clean)], [discriminator(fake)]).backward()
    assert moved(denoiser) == set()
    assert "weight" in moved(discriminator)


def test_autocast_changes_nothing() -> None:
    clean = image(2, 1, 16, 16, 16)
    denoised, fake = scales(clean, 0.1), logits(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = ADLLoss()(denoised, clean, fake)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, ADLLoss()(denoised, clean, fake), rtol=1e-6, atol=0)


def test_nan_is_not_hidden() -> None:
    clean = image(1, 1, 16, 16)
    denoised = clean.clone()
    denoised[0, 0, 2, 2] = torch.nan
    assert all(term.isnan() for term in ADLLoss().terms(denoised, clean).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l1": -1.0}, "weight l1 is -1.0"),
        ({"adversarial": float("nan")}, "weight adversarial is nan"),
        ({"scale_weights": (1.0, -0.5)}, r"weight scale_weights\[1\] is -0.5"),
        ({"l1": 0.0, "texture": 0.0, "histogram": 0.0, "adversarial": 0.0}, "all weights are 0"),
        ({"adversarial_kind": "lsgan"}, "expected one of bce, hinge"),
        ({"planes": 0}, "planes is 0"),
        ({"bins": 1}, "bins is 1"),
    ],
)
def test_bad_weights_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ADLLoss(**options)


def test_shapes_that_do_not_fit_are_refused() -> None:
    clean = image(1, 1, 16, 16)
    with pytest.raises(ValueError, match="halved from scale to scale"):
        ADLLoss()([clean, clean], clean)
    with pytest.raises(ValueError, match="4 denoised scales"):
        ADLLoss()([clean] * 4, clean)
    with pytest.raises(ValueError, match="weight above 0"):
        ADLLoss(scale_weights=(0.0, 1.0))(clean, clean)
    with pytest.raises(ValueError, match="no term to sum"):
        ADLLoss(l1=0.0, texture=0.0, histogram=0.0)(clean, clean)
