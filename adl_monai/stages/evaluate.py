"""How well a model denoises the cases of a manifest: runs a bundle's ``evaluate.json`` at each noise level."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Events

from adl_monai.bars import bar
from adl_monai.bundle import (
    find_bundle,
    inference_overrides,
    load_weights,
    open_workflow,
    refuse_expressions,
    shipped_bundle,
)
from adl_monai.data.degradations import Degradation
from adl_monai.data.formats import scan_format
from adl_monai.data.geometry import spacing_from_affine
from adl_monai.data.io import read_volume
from adl_monai.data.nifti.file import peek_header
from adl_monai.data.noise_floor import keeps_means
from adl_monai.data.output import make_folder_of
from adl_monai.data.training.case_cache import Refusals
from adl_monai.errors import ModelError, OutputError, UsageError, surfacing_user_errors
from adl_monai.files import SYNTHETIC, replacing
from adl_monai.manifest import Case, check_pairs, load_manifest
from adl_monai.quiet import quiet_libraries
from adl_monai.stages.slices import fitting_axes

NO_NOISE = "none"  # in the rows of real pairs
COLUMNS = ("case", "noise", "sigma", "psnr_noisy", "psnr", "ssim_noisy", "ssim")


def evaluate(
    manifest: str | Path,
    output: str | Path,
    *,
    model: str | Path | None = None,
    split: str = "test",
    noise: str = "gaussian",
    sigmas: Sequence[float] = (25 / 255,),
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    ensemble: int = 2,
    noise_floor: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """PSNR and SSIM before and after denoising, per case and noise level.

    A clean case gets noise of the given kind and levels, fixed by the seed. A real pair is measured once, as it is: its
    noise is called ``none``, of level 0, for none was added. Intensities are normalised to about [0, 1]; the data range
    of both metrics is 1. Images that equal the clean one have an infinite PSNR: ``null`` in the JSON file, ``inf`` in
    the table and in what is returned.

    Args:
        manifest: Path of a manifest.
        output: ``metrics.json`` to write; ``metrics.csv`` goes beside it.
        model: See ``adl_monai.bundle.find_bundle``. A 2D model takes volumes slice by slice. None takes the shipped one
            that fits the images as in ``infer``: all 2D or of thick slices, or all other volumes.
        split: ``training``, ``validation`` or ``test``.
        noise: Kind of noise.
        sigmas: Noise levels, as shares of the intensity range, from 0 to 1.
        device: As in ``infer``.
        precision: As in ``infer``.
        seed: Fixes the noise.
        ensemble: As in ``infer``.
        noise_floor: As in ``infer``; a warning comes for real pairs alone.
        overwrite: Replace existing outputs.
        progress: Show a bar.

    Returns:
        One row per case and level, and one named ``mean`` per level, with the keys of ``COLUMNS``; those of real pairs
        come first, with a mean of their own.

    Raises:
        ModelError: If the model is not usable, or 3D where images are 2D.
        ScanFileError: Or SeriesGeometryError: if scans are damaged or unusable; all of them are named, and nothing is
            measured.
        ManifestError: If the manifest is not usable.
        UsageError: If an option is not usable, the split has no case, or no model is named for 2D and 3D images mixed.
        OutputError: If an output exists already or cannot be written. All of this is checked before measuring.
    """
    refuse_expressions({"split": split, "noise": noise, "device": device, "precision": precision})
    keeps_means(noise_floor)  # refuses what is none
    if not sigmas:
        raise UsageError("no noise level was given; expected at least one, such as --sigma 0.05.")
    for sigma in sigmas:
        Degradation(noise, float(sigma), seed)  # refuses a kind or level that is none
        if sigma > 1:
            raise UsageError(f"noise level {sigma} is above 1; levels are shares of the intensity range: 25/255, 0.1.")
    parsed = load_manifest(manifest)
    cases: Sequence[Case] = getattr(parsed, split)
    if not cases:
        raise UsageError(f"{manifest} has no case under {split!r}; choose another split with --split.")
    output = Path(output).resolve()
    table = output.parent / f"{output.stem}.csv"
    inputs = [str(manifest), *(name for case in cases for name in (case.image, case.label) if name)]
    _check_outputs(output, table, inputs, overwrite)
    root = None if model is None else find_bundle(model)
    check_pairs(parsed)
    axes, fitting = _checked_axes(cases, progress)
    if root is None:
        root = find_bundle(None, _one_kind(cases, fitting))
    trusted, values = inference_overrides(root)
    if trusted != shipped_bundle(2):
        _refuse_flat(cases, axes, root)
    load_weights(root)  # of a shipped model too: refused here, in words
    real, clean = ([case for case in cases if (case.label is not None) == pairs] for pairs in (True, False))
    # Of a pair, the level means nothing.
    passes = [(NO_NOISE, 0.0, real)] * bool(real) + [(noise, float(sigma), clean) for sigma in sigmas if clean]
    rows: list[dict[str, Any]] = []
    with bar(sum(len(item[2]) for item in passes), "case", progress) as advance:
        for kind, sigma, measured in passes:
            overrides = {
                **values,
                "manifest": str(Path(manifest).resolve()),
                "split": split,
                "noise": noise,
                "sigma": sigma,
                "seed": seed,
                "device#name": device,
                "precision": precision,
                "ensemble": ensemble,
                "noise_floor": noise_floor,
                "warn_of_fall": kind == NO_NOISE,
                "save_tables": False,
                "data#check": False,  # the pairs, above
                "data#pairs": kind == NO_NOISE,
            }
            workflow = open_workflow(trusted, ("inference", "evaluate"), "infer", overrides)
            with surfacing_user_errors(), quiet_libraries():
                workflow.initialize()
                workflow.evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: advance(1))
                workflow.run()
            state = workflow.evaluator.state
            details = {name: state.metric_details[name].flatten().tolist() for name in COLUMNS[3:]}
            for index, case in enumerate(measured):
                figures = {name: found[index] for name, found in details.items()}
                rows.append({"case": case.image, "noise": kind, "sigma": sigma} | figures)
            means = {name: float(state.metrics[name]) for name in COLUMNS[3:]}
            rows.append({"case": "mean", "noise": kind, "sigma": sigma} | means)
    options = {"split": split, "seed": seed, "ensemble": ensemble, "noise_floor": noise_floor}
    _write(output, table, {"model": str(root)} | options, rows)
    return rows


def _check_outputs(output: Path, table: Path, inputs: Sequence[str], overwrite: bool) -> None:
    """Refuse what cannot be written, before anything is measured for it."""
    if output.suffix.lower() == table.suffix:
        raise OutputError(f"{output} is where the table goes; name the JSON file with -o, such as metrics.json.")
    read = {Path(name).resolve() for name in inputs if not name.startswith(SYNTHETIC)}
    try:
        for path in (output, table):
            if not read.isdisjoint((path, *path.parents)):
                raise OutputError(f"{path} is one of the inputs, or inside one; choose another -o.")
            if path.exists() and not path.is_file():
                raise OutputError(f"{path} is a folder or a device; name a file with -o, such as metrics.json.")
            if path.exists() and not overwrite:
                raise OutputError(f"{path} exists; pass --overwrite to replace it, or another -o.")
        folder = next(parent for parent in output.parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):  # permissions do not say all, of /proc for instance
            pass
    except OSError as error:
        raise OutputError(
            f"{output} cannot be written: no file can be made there ({error.strerror or error}); choose another -o."
        ) from error


def _checked_axes(cases: Sequence[Case], progress: bool) -> tuple[list[int], list[int]]:
    """How many axes each image has, and how many the shipped model for it sees at once.

    A fault in a scan met later would cost what was measured before it.
    """
    refusals = Refusals(len(cases))
    axes, fitting = [], []
    with bar(len(cases), "case", progress, "Checking") as advance:
        for case in cases:
            if case.synthetic_axes:
                axes.append(case.synthetic_axes)
                fitting.append(case.synthetic_axes)
            else:
                with refusals.collecting():
                    shape, spacing = _grid(case)
                    axes.append(len(shape))
                    fitting.append(fitting_axes(shape, spacing))
            advance(1)
    refusals.raise_them()
    return axes, fitting


def _grid(case: Case) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Shape and voxel size of an image: all of it is read, unless it is one of a pair, which was read already."""
    path = Path(case.image)
    if case.label is not None and scan_format(path) == "nifti":
        header = peek_header(path)
        return header.shape, spacing_from_affine(header.affine)
    volume = read_volume(path)
    return volume.array.shape, volume.spacing


def _one_kind(cases: Sequence[Case], fitting: Sequence[int]) -> int:
    """The axes that the shipped model for all images sees at once."""
    if len(set(fitting)) > 1:
        flat, deep = (cases[fitting.index(count)].image for count in (2, 3))
        raise UsageError(
            f"{fitting.count(2)} images are 2D or have thick slices (such as {flat}) and {fitting.count(3)} are other "
            f"volumes (such as {deep}); expected one kind, for one model measures all. Give each kind a manifest of "
            "its own, or name a model: a 2D one (--model adl2d) takes volumes slice by slice."
        )
    return fitting[0]


def _refuse_flat(cases: Sequence[Case], axes: Sequence[int], root: Path) -> None:
    if 2 in axes:
        raise ModelError(
            f"{axes.count(2)} of {len(axes)} images are 2D (such as {cases[axes.index(2)].image}), but model {root} is "
            "3D; pass a 2D model with --model, or keep such images out of the manifest."
        )


def _write(output: Path, table: Path, head: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    finite = [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in rows
    ]
    text = json.dumps({**head, "rows": finite}, indent=2, allow_nan=False)
    make_folder_of(output, "another -o")
    with replacing(output) as json_file, replacing(table) as csv_file:
        json_file.write_text(text + "\n", encoding="utf-8")
        with csv_file.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
