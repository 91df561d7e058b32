"""Scans that are nearly all background: the range of their percentiles is a sliver of what they show."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from adl_monai.data.training.noisy_range import SAMPLE

logger = logging.getLogger(__name__)

FAR_BEYOND = 10.0  # of the range, which ends at 1
LISTED = 5


def warn_of_sparse_scans(cases: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """One warning that names the scans to which the noise of training, a share of the range, is next to nothing.

    An object that is little more of the scan than the percentiles leave out puts the upper one at its dimmest edge.

    Args:
        cases: Names and prepared cases. Counted are those with the sample of ``SampledIntensitiesd`` and without a
            label: a real pair has the noise it has.
    """
    clean = [(name, case[SAMPLE]) for name, case in cases if SAMPLE in case and "label" not in case]
    brightest = {name: float(sample.max()) for name, sample in clean}
    sparse = [name for name, value in brightest.items() if value > FAR_BEYOND]
    if sparse:
        more = f" and {len(sparse) - LISTED} more" if len(sparse) > LISTED else ""
        logger.warning(
            "%d of %d scans are nearly empty: their objects reach up to %.0f times the intensity range, so that the "
            "noise they are trained with is next to nothing: %s%s. Crop them to what they show, or widen the range "
            "(--set intensity_percentiles=[0.1,99.9]).",
            len(sparse),
            len(clean),
            max(brightest[name] for name in sparse),
            ", ".join(sparse[:LISTED]),
            more,
        )
