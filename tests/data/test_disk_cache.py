import json
import os
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Transform
from torch.utils.data import DataLoader, Dataset

from adl_monai.data.training.disk_cache import TEMPORARY, DiskCache, read_entry, write_entry
from adl_monai.errors import OutputError, UsageError


class Prepare(Transform):
    """Stands in for reader and normalisation; notes in a file what it prepares, also from other processes."""

    def __init__(self, notes, gain=1.0, size=12):
        self.notes = str(notes)
        self.gain = gain
        self.size = size

    def __call__(self, data):
        with open(self.notes, "a") as file:
            file.write(f"{Path(data['image']).name}\n")
        rng = np.random.default_rng(len(Path(data["image"]).read_bytes()))
        volume = torch.from_numpy(rng.random((1, self.size, 11, 10), dtype=np.float32)) * self.gain
        return {"image": MetaTensor(volume, meta={"filename_or_obj": data["image"]}), "name": "a", "pair": False}


@pytest.fixture
def data(tmp_path):
    (tmp_path / "scans").mkdir()
    for number in range(3):
        (tmp_path / "scans" / f"{number}.raw").write_bytes(b"x" * (number + 1))
    return [{"image": str(tmp_path / "scans" / f"{number}.raw")} for number in range(3)]


@pytest.fixture
def notes(tmp_path):
    (tmp_path / "notes").touch()
    return tmp_path / "notes"


def prepared(notes):
    return sorted(notes.read_text().split())


def arrays(folder):
    return sorted(Path(folder).glob("*/0.npy"))


def test_each_case_is_prepared_once_for_all_runs(data, notes, tmp_path):
    transform = Compose([Prepare(notes)])
    first = DiskCache(tmp_path / "cache", data, transform)
    again = DiskCache(tmp_path / "cache", data, Compose([Prepare(notes)]))
    assert prepared(notes) == ["0.raw", "1.raw", "2.raw"]
    assert len(first) == len(again) == 3
    for index in range(3):
        expected = transform(data[index])
        for cache in (first, again):
            assert torch.equal(cache[index]["image"], expected["image"].as_tensor())
            assert type(cache[index]["image"]) is torch.Tensor
            assert cache[index]["image"].dtype == torch.float32
            assert {key: cache[index][key] for key in ("name", "pair")} == {"name": "a", "pair": False}


def test_what_changed_is_prepared_anew(data, notes, tmp_path, monkeypatch):
    def run(cases=data, **settings):
        notes.write_text("")
        DiskCache(tmp_path / "cache", cases, Compose([Prepare(notes, **settings)]))
        return prepared(notes)

    assert len(run()) == 3
    assert run() == []
    assert len(run(gain=2.0)) == 3  # another preprocessing
    os.utime(data[1]["image"], ns=(5, 5))
    assert run() == ["1.raw"]
    Path(data[2]["image"]).write_bytes(b"another size")
    assert run() == ["2.raw"]
    assert run(cases=[{**data[0], "label": data[1]["image"]}]) == ["0.raw"]
    assert run() == []
    for version in ("adl_monai.data.training.disk_cache.__version__", "monai.__version__"):
        monkeypatch.setattr(version, "0.0.0")
        assert len(run()) == 3


def flip_a_voxel(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_voxel,
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: path.write_bytes(path.read_bytes() + b"more"),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: np.save(path, np.zeros((1, 12, 11, 10), np.float64)),
        lambda path: np.save(path, np.zeros((1, 10, 11, 12), np.float32)),
        lambda path: (path.parent / "entry.json").write_text("{"),
        lambda path: (path.parent / "entry.json").write_text("[]"),
        lambda path: (path.parent / "entry.json").write_text('{"arrays": [{"key": "image"}], "values": {}}'),
        lambda path: (path.parent / "entry.json").unlink(),
    ],
)
def test_what_is_damaged_is_prepared_anew(damage, data, notes, tmp_path):
    expected = DiskCache(tmp_path / "cache", data, Compose([Prepare(notes)]))[0]["image"].clone()
    for path in arrays(tmp_path / "cache"):
        damage(path)
    cache = DiskCache(tmp_path / "cache", data, Compose([Prepare(notes)]))
    assert torch.equal(cache[0]["image"], expected)
    assert [cache[index]["image"].shape for index in range(3)] == [(1, 12, 11, 10)] * 3
    assert prepared(notes) == ["0.raw", "0.raw", "1.raw", "1.raw", "2.raw", "2.raw"]
    assert not list((tmp_path / "cache").glob(".*"))


def test_a_pickle_is_never_loaded(data, notes, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    DiskCache(tmp_path / "cache", data, Compose([Prepare(notes)]))
    for path in arrays(tmp_path / "cache"):
        np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)
    np.load(arrays(tmp_path / "cache")[0], allow_pickle=True)  # it would have gone off
    (tmp_path / "exploded").rmdir()
    cache = DiskCache(tmp_path / "cache", data, Compose([Prepare(notes)]))
    assert cache[0]["image"].dtype == torch.float32
    assert not (tmp_path / "exploded").exists()


def test_writing_into_a_case_changes_nothing_on_the_disk(data, notes, tmp_path):
    cache = DiskCache(tmp_path / "cache", data, Compose([Prepare(notes)]))
    before = arrays(tmp_path / "cache")[0].read_bytes()
    for index in range(3):
        cache[index]["image"].zero_()
    assert arrays(tmp_path / "cache")[0].read_bytes() == before


class Cases(Dataset):
    def __init__(self, make, count):
        self.make = make
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        cache = self.make()
        return torch.stack([cache[number]["image"].clone() for number in range(len(cache))])


def test_runs_that_start_together_share_it(data, notes, tmp_path):
    expected = torch.stack([Prepare(notes)(case)["image"].as_tensor() for case in data])
    # Eight caches are made on one empty folder by two processes at a time.
    loader = DataLoader(
        Cases(lambda: DiskCache(tmp_path / "cache", data, Compose([Prepare(notes)])), 8), batch_size=1, num_workers=2
    )
    batches = list(loader)
    assert len(batches) == 8
    assert all(torch.equal(batch[0], expected) for batch in batches)
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_workers_see_one_cache_and_what_was_checked(data, notes, tmp_path):
    cache = DiskCache(tmp_path / "cache", data, Compose([Prepare(notes)]))
    batches = list(DataLoader(Cases(lambda: cache, 2), batch_size=1, num_workers=2))
    assert torch.equal(batches[0], batches[1])
    assert cache._checked.all()
    copied = pickle.loads(pickle.dumps(cache))
    assert torch.equal(copied[1]["image"], cache[1]["image"])
    assert len(pickle.dumps(cache)) < 20_000  # the volumes are not sent along


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's account of mapped memory")
def test_only_what_is_looked_at_is_read(data, notes, tmp_path):
    size = 40_000  # 17.6 MB a volume
    DiskCache(tmp_path / "cache", data, Compose([Prepare(notes, size=size)]))
    image = DiskCache(tmp_path / "cache", data, Compose([Prepare(notes, size=size)]))[0]["image"]
    assert image[:, 5000:5008].sum() > 0

    def resident():
        regions = Path("/proc/self/smaps").read_text().split("0.npy\n")[1:]
        return sum(int(one.split("Rss:")[1].split()[0]) for one in regions)

    assert resident() < 5000  # kB; the system maps more than it is asked for, up to 2 MB at a time
    assert image.sum() > 0
    assert resident() > 17_000


def test_what_a_killed_run_left_is_removed_once_it_is_old(data, notes, tmp_path):
    old, young = (tmp_path / "cache" / f"{TEMPORARY}{name}" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "0.npy").write_bytes(b"half")
    os.utime(old, (time.time() - 1e6,) * 2)
    DiskCache(tmp_path / "cache", data, Compose([Prepare(notes)]))
    assert not old.exists()
    assert young.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on file sizes")
def test_a_full_disk_leaves_nothing_half_written(data, notes, tmp_path):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"cache .* cannot be written .*choose another cache_dir, or none"):
            DiskCache(tmp_path / "cache", data, Compose([Prepare(notes)]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(DiskCache(tmp_path / "cache", data, Compose([Prepare(notes)]))) == 3


def test_a_folder_that_cannot_be_made_is_refused(data, notes, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be written"):
        DiskCache(tmp_path / "file", data, Compose([Prepare(notes)]))


def test_a_case_of_other_things_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"holds a object as 'odd'.*plain values only"):
        write_entry(tmp_path, {"odd": object()})


def test_an_entry_names_no_file_and_comes_back_whole(tmp_path):
    case = {
        "image": torch.arange(24, dtype=torch.int16).reshape(2, 3, 4).permute(2, 0, 1),
        "flag": torch.tensor(True),
        "level": 0.1,
        "none": None,
        "name": "ä",
    }
    write_entry(tmp_path, case)
    back = read_entry(tmp_path, check=True)
    assert list(json.loads((tmp_path / "entry.json").read_text())) == ["arrays", "values"]
    assert back.keys() == case.keys()
    assert all(torch.equal(back[key], case[key]) for key in ("image", "flag"))
    assert {key: back[key] for key in ("level", "none", "name")} == {"level": 0.1, "none": None, "name": "ä"}
