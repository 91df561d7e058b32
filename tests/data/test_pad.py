"""A thin volume's patches: noise first, then the mirrored copies that fill them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from monai.transforms import SpatialPadd

from adl_monai.bundle import open_workflow, shipped_bundle
from adl_monai.data import PadPatchd
from tests.conftest import TINY


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 5, 16, 2), (16, 16, 16)), ((2, 3, 4, 5), (4, 4, 4)), ((1, 7, 3), (8, 8))]
)
def test_short_axes_are_padded_as_monai_does(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    patch = torch.rand(shape)
    ours = PadPatchd("image", size)({"image": patch})["image"]
    theirs = SpatialPadd("image", size, mode="symmetric")({"image": patch})["image"].as_tensor()
    assert type(ours) is torch.Tensor
    assert torch.equal(ours, theirs)


def test_full_patches_and_squeezed_axes_stay() -> None:
    patch = torch.rand(1, 8, 8)
    assert PadPatchd("image", (8, 8, 1))({"image": patch})["image"] is patch
    assert PadPatchd("image", (16, 8, 1))({"image": patch})["image"].shape == (1, 16, 8)
    assert PadPatchd(["image", "label"], (8, 8), allow_missing_keys=True)({"image": patch}).keys() == {"image"}


@pytest.mark.parametrize(("spatial_dims", "cached"), [(2, False), (3, False), (3, True)])
def test_a_thin_volume_is_trained_on_with_the_noise_it_can_have(
    tmp_path: Path, spatial_dims: int, cached: bool
) -> None:
    """As many different slices as the volume has: copies with noise of their own would teach to average copies."""
    shape = [20, 20, 2] if spatial_dims == 3 else [20, 9, 1]
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"training": [{"synthetic": {"shape": shape, "count": 2}}]}))
    values = {
        **TINY,
        "patch_size": [16, 16, 16] if spatial_dims == 3 else [16, 16, 1],
        "noise_kinds": {"gaussian": 1.0},
        "noise_sigma": [0.1, 0.2],
        "manifest": str(path),
        "output_dir": str(tmp_path),
        "cache_dir": str(tmp_path / "cache") if cached else None,
    }
    workflow = open_workflow(shipped_bundle(spatial_dims), ("train",), "train", values)
    patches = workflow.parser.get_parsed_content("train#dataset")
    for index in range(6):
        item = patches[index]
        for key in ("image", "label"):
            assert item[key].shape == (1, *[16] * spatial_dims)
            assert type(item[key]) is torch.Tensor
        lines = item["image"].flatten(0, -2).T if spatial_dims == 3 else item["image"][0]
        if spatial_dims == 2:  # the short axis may have been turned
            lines = min((lines, lines.T), key=lambda image: len(image.unique(dim=0)))
        assert len(lines.unique(dim=0)) == (2 if spatial_dims == 3 else 9)
    # What is kept is what the scan has, and the first random transform cuts the patch.
    prepared = patches._disk[0] if cached else patches._cache[0]
    assert list(prepared["image"].shape[1:]) == shape
