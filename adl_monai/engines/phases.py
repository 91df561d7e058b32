"""The three phases of ADL training as a pure function of the epoch, so that a resumed run is in the right one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Who learns in an epoch (arXiv 2204.14100, training procedure)."""

    DENOISER = "denoiser"
    """Phase 1: the denoiser alone, without a discriminator."""
    DISCRIMINATOR = "discriminator"
    """Phase 2: the discriminator alone, on a frozen denoiser."""
    ADVERSARIAL = "adversarial"
    """Phase 3: both, in turn."""


@dataclass(frozen=True)
class PhaseSchedule:
    """How the epochs of a run are shared among the phases.

    Lengths are fractions of the run, because other tools (MONAI Label, FLARE) change ``max_epochs`` from outside.

    Args:
        denoiser: Fraction of the epochs spent in phase 1; 1 means that the run has no other phase.
        discriminator: Fraction spent in phase 2. Whatever remains is phase 3.

    Raises:
        ValueError: If a fraction is negative or both exceed 1 together.

    Example:
        >>> schedule = PhaseSchedule(denoiser=0.5, discriminator=0.2)
        >>> [schedule.phase(epoch, 10).value for epoch in (1, 5, 6, 7, 8, 10)]
        ['denoiser', 'denoiser', 'discriminator', 'discriminator', 'adversarial', 'adversarial']
    """

    denoiser: float = 0.8
    discriminator: float = 0.05

    def __post_init__(self) -> None:
        if self.denoiser < 0 or self.discriminator < 0 or self.denoiser + self.discriminator > 1:
            raise ValueError(
                f"phase fractions denoiser={self.denoiser}, discriminator={self.discriminator} must not be negative "
                "nor exceed 1 together; the remainder is the adversarial phase."
            )

    def phase(self, epoch: int, max_epochs: int) -> Phase:
        """The phase of ``epoch`` (counted from 1) in a run of ``max_epochs``.

        A run with a phase 3 has at least one epoch of phase 2 before it, however short it is, unless phase 2 is given
        no share at all. A run too short for the phase 3 that it was given a share of stays in phase 1: a discriminator
        that nobody listens to would be trained in vain.
        """
        last_denoiser = round(self.denoiser * max_epochs)
        share = self.discriminator * max_epochs
        last_discriminator = last_denoiser + (max(1, round(share)) if share > 0 else 0)
        too_short = self.denoiser + self.discriminator < 1 and last_discriminator >= max_epochs
        if epoch <= last_denoiser or too_short:
            return Phase.DENOISER
        if epoch <= last_discriminator:
            return Phase.DISCRIMINATOR
        return Phase.ADVERSARIAL
