"""Gradients that are left out are those that nobody needs."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from torch.utils.flop_counter import FlopCounterMode

from adl_monai.compute import place
from adl_monai.engines import Muon
from adl_monai.engines.start import StartHandler
from adl_monai.networks import EfficientUNet
from adl_monai.networks.growth import grown_weights, held_weights, learning_channels
from adl_monai.networks.partial_gradient import learn_only
from adl_monai.networks.recompute import Recomputable


def held_twins(
    spatial_dims: int, enhancers: tuple[bool, bool], filters: list[int], bias: bool = False
) -> tuple[EfficientUNet, EfficientUNet, dict[str, torch.Tensor]]:
    """A grown network whose new channels listen to all, once with all gradients and once with those that learn."""
    options = {"norm": None, "head": "residual", "bias": bias}
    old = EfficientUNet(spatial_dims, filters=[8, 9, 16, 20], content_enhancer=enhancers[0], **options)
    wide = EfficientUNet(spatial_dims, filters=filters, content_enhancer=enhancers[1], **options)
    wide.load_state_dict(grown_weights(old.state_dict(), wide))
    with torch.no_grad():
        for name, value in wide.named_parameters():
            if name.endswith(".bias"):
                value.normal_(0, 0.1)
        for head in (wide.head1, wide.head2, wide.head3):  # as after some training
            head.project.weight.normal_()
    place(wide, torch.device("cpu"), spatial_dims)
    partly = copy.deepcopy(wide)
    learn_only(partly, learning_channels(old.state_dict(), partly))
    return wide, partly, held_weights(old.state_dict(), wide)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(
    "precision, enhancers, filters, bias",
    [
        *product(
            [torch.float32], [(True, True), (False, False), (False, True)], [[12, 16, 32, 28], [10, 9, 16, 20]], [False]
        ),
        (torch.float32, (True, True), [12, 9, 24, 20], False),
        (torch.float32, (True, True), [12, 9, 24, 20], True),
        (torch.bfloat16, (True, True), [12, 16, 32, 28], False),
        (torch.bfloat16, (True, True), [12, 16, 32, 28], True),
    ],
)
def test_what_learns_gets_the_gradients_it_would_get(
    spatial_dims: int, precision: torch.dtype, enhancers: tuple[bool, bool], filters: list[int], bias: bool
) -> None:
    wide, partly, held = held_twins(spatial_dims, enhancers, filters, bias)
    noisy = torch.rand(1, 1, *(24,) * spatial_dims)
    for network in (wide, partly):
        with torch.autocast("cpu", dtype=precision, enabled=precision is not torch.float32):
            images = network(noisy)
        sum((image.float() - 0.5).square().mean() for image in images).backward()
    with torch.no_grad():
        for one, other in zip(wide(noisy), partly(noisy), strict=True):
            torch.testing.assert_close(one, other, atol=0, rtol=0)
    learned = 0
    others = dict(partly.named_parameters())
    for name, weights in wide.named_parameters():
        learns = ~held[name] if name in held else torch.ones_like(weights, dtype=torch.bool)
        expected, given = weights.grad[learns], others[name].grad[learns]
        tolerance = 1e-5 if precision is torch.float32 else 3e-2
        assert (given - expected).norm() <= tolerance * expected.norm() + 1e-9, name
        learned += int(expected.count_nonzero())
    assert learned > 100


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_run_that_holds_saves_the_work(spatial_dims: int, tmp_path: Path) -> None:
    options = {"norm": None, "head": "residual", "content_enhancer": False}
    torch.save(EfficientUNet(spatial_dims, filters=[8, 9, 16, 20], **options).state_dict(), tmp_path / "model.pt")
    noisy, work = torch.rand(1, 1, *(16,) * spatial_dims), []
    for hold in (False, True):
        network = EfficientUNet(spatial_dims, filters=[12, 13, 24, 28], **options)
        held = (tmp_path / "model.pt", Muon(network.parameters())) if hold else ()
        StartHandler(tmp_path / "model.pt", [network], *held)(Engine(lambda *_: None))
        with FlopCounterMode(display=False) as counter:
            sum(image.mean() for image in network(noisy)).backward()
        work.append(counter.get_total_flops())
    assert work[1] < 0.75 * work[0]


def test_it_can_be_recomputed() -> None:
    _, partly, _ = held_twins(2, (True, True), [12, 13, 24, 28])
    noisy, gradients = torch.rand(1, 1, 24, 24), []
    for recomputed in (False, True):
        for unit in partly.modules():
            if isinstance(unit, Recomputable):
                unit.recomputed = recomputed
        partly.zero_grad()
        sum(image.square().mean() for image in partly(noisy)).backward()
        gradients.append({name: weights.grad.clone() for name, weights in partly.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
