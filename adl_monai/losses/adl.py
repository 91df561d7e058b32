"""The denoiser's whole loss: fidelity, texture, histogram and adversarial terms, summed over the scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from adl_monai.losses.adversarial import AdversarialLoss
from adl_monai.losses.histogram import HistogramLoss
from adl_monai.losses.pyramid import PyramidalTexturalLoss, area_pyramid

USUAL_NOISE = 20 / 255 * math.sqrt(2 / math.pi)  # mean absolute value of Gaussian noise


class ADLLoss(nn.Module):
    r"""Adversarial distortion learning: fidelity, texture, histogram and adversarial terms.

    .. math:: L = \lambda_1 L_1 + \lambda_2 L_2 + \lambda_p L_{pyr} + \lambda_H L_{hist} + \lambda_{adv} L_G

    All but L_G are summed over the scales s with weights w_s, against area-averaged targets; L_G is the mean over
    the discriminator's masks. Minimising it trains the denoiser: right values (L1, robust to outliers), right texture,
    right contrast, and images the discriminator takes for clean ones. A term whose λ is 0 is not computed.
    ``discriminator_loss`` is what the discriminator minimises, with gradients of its own.

    Args:
        l1: λ_1, of the mean absolute error.
        texture: λ_p.
        histogram: λ_H. Small: per unit of λ, this term's gradient is about 15 to 50 times that of L1 (256 bins).
        adversarial: λ_adv.
        adversarial_kind: ``"bce"`` as in the paper, or ``"hinge"``.
        planes: Detail planes of the textural loss.
        bins: Bins of the histograms on [0, 1].
        scale_weights: w_s, full scale first.
        noise_floor: If given, fidelity and texture of each image of the batch are divided by how noisy it came, by
            mean \|noisy - clean\| + ``noise_floor``, and multiplied by the same at σ = 20/255. Otherwise the strongest
            noise makes nearly all of the loss, and the weak noise of good scans is learned last.
        l2: λ_2, of each image's root mean square error, which is what PSNR measures. Not in the paper.

    Shape:
        denoised: One image (B, C, H, W[, D]), the full scale alone, or a list of images at full, 1/2, 1/4 size.
        clean: (B, C, H, W[, D]), about [0, 1].
        fake_logits: The discriminator's masks of the denoised image, or None to leave the adversarial term out (the
        warm-up). noisy: What the denoiser was given, like clean; for ``noise_floor`` only. Returns a float32 scalar.

    Raises:
        ValueError: If a weight is negative or not finite, all are 0, or shapes do not fit.

    Source: Ghahremani et al., 2022, arXiv 2204.14100, total loss. The default λ are ours, not the paper's.

    Example:
        >>> loss = ADLLoss(l1=1.0, texture=1.0, histogram=0.0, adversarial=0.01)
        >>> clean = torch.rand(1, 1, 16, 16)
        >>> denoised = [clean + 0.1, torch.nn.functional.avg_pool2d(clean, 2)]
        >>> terms = loss.terms(denoised, clean)
        >>> sorted(terms), round(loss.total(terms).item(), 3)
        (['l1', 'texture'], 0.1)
    """

    def __init__(
        self,
        l1: float = 1.0,
        texture: float = 1.0,
        histogram: float = 0.005,
        adversarial: float = 0.01,
        adversarial_kind: str = "bce",
        planes: int = 3,
        bins: int = 256,
        scale_weights: Sequence[float] = (1.0, 1.0, 1.0),
        noise_floor: float | None = None,
        l2: float = 0.0,
    ) -> None:
        super().__init__()
        if noise_floor is not None and not 0 < noise_floor < math.inf:
            raise ValueError(f"noise_floor is {noise_floor}; expected a positive number, or None.")
        self.noise_floor = noise_floor
        self.weights = {"l1": l1, "l2": l2, "texture": texture, "histogram": histogram, "adversarial": adversarial}
        self.scale_weights = tuple(scale_weights)
        check_weights(self.weights)
        check_weights({f"scale_weights[{scale}]": weight for scale, weight in enumerate(self.scale_weights)})
        self.texture_loss = PyramidalTexturalLoss(planes)
        self.histogram_loss = HistogramLoss(bins)
        self.adversarial_loss = AdversarialLoss(adversarial_kind)

    def forward(
        self,
        denoised: Tensor | Sequence[Tensor],
        clean: Tensor,
        fake_logits: Sequence[Tensor] | None = None,
        noisy: Tensor | None = None,
    ) -> Tensor:
        """The weighted sum of the terms."""
        return self.total(self.terms(denoised, clean, fake_logits, noisy))

    def terms(
        self,
        denoised: Tensor | Sequence[Tensor],
        clean: Tensor,
        fake_logits: Sequence[Tensor] | None = None,
        noisy: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms with λ ≠ 0 by name (``l1``, ``l2``, ``texture``, ``histogram``, ``adversarial``), not weighted."""
        images = [denoised] if isinstance(denoised, Tensor) else list(denoised)
        weights = self.scale_weights[: len(images)]
        if len(images) != len(weights) or not any(weights):
            raise ValueError(
                f"{len(images)} denoised scales for the scale weights {self.scale_weights}; expected one image or more "
                "with a weight above 0 and no image without weight."
            )
        targets = area_pyramid(clean, len(images))
        for image, target in zip(images, targets, strict=True):
            if image.shape != target.shape:
                raise ValueError(
                    f"a denoised image has shape {tuple(image.shape)} where the clean image gives "
                    f"{tuple(target.shape)}; expected the same shape, halved from scale to scale."
                )
        emphasis = self._emphasis(noisy, clean)

        def emphasised(measure: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
            # All three are norms of linear maps of the difference: weighing the images weighs the term.
            return measure if emphasis is None else lambda a, b: measure(a.float() * emphasis, b.float() * emphasis)

        measures: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "l1": emphasised(absolute_error),
            "l2": emphasised(root_mean_square_error),
            "texture": emphasised(self.texture_loss),
            "histogram": self.histogram_loss,
        }
        terms = {}
        for name, measure in measures.items():
            if self.weights[name] > 0:
                losses = [
                    weight * measure(image, target)
                    for weight, image, target in zip(weights, images, targets, strict=True)
                    if weight > 0
                ]
                terms[name] = torch.stack(losses).sum()
        if fake_logits is not None and self.weights["adversarial"] > 0:
            terms["adversarial"] = self.adversarial_loss.denoiser(fake_logits)
        return terms

    def _emphasis(self, noisy: Tensor | None, clean: Tensor) -> Tensor | None:
        if self.noise_floor is None:
            return None
        if noisy is None or noisy.shape != clean.shape:
            raise ValueError("noise_floor is set; pass the noisy images, of the clean images' shape, with each call.")
        axes = tuple(range(1, clean.ndim))
        noise = (noisy.detach().float() - clean.float()).abs().mean(axes, keepdim=True)
        return (USUAL_NOISE + self.noise_floor) / (noise + self.noise_floor)

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Σ λ · term over what ``terms`` gave."""
        if not terms:
            raise ValueError("no term to sum; give the discriminator's fake_logits or a weight besides adversarial.")
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()

    def discriminator_loss(self, real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor]) -> Tensor:
        """What the discriminator minimises, given its masks of clean and of detached denoised images; not weighted."""
        return self.adversarial_loss.discriminator(real_logits, fake_logits)


def absolute_error(denoised: Tensor, clean: Tensor) -> Tensor:
    """Fidelity L1, E|denoised - clean| in float32 (arXiv 2204.14100)."""
    return l1_loss(denoised.float(), clean.float())


def root_mean_square_error(denoised: Tensor, clean: Tensor) -> Tensor:
    """The mean over the batch of each image's sqrt(E|denoised - clean|²), in float32; no gradient where they agree."""
    difference = denoised.float() - clean.float()
    axes = tuple(range(1, difference.ndim))
    return torch.linalg.vector_norm(difference, dim=axes).mean() / math.sqrt(difference[0].numel())


def check_weights(weights: Mapping[str, float]) -> None:
    """Raise a ValueError unless the weights are finite, not negative and not all 0."""
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"weight {name} is {weight}; expected a finite number, at least 0.")
    if not any(weights.values()):
        raise ValueError(f"all weights are 0 ({', '.join(weights)}); expected at least one above 0.")
