"""What a person has to know of a training before and after it: whether its figures can be trusted, and what to do."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from adl_monai.manifest import Manifest

logger = logging.getLogger(__name__)


def warn_of_validation(
    manifest: Manifest,
    kind: str,
    sigma: float,
    kinds: Mapping[str, float] | Sequence[str] | str,
    levels: Sequence[float],
) -> None:
    """Warn where nothing validates, or where what validates is a noise that the run does not train on.

    Args:
        manifest: Of the run.
        kind: Noise that clean validation cases get.
        sigma: Its level.
        kinds: What the run trains on, as `adl_monai.data.RandDegraded` takes it.
        levels: The lowest and the highest level of that.
    """
    if not manifest.validation:
        logger.warning(
            "%s has no case under 'validation': no figure will tell whether the training goes well, and the model will "
            "be that of the last epoch. Move some patients there.",
            manifest.path,
        )
    if not all(any(case.label is None for case in cases) for cases in (manifest.validation, manifest.training)):
        return  # real pairs have the noise they have
    trained = [kinds] if isinstance(kinds, str) else [name for name in kinds if _share(kinds, name) > 0]
    advice = []
    if kind not in trained:
        advice.append(f"validation_noise={trained[0]}")
    if not levels[0] <= sigma <= levels[1]:
        advice.append(f"validation_sigma={(levels[0] + levels[1]) / 2:.3g}")
    if advice:
        logger.warning(
            "validation adds %s noise of level %.3g, which is not trained on (%s, levels %.3g to %.3g): PSNR and the "
            "best epoch will be of other noise than the model's. Pass --set %s.",
            kind,
            sigma,
            ", ".join(trained),
            *levels,
            " --set ".join(advice),
        )


def warn_of_result(epochs: int, done: int, best: float | None, noisy: float | None, start: float | None = None) -> None:
    """Warn where nothing was trained, or nothing was won.

    Args:
        epochs: Completed now.
        done: Of them in an earlier part of the run.
        best: PSNR of the best epoch, None where nothing was validated.
        noisy: PSNR of the noisy images.
        start: PSNR of the model that the run started from, None where there was none.
    """
    if epochs == done:
        logger.warning(
            "the run has had its %d epochs before: nothing was trained. A larger --epochs makes it longer.", epochs
        )
    elif best is not None and start is not None and best <= start:
        logger.warning(
            "the best epoch (PSNR %.2f dB) is no better than the model that the run started from (%.2f dB): on the "
            "validation cases, that one is to be preferred. Lower --learning-rate, train longer, or add cases.",
            best,
            start,
        )
    elif best is not None and noisy is not None and best <= noisy:
        logger.warning(
            "the best epoch (PSNR %.2f dB) is no better than the noisy images (%.2f dB): the model is of no use yet. "
            "Train longer (--resume with a larger --epochs), or start from a shipped model (--init).",
            best,
            noisy,
        )


def _share(kinds: Mapping[str, float] | Sequence[str], name: str) -> float:
    return kinds[name] if isinstance(kinds, Mapping) else 1.0
