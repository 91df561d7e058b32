"""What the machine can do at most, and how near a network and each kind of its convolutions come."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from timing import interleave
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from adl_monai.compute import autocast, autocast_dtype, channels_last

ROUNDS = 3  # of each product; the best rate is the ceiling


@dataclass(frozen=True)
class Kind:
    """All convolutions of one kind, size and place in a network's forward."""

    label: str
    count: int
    flops: float
    """Of all of them, two a multiply-add."""
    least_bytes: float
    """Inputs, kernels and outputs, each moved once."""
    seconds: float = 0.0


def random_tile(axes: int, edge: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """(1, 1, edge, edge[, edge]) of numbers in [0, 1)."""
    return torch.rand(1, 1, *(edge,) * axes, generator=torch.Generator().manual_seed(seed)).to(device)


def network_forward(network: torch.nn.Module, tile: Tensor, precision: str) -> Callable[[], Tensor]:
    """One forward of a tile in the memory format of ``channels_last`` and a precision of ``autocast``."""
    tile = tile.to(memory_format=channels_last(tile.ndim - 2))

    def forward() -> Tensor:
        with torch.inference_mode(), autocast(precision, tile.device):
            return network(tile)  # type: ignore[no-any-return]

    return forward


def count_flops(forward: Callable[[], object]) -> float:
    """Floating-point operations of one call, two a multiply-add, as ``torch.utils.flop_counter`` counts."""
    with FlopCounterMode(display=False) as counter:
        forward()
    return float(counter.get_total_flops())


def best_product(
    sizes: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    least_seconds: float,
    synchronize: Callable[[], object] | None = None,
) -> tuple[int, float, Callable[[], object]]:
    """The square matrix product with the best rate.

    Returns:
        Its size, its FLOP per second, and the product itself.
    """
    best: tuple[int, float, Callable[[], object]] | None = None
    for size in sizes:
        generator = torch.Generator().manual_seed(size)
        left, right = (torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2))
        result = torch.empty_like(left)

        def product(left: Tensor = left, right: Tensor = right, result: Tensor = result) -> object:
            return torch.mm(left, right, out=result)

        seconds = interleave({"product": product}, ROUNDS, least_seconds=least_seconds, synchronize=synchronize)[
            "product"
        ]
        rate = 2 * size**3 / min(seconds.values)
        if best is None or rate > best[1]:
            best = size, rate, product
    assert best is not None, "no sizes"
    return best


def copy_rate(floats: int, device: torch.device, least_seconds: float) -> float:
    """Bytes per second, read and written, of copying so many float32 numbers."""
    source = torch.ones(floats, device=device)
    target = torch.empty_like(source)
    seconds = interleave({"copy": lambda: target.copy_(source)}, ROUNDS, least_seconds=least_seconds)["copy"]
    return 8 * floats / min(seconds.values)


def layer_kinds(network: torch.nn.Module, tile: Tensor, precision: str, repeats: int) -> tuple[list[Kind], float]:
    """Operations and profiled time of each kind of convolution, on a CPU.

    Args:
        network: On the CPU.
        tile: (B, C, H, W[, D]).
        precision: As in ``autocast``.
        repeats: Forwards that the times are the mean of.

    Returns:
        The kinds, those with the most time first, and the seconds of the whole forward.
    """
    forward = network_forward(network, tile, precision)
    bytes_each = 4 if autocast_dtype(precision, tile.device) is None else 2
    kinds: dict[str, Kind] = {}
    names = {module: f"{type(network).__name__}.{name}" for name, module in network.named_modules()}

    def note(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        label = describe(module, inputs[0])
        size = bytes_each * (inputs[0].numel() + module.weight.numel() + output.numel())  # type: ignore[operator]
        kind = kinds.get(label, Kind(label, 0, 0.0, 0.0))
        kinds[label] = replace(kind, count=kind.count + 1, least_bytes=kind.least_bytes + size)
        labels[names[module]] = label

    labels: dict[str, str] = {}
    handles = [module.register_forward_hook(note) for module in convolutions(network)]
    with FlopCounterMode(display=False) as counter:
        forward()
    for handle in handles:
        handle.remove()
    flops: Counter[str] = Counter()
    for name, counts in counter.get_flop_counts().items():
        if name in labels:
            flops[labels[name]] += sum(counts.values())
    with labelled(network), profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            with record_function("forward"):
                forward()
    seconds = {event.key: event.cpu_time_total / 1e6 / repeats for event in profiler.key_averages()}
    found = [replace(kind, flops=float(flops[label]), seconds=seconds[label]) for label, kind in kinds.items()]
    return sorted(found, key=lambda kind: -kind.seconds), seconds["forward"]


@contextmanager
def labelled(network: torch.nn.Module) -> Iterator[None]:
    """Within the block, each convolution appears in the profiler under its ``describe``."""
    open_spans = []

    def begin(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        open_spans.append(record_function(describe(module, inputs[0])))
        open_spans[-1].__enter__()

    def end(*_: object) -> None:
        open_spans.pop().__exit__(None, None, None)

    handles = [module.register_forward_pre_hook(begin) for module in convolutions(network)]
    handles += [module.register_forward_hook(end) for module in convolutions(network)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def convolutions(network: torch.nn.Module) -> list[torch.nn.Module]:
    """Its convolutions and transposed convolutions."""
    return [module for module in network.modules() if hasattr(module, "kernel_size") and hasattr(module, "weight")]


def describe(module: torch.nn.Module, features: Tensor) -> str:
    """Such as ``3x3x3, 32 to 48, stride 2, on 96x96x96``."""
    kernel, stride, dilation = (tuple(getattr(module, name)) for name in ("kernel_size", "stride", "dilation"))
    parts = ["x".join(map(str, kernel)), f"{module.in_channels} to {module.out_channels}"]
    if getattr(module, "transposed", False):
        parts[0] += " transposed"
    if math.prod(stride) > 1:
        parts.append(f"stride {stride[0]}")
    if math.prod(dilation) > 1:
        parts.append(f"dilation {dilation[0]}")
    return ", ".join([*parts, f"on {'x'.join(map(str, features.shape[2:]))}"])
