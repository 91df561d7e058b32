"""A run that goes on takes what it has learned from its checkpoint, and what was chosen from its options."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import Adam, lr_scheduler

from adl_monai.engines import ADLTrainer, Muon
from adl_monai.engines.restore import restore
from adl_monai.errors import ModelError, TrainingDivergedError, UsageError
from adl_monai.stages.train import TrainingResult, train
from tests.conftest import TINY
from tests.engines.test_checkpoint import assert_same, final_state

DENOISER_ALONE = {**TINY, "loss#adversarial": 0.0}


def checkpoint(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.pt", weights_only=True)


def cosine(rate: float, epochs: int, position: int) -> float:
    return 0.01 * rate + 0.99 * rate * (1 + math.cos(math.pi * position / epochs)) / 2


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """The denoiser's rate in each epoch that is trained."""
    seen: dict[int, float] = {}
    start = ADLTrainer.start_epoch

    def watched(trainer: ADLTrainer) -> None:
        seen[trainer.state.epoch] = trainer.optimizer.param_groups[0]["lr"]
        start(trainer)

    monkeypatch.setattr(ADLTrainer, "start_epoch", watched)
    return seen


@pytest.fixture
def begun(manifest: Path, tmp_path: Path) -> Path:
    """A run of two epochs of the denoiser alone."""
    rate = {"learning_rate": 0.003, "optimizer#narrow_lr": 0.003}
    train(manifest, tmp_path / "run", overrides={**DENOISER_ALONE, "max_epochs": 2, **rate})
    return tmp_path / "run"


@pytest.fixture
def go_on(manifest: Path, begun: Path) -> Callable[..., TrainingResult]:
    def resume(**overrides: Any) -> TrainingResult:
        return train(manifest, begun, resume=True, overrides={k.replace("__", "#"): v for k, v in overrides.items()})

    return resume


def test_options_given_to_a_resumed_run_apply(
    begun: Path, go_on: Callable[..., TrainingResult], rates: dict[int, float]
) -> None:
    moments = checkpoint(begun)["objects"]["optimizer"]["state"]
    rate = {"learning_rate": 0.001, "optimizer__narrow_lr": 0.001, "d_optimizer__lr": 1e-5}
    go_on(max_epochs=4, optimizer__betas=[0.8, 0.9], **rate)
    assert rates == {epoch: pytest.approx(cosine(0.001, 4, epoch - 1)) for epoch in (3, 4)}
    objects = checkpoint(begun)["objects"]
    (group,) = objects["optimizer"]["param_groups"]
    assert list(group["betas"]) == [0.8, 0.9]
    assert group["lr"] == pytest.approx(0.00001)
    assert objects["d_optimizer"]["param_groups"][0]["lr"] == 1e-5
    assert objects["lr_scheduler"]["T_max"] == 4
    # The moments went on: eight steps in all.
    assert [one["step"] for one in moments.values()] == [4] * len(moments)
    assert [one["step"] for one in objects["optimizer"]["state"].values()] == [8] * len(moments)


def test_a_longer_run_has_the_schedule_of_its_length(
    go_on: Callable[..., TrainingResult], rates: dict[int, float], begun: Path
) -> None:
    go_on(max_epochs=6)
    assert rates == {epoch: pytest.approx(cosine(0.003, 6, epoch - 1)) for epoch in range(3, 7)}
    assert sorted(rates.values(), reverse=True) == list(rates.values()), "it climbed"
    schedule = checkpoint(begun)["objects"]["lr_scheduler"]
    assert schedule["_last_lr"] == pytest.approx([schedule["eta_min"]])


def test_a_diverged_run_goes_on_with_a_lower_rate(begun: Path, go_on: Callable[..., TrainingResult]) -> None:
    with pytest.raises(TrainingDivergedError, match=r"learning rate .*e\+29\). .*lower the learning rate and continue"):
        go_on(max_epochs=3, optimizer__narrow_lr=1e30)
    assert checkpoint(begun)["epoch"] == 2
    assert go_on(optimizer__narrow_lr=0.0001).epochs == 3


@pytest.mark.parametrize(("batch_size", "steps"), [(8, 1), (2, 4)])
def test_a_run_goes_on_with_another_batch_size(
    begun: Path, go_on: Callable[..., TrainingResult], rates: dict[int, float], batch_size: int, steps: int
) -> None:
    """Two epochs of two steps each; counted in the old steps, a run of one a step would have ended."""
    assert go_on(max_epochs=4, batch_size=batch_size).epochs == 4
    assert list(rates) == [3, 4]
    state = checkpoint(begun)
    assert state["epoch"] == 4
    assert state["iteration"] == 4 * steps
    assert {int(one["step"]) for one in state["objects"]["optimizer"]["state"].values()} == {4 + 2 * steps}
    assert int(state["objects"]["ema"]["n_averaged"]) == 4 + 2 * steps
    # Back to the batches of before: every epoch of them is trained too.
    assert go_on(max_epochs=5, batch_size=4).epochs == 5
    assert checkpoint(begun)["iteration"] == 10


ADAM = {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.001}


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"optimizer": ADAM}, "optimizer is Adam .*'exp_avg'"),
        ({"discriminator_def__filters": [6, 6, 6, 6]}, "EfficientUNetDiscriminator: size mismatch for "),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_the_option_forgotten(
    begun: Path, go_on: Callable[..., TrainingResult], option: dict[str, Any], reason: str
) -> None:
    kept = (begun / "options.json").read_bytes(), checkpoint(begun)
    with pytest.raises((ModelError, UsageError), match=reason):
        go_on(max_epochs=3, **option)
    assert (begun / "options.json").read_bytes() == kept[0]
    assert_same(checkpoint(begun), kept[1])
    assert go_on(max_epochs=3).epochs == 3


def test_an_optimizer_that_can_use_the_state_goes_on_with_it(
    manifest: Path, begun: Path, go_on: Callable[..., TrainingResult]
) -> None:
    run = {"overwrite": True, "overrides": {**DENOISER_ALONE, "max_epochs": 1, "optimizer": ADAM}}
    train(manifest, begun, **run)
    with pytest.raises(ModelError, match=r"does not fit this run .*optimizer is Adam .*'max_exp_avg_sq'.*resume with"):
        go_on(max_epochs=2, optimizer={**ADAM, "amsgrad": True})
    assert go_on(max_epochs=2, optimizer={**ADAM, "_target_": "torch.optim.AdamW"}).epochs == 2


def test_a_recorded_expression_can_be_replaced(
    manifest: Path, begun: Path, go_on: Callable[..., TrainingResult], tmp_path: Path
) -> None:
    options = json.loads((begun / "options.json").read_text())
    proof = tmp_path / "ran"
    options["overrides"]["learning_rate"] = f"$__import__('os').mkdir({str(proof)!r})"
    (begun / "options.json").write_text(json.dumps(options))
    with pytest.raises(UsageError, match=r"run as code; give the option learning_rate again .*or with another"):
        go_on(max_epochs=3)
    with pytest.raises(UsageError, match="learning_rate again"):
        go_on(max_epochs=3, optimizer__lr=0.001)
    assert go_on(max_epochs=3, learning_rate=0.001).epochs == 3
    assert not proof.exists()
    assert json.loads((begun / "options.json").read_text())["overrides"]["learning_rate"] == 0.001
    assert go_on(max_epochs=4).epochs == 4


def test_a_run_is_not_told_to_be_shorter_than_it_is(begun: Path, go_on: Callable[..., TrainingResult]) -> None:
    """It trained nothing, and its options and bundle then said that it had had that few epochs."""
    kept = [(begun / name).read_bytes() for name in ("options.json", "bundle/configs/train.json")]
    with pytest.raises(UsageError, match="has had 2 epochs, more than max_epochs, which is 1; give at least as many"):
        go_on(max_epochs=1)
    assert [(begun / name).read_bytes() for name in ("options.json", "bundle/configs/train.json")] == kept
    assert go_on().epochs == 2


def test_without_validation_a_lost_model_is_that_of_the_last_epoch(
    manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And a run that starts from a model has nothing to hold it to, and says nothing of it."""
    content = json.loads(manifest.read_text())
    del content["validation"]
    manifest.write_text(json.dumps(content))
    train(manifest, tmp_path / "first", overrides={**DENOISER_ALONE, "max_epochs": 1})
    run = tmp_path / "run"
    train(manifest, run, init=tmp_path / "first", overrides={**DENOISER_ALONE, "max_epochs": 2})
    assert "no better than" not in caplog.text
    assert "start, " not in (run / "train.log").read_text()
    assert checkpoint(run)["start_metric"] is None
    model = run / "bundle" / "models" / "model.pt"
    kept = torch.load(model, weights_only=True)
    model.unlink()
    assert train(manifest, run, resume=True).best_epoch is None
    assert_same(torch.load(model, weights_only=True), kept)


def test_a_lost_model_is_written_again(begun: Path, go_on: Callable[..., TrainingResult]) -> None:
    model = begun / "bundle" / "models" / "model.pt"
    kept = torch.load(model, weights_only=True)
    shutil.rmtree(begun / "bundle")
    assert go_on().best_epoch == 2
    assert_same(torch.load(model, weights_only=True), kept)

    assert go_on(max_epochs=3, optimizer__narrow_lr=0.3).best_epoch == 2, "a rate that spoils the network"
    assert_same(torch.load(model, weights_only=True), kept)
    shutil.rmtree(begun / "bundle")
    assert go_on().best_epoch == 2
    assert_same(torch.load(model, weights_only=True), kept)
    assert (begun / "bundle" / "configs" / "inference.json").exists()

    best = begun / "checkpoints" / "best.pt"
    for damage in (lambda: best.write_bytes(b"nothing"), best.unlink):
        model.unlink(missing_ok=True)
        damage()
        with pytest.raises(ModelError, match=r"model\.pt is missing, and .*best\.pt.*put back either from a copy"):
            go_on()
        assert not model.exists()


@pytest.mark.parametrize("held", [False, True])
def test_a_resumed_run_does_not_need_the_model_it_started_from(manifest: Path, tmp_path: Path, held: bool) -> None:
    """Nor does it change a bit, wherever its first part ended: the first epoch's rate is that of any length."""
    train(manifest, tmp_path / "parent", overrides={**DENOISER_ALONE, "max_epochs": 1})
    shutil.copytree(tmp_path / "parent", tmp_path / "copy")
    options: dict[str, Any] = {"init": tmp_path / "copy"}
    wider = {**DENOISER_ALONE, "network_def#filters": [6, 6, 6, 6]}
    if held:
        options["hold"] = tmp_path / "parent"
    train(manifest, tmp_path / "whole", **options, overrides={**wider, "max_epochs": 2})
    train(manifest, tmp_path / "child", **options, overrides={**wider, "max_epochs": 1})
    shutil.rmtree(tmp_path / "copy")
    train(manifest, tmp_path / "child", resume=True, overrides={"max_epochs": 2})
    for whole, again in zip(final_state(tmp_path / "whole"), final_state(tmp_path / "child"), strict=True):
        assert_same(whole, again)

    shutil.rmtree(tmp_path / "child" / "checkpoints")  # back at the beginning, which is lost
    with pytest.raises(ModelError, match=r"copy.*model\.pt, the model that the run starts from .*put it back"):
        train(manifest, tmp_path / "child", resume=True)
    if held:
        shutil.rmtree(tmp_path / "parent")
        with pytest.raises(ModelError, match=r"parent.*model\.pt, the model that the run starts from or holds"):
            train(manifest, tmp_path / "whole", resume=True, overrides={"max_epochs": 3})


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 9, 1e-5),
    "restarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 4),
    "steps": lambda optimizer: lr_scheduler.StepLR(optimizer, 2, 0.3),
    "one": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=20),
    "warm": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3), lr_scheduler.CosineAnnealingLR(optimizer, 9)],
        [3],
    ),
    "chained": lambda optimizer: lr_scheduler.ChainedScheduler([lr_scheduler.ExponentialLR(optimizer, 0.9)]),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
}


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("optimizer", [Adam, Muon])
def test_schedules_of_all_kinds_go_on_bit_for_bit(kind: str, optimizer: type[Any]) -> None:
    def fresh() -> dict[str, Any]:
        torch.manual_seed(0)
        network = torch.nn.Linear(9, 9)
        learns = optimizer(network.parameters(), lr=0.01)
        return {"network": network, "optimizer": learns, "schedule": SCHEDULES[kind](learns)}

    def epoch(run: dict[str, Any]) -> None:
        run["optimizer"].zero_grad()
        run["network"](torch.ones(3, 9)).square().sum().backward()
        run["optimizer"].step()
        run["schedule"].step(*([1.0] if kind == "plateau" else []))

    def state(run: dict[str, Any]) -> dict[str, Any]:
        return {name: item.state_dict() for name, item in run.items()}

    whole = fresh()
    for _ in range(5):
        epoch(whole)
    again = fresh()
    restore(again, copy.deepcopy(state(whole)), 5)
    for run in (whole, again):
        for _ in range(3):
            epoch(run)
    ours, theirs = state(again), state(whole)
    for either in (ours, theirs) if kind in ("warm", "chained") else ():  # they hold others, compared by the rates
        either["schedule"] = either["schedule"]["_last_lr"]
    assert_same(ours, theirs)
