"""What a training leaves behind to be looked at."""

from __future__ import annotations

import io
import itertools
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adl_monai.engines.idle import IdleDenoiserHandler
from adl_monai.engines.preview import PreviewHandler, preview_row
from adl_monai.engines.progress import ProgressHandler
from adl_monai.engines.start import StartHandler
from adl_monai.errors import ModelError
from adl_monai.stages.train import train
from tests.conftest import TINY


def test_scalars_and_pictures_reach_tensorboard(manifest: Path, tmp_path: Path) -> None:
    result = train(manifest, tmp_path / "run", overrides={**TINY, "patches_per_epoch": 40})
    # Everything of one run, whichever of its writers wrote it.
    scalars: dict[str, list[float]] = {}
    pictures: dict[str, list[bytes]] = {}
    for file in (tmp_path / "run" / "tensorboard").glob("events*"):
        events = EventAccumulator(str(file), size_guidance={"images": 0, "scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            scalars.setdefault(tag, []).extend(event.value for event in events.Scalars(tag))
        for tag in events.Tags()["images"]:
            pictures.setdefault(tag, []).extend(event.encoded_image_string for event in events.Images(tag))
    assert {"loss", "l1", "texture", "histogram", "adversarial", "discriminator"} <= set(scalars)
    assert len(scalars["psnr"]) == len(scalars["ssim"]) == 3
    assert abs(scalars["psnr"][-1] - result.metrics["psnr"]) < 1e-4
    (rows,) = pictures.values()
    assert len(rows) == 3
    # noisy, denoised, clean and residual of 16 x 16 voxels
    assert np.asarray(Image.open(io.BytesIO(rows[0]))).shape[:2] == (16, 64)
    log = (tmp_path / "run" / "train.log").read_text()
    for phase in ("denoiser", "discriminator", "adversarial"):
        assert f"{phase}: loss" in log


def test_a_preview_shows_the_middle_slice_upright() -> None:
    noisy = torch.zeros(1, 4, 6, 5)
    noisy[0, 3, 5, 2] = 1.0  # largest x, largest y: top right
    row = preview_row(noisy, torch.zeros_like(noisy))
    assert row.shape == (1, 6, 3 * 4)
    assert row[0, 0, 3] == 1.0
    assert row[0].sum() == 1 + 0.5 * 23 + 1  # the picture, the mid-grey residual, and its white voxel


def test_a_preview_shows_what_was_removed_three_times_as_strong() -> None:
    row = preview_row(torch.full((1, 4, 4), 0.5), torch.full((1, 4, 4), 0.4))
    assert torch.allclose(row[0], torch.tensor([0.5, 0.4, 0.8]).repeat_interleave(4).expand(4, 12))


@pytest.mark.parametrize(("active", "cases"), [(True, [0, 1]), (False, [])])
def test_previews_are_of_the_first_cases_at_their_epochs(tmp_path: Path, active: bool, cases: list[int]) -> None:
    output = dict.fromkeys(("image", "pred", "label"), torch.zeros(1, 1, 4, 4, 4))
    evaluator = Engine(lambda *_: output)
    PreviewHandler(tmp_path, active=active).attach(evaluator)
    for epoch in (4, 7):  # as MONAI's evaluators count
        evaluator.state.max_epochs, evaluator.state.epoch, evaluator.state.iteration = epoch, epoch - 1, 0
        evaluator.run([0] * 3)
    seen: dict[str, list[int]] = {}
    for file in tmp_path.glob("events*"):
        events = EventAccumulator(str(file), size_guidance={"images": 0}).Reload()
        for tag in events.Tags()["images"]:
            seen.setdefault(tag, []).extend(event.step for event in events.Images(tag))
    names = [f"case {case}: noisy, denoised, clean, residual" for case in cases]
    assert {tag: sorted(steps) for tag, steps in seen.items()} == {name: [4, 7] for name in names}


@pytest.mark.parametrize(
    "axes, row",
    [
        (np.eye(4), 0),  # RAS+, as most NIfTI: the last row lies in front
        (np.diag([-1.0, -1.0, 1.0, 1.0]), 5),  # axial DICOM, and pictures, whose first row is the top
        (np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]]), 5),  # sagittal DICOM, head first
        (np.array([[0.9, 0, 0.4, 0], [0, 1, 0, 0], [-0.4, 0.1, 0.9, 0], [0, 0, 0, 1.0]]), 0),
    ],
)
def test_a_preview_is_the_way_up_that_viewers_show(axes: np.ndarray, row: int) -> None:
    noisy = torch.zeros(1, 4, 6, 5)
    noisy[0, 3, 5, 2] = 1.0
    shown = preview_row(noisy, torch.zeros_like(noisy), affine=axes)
    assert shown[0, row, 3] == 1.0
    tracked = MetaTensor(noisy, affine=torch.as_tensor(axes))
    assert torch.equal(preview_row(tracked, torch.zeros_like(noisy)), shown)


def test_the_bar_is_quiet_without_a_terminal() -> None:
    assert ProgressHandler().show is False
    assert ProgressHandler(show=True, active=False).show is False


@pytest.mark.parametrize("shown", [True, False])
def test_a_run_shows_its_bars_where_they_are_wanted(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shown: bool
) -> None:
    train(manifest, tmp_path / "run", progress=shown, overrides={**TINY, "max_epochs": 1})
    seen = capsys.readouterr().err
    assert seen.count("Loading dataset:   0%") == 2 * shown  # to train on, and to validate with
    assert ("epoch 1/1" in seen) == shown
    assert shown or seen == ""
    recorded = json.loads((tmp_path / "run" / "options.json").read_text())
    assert "progress" not in recorded["overrides"], "how one looks at a run is no part of it"


def test_a_network_that_returns_its_input_is_noticed(manifest: Path, tmp_path: Path) -> None:
    dead = {"learning_rate": 1e-12, "loss#adversarial": 0.0, "max_epochs": 7}
    train(manifest, tmp_path / "dead", overrides={**TINY, **dead})
    log = (tmp_path / "dead" / "train.log").read_text()
    assert log.count("no better than the noisy ones") == 1
    train(manifest, tmp_path / "alive", overrides={**TINY, "max_epochs": 7, "patches_per_epoch": 64})
    assert "no better" not in (tmp_path / "alive" / "train.log").read_text()


@pytest.mark.parametrize(
    ("gains", "warnings"),
    [
        ([0.0] * 4, 0),
        ([0.05] * 5, 1),
        ([0.0] * 12, 1),
        ([0.0] * 4 + [1.0] + [0.0] * 4, 0),  # five in a row, not five in all
        ([0.2] * 9, 0),
    ],
)
def test_five_validations_in_a_row_are_told_once(
    caplog: pytest.LogCaptureFixture, gains: list[float], warnings: int
) -> None:
    handler = IdleDenoiserHandler()
    for epoch, gain in enumerate(gains):
        metrics = {"psnr": 20 + gain, "psnr_noisy": 20.0}
        handler(SimpleNamespace(state=SimpleNamespace(metrics=metrics, epoch=epoch)))
    assert len(caplog.messages) == warnings


def test_an_epochs_line_has_its_own_loss_and_speed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in a resumed run, whose bar begins where the run does."""
    monkeypatch.setattr(time, "perf_counter", itertools.count().__next__)  # a second from one call to the next
    losses = iter([1.0, 3.0, 5.0, 7.0])
    trainer = Engine(lambda *_: {"image": torch.zeros(4, 1), "loss": next(losses)})
    progress = ProgressHandler(show=True)
    bars: list[Any] = []
    with caplog.at_level("INFO", "adl_monai"):
        progress.attach(trainer)

        def resumed(engine: Engine) -> None:
            engine.state.epoch, engine.state.iteration = 3, 6

        trainer.add_event_handler(Events.STARTED, resumed)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: bars.append((progress._bar.n, progress._bar.total)))
        trainer.run([0, 1], max_epochs=5)
    assert caplog.messages == [
        "epoch 4/5 : loss 2.00000, 4.0 patches/s",
        "epoch 5/5 : loss 6.00000, 4.0 patches/s",
    ]
    assert bars == [(8, 10), (10, 10)]


@pytest.mark.parametrize("interval, validated", [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5])])
def test_the_last_epoch_is_validated_whatever_the_interval(
    manifest: Path, tmp_path: Path, interval: int, validated: list[int]
) -> None:
    """Else a run leaves the weights of its last interval, from before the learning rate had come down."""
    settings = {"max_epochs": 5, "val_interval": interval, "loss#adversarial": 0.0}
    train(manifest, tmp_path / "run", overrides={**TINY, **settings})
    lines = (tmp_path / "run" / "train.log").read_text().splitlines()
    found = [int(re.search(r"epoch (\d+)/5", line)[1]) for line in lines if "psnr " in line]
    assert found == validated


def test_a_run_that_made_its_model_worse_says_so(manifest: Path, tmp_path: Path) -> None:
    alone = {**TINY, "loss#adversarial": 0.0, "max_epochs": 2}
    first = train(manifest, tmp_path / "first", overrides={**alone, "patches_per_epoch": 64})
    run = tmp_path / "run"
    train(manifest, run, init=tmp_path / "first", overrides={**alone, "max_epochs": 1, "learning_rate": 0.3})
    log = (run / "train.log").read_text()
    start = float(re.search(r"start, psnr ([\d.]+)", log)[1])
    assert start == pytest.approx(first.best_psnr, abs=1e-4)
    assert f"no better than the model that the run started from ({start:.2f} dB)" in log
    # Resumed, it remembers; a run that learns is not blamed.
    longer = train(manifest, run, resume=True, overrides={"max_epochs": 2, "learning_rate": 1e-9})
    log = (run / "train.log").read_text()
    assert log.count("start, psnr") == 1
    assert log.count("no better than the model") == 2
    assert longer.best_epoch in (1, 2), "the start is no epoch"
    gentle = {**alone, "learning_rate": 0.002, "patches_per_epoch": 64}
    better = train(manifest, tmp_path / "better", init=tmp_path / "first", overrides=gentle)
    assert better.best_psnr > first.best_psnr
    assert "no better than" not in (tmp_path / "better" / "train.log").read_text()


def test_a_models_name_is_none_of_a_file() -> None:
    with pytest.raises(ModelError, match=r"models/model\.pt: models have names"):
        StartHandler("adl3d", [torch.nn.Conv2d(1, 1, 1)])(Engine(lambda *_: None))
