from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, RandFlipd, RandRotate90d, RandSpatialCropd, SqueezeDimd

from adl_monai.data.training.crop import RandPatchd

KEYS = ["image", "label"]


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(float(np.prod(shape))).reshape(1, *shape)


def chain_of_monai(size, squeeze=False):
    """What this transform stands for."""
    return Compose(
        [
            RandSpatialCropd(KEYS, roi_size=size, random_size=False, allow_missing_keys=True),
            *([SqueezeDimd(KEYS, dim=-1, allow_missing_keys=True)] if squeeze else []),
            *(RandFlipd(KEYS, 0.5, axis, allow_missing_keys=True) for axis in range(len(size) - squeeze)),
            RandRotate90d(KEYS, prob=0.5, max_k=3, spatial_axes=(0, 1), allow_missing_keys=True),
        ]
    )


def patches(transform, image, count):
    transform.set_random_state(seed=0)
    drawn = (torch.as_tensor(transform({"image": image})["image"]) for _ in range(count))
    return Counter(tuple(patch.flatten().tolist()) for patch in drawn)


@pytest.mark.parametrize(
    ("shape", "size", "squeeze"), [((3, 3, 3), (2, 2, 2), False), ((3, 3, 2), (2, 2, 1), True), ((4, 3), (2, 2), False)]
)
def test_it_draws_the_patches_of_monais_chain_as_often(shape, size, squeeze):
    count = 2000
    ours = patches(RandPatchd(KEYS, size, squeeze, allow_missing_keys=True), numbered(*shape), count)
    theirs = patches(chain_of_monai(size, squeeze), numbered(*shape), count)
    assert ours.keys() == theirs.keys()  # every patch that there can be
    distance = sum(abs(ours[patch] - theirs[patch]) for patch in ours) / (2 * count)
    assert distance < 1.2 * (len(ours) / (np.pi * count)) ** 0.5  # that of two draws from one distribution


def test_image_and_label_are_cut_alike_and_left_as_they_were():
    image = MetaTensor(numbered(9, 8, 7))
    label, before = image + 1000, image.as_tensor().clone()
    transform = RandPatchd(KEYS, (4, 4, 4)).set_random_state(seed=1)
    seen = set()
    for _ in range(20):
        case = transform({"image": image, "label": label, "name": "a"})
        assert case["name"] == "a"
        assert type(case["image"]) is torch.Tensor
        assert case["image"].shape == (1, 4, 4, 4)
        assert torch.equal(case["label"], case["image"] + 1000)
        seen.add(case["image"].sum().item())
        case["image"].zero_()
    assert torch.equal(image.as_tensor(), before)
    assert len(seen) > 10


def test_all_orders_of_a_square_are_met_and_a_rectangle_keeps_its_shape():
    square = patches(RandPatchd("image", (2, 2)), numbered(2, 2), 400)
    assert set(square) == {
        tuple(torch.rot90(numbered(2, 2).flip(axes), turns, (1, 2)).flatten().tolist())
        for axes, turns in product(([], [1], [2], [1, 2]), range(4))
    }
    transform = RandPatchd("image", (2, 3)).set_random_state(seed=0)
    assert {tuple(transform({"image": numbered(4, 5)})["image"].shape) for _ in range(50)} == {(1, 2, 3)}


def test_the_random_state_replays_it():
    transform = RandPatchd("image", (4, 4, 4))
    first = [transform.set_random_state(seed=seed)({"image": numbered(9, 8, 7)})["image"] for seed in (1, 2, 1)]
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])


def test_a_short_axis_is_taken_whole():
    transform = RandPatchd("image", (4, 4, 4)).set_random_state(seed=0)
    assert transform({"image": numbered(9, 9, 2)})["image"].shape == (1, 4, 4, 2)


@pytest.mark.parametrize("size", [(), (4, 0, 4)])
def test_a_bad_size_is_refused(size):
    with pytest.raises(ValueError, match=r"roi_size .* given; expected a positive number"):
        RandPatchd("image", size)


def test_images_that_do_not_fit_are_refused():
    transform = RandPatchd(KEYS, (4, 4, 4))
    for case in (
        {"image": numbered(9, 8, 7), "label": numbered(9, 8, 8)},
        {"image": numbered(9, 8), "label": numbered(9, 8)},
    ):
        with pytest.raises(ValueError, match=r"given; expected one shape of 3 axes"):
            transform(case)
