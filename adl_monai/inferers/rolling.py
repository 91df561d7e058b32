"""Layers that take an image plane by plane and give out what can be known so far, exactly.

A convolution needs a few planes around the one it computes, never the whole volume. Each layer here keeps those few and
passes the rest on, so that a deep network runs over a volume of any length in the memory of some dozens of planes, with
no tile borders along that axis, and on pieces small enough for the processor's cache.

Planes are contiguous (B, n, ..., C) tensors: ``n`` of them along axis 1, the axis that advances, channels last, so that
joining planes is a copy of memory and convolutions find the layout they run fastest in. ``None`` stands for no plane.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

Planes = Tensor | None
Activation = Callable[[Tensor], Tensor]
AXIS = 1


class Queue:
    """Planes that wait for the planes they will be joined with."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self.count = 0

    def put(self, planes: Planes) -> None:
        """Append planes."""
        if planes is not None:
            self._parts.append(planes)
            self.count += planes.shape[AXIS]

    def take(self, count: int) -> Tensor:
        """Remove the first ``count`` planes, of at least as many."""
        taken: list[Tensor] = []
        self.count -= count
        while count > 0:
            part = self._parts[0]
            if part.shape[AXIS] <= count:
                taken.append(self._parts.pop(0))
            else:
                taken.append(part.narrow(AXIS, 0, count))
                self._parts[0] = part.narrow(AXIS, count, part.shape[AXIS] - count)
            count -= taken[-1].shape[AXIS]
        return taken[0] if len(taken) == 1 else torch.cat(taken, AXIS)

    def tensors(self) -> list[Tensor]:
        """What is held in memory."""
        return self._parts


class RollingConv:
    """A convolution of odd kernel that keeps the size (divided by its stride), padded with zeros as PyTorch does.

    Args:
        weight: (out, in, k, k[, k]), its first spatial axis the one that advances.
        bias: (out,), or None.
        stride: Along every axis.
        dilation: Along every axis.
        act: Applied to the output.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, stride: int = 1, dilation: int = 1, act: Activation | None = None
    ) -> None:
        self.weight, self.bias, self.stride, self.dilation = weight, bias, stride, dilation
        self.padding = dilation * (weight.shape[2] - 1) // 2
        self.span = 2 * self.padding + 1
        self.act = act
        self.fused = fused_activation(act) if fuses(weight) else None
        self._kept: Planes = None
        self._started = False
        self._skip = 0  # planes to come that a stride steps over

    def push(self, planes: Planes, last: bool) -> Planes:
        """Take the next planes, return those that can be computed; ``last`` says that no more will come."""
        if planes is not None and self._skip:
            skipped = min(self._skip, planes.shape[AXIS])
            self._skip -= skipped
            rest = planes.shape[AXIS] - skipped
            planes = planes.narrow(AXIS, skipped, rest) if rest else None
        given = [part for part in (self._kept, planes) if part is not None]
        if not given:
            return None
        margin = list(given[0].shape)
        margin[AXIS] = self.padding
        if self.padding and not self._started:
            given.insert(0, given[0].new_zeros(margin))
        if self.padding and last:
            given.append(given[0].new_zeros(margin))
        self._started = True
        held = given[0] if len(given) == 1 else torch.cat(given, AXIS)
        count = max(0, (held.shape[AXIS] - self.span) // self.stride + 1)
        used = count * self.stride
        rest = held.shape[AXIS] - used
        self._skip = max(0, -rest)
        self._kept = None if last or rest <= 0 else held.narrow(AXIS, used, rest).clone()
        if last:  # ready for the next image
            self._started, self._skip = False, 0
        return self._convolve(held.narrow(AXIS, 0, used - self.stride + self.span)) if count else None

    def _convolve(self, held: Tensor) -> Tensor:
        axes = held.ndim - 2
        padding = [0, *[self.padding] * (axes - 1)]
        stride, dilation = [self.stride] * axes, [self.dilation] * axes
        image = channels_first(held)
        if self.fused is not None:
            name, scalars = self.fused
            pointwise = torch.ops.mkldnn._convolution_pointwise
            return planes_of(pointwise(image, self.weight, self.bias, padding, stride, dilation, 1, name, scalars, ""))
        convolve = functional.conv2d if axes == 2 else functional.conv3d
        result = convolve(image, self.weight, self.bias, stride, padding, dilation)
        return planes_of(result if self.act is None else self.act(result))

    def tensors(self) -> list[Tensor]:
        """What is held in memory between two pushes."""
        return [] if self._kept is None else [self._kept]


class RollingUpsample:
    """The transposed convolution of a decoder stage: kernel 3, stride 2, padding 1, output padding 1.

    Args:
        weight: (in, out, 3, 3[, 3]), its first spatial axis the one that advances.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        # PyTorch calls oneDNN for bfloat16 by itself, and for float32 a slow path of its own.
        self.direct = fuses(weight) and weight.dtype == torch.float32
        self._kept: Planes = None

    def push(self, planes: Planes, last: bool) -> Planes:
        """As in ``RollingConv``; plane i gives planes 2 i and 2 i + 1, and the latter needs plane i + 1 too."""
        given = [part for part in (self._kept, planes) if part is not None]
        if not given:
            return None
        held = given[0] if len(given) == 1 else torch.cat(given, AXIS)
        count = held.shape[AXIS]
        self._kept = None if last else held.narrow(AXIS, count - 1, 1).clone()
        if not last and count == 1:
            return None
        result = self._expand(held, [int(last), *[1] * (held.ndim - 3)])
        return result if last else result.narrow(AXIS, 0, 2 * count - 2)

    def _expand(self, held: Tensor, ends: list[int]) -> Tensor:
        axes = held.ndim - 2
        image = channels_first(held)
        if self.direct:
            pointwise = torch.ops.mkldnn._convolution_transpose_pointwise
            one, two = [1] * axes, [2] * axes
            return planes_of(pointwise(image, self.weight, None, one, ends, two, one, 1, "none", [], ""))
        expand = functional.conv_transpose2d if axes == 2 else functional.conv_transpose3d
        return planes_of(expand(image, self.weight, None, 2, 1, ends))

    def tensors(self) -> list[Tensor]:
        """What is held in memory between two pushes."""
        return [] if self._kept is None else [self._kept]


class RollingPair:
    """Two convolutions side by side, their channels joined; the nearer one's planes wait for the farther one's."""

    def __init__(self, near: RollingConv, far: RollingConv) -> None:
        self.convs = (near, far)
        self._waiting = (Queue(), Queue())

    def push(self, planes: Planes, last: bool) -> Planes:
        """As in ``RollingConv``."""
        for conv, queue in zip(self.convs, self._waiting, strict=True):
            queue.put(conv.push(planes, last))
        return join(self._waiting)

    def tensors(self) -> list[Tensor]:
        """What is held in memory between two pushes."""
        return [tensor for part in (*self.convs, *self._waiting) for tensor in part.tensors()]


class RollingBlock:
    """Two convolutions beside a shortcut; the shortcut's planes wait for the branch's.

    Args:
        first: With its activation inside.
        second: Without.
        shortcut: Without.
        act: Of the sum; may work in place.
    """

    def __init__(
        self, first: RollingConv | RollingPair, second: RollingConv, shortcut: RollingConv, act: Activation
    ) -> None:
        self.first, self.second, self.shortcut, self.act = first, second, shortcut, act
        self._waiting = Queue()

    def push(self, planes: Planes, last: bool) -> Planes:
        """As in ``RollingConv``."""
        self._waiting.put(self.shortcut.push(planes, last))
        branch = self.second.push(self.first.push(planes, last), last)
        if branch is None:
            return None
        return self.act(branch.add_(self._waiting.take(branch.shape[AXIS])))

    def tensors(self) -> list[Tensor]:
        """What is held in memory between two pushes."""
        return [t for part in (self.first, self.second, self.shortcut, self._waiting) for t in part.tensors()]


def join(queues: Sequence[Queue], most: int | None = None) -> Planes:
    """The planes that all queues can give, ``most`` at most, their channels one after the other."""
    count = min(queue.count for queue in queues)
    count = count if most is None else min(count, most)
    return torch.cat([queue.take(count) for queue in queues], -1) if count else None


def channels_first(planes: Tensor) -> Tensor:
    """(B, n, ..., C) as the (B, C, n, ...) view that PyTorch's layers take."""
    return planes.movedim(-1, 1)


def planes_of(image: Tensor) -> Tensor:
    """(B, C, n, ...) as planes; a view where the channels lie last in memory already."""
    return image.movedim(1, -1).contiguous()


def fuses(weight: Tensor) -> bool:
    """Whether oneDNN can be called directly: it has no slow path to fall back on."""
    available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    if weight.device.type != "cpu" or not available:
        return False
    return weight.dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def fused_activation(act: Activation | None) -> tuple[str, list[float]] | None:
    """The name under which oneDNN applies an activation while it convolves, or None where it does not."""
    if act is None:
        return "none", []
    if isinstance(act, nn.LeakyReLU):
        return "leaky_relu", [act.negative_slope]
    return ("relu", []) if isinstance(act, nn.ReLU) else None
