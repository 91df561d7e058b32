"""The two sides of the adversarial game, on lists of logit masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

KINDS = ("bce", "hinge")


class AdversarialLoss(nn.Module):
    r"""Adversarial loss of both networks, averaged over the discriminator's masks.

    With the logit d, clean image x, noisy image y and σ the sigmoid:

    .. math::
        \text{bce:}\quad L_D = -E\log\sigma(d(x)) - E\log(1 - \sigma(d(G(y)))), \quad L_G = -E\log\sigma(d(G(y)))

        \text{hinge:}\quad L_D = E\max(0, 1 - d(x)) + E\max(0, 1 + d(G(y))), \quad L_G = -E\,d(G(y))

    ``discriminator`` is minimised by the discriminator, which learns to tell clean from denoised images; give it
    logits of detached denoised images. ``denoiser`` is minimised by the denoiser, which learns to make them look
    clean; its logits must not be detached.

    Args:
        kind: ``"bce"`` as in the paper, or ``"hinge"``.

    Shape:
        real_logits, fake_logits: Lists of masks (B, 1, ...) of any size and real value; every mask weighs the same
        however many voxels it has. Returns a float32 scalar.

    Raises:
        ValueError: If ``kind`` is unknown, there is no mask, or the two lists differ in length.

    Source: Ghahremani et al., 2022, arXiv 2204.14100, adversarial loss; hinge: Lim & Ye, 2017, arXiv 1705.02894.

    Example:
        >>> loss = AdversarialLoss("bce")
        >>> sure, unsure = [torch.full((1, 1, 4, 4), 9.0)], [torch.zeros(1, 1, 4, 4)]
        >>> round(loss.discriminator(unsure, unsure).item(), 4)  # 2 log 2
        1.3863
        >>> loss.denoiser(sure).item() < loss.denoiser(unsure).item()
        True
    """

    def __init__(self, kind: str = "bce") -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"adversarial kind is {kind!r}; expected one of {', '.join(KINDS)}.")
        self.kind = kind

    def discriminator(self, real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor]) -> Tensor:
        """What the discriminator minimises: L_D."""
        if len(real_logits) != len(fake_logits):
            raise ValueError(
                f"{len(real_logits)} masks of real logits and {len(fake_logits)} of fake logits; expected as many of "
                "each, from one discriminator."
            )
        if self.kind == "bce":  # -log σ(d) = softplus(-d), -log(1 - σ(d)) = softplus(d)
            return mean_of_masks([softplus(-mask.float()) for mask in real_logits]) + mean_of_masks(
                [softplus(mask.float()) for mask in fake_logits]
            )
        return mean_of_masks([relu(1 - mask.float()) for mask in real_logits]) + mean_of_masks(
            [relu(1 + mask.float()) for mask in fake_logits]
        )

    def denoiser(self, fake_logits: Sequence[Tensor]) -> Tensor:
        """What the denoiser minimises: L_G."""
        if self.kind == "bce":
            return mean_of_masks([softplus(-mask.float()) for mask in fake_logits])
        return mean_of_masks([-mask.float() for mask in fake_logits])

    def forward(self, fake_logits: Sequence[Tensor]) -> Tensor:
        """The denoiser's side."""
        return self.denoiser(fake_logits)


def mean_of_masks(masks: Sequence[Tensor]) -> Tensor:
    """Mean over each mask, then over the masks.

    Raises:
        ValueError: If there is no mask.
    """
    if not masks:
        raise ValueError("no logit mask was given; expected the discriminator's list of masks.")
    return torch.stack([mask.mean() for mask in masks]).mean()
