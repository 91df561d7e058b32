import math

import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor

from adl_monai.data.degradations import Degradation, Degraded, RandDegraded, case_seed
from adl_monai.data.noise import KINDS
from adl_monai.errors import UsageError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 9, 7), (2, 5, 7, 3)])
def test_output_is_not_clipped_and_input_not_touched(kind, shape):
    clean = torch.linspace(-1, 3, math.prod(shape)).reshape(shape)
    before = clean.clone()
    noisy = Degradation(kind, 0.5, 1).apply(clean)
    assert noisy.shape == clean.shape
    assert noisy.max() > 1.5
    assert torch.equal(clean, before)
    assert not torch.equal(noisy, clean)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sigma", [0.0, 1e-12])
def test_no_noise_level_is_no_noise(kind, sigma):
    clean = torch.rand(1, 8, 8, generator=generator())
    torch.testing.assert_close(Degradation(kind, sigma, 1).apply(clean), clean, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_record_replays_the_same_noise(kind):
    clean = MetaTensor(torch.rand(1, 8, 9, 5, generator=generator()), meta={"filename_or_obj": "a"})
    record = Degradation(kind, 0.2, 7)
    noisy = record.apply(clean)
    assert torch.equal(noisy, record.apply(clean.as_tensor()))
    assert not torch.equal(noisy, Degradation(kind, 0.2, 8).apply(clean))
    assert noisy.meta["filename_or_obj"] == "a"


@pytest.mark.parametrize(
    "bad", [{"kind": "salt"}, {"sigma": -0.1}, {"sigma": float("nan")}, {"sigma": float("inf")}], ids=str
)
def test_bad_records_are_refused(bad):
    with pytest.raises(UsageError, match=r"salt|sigma"):
        Degradation(**({"kind": "gaussian", "sigma": 0.1, "seed": 0} | bad))


def test_random_state_replays_and_the_record_tells_all():
    clean = torch.rand(1, 16, 16, generator=generator())
    transform = RandDegraded(kinds=list(KINDS), record=True)
    first = transform.set_random_state(seed=5)({"image": clean})
    again = transform.set_random_state(seed=5)({"image": clean})
    other = transform({"image": clean})
    assert torch.equal(first["image"], again["image"])
    assert first["degradation"] == again["degradation"] != other["degradation"]
    assert {type(value) for value in first["degradation"].values()} == {str, float, int}
    assert torch.equal(Degradation(**first["degradation"]).apply(clean), first["image"])


def test_global_random_state_plays_no_part():
    clean = torch.rand(1, 16, 16, generator=generator())
    transform = RandDegraded(kinds=list(KINDS))
    torch.manual_seed(1)
    first = transform.set_random_state(seed=5)({"image": clean})["image"]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(first, transform.set_random_state(seed=5)({"image": clean})["image"])
    assert torch.equal(state, torch.get_rng_state())


def test_kinds_and_levels_are_drawn_as_asked():
    transform = RandDegraded(kinds={"gaussian": 3, "rician": 1, "speckle": 0}, sigma_range=(0.1, 0.3), record=True)
    transform.set_random_state(seed=0)
    records = [transform({"image": torch.zeros(1, 2, 2)})["degradation"] for _ in range(800)]
    share = sum(record["kind"] == "gaussian" for record in records) / len(records)
    assert share == pytest.approx(0.75, abs=0.06)
    assert {record["kind"] for record in records} == {"gaussian", "rician"}
    levels = torch.tensor([record["sigma"] for record in records])
    assert 0.1 <= levels.min() < 0.11
    assert 0.29 < levels.max() <= 0.3
    assert levels.mean().item() == pytest.approx(0.2, abs=0.01)
    assert len({record["seed"] for record in records}) == len(records)


def test_a_higher_power_draws_low_levels_more_often():
    transform = RandDegraded(sigma_range=(0.1, 0.3), sigma_power=2.0, record=True).set_random_state(seed=0)
    shares = [(transform({"image": torch.zeros(1, 2, 2)})["degradation"]["sigma"] - 0.1) / 0.2 for _ in range(2000)]
    assert 0 <= min(shares) <= max(shares) <= 1
    for level in (0.1, 0.25, 0.5):  # P(u² < x) = sqrt(x)
        assert sum(share < level for share in shares) / 2000 == pytest.approx(math.sqrt(level), abs=0.04)


def test_a_kind_with_a_least_level_is_never_fainter_and_no_other_is_changed():
    kinds, least = ["gaussian", "correlated"], {"correlated": 0.05}
    transform = RandDegraded(kinds=kinds, sigma_range=(0.0, 0.1), least_sigma=least, record=True)
    transform.set_random_state(seed=0)
    records = [transform({"image": torch.zeros(1, 2, 2)})["degradation"] for _ in range(1000)]
    levels = {kind: [record["sigma"] for record in records if record["kind"] == kind] for kind in kinds}
    assert 0.05 <= min(levels["correlated"]) < 0.051
    assert 0.099 < max(levels["correlated"]) <= 0.1
    assert min(levels["gaussian"]) < 0.001


def test_a_least_level_below_the_range_does_not_widen_it():
    transform = RandDegraded(sigma_range=(0.05, 0.1), least_sigma={"gaussian": 0.01}, record=True)
    transform.set_random_state(seed=0)
    assert min(transform({"image": torch.zeros(1, 2, 2)})["degradation"]["sigma"] for _ in range(100)) >= 0.05


def test_a_least_level_above_the_range_is_refused_where_the_kind_is_drawn():
    with pytest.raises(UsageError, match="highest level"):
        RandDegraded(sigma_range=(0.0, 0.01), least_sigma={"gaussian": 0.05})
    RandDegraded(sigma_range=(0.0, 0.01), least_sigma={"correlated": 0.05})


@pytest.mark.parametrize("transform", [RandDegraded(record=True), Degraded()], ids=["random", "fixed"])
def test_real_pairs_get_no_noise(transform):
    clean = torch.rand(1, 8, 8, generator=generator())
    pair = transform({"image": clean, "degrade": False})
    assert torch.equal(pair["image"], clean)
    assert not torch.equal(transform({"image": clean, "degrade": True})["image"], clean)
    assert not torch.equal(transform({"image": clean})["image"], clean)


def test_records_of_mixed_batches_collate():
    cases = [{"image": torch.zeros(1, 4, 4), "degrade": i == 0} for i in range(2)]
    batch = next(iter(DataLoader(Dataset(cases, RandDegraded(record=True)), batch_size=2)))
    assert batch["degradation"]["kind"] == ["gaussian", "none"]
    assert batch["degradation"]["sigma"][1] == 0
    assert type(batch["image"]) is torch.Tensor


def test_probability_leaves_some_patches_clean():
    transform = RandDegraded(prob=0.3).set_random_state(seed=0)
    clean = torch.ones(1, 2, 2)
    untouched = sum(torch.equal(transform({"image": clean})["image"], clean) for _ in range(500)) / 500
    assert untouched == pytest.approx(0.7, abs=0.07)


@pytest.mark.parametrize(
    "bad",
    [
        {"kinds": []},
        {"kinds": ["gaussian", "salt"]},
        {"kinds": {"gaussian": -1}},
        {"kinds": {"gaussian": 0}},
        {"sigma_range": (0.3, 0.1)},
        {"sigma_range": (-0.1, 0.1)},
        {"sigma_power": 0.0},
        {"least_sigma": {"gaussian": -0.1}},
        {"least_sigma": {"salt": 0.1}},
        {"keys": ["image", "label"]},
    ],
    ids=str,
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(UsageError, match=r"given|unknown"):
        RandDegraded(**bad)


def named(name):
    return {"image": MetaTensor(torch.zeros(1, 8, 8), meta={"filename_or_obj": name})}


def test_fixed_noise_differs_by_case_and_seed_but_not_by_machine():
    transform = Degraded(sigma=0.1, seed=3)
    noise = transform(named("/data/one/subject/scan.nii.gz"))["image"]
    assert torch.equal(noise, transform(named("/elsewhere/subject/scan.nii.gz"))["image"])
    assert torch.equal(noise, transform(named("D:\\images\\subject\\scan.nii.gz"))["image"])
    assert not torch.equal(noise, transform(named("/data/one/other/scan.nii.gz"))["image"])
    assert not torch.equal(noise, Degraded(sigma=0.1, seed=4)(named("/data/one/subject/scan.nii.gz"))["image"])
    assert noise.std().item() == pytest.approx(0.1, rel=0.3)


def test_case_seed_is_pinned_and_reads_synthetic_names_whole():
    assert case_seed(3, "/data/one/subject/scan.nii.gz") == case_seed(3, ["subject/scan.nii.gz", "more"])
    assert case_seed(0, "synthetic:kind=leaves,seed=1") != case_seed(0, "synthetic:kind=leaves,seed=2")
    assert case_seed(0, "/data/synthetic:kind=leaves,seed=1") == case_seed(0, "synthetic:kind=leaves,seed=1")
    # Published numbers rest on this value: it may never change.
    assert case_seed(0, "subject/scan.nii.gz") == 3880181272
