"""How well a model denoises the cases of a manifest: runs a bundle's ``evaluate.json`` at each noise level."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Events
from tqdm import tqdm

from adl_monai.bundle import find_bundle, inference_overrides, load_weights, open_workflow, refuse_expressions
from adl_monai.data.case_cache import Refusals
from adl_monai.data.io import read_volume
from adl_monai.data.monai_io import SYNTHETIC, VolumeReader
from adl_monai.errors import OutputError, UsageError, surfacing_user_errors
from adl_monai.files import replacing
from adl_monai.manifest import Case, check_pairs, load_manifest
from adl_monai.quiet import quiet_libraries

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
    overwrite: bool = False,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """PSNR and SSIM before and after denoising, per case and noise level.

    A clean case gets noise of the given kind and levels, fixed by the seed. A real pair is measured as it is, at each
    level alike. Intensities are normalised to about [0, 1]; the data range of both metrics is 1.

    Args:
        manifest: Path of a manifest.
        output: ``metrics.json`` to write; ``metrics.csv`` goes beside it.
        model: See ``adl_monai.bundle.find_bundle``.
        split: ``training``, ``validation`` or ``test``.
        noise: Kind of noise.
        sigmas: Noise levels, as shares of the intensity range.
        device: As in ``infer``.
        precision: As in ``infer``.
        seed: Fixes the noise.
        overwrite: Replace existing outputs.
        progress: Show a bar.

    Returns:
        One row per case and level, and one named ``mean`` per level, with the keys of ``COLUMNS``.

    Raises:
        ScanFileError: Or SeriesGeometryError: if scans are damaged or unusable; all of them are named, and nothing is
            measured.
        ManifestError: If the manifest is not usable.
        UsageError: If an option is not usable, or the split has no case.
        OutputError: If an output exists already.
    """
    refuse_expressions({"split": split, "noise": noise, "device": device, "precision": precision})
    output = Path(output).resolve()
    table = output.with_suffix(".csv")
    for path in (output, table):
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists; pass --overwrite to replace it, or another -o.")
    parsed = load_manifest(manifest)
    cases = getattr(parsed, split)
    if not cases:
        raise UsageError(f"{manifest} has no case under {split!r}; choose another split with --split.")
    check_pairs(parsed)
    _refuse_damaged(cases, progress)
    root = find_bundle(model, _spatial_dims(cases[0]) if model is None else 3)
    trusted, values = inference_overrides(root)
    load_weights(root)  # of a shipped model too: refused here, in words
    output.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tqdm(total=len(sigmas) * len(cases), unit="case", disable=not progress, leave=False) as bar:
        for sigma in sigmas:
            overrides = {
                **values,
                "manifest": str(Path(manifest).resolve()),
                "split": split,
                "noise": noise,
                "sigma": float(sigma),
                "seed": seed,
                "device#name": device,
                "precision": precision,
                "save_tables": False,
                "data#check": False,  # the pairs, above
            }
            workflow = open_workflow(trusted, ("inference", "evaluate"), "infer", overrides)
            with surfacing_user_errors(), quiet_libraries():
                workflow.initialize()
                workflow.evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: bar.update())
                workflow.run()
            state = workflow.evaluator.state
            details = {name: state.metric_details[name].flatten().tolist() for name in COLUMNS[3:]}
            for index, case in enumerate(cases):
                rows.append(
                    {"case": case.image, "noise": noise, "sigma": float(sigma)}
                    | {k: v[index] for k, v in details.items()}
                )
            means = {name: float(state.metrics[name]) for name in COLUMNS[3:]}
            rows.append({"case": "mean", "noise": noise, "sigma": float(sigma)} | means)
    text = json.dumps({"model": str(root), "split": split, "seed": seed, "rows": rows}, indent=2)
    with replacing(output) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    with replacing(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return rows


def _refuse_damaged(cases: Sequence[Case], progress: bool) -> None:
    """Read the scans that ``check_pairs`` has not: a fault met later would cost what was measured before it."""
    refusals = Refusals(len(cases))
    for case in tqdm(cases, desc="Checking", unit="case", disable=not progress, leave=False):
        if case.label is None and not case.image.startswith(SYNTHETIC):
            with refusals.collecting():
                read_volume(Path(case.image))
    refusals.raise_them()


def _spatial_dims(case: Case) -> int:
    """Axes of a case's image: the shipped 2D model is for manifests of 2D images."""
    reader = VolumeReader()
    return min(reader.get_data(reader.read(case.image))[0].ndim, 3)
