"""Start a run from the weights of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    Attach it before what resumes a run, whose weights then replace these.

    Args:
        load_path: A bare state_dict.
        networks: The network that learns and the average of its weights. They start equal.
        hold: Optimizer of the first network, which is to keep what it was: only channels that it has grown learn,
            beside the old ones, whose result stays. None lets all learn.
    """

    def __init__(
        self,
        load_path: str | Path,
        networks: Sequence[torch.nn.Module],
        hold: torch.optim.Optimizer | None = None,
    ) -> None:
        self.load_path = Path(load_path)
        self.networks = list(networks)
        self.hold = hold

    def attach(self, engine: Engine) -> None:
        """Run when ``engine`` starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Any) -> None:
        """Load.

        Raises:
            ModelError: If the weights are of a network that is built differently, or wider, or cannot be held.
        """
        former = torch.load(self.load_path, map_location="cpu", weights_only=True)
        try:
            state = grown_weights(former, self.networks[0])
            held = held_weights(former, self.networks[0]) if self.hold is not None else {}
        except ValueError as error:
            raise ModelError(f"{self.load_path} does not fit the network to be trained: {error}") from error
        for network in self.networks:
            network.load_state_dict(state)
        if self.hold is not None:
            hold_weights(self.networks[0], state, held, self.hold)
            learn_only(self.networks[0], learning_channels(former, self.networks[0]))  # saves half of the backward


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
