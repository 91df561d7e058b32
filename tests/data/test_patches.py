import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.transforms import Compose, RandFlipd, RandRotate90d, RandSpatialCropd, Transform
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DistributedSampler

from adl_monai.data.degradations import RandDegraded
from adl_monai.data.normalization import RobustNormalized
from adl_monai.data.training.crop import RandPatchd
from adl_monai.data.training.patches import PatchDataset, patch_seed
from adl_monai.data.transforms import CleanAsLabeld
from adl_monai.errors import OutOfMemoryError

KEYS = ["image", "label"]


class LoadArray(Transform):
    """Stands in for a reader; counts how often each case is read."""

    def __init__(self):
        self.reads = []

    def __call__(self, data):
        self.reads.append(data["name"])
        rng = np.random.default_rng(data["name"])
        meta = {"filename_or_obj": str(data["name"])}
        volume = torch.from_numpy(rng.random((1, 21, 19, 17), dtype=np.float32)) * 1000
        case = {"image": MetaTensor(volume, meta=meta), "name": data["name"]}
        if data["name"] == 1:  # a real pair
            case["label"] = MetaTensor(volume + 1, meta=meta)
        return case


def deterministic():
    return [LoadArray(), RobustNormalized(keys=KEYS, allow_missing_keys=True)]


def randomised(size=8):
    return [
        RandSpatialCropd(KEYS, roi_size=(size,) * 3, random_size=False, allow_missing_keys=True),
        *(RandFlipd(KEYS, prob=0.5, spatial_axis=axis, allow_missing_keys=True) for axis in range(3)),
        RandRotate90d(KEYS, prob=0.5, spatial_axes=(0, 1), allow_missing_keys=True),
        CleanAsLabeld(),
        RandDegraded(kinds=["gaussian", "rician", "poisson"], record=True),
    ]


def dataset(cases=3, patches=8, **kwargs):
    data = [{"name": name} for name in range(cases)]
    return PatchDataset(data, Compose([*deterministic(), *randomised()]), patches, **kwargs)


def same(one, other):
    keys = ("image", "label")
    return all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in keys)


def test_item_is_a_pure_function_of_seed_epoch_and_index():
    patches = dataset(seed=4)
    in_order = [patches[index] for index in range(8)]
    again = dataset(seed=4)
    for index in (5, 0, 7, 5, 2):
        assert same(again[index], in_order[index])
    assert same(again[-1], in_order[7])
    assert not same(dataset(seed=5)[3], in_order[3])
    again.set_epoch(1)
    assert not same(again[3], in_order[3])
    again.set_epoch(0)
    assert same(again[3], in_order[3])


@pytest.mark.parametrize("persistent", [False, True])
def test_batches_do_not_depend_on_workers(persistent):
    alone, shared = dataset(), dataset()
    here = DataLoader(alone, batch_size=4, num_workers=0)
    there = DataLoader(shared, batch_size=4, num_workers=2, persistent_workers=persistent)
    seen = []
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        shared.set_epoch(epoch)
        for one, other in zip(here, there, strict=True):
            assert one["image"].shape == (4, 1, 8, 8, 8)
            assert same(one, other)
            assert one["degradation"]["kind"] == other["degradation"]["kind"]
            seen.append(one)
    assert not same(seen[0], seen[2])


def test_distributed_ranks_share_one_epoch_between_them():
    patches = dataset()
    whole = {index: patches[index] for index in range(8)}
    met = []
    for rank in range(2):
        sampler = DistributedSampler(dataset(), num_replicas=2, rank=rank, shuffle=True, seed=1)
        loader = DataLoader(dataset(), batch_size=1, sampler=sampler)
        for index, batch in zip(sampler, loader, strict=True):
            met.append(index)
            assert torch.equal(batch["image"][0], whole[index]["image"])
    assert sorted(met) == list(range(8))


def test_cached_volumes_never_change():
    patches = dataset()
    before = [{key: case[key].as_tensor().clone() for key in KEYS if key in case} for case in patches._cache]
    meta = [(dict(case["image"].meta), len(case["image"].applied_operations), set(case)) for case in patches._cache]
    for epoch in range(3):
        patches.set_epoch(epoch)
        for index in range(len(patches)):
            patches[index]
    for case, volumes, (fields, operations, keys) in zip(patches._cache, before, meta, strict=True):
        assert set(case) == keys
        assert case["image"].meta.keys() == fields.keys()
        assert len(case["image"].applied_operations) == operations
        for key, volume in volumes.items():
            assert torch.equal(case[key].as_tensor(), volume)


def test_cases_are_read_once_and_take_turns_over_epochs():
    patches = dataset(cases=5, patches=3)
    reader = patches.transform.transforms[0]
    assert sorted(reader.reads) == [0, 1, 2, 3, 4]
    turns = []
    for epoch in range(5):
        patches.set_epoch(epoch)
        turns += [patches[index]["name"] for index in range(3)]
    assert turns == [0, 1, 2, 3, 4] * 3
    assert len(reader.reads) == 5


def test_uncached_cases_give_the_same_patches():
    cached, partly, uncached = (
        dataset(cases=5, patches=7),
        dataset(cases=5, patches=7, cache_num=2),
        dataset(5, 7, cache_rate=0.0),
    )
    for epoch in (0, 1):
        for patches in (cached, partly, uncached):
            patches.set_epoch(epoch)
        for index in range(7):
            assert same(cached[index], partly[index])
            assert same(cached[index], uncached[index])


def test_cases_on_a_disk_give_the_same_patches(tmp_path):
    cached, on_disk = dataset(cases=3, patches=7), dataset(cases=3, patches=7, cache_dir=tmp_path)
    assert sorted(on_disk.transform.transforms[0].reads) == [0, 1, 2]
    again = dataset(cases=3, patches=7, cache_dir=tmp_path)
    for epoch in (0, 1):
        for patches in (cached, on_disk, again):
            patches.set_epoch(epoch)
        for index in range(7):
            assert same(cached[index], on_disk[index])
            assert same(cached[index], again[index])
    for one, other in zip(
        DataLoader(cached, batch_size=4), DataLoader(again, batch_size=4, num_workers=2), strict=True
    ):
        assert same(one, other)
    assert again.transform.transforms[0].reads == []
    for patches in (cached, again):
        patches.set_data([{"name": 2}, {"name": 5}])
    assert all(same(cached[index], again[index]) for index in range(4))
    assert again.transform.transforms[0].reads == [5]


IMAGE = 21 * 19 * 17 * 4  # bytes; the second case has two


def test_cases_that_would_fill_the_memory_are_refused_before_they_do(monkeypatch):
    left = iter([2**40, 3 * IMAGE, 4 * IMAGE - 1])  # after each case
    monkeypatch.setattr("adl_monai.data.training.case_cache.available_memory", lambda: next(left, 0))
    with pytest.raises(OutOfMemoryError, match=r"3 of 6 take .* GiB are left.*cache_dir.*cache_rate"):
        dataset(cases=6)


@pytest.mark.parametrize(
    ("left", "cases"),
    [(4 * IMAGE - 1, 3), (20 * IMAGE, 6)],
    ids=["no case to come", "it is not the cases that filled it"],
)
def test_little_memory_is_no_reason_to_refuse_cases(monkeypatch, left, cases):
    monkeypatch.setattr("adl_monai.data.training.case_cache.available_memory", lambda: left)
    assert len(dataset(cases=cases)) == 8


def test_systems_that_do_not_say_what_is_free_refuse_nothing(monkeypatch):
    monkeypatch.setattr("adl_monai.data.training.case_cache.available_memory", lambda: 1)
    monkeypatch.setattr("adl_monai.data.training.case_cache.sys.platform", "win32")
    assert len(dataset(cases=6)) == 8


@pytest.mark.parametrize("cached", [{"cache_dir": "cache"}, {"cache_num": 2}])
def test_cases_that_are_not_kept_in_memory_need_none(monkeypatch, tmp_path, cached):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("adl_monai.data.training.case_cache.available_memory", lambda: 2 * IMAGE)
    assert len(dataset(cases=6, **cached)) == 8


@pytest.mark.parametrize("cached", [{}, {"cache_dir": "cache"}])
def test_preparing_shows_a_bar_where_it_is_wanted(monkeypatch, tmp_path, capsys, cached):
    monkeypatch.chdir(tmp_path)
    dataset(cases=3, progress=False, **dict.fromkeys(cached, "quiet"))
    assert capsys.readouterr().err == ""
    dataset(cases=3, progress=True, **cached)
    assert "3/3" in capsys.readouterr().err
    if cached:  # nothing is left to do
        dataset(cases=3, progress=True, **cached)
        assert capsys.readouterr().err == ""


def test_nested_compose_is_cached_too():
    data = [{"name": 0}]
    nested = PatchDataset(data, Compose([Compose(deterministic()), *randomised()]), 4)
    reader = nested.transform.transforms[0]
    assert same(nested[2], PatchDataset(data, [*deterministic(), *randomised()], 4)[2])
    assert len(reader.reads) == 1


def test_pairs_and_clean_cases_live_in_one_dataset():
    patches = dataset(cases=2, patches=6)
    for index in range(6):
        item = patches[index]
        difference = (item["label"] - item["image"]).as_tensor()
        if item["name"] == 1:
            scale = item["image"].meta["intensity_scale"]
            torch.testing.assert_close(difference, torch.full_like(difference, 1 / scale), rtol=0.01, atol=1e-6)
            assert item["degradation"]["kind"] == "none"
        else:
            assert item["degradation"]["kind"] != "none"
            assert difference.std() > 0


def test_deterministic_chain_is_returned_whole():
    patches = PatchDataset([{"name": 0}], deterministic(), 2)
    assert patches[1]["image"].shape == (1, 21, 19, 17)


def test_iteration_ends_and_indices_are_checked():
    assert len(list(dataset(patches=3))) == 3
    with pytest.raises(IndexError):
        dataset(patches=3)[3]


def test_empty_data_and_empty_epochs_are_refused():
    with pytest.raises(ValueError, match="empty"):
        PatchDataset([], deterministic(), 4)
    with pytest.raises(ValueError, match="patches_per_epoch"):
        dataset(patches=0)


def test_seeds_differ_between_neighbours():
    seeds = {patch_seed(seed, epoch, index) for seed in range(5) for epoch in range(5) for index in range(40)}
    assert len(seeds) == 1000


def test_a_patch_costs_little():
    class Large(LoadArray):
        def __call__(self, data):
            return {"image": MetaTensor(torch.rand(1, 128, 128, 128), meta={"filename_or_obj": "a"})}

    crop = RandPatchd(KEYS, (32, 32, 32), allow_missing_keys=True)
    patches = PatchDataset([{"name": 0}], [Large(), crop, *randomised()[-2:]], 100)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        for index in range(20):
            patches[index]
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profiled.events())
    # A patch has 32³ of the volume's 128³ voxels; what must never happen is a copy of the whole volume a patch.
    assert 20 * 4 * 32**3 < allocated < 20 * 12 * 4 * 32**3
