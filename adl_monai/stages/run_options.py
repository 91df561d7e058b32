"""What a run is started with: options, recorded in its folder so that resuming needs none of them again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adl_monai.bundle import find_bundle, inference_overrides, load_weights, network_definition, shipped_bundle
from adl_monai.bundle_values import refuse_recorded_code
from adl_monai.errors import UsageError
from adl_monai.files import replacing

PRESETS = ("default", "paper", "release")
FINE_TUNING_RATE = 0.0005  # a fresh network's rate would undo what the model has learned


@dataclass(frozen=True)
class Options:
    """What a run was started with, kept in its ``options.json`` so that resuming needs none of it again."""

    spatial_dims: int = 3
    preset: str = "default"
    overrides: dict[str, Any] = field(default_factory=dict)


def run_options(
    run_dir: Path,
    *,
    spatial_dims: int | None,
    preset: str | None,
    init: str | Path | None,
    hold: str | Path | None,
    teachers: Sequence[str | Path],
    resume: bool,
    overrides: Mapping[str, Any],
) -> Options:
    """What a run goes by: what is given, on top of what a resumed run was started with; models as config values.

    Raises:
        UsageError: If an option or a model is not usable, or a resumed run was started from another model.
    """
    recorded = _recorded_options(run_dir) if resume else Options()
    spatial_dims = spatial_dims or recorded.spatial_dims
    preset = preset or recorded.preset
    refuse_recorded_code(recorded.overrides, dict(overrides), run_dir / "options.json")
    values = {**recorded.overrides, **overrides}
    if spatial_dims not in (2, 3):
        raise UsageError(f"spatial_dims {spatial_dims} is not 2 or 3.")
    if preset not in PRESETS:
        raise UsageError(f"preset {preset!r} is unknown; expected one of {', '.join(PRESETS)}.")
    if init is not None:
        start = _start_from(init, spatial_dims)
        _refuse_another("init", start["init"], recorded, resume, run_dir)
        values = {**start, "learning_rate": FINE_TUNING_RATE, **values}
    if hold is not None:
        held = _start_from(hold, spatial_dims)
        _refuse_another("hold", held["init"], recorded, resume, run_dir)
        values = {"hold": held.pop("init"), **(held if init is None else {}), **values}
    if teachers:
        values = {**values, "teachers": [_teacher(model, spatial_dims) for model in teachers]}
    return Options(spatial_dims, preset, values)


def record_options(run_dir: Path, options: Options) -> None:
    """Write them to the run's folder."""
    with replacing(run_dir / "options.json") as temporary:
        temporary.write_text(json.dumps(asdict(options), indent=2, default=str) + "\n", encoding="utf-8")


def _recorded_options(run_dir: Path) -> Options:
    path = run_dir / "options.json"
    if not path.exists():
        return Options()
    try:
        options = Options(**json.loads(path.read_text(encoding="utf-8")))
        if not isinstance(options.overrides, dict):
            raise TypeError("overrides is no object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read ({error}); start a new run in another folder.") from error
    return options


def _start_from(init: str | Path, spatial_dims: int) -> dict[str, Any]:
    """The config values that start a run from a model's weights."""
    network, weights = _model(init, spatial_dims)
    return {"init": weights, "network_def": {**network, "multi_scale": True}}


def _refuse_another(name: str, given: str, recorded: Options, resume: bool, run_dir: Path) -> None:
    """A run that goes on has its weights already, and what they grew from."""
    before = recorded.overrides.get(name)
    if resume and (run_dir / "options.json").exists() and before != given:
        raise UsageError(
            f"{run_dir} was started with {f'--{name} {before}' if before else f'no --{name}'}, and --resume goes on "
            f"with that, not with {given}; leave --{name} out, or start a new run in another folder."
        )


def _teacher(model: str | Path, spatial_dims: int) -> dict[str, Any]:
    """One of the config's ``teachers``."""
    network, weights = _model(model, spatial_dims)
    return {"network": {**network, "multi_scale": False}, "weights": weights}


def _model(model: str | Path, spatial_dims: int) -> tuple[dict[str, Any], str]:
    """A model's network arguments and the path of its weights."""
    root = find_bundle(model)
    load_weights(root)  # refused here, before anything is written
    bundle, _ = inference_overrides(root)
    if bundle != shipped_bundle(spatial_dims):
        raise UsageError(f"model {model} is not {spatial_dims}D; choose the model's dimensions with --dims.")
    return network_definition(root), str(root / "models" / "model.pt")
