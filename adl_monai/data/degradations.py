"""What degrades a clean image: drawn blindly in training, fixed in validation, replayed from a record for ever.

Drawing is separate from applying: the transforms draw a ``Degradation`` record, and the record replays the same noise.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor

from adl_monai.data.noise import KINDS
from adl_monai.errors import UsageError
from adl_monai.files import SYNTHETIC


@dataclass(frozen=True)
class Degradation:
    """One drawn degradation: applied twice to the same image, it gives the same noise twice.

    Args:
        kind: one of ``KINDS``.
        sigma: noise level in the normalised scale, >= 0.
        seed: of the noise, an unsigned 64-bit number.
    """

    kind: str
    sigma: float
    seed: int

    def __post_init__(self) -> None:
        _require_kind(self.kind)
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise UsageError(
                f"noise level sigma={self.sigma} given; expected a finite number >= 0 in the normalised scale."
            )

    def apply(self, clean: torch.Tensor) -> torch.Tensor:
        """The noisy version of ``clean``, float32 of the same shape (and meta); ``clean`` itself is not touched."""
        plain = clean.as_tensor() if isinstance(clean, MetaTensor) else clean
        generator = torch.Generator().manual_seed(self.seed)
        noisy = KINDS[self.kind](plain.to(torch.float32), self.sigma, generator)
        return convert_to_dst_type(noisy, clean, dtype=torch.float32)[0]


class RandDegraded(RandomizableTransform, MapTransform):
    """Degrade a clean patch by noise of a random kind and a random, unknown level (blind training).

    Cases whose ``"degrade"`` entry is false (real noisy/clean pairs, see ``CleanAsLabeld``) pass untouched. All
    numbers are drawn from ``self.R``, so ``set_random_state`` replays them, whether or not the case is degraded.

    Args:
        keys: the one image to degrade, (C, H, W[, D]) float32 in the normalised scale.
        kinds: names out of ``KINDS``, drawn with equal probability, or a mapping of names to weights.
        sigma_range: the level lies between these two; the default is the paper's 0 to 55/255.
        sigma_power: the level is ``low + (high - low) u^sigma_power`` with u uniform in [0, 1]: 1 gives the paper's
            uniform levels, 2 draws low levels more often.
        least_sigma: kinds that are not drawn at the lowest levels, by name: their level lies between this and
            ``high``. Faint noise that neighbours share is hard to tell from faint texture; a network that never met it
            has no reason to take texture for it.
        prob: share of the patches that are degraded at all.
        record: put ``{"kind", "sigma", "seed"}`` into the case as ``"degradation"``; the kind may be ``"none"``.
        allow_missing_keys: skip cases that do not have the key.

    Raises:
        UsageError: For unknown kinds, weights that are not a distribution, or bad levels.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        kinds: Mapping[str, float] | Sequence[str] = ("gaussian",),
        sigma_range: Sequence[float] = (0.0, 55 / 255),
        sigma_power: float = 1.0,
        least_sigma: Mapping[str, float] | None = None,
        prob: float = 1.0,
        record: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        _require_one_key(self.keys)
        self.kinds, self.weights = _kinds_and_weights(kinds)
        if len(sigma_range) != 2 or not 0 <= sigma_range[0] <= sigma_range[1] < math.inf:
            raise UsageError(f"sigma_range {tuple(sigma_range)} given; expected (low, high) with 0 <= low <= high.")
        if not 0 < sigma_power < math.inf:
            raise UsageError(f"sigma_power {sigma_power} given; expected a positive number.")
        self.sigma_range = (float(sigma_range[0]), float(sigma_range[1]))
        self.sigma_power = float(sigma_power)
        self.least_sigma = dict(least_sigma or {})
        for kind, least in self.least_sigma.items():
            _require_kind(kind)
            if not 0 <= least < math.inf:
                raise UsageError(f"least_sigma {least} given for {kind}; expected a finite number >= 0.")
            if kind in self.kinds and least > self.sigma_range[1]:
                raise UsageError(
                    f"least_sigma {least} given for {kind}, above the highest level of sigma_range "
                    f"{self.sigma_range}; lower it, or leave the kind out (--set noise_least_sigma={{}} lifts all)."
                )
        self.record = record
        self.degradation = Degradation(self.kinds[0], self.sigma_range[0], 0)

    def randomize(self, data: Any = None) -> None:
        """Draw whether to degrade, and the kind, level and seed of the noise."""
        super().randomize(data)
        kind = self.kinds[int(self.R.choice(len(self.kinds), p=self.weights))]
        low, high = self.sigma_range
        low = max(low, self.least_sigma.get(kind, low))
        sigma = low + (high - low) * float(self.R.uniform()) ** self.sigma_power
        self.degradation = Degradation(kind, sigma, int(self.R.randint(2**32, dtype=np.uint32)))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case with its image degraded, unless the case says not to."""
        self.randomize()
        case = dict(data)
        wanted = self._do_transform and bool(case.get("degrade", True))
        for key in self.key_iterator(case):
            # The image keeps its type, so that degraded and untouched items collate into one batch.
            case[key] = convert_to_tensor(case[key], track_meta=isinstance(case[key], MetaTensor))
            if wanted:
                case[key] = self.degradation.apply(case[key])
            if self.record:
                case["degradation"] = asdict(self.degradation) if wanted else {"kind": "none", "sigma": 0.0, "seed": 0}
        return case


class Degraded(MapTransform):
    """Degrade a clean case by a fixed kind and level, the same on every machine (validation and evaluation).

    Each case has its own noise, which depends on ``seed`` and on the name of the case: the file and its folder, or
    the whole specification of a synthetic volume. Cases whose ``"degrade"`` entry is false pass untouched.

    Args:
        keys: the one image to degrade, (C, H, W[, D]) float32 in the normalised scale.
        kind: one of ``KINDS``.
        sigma: noise level in the normalised scale.
        seed: changes the noise of all cases.
        allow_missing_keys: skip cases that do not have the key.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        kind: str = "gaussian",
        sigma: float = 25 / 255,
        seed: int = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        _require_one_key(self.keys)
        self.degradation = Degradation(kind, float(sigma), int(seed))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case with its image degraded, unless the case says not to."""
        case = dict(data)
        for key in self.key_iterator(case) if bool(case.get("degrade", True)) else ():
            image = convert_to_tensor(case[key], track_meta=isinstance(case[key], MetaTensor))
            name = image.meta.get("filename_or_obj", "") if isinstance(image, MetaTensor) else ""
            case[key] = replace(self.degradation, seed=case_seed(self.degradation.seed, name)).apply(image)
        return case


def case_seed(seed: int, filename: object) -> int:
    """Mix ``seed`` with what names a case wherever it lies: file and parent folder, or a synthetic specification."""
    name = str(filename[0] if isinstance(filename, (list, tuple)) and filename else filename)
    _, mark, specification = name.partition(SYNTHETIC)
    identity = specification if mark else "/".join([part for part in re.split(r"[\\/]+", name) if part][-2:])
    return int(np.random.SeedSequence([seed, zlib.crc32(identity.encode())]).generate_state(1)[0])


def _require_kind(kind: str) -> None:
    if kind not in KINDS:
        raise UsageError(f"noise kind {kind!r} is unknown; expected one of {', '.join(KINDS)}.")


def _require_one_key(keys: Sequence[Hashable]) -> None:
    if len(keys) != 1:
        raise UsageError(
            f"keys {tuple(keys)} given; a degradation takes one image (stack several contrasts as its channels)."
        )


def _kinds_and_weights(kinds: Mapping[str, float] | Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    named = (
        dict(kinds) if isinstance(kinds, Mapping) else dict.fromkeys([kinds] if isinstance(kinds, str) else kinds, 1.0)
    )
    for kind in named:
        _require_kind(kind)
    weights = np.array(list(named.values()), dtype=np.float64)
    if weights.size == 0 or not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() == 0:
        raise UsageError(
            f"noise kinds {named} given; expected at least one of {', '.join(KINDS)} with a positive weight."
        )
    return tuple(named), weights / weights.sum()
