"""The skin over the library: help at once, errors as one paragraph and an exit code, nothing printed when quiet."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import adl_monai.pipelines
import click
import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from adl_monai.cli import cli
from adl_monai.cli_options import NOISE_KINDS, ByteSize, NoiseLevel
from adl_monai.data.noise import KINDS
from tests.conftest import TINY

COMMANDS = ["infer", "train", "evaluate", "prepare", "export", "listen", "info"]
SETTINGS = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]


def run(*arguments: str, **named: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adl_monai", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **named)


@pytest.mark.parametrize("command", [[], *[[name] for name in COMMANDS]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys; from adl_monai.cli import cli\n"
        f"try: cli({[*command, '--help']!r})\n"
        "except SystemExit as done: assert done.code == 0\n"
        "heavy = {'torch', 'monai', 'numpy', 'SimpleITK', 'nibabel', 'pydantic', 'pydicom', 'pynetdicom'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_errors_are_one_paragraph_with_an_exit_code(tmp_path: Path) -> None:
    done = run("infer", "missing.nii.gz", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: input missing.nii.gz does not exist")
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

    (tmp_path / "bad.json").write_text('{"training": [}')
    done = run("train", "bad.json", cwd=tmp_path)
    assert done.returncode == 2
    assert "line 1" in done.stderr or "1:" in done.stderr
    assert not (tmp_path / "run").exists()

    assert run("train", cwd=tmp_path).returncode == 2
    assert "Traceback" in run("--debug", "infer", "missing.nii.gz", cwd=tmp_path).stderr


def test_tensorflow_is_left_alone(tmp_path: Path, manifest: Path) -> None:
    """TensorBoard imports it where it is installed; it takes seconds and logs to the standard error."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('TensorFlow was imported')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = run("-q", "train", str(manifest), "-o", "run", *SETTINGS, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.parametrize("closed", ["2>&-", ">&-"])
def test_streams_that_a_script_has_closed(tmp_path: Path, closed: str) -> None:
    nib.save(nib.Nifti1Image(np.arange(16**3, dtype=np.int16).reshape(16, 16, 16), np.eye(4)), tmp_path / "a.nii")
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -m adl_monai infer a.nii {closed}",
        shell=True, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "a_denoised.nii").is_file()


@pytest.mark.parametrize(("options", "progress"), [([], None), (["--quiet"], False)])
def test_quiet_training_has_no_bar(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], progress: bool | None
) -> None:
    seen = []

    def train(*arguments: object, **named: object) -> SimpleNamespace:
        seen.append(named["progress"])
        return SimpleNamespace(main_process=False)

    monkeypatch.setattr("adl_monai.stages.train.train", train)
    assert CliRunner().invoke(cli, [*options, "train", str(manifest)], catch_exceptions=False).exit_code == 0
    assert seen == [progress]


def test_diverging_training_exits_with_6_and_keeps_the_checkpoint(manifest: Path, tmp_path: Path) -> None:
    arguments = ["train", str(manifest), "-o", str(tmp_path / "run"), *SETTINGS]
    assert run(*arguments, "--epochs", "1").returncode == 0
    weights = ("--set", "loss#scale_weights=[1e38,1e38,1e38]", "--set", "loss#l1=1e38")
    done = run(*arguments, "--epochs", "3", "--resume", *weights)
    assert done.returncode == 6, done.stderr
    assert "last good checkpoint is kept" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, "none of the engine's own lines beside ours"
    # Epoch 2 trained the discriminator alone; epoch 3 met the impossible loss.
    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert kept["epoch"] == 2
    assert all(torch.isfinite(value).all() for value in kept["objects"]["denoiser"].values())


@pytest.fixture
def two_scans(tmp_path: Path) -> Path:
    for name in "ab":
        voxels = np.random.default_rng(0).normal(500, 50, (16, 16, 16)).astype(np.int16)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / f"{name}.nii")
    return tmp_path


def denoising(two_scans: Path, output: object, **named: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adl_monai", "infer", "a.nii", "b.nii", "-o", "out"]
    return subprocess.run(
        command, stdout=output, stderr=subprocess.PIPE, text=True, cwd=two_scans, check=False, **named
    )  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("kind", ["full", "closed"])
def test_an_output_that_takes_no_lines_ends_nothing(two_scans: Path, kind: str) -> None:
    if kind == "full":
        with open("/dev/full", "w") as full:
            done = denoising(two_scans, full)
    else:
        reader, writer = os.pipe()
        os.close(reader)
        done = denoising(two_scans, writer)
        os.close(writer)
    assert done.returncode == 5, done.stderr
    assert sorted(path.name for path in (two_scans / "out").iterdir()) == ["a_denoised.nii", "b_denoised.nii"]
    told = done.stderr.splitlines()
    assert told[0] == "2 scans: 2 denoised, 0 skipped, 0 failed"
    assert re.fullmatch(r"Error: the standard output did not take 2 of the lines .* the work itself is done\.", told[1])
    assert len(told) == 2


def test_letters_that_a_console_lacks_are_spelled_out(two_scans: Path) -> None:
    (two_scans / "a.nii").rename(two_scans / "日本.nii")
    done = run("infer", "日本.nii", cwd=two_scans, env={**os.environ, "PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\\u65e5\\u672c_denoised.nii\n")
    done = run("infer", "missing日.nii", cwd=two_scans, env={**os.environ, "PYTHONIOENCODING": "cp1252:strict"})
    assert done.returncode == 2
    assert "missing\\u65e5.nii does not exist" in done.stderr


@pytest.mark.parametrize("option", ["--debug", "-q", "--quiet"])
def test_options_of_all_commands_are_told_their_place(option: str) -> None:
    done = run("info", option)
    assert done.returncode == 2
    assert f"It goes before the command: adl-monai {option} COMMAND" in done.stderr
    assert "before the command" not in run("info", "--loud").stderr


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
@pytest.mark.parametrize("ignored", [False, True])
def test_a_lost_terminal_ends_what_nohup_does_not_shield(ignored: bool) -> None:
    script = f"""
import os, signal
from adl_monai import cli
@cli.cli.command()
def hang_up():
    os.kill(os.getpid(), signal.SIGHUP)
signal.signal(signal.SIGHUP, signal.{"SIG_IGN" if ignored else "SIG_DFL"})
import sys
sys.argv = ["adl-monai", "hang-up"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == ((0, "") if ignored else (129, "interrupted\n"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_with_their_codes(manifest: Path, tmp_path: Path, number: int, code: int) -> None:
    settings = [*SETTINGS, "--epochs", "500"]
    command = [sys.executable, "-m", "adl_monai", "train", str(manifest), "-o", str(tmp_path / "run"), *settings]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "last.pt").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert error == f"interrupted\nwith --resume, {tmp_path / 'run'} goes on after the last whole epoch\n"
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_stopping_early_does_not_abort_under_a_busy_thread(tmp_path: Path) -> None:
    """A daemon thread inside torch is torn out of C++ when the interpreter ends, and the process aborts (-6)."""
    script = """
import sys, threading, torch, click
from adl_monai import cli
def work():
    while True:
        torch.randn(64, 64) @ torch.randn(64, 64)
@cli.cli.command()
def stop():
    for _ in range(8):
        threading.Thread(target=work, daemon=True).start()
    cli._terminate(15, None)
sys.argv = ["adl-monai", "stop"]
cli.main()
"""
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=100)
        assert done.returncode == 143, done.stderr
        assert done.stderr == "interrupted\n"


def test_train_evaluate_infer_export_and_info_work_together(manifest: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = run("train", str(manifest), "-o", "run", *SETTINGS, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    # The closing line names the best epoch and its figure, and those of the last one as such.
    log = re.findall(r"epoch (\d)/3 .*, psnr ([\d.]+)", (tmp_path / "run" / "train.log").read_text())
    best, figure = max(log, key=lambda line: float(line[1]))
    assert f"(3 epochs, best epoch {best} with psnr {figure}; at the end psnr {log[-1][1]}" in done.stdout
    assert done.stderr == "", "quiet when piped"

    done = run("evaluate", str(manifest), "--model", "run", "--sigma", "0.05", "--sigma", "0.1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert [(row["sigma"], row["case"] == "mean") for row in rows] == [
        (0.05, False),
        (0.05, False),
        (0.05, True),
        (0.1, False),
        (0.1, False),
        (0.1, True),
    ]
    # Noise of sigma has a PSNR of -20 log10(sigma) at a data range of 1.
    assert rows[2]["psnr_noisy"] == pytest.approx(26.02, abs=0.1)
    assert rows[5]["psnr_noisy"] == pytest.approx(20.0, abs=0.1)
    assert rows[2]["psnr"] == pytest.approx((rows[0]["psnr"] + rows[1]["psnr"]) / 2)
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 7

    for kind, name in (("torchscript", "m.ts"), ("onnx", "m.onnx"), ("bundle", "exported")):
        done = run("export", "run", "--format", kind, "-o", name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / name).exists()
    facts = CliRunner().invoke(cli, ["info"])
    assert json.loads(facts.output)["bundles"].keys() == {"adl2d", "adl3d"}


@pytest.mark.parametrize(
    ("text", "size"), [("4G", 4 * 2**30), ("512m", 512 * 2**20), ("1.5GiB", 3 * 2**29), ("2097152", 2**21)]
)
def test_sizes_of_memory(text: str, size: int) -> None:
    assert ByteSize().convert(text, None, None) == size


@pytest.mark.parametrize(
    ("text", "level"), [("0.1", 0.1), ("25/255", 25 / 255), ("5%", 0.05), ("0", 0), ("1", 1), ("1e-2", 0.01)]
)
def test_levels_of_noise(text: str, level: float) -> None:
    assert NoiseLevel().convert(text, None, None) == level


@pytest.mark.parametrize("text", ["25", "101%", "300/255", "-0.1", "nan", "inf", "1/0", "%", "", "much", "1/2/3"])
def test_levels_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"share of the intensity range.*25/255"):
        NoiseLevel().convert(text, None, None)


def test_the_help_names_what_there_is() -> None:
    assert list(KINDS) == list(NOISE_KINDS)
    help_of = {name: CliRunner().invoke(cli, [name, "--help"], terminal_width=300).output for name in COMMANDS}
    assert all(kind in help_of["evaluate"] for kind in KINDS)
    configs = Path(adl_monai.pipelines.__path__[0])
    values: dict[tuple[str, int], dict[str, float]] = {}
    for preset in ("default", "paper", "release"):
        for dims in (2, 3):
            folder = configs / f"adl{dims}d" / "configs"
            read = [json.loads((folder / f"{name}.json").read_text()) for name in ("train", preset)]
            values[preset, dims] = read[0] | read[1]

    def of(key: str) -> list[float]:
        return [values[preset, dims][key] for preset in ("default", "paper", "release") for dims in (3, 2)]

    assert of("max_epochs") == [40, 40, 40, 40, 48, 24]
    assert "[default: 40; preset release: 48, in 2D 24]" in help_of["train"]
    assert of("batch_size") == [8, 16, 8, 16, 4, 8]
    assert "[default: 8, in 2D 16; preset release: 4, in 2D 8]" in help_of["train"]
    assert of("learning_rate") == [0.002, 0.002, 0.0001, 0.0001, 0.002, 0.002]
    assert "[default: 0.002; preset paper: 0.0001]" in help_of["train"]
    assert of("seed") == [0] * 6


@pytest.mark.parametrize("text", ["4X", "-1G", "", "lots", "1000", "0"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="4G"):
        ByteSize().convert(text, None, None)
