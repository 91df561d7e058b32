"""Small dictionary transforms that MONAI does not have.

What MONAI does have is used as it is, and tested here with the same data: padding a thin volume by reflection beyond
its own size is ``SpatialPadd(mode="symmetric")``. Random patches are cut in ``crop``.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TraceKeys, convert_to_dst_type, convert_to_tensor


class CleanAsLabeld(MapTransform):
    """Let a case without a label teach itself: its clean image becomes the label, and ``"degrade"`` says whether to
    add noise.

    A case with a label is a real noisy/clean pair, to which no noise may be added: ``"degrade"`` is then false.
    Placed after the random crop, it copies a patch instead of a whole volume.

    Args:
        keys: the one image, (C, H, W[, D]).
        allow_missing_keys: skip cases that do not have the image.
    """

    def __init__(self, keys: KeysCollection = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"keys {self.keys} given; a case has one image to become its label.")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case with a label and a ``"degrade"`` flag."""
        case = dict(data)
        for key in self.key_iterator(case):
            case["degrade"] = "label" not in case
            if case["degrade"]:
                image = convert_to_tensor(case[key], track_meta=isinstance(case[key], MetaTensor))
                case["label"] = image.clone()
        return case


class EnsureDepthd(MapTransform, InvertibleTransform):
    """Give a 2D image a depth of one, (C, H, W) → (C, H, W, 1), so that 2D images and volumes take the same road.

    Volumes (C, H, W, D) pass as they are; the inverse removes only a depth that this transform added.

    Args:
        keys: images.
        allow_missing_keys: skip keys that a case does not have.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case with all images in 3D."""
        case = dict(data)
        for key in self.key_iterator(case):
            image = convert_to_tensor(case[key], track_meta=get_track_meta())
            if image.ndim not in (3, 4):
                raise ValueError(f"{key!r} has shape {tuple(image.shape)}; expected (C, H, W) or (C, H, W, D).")
            flat = image.ndim == 3
            size = tuple(image.shape[1:])
            image = image.unsqueeze(-1) if flat else image.reshape(image.shape)
            if isinstance(image, MetaTensor):
                image = self.push_transform(image, orig_size=size, extra_info={"flat": flat})
            case[key] = image
        return case

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return images that were 2D to 2D."""
        case = dict(data)
        for key in self.key_iterator(case):
            if bool(self.pop_transform(case, key)[TraceKeys.EXTRA_INFO]["flat"]):
                case[key] = case[key].squeeze(-1)
        return case


class BlendStrengthd(MapTransform):
    """Denoise by part: ``noisy + strength·(denoised − noisy)``, before the normalisation is undone.

    An image that ``RobustNormalized`` found constant is given back: no network knows its level, nor is there noise.

    Args:
        keys: the denoised image(s).
        noisy_key: the network's input, of the same shape.
        strength: 0 gives the noisy image back, 1 leaves the denoised one as it is, to the bit.
        allow_missing_keys: skip keys that a case does not have.

    Raises:
        ValueError: If ``strength`` is outside [0, 1].
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        noisy_key: str = "image",
        strength: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not 0 <= strength <= 1:
            raise ValueError(
                f"strength {strength} given; expected a number from 0 (leave the noise) to 1 (denoise fully)."
            )
        self.noisy_key = noisy_key
        self.strength = float(strength)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the case with blended predictions."""
        case = dict(data)
        constant = bool(getattr(case.get(self.noisy_key), "meta", {}).get("constant_image", False))
        strength = 0.0 if constant else self.strength
        if strength == 1:
            return case
        for key in self.key_iterator(case):
            denoised = convert_to_tensor(case[key], track_meta=False)
            noisy = convert_to_tensor(
                case[self.noisy_key], track_meta=False, dtype=denoised.dtype, device=denoised.device
            )
            if noisy.shape != denoised.shape:
                raise ValueError(
                    f"{key!r} has shape {tuple(denoised.shape)} and {self.noisy_key!r} {tuple(noisy.shape)}; "
                    "blend before the spatial transforms are undone, where both have one shape."
                )
            case[key] = convert_to_dst_type(torch.lerp(noisy, denoised, strength), case[key])[0]
        return case
