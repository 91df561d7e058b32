"""What a run that goes on takes from its checkpoint, and what from its options, which may have changed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from adl_monai.errors import is_out_of_memory


def restore(objects: Mapping[str, Any], states: Mapping[str, Any], epoch: int) -> None:
    """Put a checkpoint into a run.

    What was learned is the checkpoint's: weights, an optimizer's moments and steps, a schedule's position. What was
    chosen is the run's: rates, decay, betas, a schedule's length and end. So the rate of every epoch to come is the one
    that the present options give this epoch in a run that has them from its start; with the options of before, it is
    the same to the last bit.

    Args:
        objects: The run's, fresh from its options.
        states: By the same names.
        epoch: Epochs completed.

    Raises:
        ValueError: If a state does not fit an optimizer.
        RuntimeError: If one does not fit a network.
    """
    # Schedules come first: they leave in their optimizer's groups what the groups then keep.
    for name, item in objects.items():
        if isinstance(item, LRScheduler):
            _restore_schedule(item, states[name], epoch)
    for name, item in objects.items():
        if isinstance(item, Optimizer):
            _restore_optimizer(item, states[name])
            _try_step(name, item)
        elif not isinstance(item, LRScheduler):
            item.load_state_dict(states[name])


def _restore_schedule(schedule: LRScheduler, state: Mapping[str, Any], epoch: int) -> None:
    if isinstance(schedule, ReduceLROnPlateau):  # the way to its position is not known, nor the rate without it
        schedule.load_state_dict(dict(state))
        for group, rate in zip(schedule.optimizer.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of", category=UserWarning)  # no step between these
        for _ in range(state.get("last_epoch", epoch)):  # as the run did: a closed form differs in the last bits
            schedule.step()


def _restore_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    groups = state["param_groups"]
    if len(groups) == len(optimizer.param_groups):
        groups = [{**own, "params": saved["params"]} for own, saved in zip(optimizer.param_groups, groups, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})


def _try_step(name: str, optimizer: Optimizer) -> None:
    """Torch takes the moments of any optimizer, and of any settings; only a step looks for its own."""
    trial = copy.deepcopy(optimizer)
    for parameter in (one for group in trial.param_groups for one in group["params"]):
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    try:
        trial.step()
    except AttributeError:  # it keeps something beside its state, which is not copied: nothing can be said
        return
    except (KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        raise ValueError(
            f"{name} is {type(optimizer).__name__} with settings for which its state was not made: {reason}"
        ) from error
