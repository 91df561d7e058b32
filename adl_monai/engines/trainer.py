"""The three-phase ADL training iteration (arXiv 2204.14100) on MONAI's ``SupervisedTrainer``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils import set_determinism
from monai.utils.enums import CommonKeys as Keys
from torch import Tensor

from adl_monai.compute import autocast, channels_last, training_precision, unwrap
from adl_monai.engines.ema import EMA
from adl_monai.engines.empty_epoch import EmptyEpochHandler
from adl_monai.engines.phases import Phase, PhaseSchedule
from adl_monai.engines.teacher import Teacher
from adl_monai.errors import TrainingDivergedError, UsageError


class ADLTrainer(SupervisedTrainer):
    """Trains a denoiser, and a discriminator against it, in the phases of a ``PhaseSchedule``.

    One iteration outputs ``image`` (noisy), ``label`` (clean), ``pred`` (denoised, full scale), ``loss`` and ``terms``
    (each loss term by name, unweighted, detached). In phase 2 ``loss`` is the discriminator's.

    Who may learn from what is strict: the discriminator's step sees detached images, and in the denoiser's step the
    discriminator's parameters are frozen and its normalisation statistics stay as they are.

    All randomness of an epoch follows from ``seed`` and the epoch's number: global generators are seeded anew when an
    epoch starts and the training set, if it has ``set_epoch``, is told the epoch. So a run that is resumed at an
    epoch's start repeats what the uninterrupted run does.

    Args:
        device: Where to train.
        max_epochs: Length of the run.
        train_data_loader: Yields dicts with ``image`` and ``label``, (B, C, H, W[, D]), about [0, 1].
        network: The denoiser; returns the pyramid (full, 1/2, 1/4 scale) in training.
        optimizer: The denoiser's.
        loss_function: An ``ADLLoss``: has ``terms``, ``total``, ``discriminator_loss`` and ``weights``.
        discriminator: Returns a list of logit masks; without one, every epoch is phase 1.
        d_optimizer: The discriminator's own optimizer.
        phases: Shares of the run; see ``PhaseSchedule``.
        ema: Average of the denoiser's weights, updated after each of its steps.
        teacher: Trained models, on whose results the denoiser's labels lean; the discriminator sees clean images still.
        precision: ``auto``, ``fp32`` or ``bf16`` for the networks (see ``training_precision``); losses always run in
            float32.
        max_grad_norm: Gradients of each network are scaled down to this norm; None for no clipping.
        seed: See above.
        deterministic: False lets cuDNN try out which of its kernels is fastest, so that a run on a GPU repeats to the
            rounding only. Without effect on a CPU.
        **kwargs: As in ``SupervisedTrainer``.

    Raises:
        ValueError: If a discriminator comes without its optimizer, or shares the denoiser's, there is no epoch, or the
            precision is float16.
        TrainingDivergedError: From ``run()``, when a loss or a gradient is not finite.
        UsageError: From ``run()``, when the loader gives no batch.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Any,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_function: Any,
        *,
        discriminator: torch.nn.Module | None = None,
        d_optimizer: torch.optim.Optimizer | None = None,
        phases: PhaseSchedule | None = None,
        ema: EMA | None = None,
        teacher: Teacher | None = None,
        precision: str = "auto",
        max_grad_norm: float | None = 1.0,
        seed: int = 0,
        deterministic: bool = True,
        decollate: bool = False,
        train_handlers: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if discriminator is not None and (d_optimizer is None or d_optimizer is optimizer):
            raise ValueError("a discriminator needs an optimizer of its own: give d_optimizer.")
        if max_epochs < 1:
            raise ValueError(f"max_epochs is {max_epochs}; expected at least 1.")
        if precision == "fp16":
            raise ValueError("precision fp16 is not supported in training; use auto, bf16 or fp32.")
        # Set before the base class, which attaches the handlers.
        self.discriminator = discriminator
        self.d_optimizer = d_optimizer
        self.phases = phases or PhaseSchedule()
        self.ema = ema
        self.teacher = teacher
        self.precision = precision
        self.safe_precision = precision
        self.max_grad_norm = max_grad_norm
        self.seed = seed
        self.deterministic = deterministic
        super().__init__(
            device,
            max_epochs,
            train_data_loader,
            network,
            optimizer,
            loss_function,
            decollate=decollate,
            train_handlers=[EmptyEpochHandler(), *(train_handlers or ())],
            **kwargs,
        )
        # The loader is iterated anew after this event, so it sees the new epoch.
        self.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)

    def run(self) -> None:  # type: ignore[override]
        """Train; see above for what it raises."""
        if self.state.epoch_length == 0:  # MONAI would warn and do nothing
            raise UsageError("the loader has no batch in an epoch; give more patches or a smaller batch.")
        super().run()

    @property
    def phase(self) -> Phase:
        """The phase of the current epoch."""
        if self.discriminator is None or self.loss_function.weights["adversarial"] == 0:  # type: ignore[attr-defined]
            return Phase.DENOISER
        return self.phases.phase(self.state.epoch, self.state.max_epochs)

    def start_epoch(self) -> None:
        """Derive this epoch's randomness from the seed and the epoch alone."""
        set_determinism(seed=(self.seed * 1_000_003 + self.state.epoch) % 2**32)
        torch.backends.cudnn.deterministic = self.deterministic
        torch.backends.cudnn.benchmark = not self.deterministic
        dataset = getattr(self.data_loader, "dataset", None)
        if dataset is not None and hasattr(dataset, "set_epoch"):
            dataset.set_epoch(self.state.epoch)

    def _iteration(self, engine: Any, batchdata: dict[str, Tensor]) -> dict[str, Any]:
        noisy, clean = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)[:2]
        layout = channels_last(noisy.ndim - 2)
        noisy, clean = (image.as_subclass(Tensor).to(memory_format=layout) for image in (noisy, clean))
        self.safe_precision = training_precision(self.precision, self.state.device, noisy.shape[2:])
        engine.state.output = {Keys.IMAGE: noisy, Keys.LABEL: clean}
        if self.phase is Phase.DISCRIMINATOR:
            self._discriminator_epoch_step(noisy, clean)
        else:
            self._denoiser_epoch_step(noisy, clean)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _denoiser_epoch_step(self, noisy: Tensor, clean: Tensor) -> None:
        """Phases 1 and 3."""
        self.network.train()
        with autocast(self.safe_precision, self.state.device):
            denoised = self.inferer(noisy, self.network)
        pyramid = [denoised] if isinstance(denoised, Tensor) else list(denoised)
        self.state.output[Keys.PRED] = pyramid[0].detach()
        self.fire_event(IterationEvents.FORWARD_COMPLETED)

        d_loss, fake_logits = None, None
        if self.phase is Phase.ADVERSARIAL:
            assert self.discriminator is not None
            d_loss = self._discriminator_loss(pyramid[0].detach(), clean)
            self._step(self.discriminator, self.d_optimizer, d_loss)
            with frozen(self.discriminator) as judge, autocast(self.safe_precision, self.state.device):
                fake_logits = judge(pyramid[0])
        label = clean
        if self.teacher is not None:
            with autocast(self.safe_precision, self.state.device):
                label = self.teacher.labels(noisy, clean, self.state.iteration)
        terms = self.loss_function.terms(pyramid, label, fake_logits, noisy)  # type: ignore[attr-defined]
        loss = self.loss_function.total(terms)  # type: ignore[attr-defined]
        self._report(loss, terms, d_loss)
        self._step(self.network, self.optimizer, loss, announce=True)
        if self.ema is not None:
            self.ema.update_parameters(self.network)

    def _discriminator_epoch_step(self, noisy: Tensor, clean: Tensor) -> None:
        """Phase 2: no weight nor running statistic of the denoiser moves."""
        denoiser = unwrap(self.network)
        denoiser.eval()
        with torch.no_grad(), autocast(self.safe_precision, self.state.device):
            denoised = self.inferer(noisy, denoiser)
        full_scale = denoised if isinstance(denoised, Tensor) else denoised[0]
        self.state.output[Keys.PRED] = full_scale
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        d_loss = self._discriminator_loss(full_scale, clean)
        self._report(d_loss, {}, d_loss)
        self._step(self.discriminator, self.d_optimizer, d_loss, announce=True)

    def _discriminator_loss(self, denoised: Tensor, clean: Tensor) -> Tensor:
        assert self.discriminator is not None
        self.discriminator.train()
        with autocast(self.safe_precision, self.state.device):
            real_logits = self.discriminator(clean)
            fake_logits = self.discriminator(denoised)
        return self.loss_function.discriminator_loss(real_logits, fake_logits)  # type: ignore[attr-defined]

    def _report(self, loss: Tensor, terms: dict[str, Tensor], d_loss: Tensor | None) -> None:
        values = {name: value.detach() for name, value in terms.items()}
        if d_loss is not None:
            values["discriminator"] = d_loss.detach()
        self.state.output[Keys.LOSS] = loss.detach()
        self.state.output["terms"] = values

    def _step(self, network: Any, optimizer: Any, loss: Tensor, announce: bool = False) -> None:
        """One optimizer step on ``loss``; ``announce`` fires MONAI's events of the iteration's main loss."""
        if announce:
            self.fire_event(IterationEvents.LOSS_COMPLETED)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if announce:
            self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        largest = math.inf if self.max_grad_norm is None else self.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), largest)
        # Loss and gradients together: one wait for a GPU. Several processes have the same gradients, so all end.
        if not torch.isfinite(loss.detach()) & torch.isfinite(norm):
            fault = f"the loss became {loss.item()}"
            if math.isfinite(loss.item()):
                fault = f"the gradients became {norm.item()} (their norm; the loss is {loss.item():.4g})"
            rates = " and ".join(f"{group['lr']:.3g}" for group in optimizer.param_groups)
            kept = self.state.epoch > 1 or getattr(self.state, "resumed_from", None) is not None
            advice = "The last good checkpoint is kept; lower the learning rate and continue from it with --resume"
            if not kept:
                advice = "No epoch was saved yet; lower the learning rate and start again"
            raise TrainingDivergedError(
                f"{fault} in epoch {self.state.epoch}, iteration {self.state.iteration} "
                f"({self.phase.value} phase, learning rate {rates}). {advice}, or check the training images for "
                "extreme values."
            )
        optimizer.step()


@contextmanager
def frozen(network: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Within the block, gradients pass through ``network`` but none of its parameters or statistics change.

    Yields the unwrapped network: through a ``DistributedDataParallel``, a forward whose parameters get no gradient
    would leave its reducer waiting.
    """
    inner = unwrap(network)
    trainable = [parameter for parameter in inner.parameters() if parameter.requires_grad]
    tracking: Sequence[Any] = [m for m in inner.modules() if getattr(m, "track_running_stats", False)]
    for parameter in trainable:
        parameter.requires_grad_(False)
    for norm in tracking:
        norm.track_running_stats = False
    try:
        yield inner
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for norm in tracking:
            norm.track_running_stats = True
