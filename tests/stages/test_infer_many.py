"""Many scans: side by side but in order, one bad one costs no other, killed runs go on, processes share."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from pydicom.data import get_testdata_file

from adl_monai.cli import cli
from adl_monai.data import RobustNormalized
from adl_monai.errors import OutputError, ScanFileError, UsageError
from adl_monai.stages import one_scan as stage
from adl_monai.stages.infer import infer
from adl_monai.stages.shards import Shard

Model = Callable[..., Path]
LONG = 60.0  # seconds that no step takes, unless it waits for one that never comes


def write_scans(folder: Path, count: int, edge: int = 16) -> list[Path]:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(3)
    paths = [folder / f"scan_{index:02}.nii.gz" for index in range(count)]
    for path in paths:
        nib.save(nib.Nifti1Image(rng.integers(0, 900, (edge, edge, edge)).astype(np.int16), np.eye(4)), path)
    return paths


def damage(scan: Path) -> None:
    scan.write_bytes(scan.read_bytes()[:-40])


def no_threads_of_ours() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("adl_monai")]


class TestScans:
    """Real scans through a real, tiny model."""

    def test_results_come_in_order_and_equal_those_of_single_runs(self, tmp_path: Path, identity_model: Model) -> None:
        scans, model = write_scans(tmp_path / "in", 5), identity_model(3, 0.3)
        reported: list[Path] = []
        results = infer(
            [tmp_path / "in"], tmp_path / "out", model=model, report=lambda result: reported.append(result.source)
        )
        assert [result.source for result in results] == reported == scans
        for scan, result in zip(scans, results, strict=True):
            (alone,) = infer([scan], tmp_path / "alone", model=model)
            assert alone.output.read_bytes() == result.output.read_bytes()
        assert no_threads_of_ours()

    def test_three_volumes_at_most(
        self, tmp_path: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scans = write_scans(tmp_path / "in", 8)
        damage(scans[3])
        alive: list[weakref.ref[Any]] = []
        counts = []
        normalize = RobustNormalized.__call__

        def counting(self: RobustNormalized, data: Any) -> Any:
            case = normalize(self, data)
            alive.append(weakref.ref(case["image"]))
            counts.append(sum(one() is not None for one in alive))
            return case

        monkeypatch.setattr(RobustNormalized, "__call__", counting)
        with pytest.raises(ScanFileError):
            infer([tmp_path / "in"], tmp_path / "out", model=identity_model(3))
        assert len(counts) == 7
        assert max(counts) <= 3

    def test_a_bad_scan_is_told_and_the_others_are_done(self, tmp_path: Path, identity_model: Model) -> None:
        scans = write_scans(tmp_path / "in", 4)
        damage(scans[1])
        model, arguments = str(identity_model(3)), ["infer", str(tmp_path / "in"), "-o", str(tmp_path / "out")]
        outcome = CliRunner().invoke(cli, [*arguments, "--model", model])
        assert isinstance(outcome.exception, ScanFileError)
        assert str(outcome.exception) == "1 of 4 scans failed, for the reasons given above."
        (note,) = outcome.exception.__notes__
        assert note.startswith(f"{scans[1]}: the gzip stream")
        assert outcome.stderr.count(note) == 1, "said once"
        assert len(outcome.stdout.splitlines()) == 3, "paths of the outputs, and nothing else"
        assert outcome.stderr.endswith("4 scans: 3 denoised, 0 skipped, 1 failed\n")
        outcome = CliRunner().invoke(cli, [*arguments, "--model", model, "--resume"])
        assert outcome.stderr.endswith("4 scans: 0 denoised, 3 skipped, 1 failed\n")
        assert isinstance(outcome.exception, ScanFileError)

    def test_a_fault_of_the_system_costs_one_scan(
        self, tmp_path: Path, identity_model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scans = write_scans(tmp_path / "in", 3)
        read = stage._read

        def failing(denoisers: Any, job: Any) -> Any:
            if job.source == scans[0]:
                raise OSError(5, "Input/output error", str(job.source))
            return read(denoisers, job)

        monkeypatch.setattr(stage, "_read", failing)
        with pytest.raises(ScanFileError, match="1 of 3 scans failed"):
            infer([tmp_path / "in"], tmp_path / "out", model=identity_model(3))
        assert len(list((tmp_path / "out").iterdir())) == 2


class TestResume:
    @pytest.fixture
    def scans(self, tmp_path: Path) -> list[Path]:
        return write_scans(tmp_path / "in", 3)

    def test_only_what_is_missing_or_older_than_its_scan_is_done(
        self, scans: list[Path], tmp_path: Path, identity_model: Model
    ) -> None:
        def run(**options: Any) -> list[str]:
            results = infer([tmp_path / "in"], tmp_path / "out", model=identity_model(3), **options)
            return [result.source.name for result in results]

        assert len(run()) == 3
        assert run(resume=True) == []
        (tmp_path / "out" / "scan_01_denoised.nii.gz").unlink()
        changed = tmp_path / "out" / "scan_02_denoised.nii.gz"
        os.utime(changed, ns=(0, scans[2].stat().st_mtime_ns - 1))
        assert run(resume=True) == ["scan_01.nii.gz", "scan_02.nii.gz"]
        assert run(resume=True) == []
        with pytest.raises(OutputError, match="--resume"):
            run()

    def test_a_derived_series_is_done_when_it_is_there(self, tmp_path: Path, identity_model: Model) -> None:
        series = tmp_path / "series"
        shutil.copytree(Path(get_testdata_file("dicomdirtests/98892001/CT5N/2062")).parent, series)
        output = tmp_path / "out" / "series_denoised"

        def run() -> int:
            return len(infer([series], tmp_path / "out" / "series_denoised", model=identity_model(3), resume=True))

        assert run() == 1
        files = sorted(output.iterdir())
        assert len(files) == 5
        assert run() == 0
        os.utime(next(series.iterdir()))  # one image of the source came anew
        os.utime(files[0])
        assert run() == 1
        assert run() == 0
        (output / "notes.txt").write_text("not ours")
        os.utime(output / "notes.txt", (0, 0))
        with pytest.raises(OutputError, match="holds other things"):
            run()

    @pytest.mark.parametrize("count", [2, 5])
    def test_two_runs_at_one_folder(self, tmp_path: Path, identity_model: Model, count: int) -> None:
        """The other one does all that is left while the first is at its second scan."""
        folder, out, model, told = tmp_path / "many", tmp_path / "out", identity_model(3), []
        write_scans(folder, count)
        others: list[Any] = []

        def report(result: Any) -> None:
            if not others:
                others.extend(infer([folder], out, model=model, resume=True))

        results = infer([folder], out, model=model, resume=True, report=report, summarize=told.append)
        assert (len(results), len(others)) == (1, count - 1)
        assert told == [f"{count} scans: 1 denoised, {count - 1} skipped, 0 failed"]
        assert infer([folder], out, model=model, resume=True) == []

    def test_one_that_is_old_lets_no_other_be_replaced(self, tmp_path: Path, identity_model: Model) -> None:
        scans, out = write_scans(tmp_path / "many", 5), tmp_path / "out"
        outputs = [out / f"scan_{index:02}_denoised.nii.gz" for index in range(5)]
        out.mkdir()
        outputs[1].write_bytes(b"old")
        os.utime(outputs[1], (0, 0))

        def report(result: Any) -> None:
            outputs[4].write_bytes(b"precious")  # older than its scan, so not what another run has made
            os.utime(outputs[4], (0, 0))

        with pytest.raises(OutputError, match="1 of 5 scans failed"):
            infer([tmp_path / "many"], out, model=identity_model(3), resume=True, report=report)
        assert outputs[4].read_bytes() == b"precious"
        assert [nib.load(output).shape for output in outputs[:4]] == [nib.load(scan).shape for scan in scans[:4]]

    def test_overwrite_contradicts(self, scans: list[Path], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="one of the two"):
            infer([tmp_path / "in"], tmp_path / "out", resume=True, overwrite=True)

    def test_outputs_inside_the_input_folder_are_no_scans(
        self, scans: list[Path], tmp_path: Path, identity_model: Model
    ) -> None:
        folder = tmp_path / "in"
        first = infer([folder], folder / "out", model=identity_model(3), preview=True)
        (folder / "out" / "scan_00_denoised.nii.gz").unlink()
        (again,) = infer([folder], folder / "out", model=identity_model(3), preview=True, resume=True)
        assert again.source == first[0].source == scans[0]

    def test_a_run_that_was_killed_goes_on(self, scans: list[Path], tmp_path: Path, identity_model: Model) -> None:
        """Killed while the second output is written: it has no name yet, and is made anew."""
        model = identity_model(3)
        code = (
            "import os, signal, sys\n"
            "from adl_monai.data import io\n"
            "from adl_monai.stages.infer import infer\n"
            "sync, count = io.sync, []\n"
            "def dying(path):\n"
            "    sync(path)\n"
            "    count.append(path)\n"
            "    if len(count) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
            "io.sync = dying\n"
            "infer([sys.argv[1]], sys.argv[2], model=sys.argv[3])\n"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "in"), str(tmp_path / "out"), str(model)]
        killed = subprocess.run(command, capture_output=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        named = [path.name for path in (tmp_path / "out").glob("[!.]*")]
        assert named == ["scan_00_denoised.nii.gz"]
        results = infer([tmp_path / "in"], tmp_path / "out", model=model, resume=True)
        assert [result.source for result in results] == scans[1:]


SLOW_WRITER = """
import sys, time
from adl_monai import cli
from adl_monai.data import io
def slow(path):
    open("writing", "w").close()
    while True: time.sleep(0.01)
io.sync = slow
sys.argv = ["adl-monai", "infer", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_threads_and_leaves_nothing(
    tmp_path: Path, identity_model: Model, number: int, code: int
) -> None:
    write_scans(tmp_path / "in", 4)
    command = [sys.executable, "-c", SLOW_WRITER, str(tmp_path / "in"), "-o", "out", "--model", str(identity_model(3))]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (tmp_path / "writing").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert list((tmp_path / "out").iterdir()), "the temporary file is there"
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (code, b"interrupted\n")
    assert not list((tmp_path / "out").iterdir())


class TestShards:
    def test_each_item_once_and_no_process_has_much_more_than_another(self) -> None:
        rng = np.random.default_rng(0)
        items, sizes = list(range(300)), [int(size) for size in rng.lognormal(10, 1, 300)]
        shares = [Shard(rank, 7).share(items, sizes) for rank in range(7)]
        assert sorted(item for share in shares for item in share) == items
        assert all(share == sorted(share) for share in shares)
        loads = [sum(sizes[item] for item in share) for share in shares]
        assert max(loads) - min(loads) <= max(sizes)
        assert max(loads) < 1.05 * sum(sizes) / 7

    def test_one_large_scan_weighs_as_much_as_many_small_ones(self) -> None:
        shares = [Shard(rank, 2).share("abcdef", [1, 1, 1, 5, 1, 1]) for rank in range(2)]
        assert shares == [["d"], ["a", "b", "c", "e", "f"]]

    def test_scans_of_no_size_are_dealt_out_too(self) -> None:
        assert [Shard(rank, 2).share("abcd", [0] * 4) for rank in range(2)] == [["a", "c"], ["b", "d"]]

    def test_more_processes_than_scans(self, tmp_path: Path, identity_model: Model) -> None:
        write_scans(tmp_path / "in", 1)
        told: list[str] = []
        for rank in range(3):
            infer(
                [tmp_path / "in"],
                tmp_path / "out",
                model=identity_model(3),
                shard=Shard(rank, 3),
                summarize=told.append,
            )
        assert len(list((tmp_path / "out").iterdir())) == 1

    def test_a_process_that_starts_late_shares_as_the_others_did(self, tmp_path: Path, identity_model: Model) -> None:
        """What others have written meanwhile is neither in its way nor an input, even below the input folder."""
        scans, folder, told = write_scans(tmp_path / "in", 7), tmp_path / "in", []
        done = []
        for rank in range(3):
            results = infer(
                [folder], folder / "out", model=identity_model(3), shard=Shard(rank, 3), summarize=told.append
            )
            done += [result.source for result in results]
        assert sorted(done) == scans
        assert told[1].startswith("2 of 7 scans (rank 1 of 3): 2 denoised")

    def test_cores_are_shared_unless_the_user_said_how_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before, asked = torch.get_num_threads(), []
        monkeypatch.setattr(torch, "set_num_threads", asked.append)
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(13)))
        for given in ("1", "5", None):
            if given is None:
                monkeypatch.delenv("OMP_NUM_THREADS")
            else:
                monkeypatch.setenv("OMP_NUM_THREADS", given)
            Shard(3, 8, 1, 4).use_its_cores()
        Shard().use_its_cores()
        assert asked == [3, 3]
        assert torch.get_num_threads() == before

    def test_each_process_has_a_gpu_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert [Shard(4 + local, 8, local, 4).device("auto") for local in range(4)] == ["cuda:0", "cuda:1"] * 2
        assert Shard(1, 2, 1, 2).device("cpu") == "cpu"
        assert Shard(1, 2, 1, 2).device("cuda:0") == "cuda:0"
        assert Shard().device("auto") == "auto"

    @pytest.mark.parametrize("values", [{"RANK": "4", "WORLD_SIZE": "4"}, {"WORLD_SIZE": "two"}])
    def test_an_environment_that_makes_no_sense(self, values: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UsageError, match="WORLD_SIZE="):
            Shard.from_environment()

    def test_torchrun(self, tmp_path: Path, identity_model: Model) -> None:
        """One process has a bad scan and little else; torchrun must not end the other for it."""
        scans = write_scans(tmp_path / "in", 6)
        large = tmp_path / "in" / "large.nii.gz"  # a share by itself, and done last
        (write_scans(tmp_path / "one", 1, 64)[0]).rename(large)
        damage(scans[0])
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
            *("-m", "adl_monai", "infer", str(tmp_path / "in"), "-o", str(tmp_path / "out")),
            *("--model", str(identity_model(3))),
        ]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        environment["CUDA_VISIBLE_DEVICES"] = ""
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode != 0, "the bad scan is not forgotten"
        outputs = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert outputs == ["large_denoised.nii.gz", *(f"scan_0{index}_denoised.nii.gz" for index in range(1, 6))]
        printed = [line for line in done.stdout.splitlines() if line]
        assert sorted(Path(line).name for line in printed) == outputs, "each once"
        assert "6 of 7 scans (rank 1 of 2): 5 denoised, 0 skipped, 1 failed" in done.stderr
        assert "1 of 7 scans (rank 0 of 2): 1 denoised, 0 skipped, 0 failed" in done.stderr
        assert "exitcode  : 3" in done.stderr
