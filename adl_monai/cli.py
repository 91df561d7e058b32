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

from adl_monai.cli_options import (
    DEVICE,
    ENSEMBLE,
    MODEL,
    NOISE_FLOOR,
    NOISE_KINDS,
    OVERWRITE,
    PATH,
    PRECISION,
    PRECISION_HELP,
    STRENGTH,
    ByteSize,
    NoiseLevel,
    Settings,
)
from adl_monai.cli_streams import refusal, say, take_any_letter
from adl_monai.errors import system_error, user_error
from adl_monai.quiet import without_tensorflow
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
    "--dtype",
    type=click.Choice(["same", "float32"]),
    default="same",
    show_default=True,
    help="Number type of the output: the input's, or one that keeps fractions.",
)
@STRENGTH
@ENSEMBLE
@NOISE_FLOOR
@click.option(
    "--nan-policy",
    type=click.Choice(["refuse", "keep"]),
    default="refuse",
    show_default=True,
    help="Scans with NaN voxels: refused, or (NIfTI volumes) denoised around them, which stay.",
)
@click.option(
    "--series",
    metavar="UID|NUMBER|all",
    help="Which DICOM series to take from a folder that holds several; all for each.",
)
@click.option("--time-series", is_flag=True, help="Denoise each volume of a 4D NIfTI file (DWI, fMRI) by itself.")
@OVERWRITE
@click.option("--resume", is_flag=True, help="Skip scans whose output exists and is not older than the scan.")
@click.option(
    "--max-memory", type=ByteSize(), metavar="SIZE", help="Memory to use, such as 4G.  [default: half of what is free]"
)
@click.option("--preview", is_flag=True, help="Also write a PNG that shows noisy, denoised and what was removed.")
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
            say(str(result.output))  # and nothing else: pipelines take the lines for paths

    def summarize(line: str) -> None:
        if not settings["quiet"]:
            say(line, err=True)

    shard = Shard.from_environment()
    run(inputs, **options, progress=_progress(settings), shard=shard, report=report, summarize=summarize)


@cli.command()
@click.argument("manifest", type=PATH)
@click.option(
    "-o",
    "--output",
    "run_dir",
    type=PATH,
    default=Path("run"),
    show_default=True,
    metavar="DIR",
    help="Run folder to write.",
)
@click.option("--dims", "spatial_dims", type=click.Choice(["2", "3"]), help="2D or 3D model.  [default: 3]")
@click.option(
    "--preset",
    type=click.Choice(["default", "paper", "release"]),
    help="default is small, paper as published, release as the shipped models.  [default: default]",
)
@click.option("--init", metavar="NAME|DIR|FILE", help="Model to start from (fine-tuning), instead of random weights.")
@click.option(
    "--hold", metavar="NAME|DIR|FILE", help="Model to keep unchanged inside a wider network: only the new part learns."
)
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="NAME|DIR|FILE",
    help="Model whose results are learned from too, beside the clean images; repeatable: the best result counts.",
)
@click.option(
    "--epochs", type=click.IntRange(1), help="Length of the run.  [default: 40; preset release: 48, in 2D 24]"
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Patches per step.  [default: 8, in 2D 16; preset release: 4, in 2D 8]",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    help="Of the optimizer, at its highest.  [default: 0.002; preset paper: 0.0001]",
)
@click.option("--seed", type=click.IntRange(0), help="Of the first weights, patches and noise.  [default: 0]")
@DEVICE
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help=f"{PRECISION_HELP}  [default: auto]")
@click.option(
    "--set", "settings", type=Settings(), multiple=True, help="Any value of the bundle's train.json; repeatable."
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on from the run's last checkpoint, with the run's own options and those given now.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Start a new run in a folder that holds one; the old run is deleted after the first successful training step.",
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
    try:
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
    except SystemExit:  # by a signal
        if (run_dir / "checkpoints" / "last.pt").exists():
            say(f"with --resume, {run_dir} goes on after the last whole epoch", err=True)
        raise
    if not context["quiet"] and result.main_process:
        best = "" if result.best_epoch is None else f", best epoch {result.best_epoch} with psnr {result.best_psnr:.4f}"
        figures = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
        say(f"{result.bundle} ({result.epochs} epochs{best}{'; at the end ' if figures else ''}{figures})")


@cli.command()
@click.argument("manifest", type=PATH)
@click.option(
    "-o",
    "--output",
    type=PATH,
    default=Path("metrics.json"),
    show_default=True,
    metavar="FILE",
    help="JSON file to write; a .csv of the same name goes beside it.",
)
@MODEL
@click.option(
    "--split",
    type=click.Choice(["training", "validation", "test"]),
    default="test",
    show_default=True,
    help="Which cases of the manifest.",
)
@click.option(
    "--noise",
    default="gaussian",
    show_default=True,
    metavar="KIND",
    help=f"Noise to add to clean cases: {', '.join(NOISE_KINDS)}.",
)
@click.option(
    "--sigma",
    "sigmas",
    type=NoiseLevel(),
    multiple=True,
    help="Level of that noise as a share of the intensity range, such as 0.05 or 5%; repeatable.  [default: 25/255]",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the noise.")
@ENSEMBLE
@NOISE_FLOOR
@DEVICE
@PRECISION
@OVERWRITE
@click.pass_obj
def evaluate(context: dict[str, Any], manifest: Path, sigmas: tuple[float, ...], **options: Any) -> None:
    """Measure PSNR and SSIM before and after denoising the cases of MANIFEST."""
    from adl_monai.stages.evaluate import evaluate as run

    for row in run(manifest, sigmas=sigmas or (25 / 255,), progress=_progress(context), **options):
        if not context["quiet"]:
            say(
                f"{row['noise']} {row['sigma']:.4f}  PSNR {row['psnr_noisy']:6.2f} -> {row['psnr']:6.2f} dB  "
                f"SSIM {row['ssim_noisy']:.4f} -> {row['ssim']:.4f}  {Path(row['case']).name}"
            )


@cli.command()
@click.argument("sources", nargs=-1, type=PATH, metavar="[SRC]...")
@click.option("-o", "--output", type=PATH, required=True, metavar="FILE", help="The manifest to write.")
@click.option("--clean", type=PATH, metavar="DIR", help="Clean scans of pairs; goes with --noisy.")
@click.option("--noisy", type=PATH, metavar="DIR", help="Noisy scans of pairs, of the same names.")
@click.option(
    "--split",
    type=float,
    nargs=3,
    default=(0.8, 0.1, 0.1),
    show_default=True,
    help="Shares of training, validation and test cases.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the split: another one, another split."
)
@OVERWRITE
@click.pass_obj
def prepare(context: dict[str, Any], sources: tuple[Path, ...], output: Path, **options: Any) -> None:
    """Write a manifest for the scans in SRC folders, split by patient."""
    from adl_monai.stages.prepare import prepare as run

    manifest = run(sources, output, **options)
    if not context["quiet"]:
        counts = f"{len(manifest.training)} training, {len(manifest.validation)} validation, {len(manifest.test)} test"
        say(f"{output} ({counts})")


@cli.command()
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, metavar="PATH", help="Folder, .ts or .onnx file to write.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["bundle", "torchscript", "onnx"]),
    default="bundle",
    show_default=True,
    help="What to write: a MONAI bundle (a folder), a .ts file for torch.jit, or an .onnx file.",
)
@OVERWRITE
@click.pass_obj
def export(context: dict[str, Any], model: Path, **options: Any) -> None:
    """Write a trained MODEL (run or bundle folder) for other programs.

    A .ts or .onnx file is the network alone: one image, no mean over mirror images, intensities as the bundle's
    docs/README.md says. For what infer gives, use the bundle.

    MONAI Deploy finds the configs in a .ts file only as long as it keeps the name it is written with.
    """
    from adl_monai.stages.export import export as run

    path = run(model, **options)
    if not context["quiet"]:
        say(path)


@cli.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), required=True, metavar="N", help="Port to listen at; 0 takes a free one."
)
@click.option(
    "--aet", required=True, metavar="TITLE", help="AE title of this node; calls to another title are rejected."
)
@click.option("--forward", metavar="HOST:PORT:AET", help="Send the derived series to this node.")
@click.option("--out", type=PATH, metavar="DIR", help="Write the derived series into this folder: series_000001, ...")
@click.option("--allow", multiple=True, metavar="AET", help="AE title that may call; repeatable.  [default: anyone]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Network interface to listen at; 0.0.0.0 for all.")
@click.option(
    "--spool",
    type=PATH,
    default=Path("adl_monai_spool"),
    show_default=True,
    metavar="DIR",
    help="Folder of what was received and is not delivered yet.",
)
@MODEL
@DEVICE
@PRECISION
@STRENGTH
@click.option(
    "--quiet-time",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="A series is complete this long after its last image, and the end of its association.",
)
@click.option(
    "--max-series",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Series in the spool, at most; more are refused.",
)
@click.option(
    "--min-free",
    type=click.IntRange(0),
    default=1024,
    show_default=True,
    metavar="MB",
    help="Megabytes of disk to leave free.",
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

    say(json.dumps(run(), indent=2))


def main() -> NoReturn:
    """Run the command line; a user's error is one short paragraph and its exit code."""
    take_any_letter()
    without_tensorflow()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number is not None and not (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):  # nohup
            signal.signal(number, _terminate)
    debug = "--debug" in sys.argv
    try:
        code = cli(standalone_mode=False)
    except SystemExit as interrupted:
        _leave(interrupted.code)
    except click.ClickException as usage:
        if isinstance(usage, click.NoSuchOption) and usage.option_name in ("--debug", "-q", "--quiet"):
            place = f"{usage.message} It goes before the command: adl-monai {usage.option_name} COMMAND ..."
            usage = click.NoSuchOption(usage.option_name, place, ctx=usage.ctx)
        with contextlib.suppress(OSError):
            usage.show()
        _leave(usage.exit_code)
    except Exception as raised:
        error = user_error(raised) or system_error(raised)
        if error is None or debug:
            raise
        say(f"Error: {error}", err=True)
        _leave(error.exit_code)
    if unsaid := refusal():
        say(f"Error: {unsaid}", err=True)
        _leave(unsaid.exit_code)
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
    say("interrupted", err=True)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
