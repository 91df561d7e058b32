"""Start a run from the weights of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from adl_monai.errors import ModelError
from adl_monai.networks.growth import grown_weights


class StartHandler:
    """Loads a model's weights into networks when the run starts; they may be wider or have a content enhancer more.

    Attach it before what resumes a run, whose weights then replace these.

    Args:
        load_path: A bare state_dict.
        networks: The network that learns and the average of its weights. They start equal.
    """

    def __init__(self, load_path: str | Path, networks: Sequence[torch.nn.Module]) -> None:
        self.load_path = Path(load_path)
        self.networks = list(networks)

    def attach(self, engine: Engine) -> None:
        """Run when ``engine`` starts."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Any) -> None:
        """Load.

        Raises:
            ModelError: If the weights are of a network that is built differently, or wider.
        """
        state = torch.load(self.load_path, map_location="cpu", weights_only=True)
        try:
            state = grown_weights(state, self.networks[0])
        except ValueError as error:
            raise ModelError(f"{self.load_path} does not fit the network to be trained: {error}") from error
        for network in self.networks:
            network.load_state_dict(state)
