"""From a manifest to a trained model: runs a bundle's ``train.json``, the same file that MONAI's own runner takes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from adl_monai.bundle import open_workflow, shipped_bundle
from adl_monai.errors import (
    OutOfMemoryError,
    UsageError,
    is_out_of_memory,
    refused_values,
    surfacing_user_errors,
    user_error,
)
from adl_monai.manifest import check_pairs, load_manifest
from adl_monai.quiet import quiet_libraries
from adl_monai.stages.run_folder import RunFolder, refuse_own_models, restore
from adl_monai.stages.run_options import record_options, run_options
from adl_monai.stages.train_checks import check_dims, check_values
from adl_monai.stages.train_words import warn_of_result, warn_of_validation

VALIDATION = ("validation_noise", "validation_sigma", "noise_kinds", "noise_sigma")
MODELS = ("init", "hold", "teachers", "network_def")  # what a model given by its name brings


@dataclass(frozen=True)
class TrainingResult:
    """What a finished training left behind."""

    run_dir: Path
    bundle: Path
    epochs: int
    best_epoch: int | None
    best_psnr: float | None
    """On the validation cases, at the best epoch."""
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

    The weights equal those of ``python -m monai.bundle run`` on the bundle's ``train.json`` and the preset's file over
    it, with ``manifest``, ``output_dir`` and the overrides given. Under torchrun, ``multi_gpu_train.json`` is added.

    Args:
        manifest: Path of a manifest; see ``adl_monai.manifest``.
        run_dir: Folder to write.
        spatial_dims: 2 trains on slices and images, 3 (the default) on volumes.
        preset: ``default``, a small network (``default.json`` over ``train.json``, whose network is the shipped one);
            ``paper`` for the published network and losses (``paper.json``); ``release`` for the longer run that made
            the shipped weights (``release.json``).
        init: A model to start from instead of random weights, see ``adl_monai.bundle.find_bundle``; its network
            arguments come with it, and a learning rate of 0.0005 unless ``overrides`` gives another.
        hold: A model, without norms, whose channels stay as they are: those beside them of a wider network (give
            ``network_def#filters``) learn, and add to its result. The run starts from it, or from an ``init`` that has
            grown from it in a run that held it too.
        teachers: Models whose results are learned beside the clean images (``adl_monai.engines.Teacher``); the
            share of a label that is theirs is ``teacher_share`` in ``overrides``.
        resume: Go on from the run folder's last checkpoint, with the options that the run was started with; those
            given here come on top. Each epoch to come has the learning rate and the phase that a run with these options
            from its start has in that epoch: a longer run does not begin its schedule again, it has the longer one.
        overwrite: Start anew in a folder that holds a run. That run's files go once the new one has learned a batch.
        progress: Whether to show bars; None shows them on a terminal, unless ``overrides`` say otherwise.
        overrides: Config ids of ``train.json`` and their values, such as ``{"max_epochs": 10}``.

    Raises:
        ManifestError: If the manifest is not usable.
        UsageError: If an option is not usable, a value of ``overrides`` is none of the configs or refused by what gets
            it, or 2D scans are to train a 3D model.
        OutputError: If the folder holds a run already, or cannot be written.
        TrainingDivergedError: If a loss is not finite.
    """
    manifest = Path(manifest).resolve()
    run_dir = Path(run_dir).resolve()
    main_process = int(os.environ.get("RANK", "0")) == 0
    if main_process and run_dir.is_dir():
        restore(run_dir)
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
    source = shipped_bundle(options.spatial_dims)
    configs = ("train", options.preset, *(["multi_gpu_train"] if distributed else []))
    check_values(source, configs, options)
    if overwrite and not resume:
        refuse_own_models(run_dir, options.overrides)
    check_dims(parsed, options.spatial_dims)
    check_pairs(parsed)
    folder = RunFolder(run_dir, resume, overwrite) if main_process else None
    if folder is not None and not folder.replaces and not (run_dir / "checkpoints").exists():
        record_options(run_dir, options)  # killed from now on, --resume alone starts this very run

    values = {"manifest": str(manifest), "output_dir": str(run_dir), "resume": resume, **options.overrides}
    checked = {"train#data#check": False, "validate#data#check": False}  # the pairs, above
    shown = {} if progress is None else {"progress": progress}
    workflow = open_workflow(source, configs, "train", {**values, **checked, **shown})
    epochs: list[int] = []  # after one, which ends in a validation, the options are no longer to blame
    try:
        if folder is not None:
            folder.open_log()
        with surfacing_user_errors(), quiet_libraries(), _naming_refused_values(options.overrides, epochs):
            workflow.initialize()
            trainer, evaluator = workflow.trainer, workflow.evaluator
            if folder is not None:
                found = (workflow.parser.get_parsed_content(name) for name in VALIDATION)
                warn_of_validation(parsed, *found)
            trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: epochs.append(engine.state.epoch))
            if folder is not None:
                # After the checkpoint handler accepted what is resumed: refused options leave no trace in the folder.
                # What is replaced stays until a batch was learned, by every process: then nothing refuses the options.
                event = Events.ITERATION_COMPLETED(once=1) if folder.replaces else Events.STARTED
                begin = partial(folder.begin, source, workflow.parser, options)
                trainer.add_event_handler(event, lambda engine: _has_had_its_epochs(engine, run_dir, resume) or begin())
            workflow.run()
            best = None if evaluator.state.best_metric_epoch == -1 else float(evaluator.state.best_metric)
            if folder is not None:
                done = trainer.state.epoch - len(epochs)
                start = getattr(trainer.state, "start_metric", None)
                warn_of_result(trainer.state.epoch, done, best, evaluator.state.metrics.get("psnr_noisy"), start)
            workflow.finalize()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        kept = "; the last good checkpoint is kept" if (run_dir / "checkpoints").is_dir() else ""
        raise OutOfMemoryError(
            f"not enough memory to train{kept}. Use a smaller --batch-size, a smaller "
            "--set cache_rate (share of the scans kept in memory), --set cache_dir=FOLDER (scans kept on a disk), "
            "--set network_def#checkpointing=True (less memory, more time), --set num_workers=0 (no processes beside "
            "this one), or a machine with more."
        ) from error
    finally:
        if folder is not None:
            folder.close(workflow.parser.ref_resolver.resolved_content)
    return TrainingResult(
        run_dir=run_dir,
        bundle=run_dir / "bundle",
        epochs=trainer.state.epoch,
        best_epoch=None if best is None else evaluator.state.best_metric_epoch,
        best_psnr=best,
        metrics={name: float(value) for name, value in evaluator.state.metrics.items()},
        main_process=main_process,
    )


def _has_had_its_epochs(trainer: Engine, run_dir: Path, resume: bool) -> bool:
    """Whether a resumed run has nothing left to do: it stays what it is recorded as, whatever options are given now."""
    recorded = (run_dir / "options.json").exists() and (run_dir / "bundle" / "configs").is_dir()
    return resume and recorded and trainer.state.epoch == trainer.state.max_epochs


@contextmanager
def _naming_refused_values(overrides: Mapping[str, Any], epochs: Sequence[int]) -> Iterator[None]:
    """Around what the configs build and run, until an epoch is done.

    Raises:
        UsageError: If values are refused: the configs alone are sound, so it is an option's fault.
    """
    try:
        yield
    except Exception as error:
        refused = refused_values(error)
        given = ", ".join(f"{name}={value}" for name, value in overrides.items() if name not in MODELS)
        if epochs or refused is None or user_error(error) is not None or is_out_of_memory(error) or not given:
            raise
        place, reason = refused
        raise UsageError(
            f"{place} refused its values: {reason.rstrip('.')}. Given were {given}; change them."
        ) from error
