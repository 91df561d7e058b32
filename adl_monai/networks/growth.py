"""A wider network that starts as the narrower one it grew from.

After Net2Net (Chen et al., ICLR 2016, arXiv 1511.05641), but with fresh channels that nothing listens to yet instead of
copies: copies would get the same gradients for ever.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def grown_weights(narrow: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Weights with which an ``EfficientUNet`` computes what a narrower one of the same build computed.

    Channels that the narrower network had keep their weights and get 0 from the new channels; the new channels keep the
    fresh weights that ``network`` has. All the features of a content enhancer are new where only ``network`` has one;
    biases that only ``network`` has are 0.

    Args:
        narrow: State of the narrower (or equally wide) network.
        network: The wider one; it is not changed.

    Returns:
        A state for ``network.load_state_dict``.

    Raises:
        ValueError: If the parameters do not correspond, a layer would have to shrink, or group norms join old and new
            channels.
    """
    wide = {name: value.clone() for name, value in network.state_dict().items()}
    biases = new_biases(narrow, wide)
    unknown = (wide.keys() ^ narrow.keys()) - biases.keys()
    odd = [name for name in unknown if name in narrow or not name.startswith("enhancer.")]
    if odd:
        raise ValueError(
            f"the networks are built differently ({min(odd)} is in one of them only); change filters, add a content "
            "enhancer or biases, nothing else."
        )
    for name in biases:
        wide[name].zero_()
    for name, weights in narrow.items():
        new = wide[name]
        old = weights.to(new)  # those of a model in the box are in half precision
        if old.ndim != new.ndim or any(a > b for a, b in zip(old.shape, new.shape, strict=True)):
            raise ValueError(f"{name} would shrink from {tuple(old.shape)} to {tuple(new.shape)}; give wider filters.")
        if old.shape != new.shape and any(isinstance(layer, nn.GroupNorm) for layer in network.modules()):
            raise ValueError("group norms would mix old channels with new ones; only norm batch or None can grow.")
        if old.ndim == 0:
            new.copy_(old)
        elif old.ndim == 1:
            new[_kept(joined_inputs(name, narrow, wide))] = old
        elif "upsample" in name:  # a transposed kernel: (in, out, ...)
            new[:, : old.shape[1]] = 0
            new[: old.shape[0], : old.shape[1]] = old
        else:
            new[: old.shape[0]] = 0
            new[: old.shape[0], _kept(joined_inputs(name, narrow, wide))] = old
    return wide


def held_weights(narrow: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Which weights must stay as they are so that a grown network goes on computing what the narrower one computed.

    All that makes the old channels: their kernels, and the zeros by which they do not listen to the new channels. An
    output that did not grow (the image) may listen to them: the old network's result is there for ever, and the new
    channels learn what to add to it (progressive networks, Rusu et al., 2016, arXiv 1606.04671).

    Args:
        narrow: As for ``grown_weights``, which must have accepted it.
        network: The wider network.

    Returns:
        By the name of each parameter of channels that the narrower network had: booleans of the wider parameter's
        shape.

    Raises:
        ValueError: If the full-scale head has not grown, so that nothing would change, or norms follow the images.
    """
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules()):
        raise ValueError("batch norms follow new images, so that old channels would change; only norm None can hold.")
    wide = dict(network.state_dict())
    held = {}
    for name, old in narrow.items():
        kept = torch.zeros_like(wide[name], dtype=torch.bool)
        # What the old channels feed: of a transposed kernel (in, out, ...) its outputs, of the image all there was.
        if "upsample" in name or (old.ndim > 1 and name.endswith("project.weight")):
            kept[:, : old.shape[1]] = True
        else:
            kept[: old.shape[0]] = True
        held[name] = kept
    for name, channels in new_biases(narrow, wide).items():
        held[name] = torch.arange(len(wide[name])) < channels
    if held["head1.project.weight"].all():
        raise ValueError("the image would listen to no new channel; give a first filter that is wider by 2 or more.")
    return held


def learning_channels(narrow: Mapping[str, Tensor], network: nn.Module) -> dict[str, slice]:
    """What learns in the convolutions of a network that ``held_weights`` holds: new channels, and the image.

    Args:
        narrow: As for ``grown_weights``, which must have accepted it.
        network: The wider network.

    Returns:
        By the name of each convolution that the narrower network had, transposed ones apart: channels of its output.
    """
    learning = {}
    for name, old in narrow.items():
        layer = name.removesuffix(".weight")
        if layer != name and type(network.get_submodule(layer)) in (nn.Conv2d, nn.Conv3d):
            learning[layer] = slice(0 if name.endswith("project.weight") else old.shape[0], None)
    return learning


def new_biases(narrow: Mapping[str, Tensor], wide: Mapping[str, Tensor]) -> dict[str, int]:
    """Biases that the wider network has and the narrower has not, each with the channels its convolution had there."""
    layers = [name.removesuffix(".bias") for name in wide.keys() - narrow.keys() if name.endswith(".bias")]
    return {f"{layer}.bias": len(narrow[f"{layer}.weight"]) for layer in sorted(layers) if f"{layer}.weight" in narrow}


def joined_inputs(name: str, narrow: Mapping[str, Tensor], wide: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """The joined inputs of a layer: how many channels each had and has, in the order of the concatenation."""
    stage, _, layer = name.partition(".")

    def width(key: str, axis: int = 0) -> tuple[int, int]:
        return narrow[key].shape[axis], wide[key].shape[axis]

    if stage.startswith("decode") and layer in ("block.conv1.weight", "block.shortcut.weight"):
        skips = {"decode3": "encode3", "decode2": "encode2", "decode1": "encode1"}
        parts = [width(f"{stage}.upsample.weight", 1), width(f"encoder.{skips[stage]}.conv2.weight")]
        joined = stage == "decode1" and "enhancer.join.weight" in narrow
        return [*parts, width("enhancer.join.weight")] if joined else parts
    if stage == "enhancer" and (layer == "join.weight" or layer.startswith("norm1.")):
        return [width("enhancer.near.weight"), width("enhancer.far.weight")]
    axis = min(1, narrow[name].ndim - 1)
    return [width(name, axis)]


def _kept(parts: list[tuple[int, int]]) -> Tensor:
    """Where the old channels lie among the new ones."""
    kept, start = [], 0
    for had, has in parts:
        kept.append(torch.arange(start, start + had))
        start += has
    return torch.cat(kept)
