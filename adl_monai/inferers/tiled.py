"""Denoise an image of any size, in the memory that is allowed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor

from adl_monai.compute import autocast, autocast_dtype, channels_last
from adl_monai.data.normalization import robust_range, sample_step
from adl_monai.data.overlap import ReadAhead
from adl_monai.data.raw_voxels import Box
from adl_monai.errors import ModelError, is_out_of_memory
from adl_monai.inferers.blank_regions import BlankRegions
from adl_monai.inferers.ensemble import Sums, check_ensemble, mean_over_flips, stream_over_flips
from adl_monai.inferers.far_values import are_far, are_few, far_places, without_far_values
from adl_monai.inferers.sweep import Read, Sweep, Write
from adl_monai.inferers.tiles import blend_tiles
from adl_monai.inferers.unet_stream import can_roll
from adl_monai.memory import memory_budget

logger = logging.getLogger(__name__)


class TiledInferer(Inferer):
    """Pads by reflection, runs the network, crops back.

    An ``EfficientUNet`` is swept along the image (``Sweep``): the result is that of the whole image at once, without
    tiles or seams. Any other network, and one whose norms need statistics of the image, runs over overlapping tiles
    with Gaussian blending; there ``tile``, ``overlap`` and ``batch_size`` count.

    A 2D network on a volume runs on each slice along the last axis. Images go in and come out in float32 whatever the
    precision of the network. Where memory runs out, it tries again with smaller pieces. Single
    voxels far outside [0, 1] (``far_values``) come back about as they were and disturb their neighbours little; regions
    of one exact value (``blank_regions``) come back exactly.

    Args:
        spatial_dims: Of the network: 2 or 3.
        tile: Tile edge in voxels, one number or one per axis; a multiple of ``divisor``.
        overlap: Share of the tile that neighbours have in common, in [0, 1).
        batch_size: Tiles per forward.
        divisor: What the network needs its sizes to be a multiple of.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        device: Where the tiles are computed; None takes the image's device. The result is on the image's device.
        ensemble: Mirror images to average over, 1, 2, 4 or 8 (``mean_over_flips``): better, and as many times slower.
        percentiles: Run each image on the scale on which these two of its own are 0 and 1, and undo that afterwards:
            for clean images that got their noise after their normalisation. None takes images as they are.
        progress: Show a progress bar.
        max_memory: Bytes that may be used, about, half of them for the network; None takes half of what is available.
        within_range: Hold each result to the smallest and the largest value of its noisy image, of which it is a kind
            of mean.

    Raises:
        ValueError: If a tile is not a multiple of the divisor.
        UsageError: If there is no ensemble of that size.
        ModelError: From a call, if a 3D network is given a 2D image.
    """

    def __init__(
        self,
        spatial_dims: int,
        tile: int | Sequence[int],
        overlap: float = 0.25,
        batch_size: int = 1,
        divisor: int = 8,
        precision: str = "auto",
        device: torch.device | str | None = None,
        ensemble: int | bool = 1,
        percentiles: tuple[float, float] | None = None,
        progress: bool = False,
        max_memory: float | None = None,
        within_range: bool = True,
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.tile = tuple(tile) if isinstance(tile, Sequence) else (tile,) * spatial_dims
        if len(self.tile) != spatial_dims or any(edge <= 0 or edge % divisor for edge in self.tile):
            raise ValueError(f"tile {self.tile} must be {spatial_dims} multiples of {divisor}.")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap {overlap} is outside [0, 1).")
        self.overlap = overlap
        self.batch_size = batch_size
        self.divisor = divisor
        self.precision = precision
        self.device = None if device is None else torch.device(device)
        self.ensemble = check_ensemble(ensemble)
        self.percentiles = None if percentiles is None else (float(percentiles[0]), float(percentiles[1]))
        self.progress = progress
        self.max_memory = max_memory
        self.within_range = within_range

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Denoise.

        Args:
            inputs: (B, C, H, W) or (B, C, H, W, D), float32, about [0, 1].
            network: Maps a batch of tiles to one tensor of the same shape, or to a pyramid whose first is that.
            *args: Passed to the network.
            **kwargs: Passed to the network.

        Returns:
            Float32, the shape, device and (for a ``MetaTensor``) metadata of ``inputs``.
        """
        if self.percentiles is not None:
            inputs = inputs.float()
            ranges = [robust_range(image, *self.percentiles) for image in inputs.as_subclass(Tensor)]
            offset, scale = (inputs.new_tensor(one).as_subclass(Tensor) for one in zip(*ranges, strict=True))
            shape = (-1, *(1,) * (inputs.ndim - 1))
            offset, scale = offset.view(shape), torch.where(scale > 0, scale, 1.0).view(shape)
            return self._blind((inputs - offset) / scale, network, *args, **kwargs) * scale + offset
        return self._blind(inputs, network, *args, **kwargs)

    def _blind(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        image = inputs.as_subclass(Tensor).float()
        lowest, highest = image.aminmax()
        if are_far(float(lowest), float(highest)) and are_few(image.reshape(-1)[:: sample_step(image.numel())]):
            held, places = without_far_values(image), far_places(image)
            denoised = self._whole(held, network, *args, **kwargs).as_subclass(Tensor)
            denoised[places] += image[places] - held[places]
            return _like(denoised, inputs)
        return self._whole(inputs, network, *args, **kwargs)

    def _whole(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        axes = inputs.ndim - 2
        if axes == self.spatial_dims:
            return self._run(inputs, network, *args, **kwargs)
        if axes == 3 and self.spatial_dims == 2:
            batch, channels, height, width, depth = inputs.shape
            slices = inputs.as_subclass(Tensor).movedim(-1, 1).reshape(batch * depth, channels, height, width)
            denoised = self._run(slices, network, *args, **kwargs)
            stack = denoised.reshape(batch, depth, channels, height, width).movedim(1, -1)
            return _like(stack, inputs)
        raise ModelError(
            f"an image of shape {tuple(inputs.shape)} has {axes} spatial axes, but the network is "
            f"{self.spatial_dims}D; pass a 2D model with --model."
        )

    def _run(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        image = inputs.as_subclass(Tensor).float()
        if can_roll(network) and not args and not kwargs:
            denoised = self._run_sweep(image, self._sweep(network, inputs.device))
        else:
            denoised = self._on_images(lambda seen: self._run_tiles(seen, network, *args, **kwargs), image)
        return _like(denoised, inputs)

    def _run_sweep(self, image: Tensor, sweep: Sweep) -> Tensor:
        def denoise(seen: Tensor) -> Tensor:
            return mean_over_flips(lambda one: self._sweep_image(one, sweep), seen, self.ensemble)

        return self._on_images(denoise, image)

    def _on_images(self, denoise: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Denoise a batch, its blank regions filled, and put those back; each result within the range of its image."""
        volumes = images if images.ndim == 5 else images[..., None]
        box = tuple(slice(0, size) for size in volumes.shape[2:])
        blank = [BlankRegions(_reader(volume), volumes.shape[2:]) for volume in volumes.split(1)]
        seen = [regions.filled(box) for regions in blank]
        if all(regions.none_found for regions in blank):
            denoised = denoise(images)
        else:
            denoised = denoise((seen[0] if len(seen) == 1 else torch.cat(seen)).reshape(images.shape))
        del seen
        if self.within_range:
            lowest, highest = images.flatten(1).aminmax(dim=1)
            shape = (-1, *(1,) * (images.ndim - 1))
            denoised.clamp_(lowest.view(shape), highest.view(shape))
        parts = (denoised if images.ndim == 5 else denoised[..., None]).split(1)
        for regions, part in zip(blank, parts, strict=True):
            regions.put_back(box, part)
        return denoised

    def _sweep(self, network: Any, device: torch.device) -> Sweep:
        device = self.device or device
        budget = memory_budget(self.max_memory, device)
        return Sweep(network, autocast_dtype(self.precision, device), device, budget / 2)

    def _sweep_image(self, image: Tensor, sweep: Sweep) -> Tensor:
        """An image in memory, several of a batch at a time where they are small."""
        denoised = torch.empty_like(image)
        size = max(1, sweep.voxels // image[0, 0].numel())
        for batch, result in zip(image.split(size), denoised.split(size), strict=True):

            def read(box: Box, batch: Tensor = batch) -> Tensor:
                return batch[:, :, *box]

            def write(box: Box, part: Tensor, result: Tensor = result) -> None:
                result[:, :, *box] = part

            self._within_memory(sweep, read, write, image.shape[2:], rewritable=True)
        return denoised

    def _within_memory(
        self, sweep: Sweep, read: Any, write: Any, shape: Sequence[int], rewritable: bool = False
    ) -> None:
        """Sweep; where memory runs out, again in smaller pieces, unless voxels that come but once have been written."""
        wrote = False

        def note(box: Box, part: Tensor) -> None:
            nonlocal wrote
            wrote = True
            write(box, part)

        while True:
            try:
                with torch.autocast(sweep.stream.device.type, enabled=False):  # a caller's: the sweep has its precision
                    return sweep(read, note, shape, self.progress)
            except (MemoryError, RuntimeError) as error:
                if (wrote and not rewritable) or not is_out_of_memory(error):
                    raise
                failure = error.with_traceback(None)  # which holds the tensors of the failed try
            if not sweep.shrink(shape):
                raise failure
            logger.warning("not enough memory: trying again in smaller pieces")

    def can_stream(self, network: Callable[..., Any]) -> bool:
        """Whether ``stream`` takes this network."""
        return can_roll(network) and self.percentiles is None

    @property
    def needs_sums(self) -> bool:
        """Whether ``stream`` needs a place for the sums over mirror images."""
        return self.spatial_dims == 3 and self.ensemble > 1

    def stream(
        self,
        read: Read,
        write: Write,
        shape: Sequence[int],
        network: Callable[..., Any],
        sums: Sums | None = None,
        extremes: tuple[float, float] | None = None,
    ) -> None:
        """Denoise a volume that is read and written box by box, in the memory of some dozens of planes.

        Boxes are whole planes, in their order along the last axis, unless planes are too large for the memory.

        Args:
            read: Gives the voxels of a box, a slice for each of the three axes: (1, C, h, w, d), float32, about [0, 1],
                ``without_far_values``; called from a thread of its own too, one box ahead.
            write: Takes the denoised voxels of a box, in the same layout; every voxel comes once.
            shape: Of the volume.
            network: For which ``can_stream`` holds.
            sums: A place of the volume's size, where ``needs_sums`` says so: the volume is then read once for each
                mirror image.
            extremes: The smallest and the largest value of what is read, to which a 3D network's results are held.

        Raises:
            ValueError: If there is no place for the sums.
        """
        sweep = self._sweep(network, torch.device("cpu"))
        if self.spatial_dims == 2:
            self._stream_slices(read, write, shape, sweep)
            return
        blank = BlankRegions(read, shape)

        def run(read: Read, write: Write) -> None:
            self._within_memory(sweep, read, lambda box, part: write(box, part.cpu()), shape)

        def finish(box: Box, denoised: Tensor) -> None:
            if extremes is not None and self.within_range:
                denoised.clamp_(*extremes)
            write(box, blank.put_back(box, denoised))

        with ReadAhead(blank.filled, shape[2]) as ahead:
            if not self.needs_sums:
                run(ahead, finish)
            elif sums is None:
                raise ValueError("no sums given; an ensemble needs a place for them")
            else:
                stream_over_flips(run, ahead, finish, shape, self.ensemble, sums)

    def _stream_slices(self, read: Read, write: Write, shape: Sequence[int], sweep: Sweep) -> None:
        height, width, depth = shape
        count = max(1, sweep.voxels // (height * width))
        with ReadAhead(read, depth) as ahead:
            for start in range(0, depth, count):
                box = slice(0, height), slice(0, width), slice(start, min(start + count, depth))
                denoised = self._run_sweep(ahead(box)[0].movedim(-1, 0), sweep)
                write(box, denoised.movedim(0, -1)[None])

    def _run_tiles(self, image: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        device = self.device or image.device
        layout = channels_last(self.spatial_dims)

        def denoise_batch(tiles: Tensor) -> Tensor:
            with autocast(self.precision, device):
                denoised = network(tiles.to(memory_format=layout), *args, **kwargs)
            return (denoised if isinstance(denoised, Tensor) else denoised[0]).float()

        def denoise_tiles(tiles: Tensor) -> Tensor:
            return mean_over_flips(denoise_batch, tiles, self.ensemble)

        return blend_tiles(
            denoise_tiles, image, self.tile, self.overlap, self.batch_size, self.divisor, device, self.progress
        )


def _reader(volume: Tensor) -> Read:
    return lambda box: volume[:, :, *box]


def _like(denoised: Tensor, inputs: Tensor) -> Tensor:
    """Carry the metadata of a ``MetaTensor`` over, those of each image of a collated batch too."""
    if isinstance(inputs, MetaTensor):
        return MetaTensor(denoised).copy_meta_from(inputs)
    return denoised
