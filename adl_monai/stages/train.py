"""From a manifest to a trained model: runs a bundle's ``train.json``, the same file that MONAI's own runner takes."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from ignite.engine import Events
from monai.bundle import ConfigParser, ConfigWorkflow

from adl_monai.bundle import open_workflow, shipped_bundle, write_bundle
from adl_monai.bundle_values import PLAIN_KEYS
from adl_monai.errors import (
    OutOfMemoryError,
    OutputError,
    UsageError,
    is_out_of_memory,
    refused_component,
    surfacing_user_errors,
    user_error,
)
from adl_monai.manifest import check_pairs, load_manifest
from adl_monai.stages.run_options import Options, record_options, run_options

logger = logging.getLogger(__name__)

MODELS = ("init", "hold", "teachers", "network_def")  # what a model given by its name brings


@dataclass(frozen=True)
class TrainingResult:
    """What a finished training left behind."""

    run_dir: Path
    bundle: Path
    epochs: int
    best_epoch: int | None
    metrics: dict[str, float]
    main_process: bool
    """False on all but the first of several processes."""


def train(
    manifest: str | Path,
    run_dir: str | Path,
    *,
    spatial_dims: int | None = None,
    preset: str | None = None,
    init: str | Path | None = None,
    hold: str | Path | None = None,
    teachers: Sequence[str | Path] = (),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> TrainingResult:
    """Train a denoiser.

    The run folder gets ``checkpoints/`` (full state: last, previous, best), ``tensorboard/``, ``options.json``,
    ``train.log`` and ``bundle/``, a MONAI bundle with the averaged weights of the best epoch.

    Equal to ``python -m monai.bundle run`` on the bundle's ``train.json`` with ``manifest``, ``output_dir`` and the
    overrides given. Under torchrun, ``multi_gpu_train.json`` is added.

    Args:
        manifest: Path of a manifest; see ``adl_monai.manifest``.
        run_dir: Folder to write.
        spatial_dims: 2 trains on slices and images, 3 (the default) on volumes.
        preset: ``default``; ``paper`` for the published network and losses (``paper.json`` over ``train.json``);
            ``release`` for the longer run that made the shipped weights (``release.json``).
        init: A model to start from instead of random weights, see ``adl_monai.bundle.find_bundle``; its network
            arguments come with it, and a learning rate of 0.0005 unless ``overrides`` gives another.
        hold: A model, without norms, whose channels stay as they are: those beside them of a wider network (give
            ``network_def#filters``) learn, and add to its result. The run starts from it, or from an ``init`` that has
            grown from it in a run that held it too.
        teachers: Models whose results are learned beside the clean images (``adl_monai.engines.Teacher``); the
            share of a label that is theirs is ``teacher_share`` in ``overrides``.
        resume: Go on from the run folder's last checkpoint, with the options that the run was started with; those
            given here come on top.
        overwrite: Start anew in a folder that holds a run, deleting that run's files.
        progress: Whether to show bars; None shows them on a terminal, unless ``overrides`` say otherwise.
        overrides: Config ids of ``train.json`` and their values, such as ``{"max_epochs": 10}``.

    Raises:
        ManifestError: If the manifest is not usable.
        UsageError: If an option is not usable, or a value of ``overrides`` is none of the configs.
        OutputError: If the folder holds a run already, or cannot be written.
        TrainingDivergedError: If a loss is not finite.
    """
    manifest = Path(manifest).resolve()
    run_dir = Path(run_dir).resolve()
    parsed = load_manifest(manifest)
    if not parsed.training:
        raise UsageError(f"{manifest} has no case under 'training'; add some, or write one with adl-monai prepare.")
    options = run_options(
        run_dir,
        spatial_dims=spatial_dims,
        preset=preset,
        init=init,
        hold=hold,
        teachers=teachers,
        resume=resume,
        overrides=dict(overrides or {}),
    )
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    main_process = int(os.environ.get("RANK", "0")) == 0
    source = shipped_bundle(options.spatial_dims)
    preset_configs = [options.preset] if options.preset != "default" else []
    configs = ("train", *preset_configs, *(["multi_gpu_train"] if distributed else []))
    _refuse_unknown_values(source, configs, options.overrides)
    check_pairs(parsed)
    if main_process:
        _prepare_folder(run_dir, resume, overwrite)
        if not (run_dir / "checkpoints").exists():  # killed from now on, --resume alone starts this very run
            record_options(run_dir, options)

    values = {"manifest": str(manifest), "output_dir": str(run_dir), "resume": resume, **options.overrides}
    checked = {"train#data#check": False, "validate#data#check": False}  # the pairs, above
    shown = {} if progress is None else {"progress": progress}
    workflow = open_workflow(source, configs, "train", {**values, **checked, **shown})
    handler = _log_to(run_dir) if main_process else None
    try:
        with surfacing_user_errors():
            trainer, evaluator = _build(workflow, options.overrides)
            if main_process:
                # After the checkpoint handler accepted what is resumed: refused options leave no trace in the folder.
                describe = partial(_describe_run, run_dir, source, workflow.parser, options)
                trainer.add_event_handler(Events.STARTED, describe)
            workflow.run()
            workflow.finalize()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            "not enough memory to train; the last good checkpoint is kept. Use a smaller --batch-size, a smaller "
            "--set cache_rate (share of the scans kept in memory), --set cache_dir=FOLDER (scans kept on a disk), "
            "--set network_def#checkpointing=True (less memory, more time), --set num_workers=0 (no processes beside "
            "this one), or a machine with more."
        ) from error
    finally:
        if handler is not None:
            logging.getLogger("adl_monai").removeHandler(handler)
            handler.close()
    best = evaluator.state.best_metric_epoch
    return TrainingResult(
        run_dir=run_dir,
        bundle=run_dir / "bundle",
        epochs=trainer.state.epoch,
        best_epoch=None if best == -1 else best,
        metrics={name: float(value) for name, value in evaluator.state.metrics.items()},
        main_process=main_process,
    )


def _build(workflow: ConfigWorkflow, overrides: Mapping[str, Any]) -> tuple[Any, Any]:
    """Make the trainer and the evaluator.

    Raises:
        UsageError: If a component refuses its values: the configs alone are sound, so it is an option's fault.
    """
    try:
        workflow.initialize()
        return workflow.trainer, workflow.evaluator
    except RuntimeError as error:
        refused = refused_component(error)
        given = ", ".join(f"{name}={value}" for name, value in overrides.items() if name not in MODELS)
        if refused is None or user_error(error) is not None or not given:
            raise
        component, reason = refused
        raise UsageError(
            f"{component} refused its values: {reason.rstrip('.')}. Given were {given}; change them."
        ) from error


def _refuse_unknown_values(root: Path, configs: Sequence[str], overrides: Mapping[str, Any]) -> None:
    """MONAI would add what no config mentions and nothing reads: a typing error would train something else."""
    known = ConfigParser.load_config_files([str(root / "configs" / f"{name}.json") for name in configs])
    for name in overrides:
        section, *rest = name.split("#")
        values = known
        for part in (section, *rest[:1]) if section in ("train", "validate") else (section,):  # below, new arguments
            if part not in values:
                alike = get_close_matches(part, values, n=1)
                advice = f"did you mean {alike[0]}?" if alike else f"known are {', '.join(sorted(values))}."
                raise UsageError(f"{name} is no value of the bundle's train.json; {advice}")
            values = values[part]


def _prepare_folder(run_dir: Path, resume: bool, overwrite: bool) -> None:
    holds_run = (run_dir / "checkpoints").exists() or (run_dir / "bundle").exists()
    if holds_run and overwrite and not resume:
        for name in ("checkpoints", "tensorboard", "bundle"):
            shutil.rmtree(run_dir / name, ignore_errors=True)
        for name in ("options.json", "train.log"):
            (run_dir / name).unlink(missing_ok=True)
    elif holds_run and not resume:
        raise OutputError(f"{run_dir} holds a training run; use --resume to go on, --overwrite, or another folder.")
    if resume and not (run_dir / "checkpoints").exists():
        logger.warning("%s holds no checkpoint yet: starting from the beginning", run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        probe = run_dir / ".write_test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{run_dir} cannot be written ({error.strerror}); choose another folder with -o.") from error


def _describe_run(run_dir: Path, source: Path, parser: ConfigParser, options: Options) -> None:
    """Write what the run was started with, and its bundle as yet without weights."""
    record_options(run_dir, options)
    plain = {key: parser[key] for key in PLAIN_KEYS if key in parser}
    write_bundle(source, run_dir / "bundle", parser["network_def"], plain)


def _log_to(run_dir: Path) -> logging.Handler:
    handler = logging.FileHandler(run_dir / "train.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("adl_monai")
    package.addHandler(handler)
    if package.level == logging.NOTSET or package.level > logging.INFO:
        package.setLevel(logging.INFO)
    return handler
