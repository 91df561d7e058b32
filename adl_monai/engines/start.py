"""Start a run from the weights of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from adl_monai.errors import ModelError
from adl_monai.networks.growth import grown_weights, held_weights, learning_channels
from adl_monai.networks.partial_gradient import learn_only


class StartHandler:
    """Loads a model's weights into networks when the run starts; they may be wider or have a content enhancer more.

    Attach it before what resumes a run. That has the weights already: ``load_path`` is then not read and may be gone.

    Args:
        load_path: A bare state_dict.
        networks: The network that learns and the average of its weights. They start equal.
        hold_path: State of a narrower network, with which the first network is to keep what that one computes: only
            the channels beside its own learn, and add to its result. ``load_path`` itself, or what that has grown from
            in a run that held it too. None lets all learn.
        optimizer: Of the first network, where something is held.
    """

    def __init__(
        self,
        load_path: str | Path,
        networks: Sequence[torch.nn.Module],
        hold_path: str | Path | None = None,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        if hold_path is not None and optimizer is None:
            raise ValueError("what is held is put back after each step of an optimizer; give it.")
        self.load_path = Path(load_path)
        self.networks = list(networks)
        self.hold_path = None if hold_path is None else Path(hold_path)
        self.optimizer = optimizer
        self._pending: Path | None = None

    def attach(self, engine: Engine) -> None:
        """Run when ``engine`` starts; hold in a resumed run once its own weights are there."""
        engine.add_event_handler(Events.STARTED, self)
        if self.hold_path is not None:
            engine.add_event_handler(Events.EPOCH_STARTED, self._hold_resumed)

    def __call__(self, engine: Any) -> None:
        """Load, and hold.

        Raises:
            ModelError: If the weights cannot be read, are of a network that is built differently, or wider, or cannot
                be held.
        """
        if getattr(engine.state, "resumed_from", None) is not None:
            self._pending = self.hold_path
            return
        state = self._fit(grown_weights, self.load_path, _read(self.load_path))
        for network in self.networks:
            network.load_state_dict(state)
        if self.hold_path is not None:
            self._hold(self.hold_path, state, str(self.load_path))

    def _hold_resumed(self) -> None:
        if self._pending is not None:
            path, self._pending = self._pending, None
            state = {name: value.clone() for name, value in self.networks[0].state_dict().items()}
            self._hold(path, state, "the resumed run")

    def _fit(
        self, made: Callable[..., dict[str, Tensor]], path: Path, former: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        try:
            return made(former, self.networks[0])
        except ValueError as error:
            raise ModelError(f"{path} does not fit the network to be trained: {error}") from error

    def _hold(self, path: Path, state: Mapping[str, Tensor], source: str) -> None:
        assert self.optimizer is not None
        former = _read(path)
        expected, held = (self._fit(made, path, former) for made in (grown_weights, held_weights))
        for name, mask in held.items():
            # As near as half precision is, in which models in the box are kept.
            if not torch.allclose(state[name][mask], expected[name][mask].to(state[name]), rtol=1e-3, atol=1e-6):
                raise ModelError(
                    f"{source} does not hold what {path} computes ({name} differs); start from that model, or "
                    "from one that has grown from it and held it."
                )
        hold_weights(self.networks[0], state, held, self.optimizer)
        learn_only(self.networks[0], learning_channels(former, self.networks[0]))  # saves work, changes nothing


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(
            f"{path}, the model that the run starts from or holds, cannot be read ({error.strerror or error}); put it "
            "back, or start a new run with another. Expected is a bundle's models/model.pt: models have names (adl3d) "
            "in adl-monai train alone."
        ) from error
    return state


def hold_weights(
    network: torch.nn.Module,
    state: Mapping[str, Tensor],
    held: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Keep chosen weights as they are: they get no gradient, and each step puts them back (decay moves them too).

    Args:
        network: What ``optimizer`` trains.
        state: The values to keep, by name.
        held: Which of them to keep, by name: booleans of the parameter's shape.
        optimizer: Its steps are followed.
    """
    parameters = dict(network.named_parameters())
    kept = [(parameters[name], mask.to(parameters[name].device)) for name, mask in held.items()]
    values = [state[name].to(parameter)[mask] for name, (parameter, mask) in zip(held, kept, strict=True)]
    for parameter, mask in kept:
        parameter.register_hook(lambda gradient, mask=mask: gradient.masked_fill(mask, 0.0))

    @torch.no_grad()
    def put_back(*_: Any) -> None:
        for (parameter, mask), value in zip(kept, values, strict=True):
            parameter[mask] = value

    optimizer.register_step_post_hook(put_back)
