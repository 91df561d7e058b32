"""Who learns from what, in each phase."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from torch.utils.data import DataLoader, Dataset

from adl_monai.engines import EMA, ADLTrainer, Phase, PhaseSchedule
from adl_monai.engines.trainer import frozen
from adl_monai.errors import TrainingDivergedError, UsageError
from adl_monai.losses import ADLLoss
from adl_monai.networks import EfficientUNet, EfficientUNetDiscriminator


class Pairs(Dataset):
    """Smooth images and noisy copies, the same in every epoch."""

    def __init__(self, spatial_dims: int = 2, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(0)
        ramp = torch.linspace(0, 1, 16).expand(1, *[16] * spatial_dims)
        self.items = [
            {"image": scale * (ramp + 0.1 * torch.randn(ramp.shape, generator=generator)), "label": ramp.clone()}
            for _ in range(8)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.items[index]


def build(
    phases: PhaseSchedule, epochs: int = 1, spatial_dims: int = 2, data: Dataset | None = None, **weights: Any
) -> ADLTrainer:
    torch.manual_seed(0)
    network = EfficientUNet(spatial_dims, filters=(4, 4, 4, 4), head="residual", content_enhancer=False)
    discriminator = EfficientUNetDiscriminator(spatial_dims, filters=(4, 4, 4, 4))
    loss = ADLLoss(**{"l1": 1.0, "texture": 0.1, "histogram": 0.01, "adversarial": 0.1, **weights})
    return ADLTrainer(
        "cpu",
        epochs,
        DataLoader(data or Pairs(spatial_dims), batch_size=4),
        network,
        torch.optim.Adam(network.parameters(), 1e-2),
        loss,
        discriminator=discriminator,
        d_optimizer=torch.optim.Adam(discriminator.parameters(), 1e-2),
        phases=phases,
        ema=EMA(network),
        precision="fp32",
    )


def state_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(network.state_dict())


def changed(network: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


ONLY_DENOISER = PhaseSchedule(1.0, 0.0)
ONLY_DISCRIMINATOR = PhaseSchedule(0.0, 1.0)
ONLY_ADVERSARIAL = PhaseSchedule(0.0, 0.0)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_phase_one_trains_the_denoiser_alone(spatial_dims: int) -> None:
    trainer = build(ONLY_DENOISER, spatial_dims=spatial_dims)
    denoiser, discriminator = state_of(trainer.network), state_of(trainer.discriminator)
    trainer.run()
    assert {name for name, _ in trainer.network.named_parameters()} <= changed(trainer.network, denoiser)
    assert changed(trainer.discriminator, discriminator) == set()


def test_phase_two_moves_no_weight_or_statistic_of_the_denoiser() -> None:
    trainer = build(ONLY_DISCRIMINATOR)
    denoiser, discriminator = state_of(trainer.network), state_of(trainer.discriminator)
    average = state_of(trainer.ema)
    trainer.run()
    assert changed(trainer.network, denoiser) == set()
    assert changed(trainer.ema, average) == set()
    assert {name for name, _ in trainer.discriminator.named_parameters()} <= changed(
        trainer.discriminator, discriminator
    )


def test_phase_three_keeps_each_step_to_its_own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build(ONLY_ADVERSARIAL)
    step = trainer._step
    steps: list[str] = []
    # What happened since the last step: the denoiser's own forward may move its statistics, nothing else may move.
    seen = {"denoiser": state_of(trainer.network), "discriminator": state_of(trainer.discriminator)}

    def watched(network: torch.nn.Module, *arguments: Any, **named: Any) -> None:
        name = "denoiser" if network is trainer.network else "discriminator"
        other_name = "discriminator" if name == "denoiser" else "denoiser"
        other = trainer.discriminator if name == "denoiser" else trainer.network
        if name == "denoiser":
            assert changed(trainer.discriminator, seen["discriminator"]) == set(), "the G forward moved D"
        before = state_of(other)
        gradients = {n: None if p.grad is None else p.grad.clone() for n, p in other.named_parameters()}
        step(network, *arguments, **named)
        assert changed(other, before) == set(), f"the {name} step moved the {other_name}"
        for parameter_name, parameter in other.named_parameters():
            old = gradients[parameter_name]
            same = parameter.grad is None if old is None else torch.equal(parameter.grad, old)
            assert same, f"the {name} step left a gradient in the {other_name}"
        seen["denoiser"], seen["discriminator"] = state_of(trainer.network), state_of(trainer.discriminator)
        steps.append(name)

    monkeypatch.setattr(trainer, "_step", watched)
    trainer.run()
    assert steps == ["discriminator", "denoiser"] * 2


def test_the_adversarial_loss_reaches_every_denoiser_parameter_of_the_full_scale_path() -> None:
    trainer = build(ONLY_ADVERSARIAL, l1=0.0, texture=0.0, histogram=0.0, adversarial=1.0)
    # The fresh residual head may be zero, through which no gradient passes further down: start from a used network.
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    before = state_of(trainer.network)
    trainer.run()
    moved = changed(trainer.network, before)
    full_scale = {n for n, p in trainer.network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert full_scale
    assert full_scale <= moved
    assert any("encoder" in name or "backbone" in name for name in full_scale)
    assert trainer.state.output["terms"]["adversarial"] > 0


def test_frozen_lets_gradients_through_and_changes_nothing() -> None:
    discriminator = EfficientUNetDiscriminator(2, filters=(4, 4, 4, 4)).train()
    before = state_of(discriminator)
    image = torch.rand(2, 1, 16, 16, requires_grad=True)
    with frozen(discriminator) as judge:
        logits = judge(image)
    sum(mask.mean() for mask in logits).backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert changed(discriminator, before) == set()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in discriminator.parameters())


def test_a_weight_of_zero_leaves_the_discriminator_out() -> None:
    trainer = build(ONLY_ADVERSARIAL, adversarial=0.0)
    before = state_of(trainer.discriminator)
    trainer.run()
    assert trainer.phase is Phase.DENOISER
    assert changed(trainer.discriminator, before) == set()


def test_a_non_finite_loss_stops_before_it_spoils_the_weights() -> None:
    trainer = build(ONLY_DENOISER, data=Pairs(scale=float("inf")))
    before = dict(trainer.network.named_parameters())
    weights = {name: parameter.detach().clone() for name, parameter in before.items()}
    with pytest.raises(TrainingDivergedError, match="epoch 1, iteration 1"):
        trainer.run()
    assert all(torch.equal(weights[name], parameter) for name, parameter in trainer.network.named_parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("clipped", [1.0, None])
@pytest.mark.parametrize("learns", ["denoiser", "discriminator"])
def test_a_non_finite_gradient_stops_before_it_spoils_the_weights(
    learns: str, clipped: float | None, value: float
) -> None:
    trainer = build(ONLY_DENOISER if learns == "denoiser" else ONLY_DISCRIMINATOR)
    trainer.max_grad_norm = clipped
    network = trainer.network if learns == "denoiser" else trainer.discriminator
    weights = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}

    def spoil(engine: ADLTrainer) -> None:
        next(network.parameters()).grad.view(-1)[0] = value

    trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, spoil)
    with pytest.raises(TrainingDivergedError, match=r"gradients became (nan|inf) .*loss is .* epoch 1, iteration 1"):
        trainer.run()
    assert all(torch.equal(weights[name], parameter) for name, parameter in network.named_parameters())


def test_no_clipping_leaves_gradients_as_they_are() -> None:
    trainer = build(ONLY_DENOISER)
    trainer.max_grad_norm = None
    parameters = list(trainer.network.parameters())
    seen: list[list[torch.Tensor]] = []
    trainer.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED, lambda: seen.append([p.grad.clone() for p in parameters])
    )
    trainer.run()
    assert all(torch.equal(before, p.grad) for before, p in zip(seen[-1], parameters, strict=True))


class Silent(DataLoader):
    """Claims batches and gives them in the first epochs only, as a loader does whose thread has died."""

    epochs = 0

    def __iter__(self) -> Iterator[Any]:
        self.epochs, given = self.epochs - 1, self.epochs
        return super().__iter__() if given > 0 else iter(())


@pytest.mark.parametrize("given", [0, 1])
def test_an_epoch_without_a_batch_is_no_training(given: int) -> None:
    trainer = build(ONLY_DENOISER, epochs=3)
    trainer.data_loader = Silent(Pairs(), batch_size=4)
    trainer.data_loader.epochs = given
    completed: list[int] = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: completed.append(engine.state.epoch))
    with pytest.raises(UsageError, match=f"no batch in epoch {given + 1}"):
        trainer.run()
    assert completed == list(range(1, given + 1)), "what saves comes after the check"


def test_a_loader_without_a_batch_is_refused() -> None:
    trainer = build(ONLY_DENOISER)
    trainer.state.epoch_length = 0  # as of len(loader)
    with pytest.raises(UsageError, match="no batch in an epoch"):
        trainer.run()


def test_training_lowers_the_loss() -> None:
    trainer = build(ONLY_DENOISER, epochs=40, texture=0.0, histogram=0.0)
    losses: list[float] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(float(engine.state.output["loss"]))
    )
    trainer.run()
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


@pytest.mark.parametrize("deterministic", [True, False])
def test_kernels_are_chosen_by_trial_only_when_asked_for(deterministic: bool) -> None:
    trainer = build(ONLY_DENOISER)
    trainer.deterministic = deterministic
    with torch.backends.cudnn.flags():  # puts back what the run sets
        trainer.run()
        assert torch.backends.cudnn.benchmark is not deterministic
        assert torch.backends.cudnn.deterministic is deterministic


def test_a_shared_optimizer_is_refused() -> None:
    network = EfficientUNet(2, filters=(4, 4, 4, 4))
    optimizer = torch.optim.Adam(network.parameters())
    with pytest.raises(ValueError, match="optimizer of its own"):
        ADLTrainer(
            "cpu",
            1,
            [],
            network,
            optimizer,
            ADLLoss(),
            discriminator=EfficientUNetDiscriminator(2),
            d_optimizer=optimizer,
        )


def test_the_average_follows_and_answers_with_one_tensor() -> None:
    trainer = build(ONLY_DENOISER, epochs=4)
    start = state_of(trainer.ema.module)
    trainer.run()
    assert changed(trainer.ema.module, start)
    assert isinstance(trainer.ema.module(torch.rand(1, 1, 16, 16)), torch.Tensor)
    assert isinstance(trainer.network(torch.rand(1, 1, 16, 16)), list)
    assert all(not parameter.requires_grad for parameter in trainer.ema.parameters())
