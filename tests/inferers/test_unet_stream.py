"""Every kind of Efficient-UNet that can be led along an image gives what it gives at once; the rest is not led."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adl_monai.compute import place
from adl_monai.inferers.rolling import Queue, RollingBlock, RollingConv, RollingPair, RollingUpsample
from adl_monai.inferers.unet_stream import UNetStream, can_roll
from adl_monai.networks import EfficientUNet
from tests.inferers.test_sweep import CPU, assert_same, some_network, whole


def network_with(**options: Any) -> EfficientUNet:
    return EfficientUNet(2, **{"filters": (8, 8, 16, 16), "multi_scale": False, **options}).eval()


def led(stream: UNetStream, image: Tensor, planes: int = 8) -> Tensor:
    length = image.shape[2]
    parts = [
        stream.push(image[:, :, start : start + planes], start + planes >= length) for start in range(0, length, planes)
    ]
    return torch.cat([part for part in parts if part is not None], 2)


@pytest.mark.parametrize("act", ["gelu", "elu", "prelu", ("leakyrelu", {"negative_slope": 0.3})])
@pytest.mark.parametrize("enhances", [False, True])
def test_any_activation(act: object, enhances: bool) -> None:
    network, image = network_with(act=act, norm=None, content_enhancer=enhances), torch.randn(1, 1, 32, 16)
    with torch.inference_mode():
        assert_same(led(UNetStream(network, None, CPU), image), whole(network, image))


def test_a_norms_own_epsilon_counts() -> None:
    network, image = network_with(norm=("batch", {"eps": 0.5})), torch.rand(1, 1, 32, 16)
    nn.init.normal_(network.head1.project.weight)
    with torch.inference_mode():
        assert_same(led(UNetStream(network, None, CPU), image), whole(network, image))


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("enhances", [False, True])
def test_biases_count(norm: str | None, enhances: bool) -> None:
    network = network_with(norm=norm, content_enhancer=enhances, bias=True)
    image = torch.rand(1, 1, 32, 16)
    for name, value in network.state_dict().items():
        if "norm" in name and value.is_floating_point():
            nn.init.uniform_(value, 0.5, 1.5)
    nn.init.normal_(network.head1.project.weight)
    with torch.inference_mode():
        unbiased = whole(network, image)
    for name, value in network.named_parameters():
        if name.endswith(".bias") and "norm" not in name:
            nn.init.normal_(value)
    with torch.inference_mode():
        expected = whole(network, image)
        assert_same(led(UNetStream(network, None, CPU), image), expected)
        low = led(UNetStream(network, torch.bfloat16, CPU), image)
    assert (expected - unbiased).abs().max() > 0.1
    assert float((low - expected).std() / (expected - image).std()) < 0.02


def test_images_of_two_channels_in_either_precision() -> None:
    network = network_with(in_channels=2, out_channels=2, norm=None, head="residual")
    nn.init.normal_(network.head1.project.weight)
    image = torch.rand(1, 2, 32, 16) * torch.tensor([1.0, 0.2]).view(1, 2, 1, 1)
    with torch.inference_mode():
        expected = whole(network, image)
        assert_same(led(UNetStream(network, None, CPU), image), expected)
        low = led(UNetStream(network, torch.bfloat16, CPU), image)
    assert float((low - expected).std() / (expected - image).std()) < 0.02


@pytest.mark.parametrize("paper", [False, True])
def test_what_comes_out_is_float32(paper: bool) -> None:
    with torch.inference_mode():
        found = led(UNetStream(some_network(2, paper), torch.bfloat16, CPU), torch.rand(1, 1, 16, 16))
    assert found.dtype == torch.float32


def test_the_end_may_come_after_the_last_plane() -> None:
    network, image = some_network(2, paper=True), torch.rand(1, 1, 64, 16)
    stream = UNetStream(network, None, CPU)
    with torch.inference_mode():
        for _ in range(2):
            parts = [stream.push(image, False), stream.push(None, False), stream.push(None, True)]
            assert_same(torch.cat([part for part in parts if part is not None], 2), whole(network, image))


def test_float32_needs_no_second_image_for_its_rest() -> None:
    for dtype, images in ((None, 1), (torch.float32, 1), (torch.bfloat16, 2)):
        first = UNetStream(some_network(2), dtype, CPU).encode1.first
        assert isinstance(first, RollingConv)
        assert first.weight.shape[1] == images


def test_the_weights_are_those_it_was_made_with() -> None:
    network, image = some_network(2), torch.rand(1, 1, 16, 16)
    place(network, CPU, 2)  # in the layout that it wants them in
    stream = UNetStream(network, None, CPU)
    with torch.inference_mode():
        before = led(stream, image)
        for weight in network.parameters():
            weight.zero_()
        assert torch.equal(led(stream, image), before)


def test_what_would_not_be_the_same_is_not_led() -> None:
    class Brighter(EfficientUNet):
        def finish(self, noisy: Tensor, raw: Tensor) -> Tensor:
            return super().finish(noisy, raw) + 1

    assert can_roll(network_with())
    assert not can_roll(Brighter(2, filters=(8, 8, 16, 16)).eval())
    assert not can_roll(network_with(norm=("batch", {"track_running_stats": False})))
    assert not can_roll(network_with(norm=("batch", {"affine": False}))), "there is nothing to fold"


def nodes(part: object) -> Iterator[Queue | RollingConv | RollingUpsample]:
    """All that holds planes, wherever it is kept."""
    if isinstance(part, list | tuple):
        for one in part:
            yield from nodes(one)
    elif isinstance(part, Queue | RollingConv | RollingUpsample):
        yield part
    elif isinstance(part, UNetStream | RollingBlock | RollingPair):
        yield from nodes(list(vars(part).values()))


@pytest.mark.parametrize("paper", [False, True])
def test_all_that_waits_is_counted_and_nothing_else_is_held(paper: bool) -> None:
    stream, image = UNetStream(some_network(2, paper), None, CPU), torch.rand(1, 1, 72, 16)
    held = list(nodes(stream))
    most = 0
    with torch.inference_mode():
        for start in range(0, 72, 8):
            stream.push(image[:, :, start : start + 8], start == 64)
            kept = [node._kept for node in held if not isinstance(node, Queue) and node._kept is not None]
            for planes in kept:
                size = planes.numel() * planes.element_size()
                assert planes.untyped_storage().nbytes() == size, "a view would hold all that it was cut from"
            waiting = [*kept, *(planes for node in held if isinstance(node, Queue) for planes in node._parts)]
            assert stream.held_bytes() == sum(4 * planes.numel() for planes in waiting)
            most = max(most, stream.held_bytes())
    assert most > 0
    assert stream.held_bytes() == 0


def test_pieces_that_climb_are_as_large_as_allowed_and_no_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end too, where many planes wait for the last ones."""
    stream = UNetStream(some_network(2), None, CPU, piece=3)
    climbing = [block for _, block in stream.up]
    push, given = RollingBlock.push, []

    def counted(self: RollingBlock, planes: Tensor | None, last: bool) -> Tensor | None:
        if any(self is block for block in climbing) and planes is not None:
            given.append(planes.shape[1])
        return push(self, planes, last)

    monkeypatch.setattr(RollingBlock, "push", counted)
    with torch.inference_mode():
        led(stream, torch.rand(1, 1, 96, 16), planes=3)
    assert sum(given) == 96 + 48 + 24
    assert max(given) == 3
