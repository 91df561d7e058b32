"""What each network is shown, in which state it learns, and how an epoch's randomness is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from adl_monai.engines import ADLTrainer, PhaseSchedule
from adl_monai.engines.empty_epoch import EmptyEpochHandler
from adl_monai.errors import UsageError
from tests.engines.test_trainer import ONLY_ADVERSARIAL, ONLY_DENOISER, ONLY_DISCRIMINATOR, Pairs, build


@pytest.mark.parametrize("phases", [ONLY_DISCRIMINATOR, ONLY_ADVERSARIAL])
def test_the_discriminator_is_shown_clean_images_as_real_and_denoised_ones_as_not(phases: PhaseSchedule) -> None:
    trainer = build(phases)
    judge, seen = trainer.loss_function.discriminator_loss, []

    def watched(real_logits: list[torch.Tensor], fake_logits: list[torch.Tensor]) -> torch.Tensor:
        output = trainer.state.output
        assert not torch.allclose(output["pred"], output["image"], atol=1e-4)
        for logits, image in ((real_logits, output["label"]), (fake_logits, output["pred"])):
            torch.testing.assert_close(logits, trainer.discriminator(image))
        seen.append(trainer.discriminator.training)
        return judge(real_logits, fake_logits)

    trainer.loss_function.discriminator_loss = watched
    trainer.discriminator.eval()  # as after use
    trainer.run()
    assert seen == [True, True]


def test_phase_two_shows_what_the_denoiser_gives_in_use() -> None:
    trainer = build(ONLY_DISCRIMINATOR)
    trainer.run()
    noisy = trainer.state.output["image"]
    with torch.no_grad():
        assert torch.equal(trainer.state.output["pred"], trainer.network.eval()(noisy)[0])


def test_the_denoiser_learns_from_all_scales_beside_what_it_was_given() -> None:
    trainer = build(ONLY_DENOISER, epochs=2)
    terms, seen = trainer.loss_function.terms, []

    def watched(denoised: list[torch.Tensor], label: torch.Tensor, logits: None, noisy: torch.Tensor) -> Any:
        assert torch.equal(label, trainer.state.output["label"])
        assert torch.equal(noisy, trainer.state.output["image"])
        seen.append(len(denoised) if trainer.network.training else 0)
        return terms(denoised, label, logits, noisy)

    trainer.loss_function.terms = watched
    trainer.network.eval()  # as after phase 2
    trainer.run()
    assert seen == [3] * 4


@pytest.mark.parametrize("phases", [ONLY_DENOISER, ONLY_DISCRIMINATOR])
def test_gradients_are_scaled_down_to_the_norm(phases: PhaseSchedule) -> None:
    trainer = build(phases)
    trainer.max_grad_norm = 1e-3
    trainer.run()
    network = trainer.network if phases is ONLY_DENOISER else trainer.discriminator
    norm = torch.stack([parameter.grad.norm() for parameter in network.parameters()]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


class Told(Pairs):
    """Remembers the epochs that it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


def test_an_epochs_randomness_follows_from_seed_and_epoch_alone() -> None:
    drawn: dict[tuple[int, int], set[float]] = {}
    for seed, done in ((0, 0), (1, 0), (0, 1)):
        trainer = build(ONLY_DENOISER, epochs=2, data=Told())
        trainer.seed = seed

        def draw(engine: ADLTrainer, seed: int = seed) -> None:
            if engine.state.iteration % 2:  # the first of two in an epoch
                drawn.setdefault((seed, engine.state.epoch), set()).add(torch.rand(()).item())

        trainer.add_event_handler(Events.ITERATION_STARTED, draw)
        # Resumed after so many epochs, as a checkpoint is loaded.
        trainer.add_event_handler(Events.STARTED, lambda engine, done=done: setattr(engine.state, "epoch", done))
        trainer.add_event_handler(
            Events.STARTED, lambda engine, done=done: setattr(engine.state, "iteration", 2 * done)
        )
        trainer.run()
        assert trainer.data_loader.dataset.epochs == list(range(done + 1, 3))
    assert all(len(values) == 1 for values in drawn.values()), "a resumed epoch repeats"
    assert len(set().union(*drawn.values())) == len(drawn) == 4, "no two epochs or seeds are alike"


def test_patches_too_small_for_bfloat16_are_refused() -> None:
    trainer = build(ONLY_DENOISER, spatial_dims=3)
    trainer.precision = "bf16"
    with pytest.raises(UsageError, match="wrong gradients for patches"):
        trainer.run()


@pytest.mark.parametrize("phases", [ONLY_DISCRIMINATOR, ONLY_ADVERSARIAL])
def test_every_forward_is_in_the_precision_asked_for_and_losses_are_not(phases: PhaseSchedule) -> None:
    trainer = build(phases)
    trainer.precision = "bf16"
    dtypes = set()
    for network in (trainer.network, trainer.discriminator):
        network.encoder.encode1.conv1.register_forward_hook(lambda _, __, features: dtypes.add(features.dtype))
    trainer.run()
    assert dtypes == {torch.bfloat16}
    assert trainer.state.output["loss"].dtype == torch.float32


@pytest.mark.filterwarnings("ignore:Data iterator can not provide data")
def test_a_later_epoch_without_a_batch_is_no_epoch_either() -> None:
    class Dwindling:
        passes = 0

        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Iterator[int]:
            self.passes += 1
            return iter([0, 0] if self.passes == 1 else [])

    trainer = Engine(lambda *_: None)
    EmptyEpochHandler().attach(trainer)
    with pytest.raises(UsageError, match="gave no batch in epoch 2"):
        trainer.run(Dwindling(), max_epochs=3)
