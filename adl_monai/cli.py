"""The command line: parses, calls one library function, prints. torch and monai are imported inside commands only."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import click

from adl_monai.cli_options import DEVICE, MODEL, OVERWRITE, PATH, PRECISION, ByteSize, Settings
from adl_monai.errors import system_error, user_error
from adl_monai.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="adl-monai")
@click.option("--debug", is_flag=True, help="Show full tracebacks.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.pass_context
def cli(ctx: click.Context, debug: bool, quiet: bool) -> None:
    """Denoise medical images in 2D and 3D; train denoisers on your own."""
    ctx.obj = {"quiet": quiet}
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handler.setLevel(logging.ERROR if quiet else logging.WARNING)
    logging.getLogger().handlers = [handler]
    if not debug:
        warnings.simplefilter("ignore")  # the libraries'; our own go through logging


@cli.command()
@click.argument("inputs", nargs=-1, required=True, type=PATH, metavar="INPUT...")
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="OUT",
    help="File or folder; for a DICOM series, the new series' folder.  [default: ./<name>_denoised.<ext>]",
)
@MODEL
@DEVICE
@PRECISION
@click.option(
    "--dtype", type=click.Choice(["same", "float32"]), default="same", show_default=True, help="Of the output."
)
@click.option("--strength", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="0 input, 1 denoised.")
@click.option(
    "--ensemble",
    type=click.Choice(["1", "2", "4", "8"]),
    default="1",
    help="Average over so many mirror images: better, slower.  [default: 1]",
)
@click.option(
    "--series", metavar="UID|NUMBER|all", help="Which DICOM series of a folder that holds several; all for each."
)
@click.option("--time-series", is_flag=True, help="Denoise each volume of 4D NIfTI files (DWI, fMRI) by itself.")
@OVERWRITE
@click.option("--resume", is_flag=True, help="Skip scans that have an output, unless it is older than the scan.")
@click.option("--max-memory", type=ByteSize(), metavar="SIZE", help="Such as 4G.  [default: half of what is free]")
@click.option("--preview", is_flag=True, help="Also write a PNG: noisy, denoised, residual.")
@click.pass_obj
def infer(settings: dict[str, Any], inputs: tuple[Path, ...], **options: Any) -> None:
    """Denoise scans: .nii, .nii.gz, .mha, .nrrd, DICOM files and series folders, PNG, TIFF, folders, manifests.

    \b
    adl-monai infer scan.nii.gz
    adl-monai infer series_folder/ -o denoised_series/
    adl-monai infer series_folder/ -o denoised.nii.gz --model run
    adl-monai infer folder/ -o out/ --resume
    torchrun --nproc_per_node=2 -m adl_monai infer folder/ -o out/
    """
    from adl_monai.stages.infer import infer as run
    from adl_monai.stages.shards import Shard

    def report(result: Any) -> None:
        if not settings["quiet"]:
            clipped = f" ({result.clipped} voxels saturated)" if result.clipped else ""
            click.echo(f"{result.output}{clipped}")

    def summarize(line: str) -> None:
        if not settings["quiet"]:
            click.echo(line, err=True)

    shard = Shard.from_environment()
    options["ensemble"] = int(options["ensemble"])
    run(inputs, **options, progress=_progress(settings), shard=shard, report=report, summarize=summarize)


@cli.command()
@click.argument("manifest", type=PATH)
@click.option(
    "-o", "--output", "run_dir", type=PATH, default=Path("run"), show_default=True, metavar="DIR", help="Run folder."
)
@click.option("--dims", "spatial_dims", type=click.Choice(["2", "3"]), help="2D or 3D model.  [default: 3]")
@click.option("--preset", type=click.Choice(["default", "paper", "release"]), help="[default: default]")
@click.option("--init", metavar="NAME|DIR|FILE", help="Model to start from (fine-tuning) instead of random weights.")
@click.option("--hold", metavar="NAME|DIR|FILE", help="Model to keep inside a wider network: only what is new learns.")
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="NAME|DIR|FILE",
    help="Model whose results are learned beside the clean images; of several, the better one's.  Repeatable.",
)
@click.option("--epochs", type=click.IntRange(1), help="Length of the run.  [default: the bundle's]")
@click.option("--batch-size", type=click.IntRange(1), help="Patches per step.  [default: the bundle's]")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="[default: the bundle's]")
@click.option("--seed", type=click.IntRange(0), help="[default: the bundle's, 0]")
@DEVICE
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="[default: the bundle's, auto]")
@click.option("--set", "settings", type=Settings(), multiple=True, help="Any value of the bundle's train.json.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on from the run folder's last checkpoint; options given with it apply from there.",
)
@click.option(
    "--overwrite", is_flag=True, help="Start anew in a folder that holds a run; it goes once a batch is learned."
)
@click.pass_obj
def train(
    context: dict[str, Any],
    manifest: Path,
    run_dir: Path,
    spatial_dims: str | None,
    preset: str | None,
    init: str | None,
    hold: str | None,
    teachers: tuple[str, ...],
    epochs: int | None,
    device: str,
    settings: tuple[tuple[str, Any], ...],
    resume: bool,
    overwrite: bool,
    **values: Any,
) -> None:
    """Train a denoiser on the cases of MANIFEST.

    \b
    adl-monai train manifest.json -o run
    adl-monai train manifest.json -o run --init adl3d
    adl-monai train manifest.json -o run --resume
    torchrun --nproc_per_node=2 -m adl_monai train manifest.json -o run
    """
    from adl_monai.stages.train import train as run

    overrides = {key: value for key, value in {"max_epochs": epochs, **values}.items() if value is not None}
    if device != "auto":
        overrides["device#name"] = device
    result = run(
        manifest,
        run_dir,
        spatial_dims=int(spatial_dims) if spatial_dims else None,
        preset=preset,
        init=init,
        hold=hold,
        teachers=teachers,
        resume=resume,
        overwrite=overwrite,
        progress=False if context["quiet"] else None,
        overrides={**dict(settings), **overrides},
    )
    if not context["quiet"] and result.main_process:
        best = "" if result.best_epoch is None else f", best epoch {result.best_epoch}"
        figures = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
        click.echo(f"{result.bundle} ({result.epochs} epochs{best}{'; at the end ' if figures else ''}{figures})")


@cli.command()
@click.argument("manifest", type=PATH)
@click.option("-o", "--output", type=PATH, default=Path("metrics.json"), show_default=True, metavar="FILE")
@MODEL
@click.option("--split", type=click.Choice(["training", "validation", "test"]), default="test", show_default=True)
@click.option("--noise", default="gaussian", show_default=True, metavar="KIND", help="Added to clean cases.")
@click.option(
    "--sigma", "sigmas", type=float, multiple=True, help="Noise level of the range, repeatable.  [default: 25/255]"
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@DEVICE
@PRECISION
@OVERWRITE
@click.pass_obj
def evaluate(context: dict[str, Any], manifest: Path, sigmas: tuple[float, ...], **options: Any) -> None:
    """Measure PSNR and SSIM before and after denoising the cases of MANIFEST."""
    from adl_monai.stages.evaluate import evaluate as run

    for row in run(manifest, sigmas=sigmas or (25 / 255,), progress=_progress(context), **options):
        if not context["quiet"]:
            click.echo(
                f"{row['noise']} {row['sigma']:.4f}  PSNR {row['psnr_noisy']:6.2f} -> {row['psnr']:6.2f} dB  "
                f"SSIM {row['ssim_noisy']:.4f} -> {row['ssim']:.4f}  {Path(row['case']).name}"
            )


@cli.command()
@click.argument("sources", nargs=-1, type=PATH, metavar="[SRC]...")
@click.option("-o", "--output", type=PATH, required=True, metavar="FILE", help="The manifest to write.")
@click.option("--clean", type=PATH, metavar="DIR", help="Clean scans of pairs; goes with --noisy.")
@click.option("--noisy", type=PATH, metavar="DIR", help="Noisy scans of pairs, of the same names.")
@click.option(
    "--split", type=float, nargs=3, default=(0.8, 0.1, 0.1), show_default=True, help="Training, validation, test."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@OVERWRITE
@click.pass_obj
def prepare(context: dict[str, Any], sources: tuple[Path, ...], output: Path, **options: Any) -> None:
    """Write a manifest for the scans in SRC folders, split by patient."""
    from adl_monai.stages.prepare import prepare as run

    manifest = run(sources, output, **options)
    if not context["quiet"]:
        counts = f"{len(manifest.training)} training, {len(manifest.validation)} validation, {len(manifest.test)} test"
        click.echo(f"{output} ({counts})")


@cli.command()
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, metavar="PATH", help="Folder, .ts or .onnx file.")
@click.option(
    "--format", "kind", type=click.Choice(["bundle", "torchscript", "onnx"]), default="bundle", show_default=True
)
@OVERWRITE
@click.pass_obj
def export(context: dict[str, Any], model: Path, **options: Any) -> None:
    """Write a trained MODEL (run or bundle folder) for other programs."""
    from adl_monai.stages.export import export as run

    path = run(model, **options)
    if not context["quiet"]:
        click.echo(path)


@cli.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), required=True, metavar="N", help="To listen at; 0 takes a free one."
)
@click.option("--aet", required=True, metavar="TITLE", help="Our AE title; calls to another one are rejected.")
@click.option("--forward", metavar="HOST:PORT:AET", help="Send derived series there.")
@click.option("--out", type=PATH, metavar="DIR", help="Write derived series there: series_000001, ...")
@click.option("--allow", multiple=True, metavar="AET", help="Who may call; repeatable.  [default: anyone]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Interface to listen at; 0.0.0.0 for all.")
@click.option(
    "--spool",
    type=PATH,
    default=Path("adl_monai_spool"),
    show_default=True,
    metavar="DIR",
    help="What was received and is not delivered yet.",
)
@MODEL
@DEVICE
@PRECISION
@click.option("--strength", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="0 input, 1 denoised.")
@click.option(
    "--quiet-time",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="A series is complete so long after its last image and its association.",
)
@click.option("--max-series", type=click.IntRange(1), default=32, show_default=True, help="In the spool, at most.")
@click.option(
    "--min-free", type=click.IntRange(0), default=1024, show_default=True, metavar="MB", help="Disk to leave free."
)
@click.pass_obj
def listen(settings: dict[str, Any], **options: Any) -> None:
    """Be a DICOM node: receive series by C-STORE, denoise them, and send or write the derived series.

    \b
    adl-monai listen --port 11112 --aet ADL --forward localhost:4242:ORTHANC
    adl-monai listen --port 11112 --aet ADL --out denoised/ --host 0.0.0.0 --allow CT1 --allow MR2

    DICOM has no passwords: where no --allow is given, any caller that reaches the port may send, and AE titles are
    easily guessed. The spool holds patients' data until these are delivered. Ends with Ctrl-C or SIGTERM.
    """
    from adl_monai.node.log import StampedFormatter, stamp
    from adl_monai.stages.listen import listen as run

    for handler in logging.getLogger().handlers:
        handler.setFormatter(StampedFormatter())
    run(**options, report=(lambda line: None) if settings["quiet"] else lambda line: click.echo(f"{stamp()} {line}"))


@cli.command()
def info() -> None:
    """Print versions, devices and the models at hand."""
    from adl_monai.stages.info import info as run

    click.echo(json.dumps(run(), indent=2))


def main() -> NoReturn:
    """Run the command line; a user's error is one short paragraph and its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _terminate)
    debug = "--debug" in sys.argv
    try:
        code = cli(standalone_mode=False)
    except SystemExit as interrupted:
        _leave(interrupted.code)
    except click.ClickException as usage:
        usage.show()
        _leave(usage.exit_code)
    except Exception as raised:
        error = user_error(raised) or system_error(raised)
        if error is None or debug:
            raise
        click.echo(f"Error: {error}", err=True)
        _leave(error.exit_code)
    _leave(code if isinstance(code, int) else 0)


def _leave(code: object) -> NoReturn:
    """End the process now, with everything written out.

    The loader's thread may still be inside torch, after the last step too. The interpreter's own ending would tear it
    out of C++ code, and the C++ runtime then aborts the process ("terminate called without an active exception").
    Taking down what the libraries set up would also cost most of a second.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a closed pipe
            if stream is not None:  # the shell's >&-
                stream.flush()
    os._exit(code if isinstance(code, int) else 1)


def _progress(settings: dict[str, Any]) -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and not settings["quiet"]


def _terminate(number: int, frame: Any) -> NoReturn:
    # An exception, so that temporary files are removed on the way out. Not KeyboardInterrupt: passing through the
    # eval() of a config expression, that makes Python end itself by the signal, whoever catches it later.
    click.echo("interrupted", err=True)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
