"""Scans whose object is little more than what the percentiles leave out."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from monai.transforms import EnsureTyped, Transform

from adl_monai.data import PatchDataset, RobustNormalized, SampledIntensitiesd


class Object(Transform):
    """A bright ramp of some voxels in exact zeros."""

    def __call__(self, case):
        image = torch.zeros(1, 32, 32, 32)
        voxels = int(case["share"] * image.numel())
        image.view(-1)[torch.randperm(image.numel())[:voxels]] = torch.linspace(10, 1000, voxels)
        loaded = {"image": image, "label": image} if case.get("pair") else {"image": image}
        return RobustNormalized(list(loaded), reference_key="image")(loaded)


def dataset(shares, **options):
    cases = [{"image": f"scan {share}", "share": share, **options.pop("case", {})} for share in shares]
    chain = [Object(), SampledIntensitiesd(), EnsureTyped("image", track_meta=False)]
    return PatchDataset(cases, chain, 4, **options)


@pytest.mark.parametrize("cached", [False, True])
def test_sparse_scans_are_named_once(caplog, tmp_path, cached):
    options = {"cache_dir": tmp_path} if cached else {}
    with caplog.at_level(logging.WARNING, "adl_monai.data.training.sparse"):
        dataset([0.3, 0.00505, 0.02, 0.0051], **options)
    (warned,) = caplog.messages
    assert warned.startswith("2 of 4 scans are nearly empty")
    assert "scan 0.00505, scan 0.0051." in warned
    assert "intensity_percentiles" in warned


def test_of_many_sparse_scans_the_first_are_named(caplog):
    dataset(list(np.linspace(0.00505, 0.0051, 8)))
    assert "and 3 more" in caplog.text
    assert caplog.text.count("scan 0.") == 5


def test_usual_scans_and_real_pairs_are_not_warned_of(caplog):
    dataset([0.3, 0.02])
    dataset([0.00505], case={"pair": True})
    assert caplog.text == ""
