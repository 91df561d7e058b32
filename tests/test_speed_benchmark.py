"""What the comparison of speed and memory rests on: a paired clock, and accounts of one process alone."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adl_monai.bundle import load_denoiser
from adl_monai.data.io import read_volume
from adl_monai.inferers.unet_stream import UNetStream
from adl_monai.networks import EfficientUNet

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import speed
from peak_memory import run_alone
from speed_parts import gpu, memory, paper_network, scans
from speed_parts.roofline import count_flops, layer_kinds, network_forward, random_tile
from speed_parts.settings import QUICK, Settings
from speed_parts.stage_clock import clock_network
from speed_parts.table import markdown, tables
from speed_parts.tiling import statement
from timing import Spread, interleave


class SlowingMachine:
    """A clock of a machine that gets twice as slow with every call, and what was called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slowness = 1.0
        self.called: list[str] = []

    def method(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.called.append(name)
            self.now += seconds * self.slowness
            self.slowness *= 2

        return run

    def clock(self) -> float:
        return self.now


def test_methods_take_turns_and_are_compared_within_their_round() -> None:
    machine = SlowingMachine()
    methods = {"slow": machine.method("slow", 6.0), "fast": machine.method("fast", 1.0)}
    rounds = interleave(methods, 4, warmup=1, clock=machine.clock)
    assert machine.called == ["slow", "fast"] * 5
    assert rounds["slow"].values == (24.0, 96.0, 384.0, 1536.0)
    assert rounds["fast"].values == (8.0, 32.0, 128.0, 512.0)
    ratio = rounds["slow"] / rounds["fast"]
    assert ratio.values == (3.0,) * 4  # however slow the machine has become: the same factor in every round
    assert (ratio.median, ratio.as_json()["min"], ratio.as_json()["max"]) == (3.0, 3.0, 3.0)


def test_the_median_ratio_is_not_the_ratio_of_the_medians() -> None:
    first, second = Spread((1.0, 10.0, 100.0)), Spread((1.0, 100.0, 10.0))
    assert (first / second).values == (1.0, 0.1, 10.0)
    assert (first / second).as_json() == {"median": 1.0, "min": 0.1, "max": 10.0, "values": [1.0, 0.1, 10.0]}
    with pytest.raises(ValueError, match="shorter"):
        first / Spread((1.0,))
    with pytest.raises(ValueError, match="at least one round"):
        Spread(())


def test_a_quick_method_is_repeated_and_counted_by_the_call() -> None:
    now, calls = [0.0], [0]

    def run() -> None:
        calls[0] += 1
        now[0] += 0.25

    seconds = interleave({"quick": run}, 3, warmup=2, least_seconds=0.9, clock=lambda: now[0])["quick"]
    assert seconds.values == (0.25,) * 3
    assert calls[0] == 2 + 1 + 3 * 4  # the warm-up, one to see how long it takes, three turns of four


def test_the_device_is_waited_for_on_both_sides_of_a_turn() -> None:
    events: list[str] = []
    methods = {"a": lambda: events.append("a"), "b": lambda: events.append("b")}
    interleave(methods, 1, warmup=0, synchronize=lambda: events.append("wait"), clock=lambda: float(len(events)))
    assert events == ["wait", "a", "wait", "wait", "b", "wait"]


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="Windows keeps no such account")
def test_the_memory_of_a_command_is_its_own_and_not_its_callers() -> None:
    held = np.ones(40_000_000)  # 320 MB, which a plain fork would count for the child
    used = run_alone([sys.executable, "-c", "print('done')"])
    assert used.output.strip() == "done"
    assert used.peak_bytes < 100e6 < held.nbytes
    larger = run_alone([sys.executable, "-c", "block = bytearray(b'1') * 200_000_000"])
    assert 200e6 < larger.peak_bytes < 300e6


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="Windows keeps no such account")
def test_a_command_that_fails_is_reported_with_its_last_words() -> None:
    command = [sys.executable, "-c", "import sys; print('no room', file=sys.stderr); sys.exit(7)"]
    with pytest.raises(RuntimeError, match="code 7: no room"):
        run_alone(command)
    assert run_alone(command, check=False).code == 7
    killed = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    assert run_alone(killed, check=False).code == -9


@pytest.mark.parametrize("name", ["a.nii", "b.nii.gz"])
def test_a_made_scan_reads_back_whole_and_noisy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(scans, "BLOCK", 16)
    volume = read_volume(scans.write_scan(tmp_path / name, 24, seed=0))
    assert volume.array.shape == (24,) * 3
    assert volume.dtype == np.int16
    assert np.array_equal(volume.array[16:, :, 16:], volume.array[8:16, :, :8][::-1])  # mirrored; slabs repeat
    assert volume.array.std() > 50


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_kinds_of_convolutions_hold_all_operations_of_the_network(spatial_dims: int) -> None:
    torch.manual_seed(0)
    network = EfficientUNet(spatial_dims, filters=(4, 6, 8, 10), multi_scale=False).eval()
    tile = random_tile(spatial_dims, 16, seed=0)
    kinds, whole = layer_kinds(network, tile, "fp32", repeats=2)
    total = count_flops(network_forward(network, tile, "fp32"))
    assert sum(kind.flops for kind in kinds) == total
    first = next(kind for kind in kinds if kind.label.startswith(f"{'x'.join('3' * spatial_dims)}, 1 to 4, on"))
    # The decoders' last stage ends in the same size: 16^n voxels, 3^n taps, 4 channels of 1, two operations each.
    assert first.flops == first.count * 2 * 16**spatial_dims * 3**spatial_dims * 4
    assert all(kind.seconds > 0 for kind in kinds)
    assert sum(kind.seconds for kind in kinds) < whole


def test_the_network_is_clocked_inside_the_inferer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UNetStream, "push", UNetStream.push)  # put back afterwards
    clock = clock_network()
    denoiser = load_denoiser("adl2d", device="cpu", precision="fp32")
    assert clock["seconds"] == 0
    with torch.inference_mode():
        denoiser.inferer(torch.zeros(1, 1, 16, 16), denoiser.network)
    assert clock["seconds"] > 0


def test_only_seam_errors_that_are_not_below_ours_count_as_beaten() -> None:
    errors = {"ours": (0.02, 0.002), "worse": (0.04, 0.002), "mixed": (0.03, 0.001), "closer": (0.01, 0.001)}
    said = statement("ours", errors, {"worse": 4.0, "mixed": 5.0, "closer": 0.5})
    assert said == (
        "ours: 4.00 times as fast as worse at an equal or lower seam error; "
        "5.00 times as fast as mixed, whose seam error is lower in its mean; "
        "0.50 times as fast as closer, whose seam error is lower in its greatest and its mean."
    )


def test_rows_become_tables_by_their_first_key() -> None:
    spread = Spread((1.5, 1.25, 2000.0)).as_json()
    rows = [{"method": "ours", "ratio": spread}, {"layer": "3x3", "share": 0.12345}, {"method": "a", "seconds": None}]
    assert tables(rows).splitlines() == [
        "| method | ratio | seconds |",
        "|---|---|---|",
        "| ours | 1.5 (1.25-2,000) |  |",
        "| a |  |  |",
        "",
        "| layer | share |",
        "|---|---|",
        "| 3x3 | 0.1235 |",
    ]


def quick(tmp_path: Path, pairs: int = 3, **values: Any) -> Settings:
    return Settings(scratch=tmp_path, sizes=QUICK, pairs=pairs, warmup=0, **values)


def test_a_ratio_in_the_results_is_of_the_same_round(tmp_path: Path) -> None:
    rows = {row["method"]: row for row in paper_network.measure(quick(tmp_path)).rows}
    plain = rows["PyTorch, float32, contiguous, in one piece"]
    ours = rows["ours, float32"]
    expected = [a / b for a, b in zip(plain["seconds"].values, ours["seconds"].values, strict=True)]
    assert list(ours["times as fast as PyTorch"].values) == expected
    assert ours["greatest difference to PyTorch"] < 1e-5


def test_a_part_that_fails_is_written_as_such_and_the_others_go_on(tmp_path: Path) -> None:
    broken = tmp_path / "broken.nii"
    broken.write_bytes(b"no scan")
    results = speed.run(quick(tmp_path, volumes=(broken,)), ["precision", "paper2d"], tmp_path)
    assert "broken.nii" in results["parts"]["precision"]["error"]
    assert results["parts"]["precision"]["rows"] == []
    written = json.loads((tmp_path / "speed.json").read_text())
    assert len(written["parts"]["paper2d"]["rows"][0]["seconds"]["values"]) == 3
    assert "broken.nii" in (tmp_path / "speed.md").read_text()


@pytest.mark.slow
def test_every_part_runs_and_leaves_figures_of_every_round(tmp_path: Path) -> None:
    script = Path(speed.__file__)
    command = [sys.executable, str(script), "-o", str(tmp_path / "results"), "--quick", "--pairs", "2"]
    subprocess.run(command, check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)
    results = json.loads((tmp_path / "results" / "speed.json").read_text())
    assert list(results["parts"]) == list(speed.PARTS)
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["speed.json", "speed.md"]
    assert (tmp_path / "results" / "speed.md").read_text() == markdown(results)
    for part in results["parts"].values():
        assert "error" not in part
        spreads = [value for row in part["rows"] for value in row.values() if isinstance(value, dict)]
        assert all(len(spread["values"]) == 2 for spread in spreads)
    stages = {row["stage"]: row for row in results["parts"]["cli"]["rows"] if "stage" in row}
    assert stages["network"]["seconds"]["min"] > 0
    for share, counted in (("share", stages), ("share without start and import", list(stages)[2:])):
        for turn in range(2):
            assert sum(stages[stage][share]["values"][turn] for stage in counted) == pytest.approx(1)
    tiled = {row["method"]: row for row in results["parts"]["monai"]["rows"]}
    assert tiled["ours, float32"]["greatest seam error"] < 0.05
    peaks = [row["peak GiB"] for row in results["parts"]["memory"]["rows"]]
    assert min(peaks[1:]) > peaks[0] > 0.1
    rows = results["parts"]["precision"]["rows"]
    measured = [row["image"] for row in rows if "dB lost" in row]
    of_each = 2 * 3  # models, levels
    assert [measured.count(f"generated scan {seed}") for seed in (0, 1)] == [of_each] * 2
    if importlib.util.find_spec("nilearn") is None:  # where the head's template is missing, the table says so
        assert len(measured) == 2 * of_each
        assert ["nilearn" in row["image"] for row in rows if "dB lost" not in row] == [True] * 2
    else:
        assert [measured.count(f"generated tissue {seed}") for seed in (0, 1)] == [of_each] * 2
        assert len(rows) == 4 * of_each


@pytest.mark.slow
def test_what_runs_on_a_gpu_runs_on_a_device_that_is_here(tmp_path: Path) -> None:
    rows = gpu.measure_on("cpu", quick(tmp_path, pairs=1), lambda: None).rows
    assert [row["what"].split(" ")[0] for row in rows][:2] == ["adl3d", "adl2d"]
    assert {"training, batches from memory", "training, batches from the loader"} <= {row["what"] for row in rows}


@pytest.mark.slow
def test_an_option_that_the_command_has_is_found() -> None:
    assert memory.has_option("--strength")
    assert not memory.has_option("--no-such-option")
