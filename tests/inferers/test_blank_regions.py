"""Skull-stripped background, padding and empty planes: the noise beside them goes, and they stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import adl_monai
from adl_monai.bundle import Denoiser, load_denoiser
from adl_monai.data.synthetic.fields import paint_tubes
from adl_monai.data.volume import Volume
from adl_monai.inferers import TiledInferer
from adl_monai.inferers.blank_regions import BlankRegions, blank_region, is_thin, mirrored_into
from adl_monai.stages.infer import infer
from adl_monai.stages.one_scan import DenoiserChoice

SHAPE = (48, 48, 40)
X, Y, Z = np.meshgrid(*(np.arange(size) - (size - 1) / 2 for size in SHAPE), indexing="ij")
HEAD = (X / 20) ** 2 + (Y / 17) ** 2 + (Z / 26) ** 2 < 1
CLEAN = np.where(HEAD, 600, 50) + np.where((X - 6) ** 2 + (Y + 3) ** 2 < 64, 300, 0)


def shared_noise(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Of which neighbours share a part, as interpolation leaves it."""
    noise = gaussian_filter(rng.normal(size=SHAPE), 0.5)
    return sigma * noise / noise.std()


@pytest.fixture
def noisy(rng: np.random.Generator) -> np.ndarray:
    return (CLEAN + shared_noise(rng, 50)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> Denoiser:
    return load_denoiser("adl3d", precision="fp32")


def error(found: np.ndarray, clean: np.ndarray, where: np.ndarray) -> float:
    return float(np.sqrt(((found - clean)[where] ** 2).mean()))


def test_a_stripped_head_is_denoised_as_a_whole_one(noisy: np.ndarray, model: Denoiser) -> None:
    """Before: nothing was removed."""
    stripped = np.where(HEAD, noisy, 0)
    found = adl_monai.denoise(stripped, model)
    assert error(found, CLEAN, HEAD) < 1.05 * error(adl_monai.denoise(noisy, model), CLEAN, HEAD)
    assert error(found, CLEAN, HEAD) < 0.5 * error(noisy, CLEAN, HEAD)
    assert (found[~HEAD] == 0).all()


def test_a_slice_and_a_volume_slice_by_slice(noisy: np.ndarray) -> None:
    stripped, in_2d = np.where(HEAD, noisy, 0), load_denoiser("adl2d", precision="fp32")
    found = adl_monai.denoise(stripped[:, :, 20], in_2d)
    whole = adl_monai.denoise(noisy[:, :, 20], in_2d)
    inside = HEAD[:, :, 20]
    assert error(found, CLEAN[:, :, 20], inside) < 1.05 * error(whole, CLEAN[:, :, 20], inside)
    assert (found[~inside] == 0).all()
    volume = adl_monai.denoise(stripped, in_2d)
    assert error(volume, CLEAN, HEAD) < 1.05 * error(adl_monai.denoise(noisy, in_2d), CLEAN, HEAD)
    assert (volume[~HEAD] == 0).all()


@pytest.mark.parametrize("axis, count", [(2, 1), (2, 7), (0, 12)])
def test_empty_planes(noisy: np.ndarray, model: Denoiser, axis: int, count: int) -> None:
    padded = noisy.copy()
    np.moveaxis(padded, axis, 0)[:count] = -7
    found = adl_monai.denoise(padded, model)
    rest = np.moveaxis(np.ones(SHAPE, bool), axis, 0)
    rest[:count] = False
    rest = np.moveaxis(rest, 0, axis)
    assert error(found, CLEAN, rest) < 1.1 * error(adl_monai.denoise(noisy, model), CLEAN, rest)
    np.testing.assert_allclose(found[~rest], -7, atol=1e-3)


def test_padding_beside_air_that_is_cut_off(rng: np.random.Generator, model: Denoiser) -> None:
    """As most CT has it: what is not imaged, and air below the lowest value, are one number."""
    tissue, imaged = (X / 18) ** 2 + (Y / 15) ** 2 < 1, X**2 + Y**2 < 23.5**2
    clean = np.where(tissue, 40, -1000)
    noisy = np.clip(np.rint(clean + shared_noise(rng, 40)), -1024, None)
    inner = (X / 14) ** 2 + (Y / 11) ** 2 < 1
    for padding in (-1024, -2000):
        found = adl_monai.denoise(np.where(imaged, noisy, padding).astype(np.int16), model)
        assert error(found, clean, inner) < 10 < 0.3 * error(noisy, clean, inner)
        np.testing.assert_allclose(found[~imaged], padding, atol=1e-3)


def test_padding_of_dicom_is_found(rng: np.random.Generator, model: Denoiser) -> None:
    """It is handed over as the smallest value of the image proper."""
    tissue, imaged = (X / 18) ** 2 + (Y / 15) ** 2 < 1, X**2 + Y**2 < 23.5**2
    clean = np.where(tissue, 40, -1000)
    array = np.where(imaged, clean + shared_noise(rng, 40), -2000).astype(np.float32)
    scan = Volume(array, np.eye(4), np.dtype(np.int16), "dicom", Path("series"), ~imaged)
    found = adl_monai.denoise(scan, model).array
    inner = (X / 14) ** 2 + (Y / 11) ** 2 < 1
    assert error(found, clean, inner) < 0.2 * error(array, clean, inner)
    assert np.array_equal(found[~imaged], array[~imaged])


def test_counts_keep_their_mean(rng: np.random.Generator, model: Denoiser) -> None:
    """Where zeros are counts too, the nothing around stays in sight: without it, a mean of 3 became 0.6."""
    counts = rng.poisson(np.where(HEAD, 3, 0)).astype(np.float32)
    assert adl_monai.denoise(counts, model)[HEAD].mean() == pytest.approx(counts[HEAD].mean(), rel=0.03)


def test_bare_phantoms_come_back(model: Denoiser) -> None:
    phantom = np.where(HEAD, 600.0, 0) + np.where((X - 6) ** 2 + (Y + 3) ** 2 + Z**2 < 64, 300, 0)
    phantom[5, 5, 5] = 100  # alone in the nothing: as it was
    found = adl_monai.denoise(phantom, model)
    assert np.abs(found - phantom).max() < 2
    assert found[5, 5, 5] == phantom[5, 5, 5]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_each_image_of_a_batch_by_itself(spatial_dims: int, noisy: np.ndarray) -> None:
    denoiser = load_denoiser(None, spatial_dims=spatial_dims, precision="fp32")
    cut = (slice(None), slice(None), 20) if spatial_dims == 2 else ...
    images = torch.from_numpy(np.stack([noisy[cut], np.where(HEAD, noisy, 0)[cut]]) / 1000)[:, None]
    with torch.inference_mode():
        both = denoiser.inferer(images, denoiser.network)
        for image, found in zip(images.split(1), both.split(1), strict=True):
            torch.testing.assert_close(found, denoiser.inferer(image, denoiser.network), rtol=0, atol=1e-5)


def test_chance_makes_no_region(rng: np.random.Generator) -> None:
    for zeros in (0.1, 0.5, 0.9):
        plane = torch.from_numpy(np.where(rng.random((200, 200)) < zeros, 0, rng.normal(0.5, 0.1, (200, 200))))
        assert not blank_region(plane[None])[0].any()
    smooth = np.clip(gaussian_filter(rng.normal(size=(200, 200)), 1), 0, None)  # half of it 0, as in air cut off
    assert not blank_region(torch.from_numpy(smooth)[None])[0].any()
    for shape in ((1, 1), (1, 60), (9, 9)):
        assert not blank_region(torch.zeros(1, *shape))[0].any(), "too few to tell"


def test_a_rim_that_rings_is_a_region(rng: np.random.Generator) -> None:
    """As a scanner leaves it that blanks what it has interpolated: nearly, not exactly, zero."""
    plane = torch.from_numpy(rng.normal(0.5, 0.1, (60, 60)))
    plane[:, :15] = torch.from_numpy(rng.uniform(0, 0.006, (60, 15)))
    plane[:30, :12] = 0
    assert not blank_region(plane[:, 12:][None])[0].any(), "low noise alone is none"
    assert torch.equal(blank_region(plane[None])[0], torch.arange(60).expand(60, 60) < 15)


@pytest.mark.parametrize("value", [-1.0, 0.5])
def test_a_region_is_the_smallest_value_or_the_commonest_at_the_border(rng: np.random.Generator, value: float) -> None:
    plane = torch.from_numpy(rng.normal(0.5, 0.1, (60, 60)))
    plane[:, :15] = value
    region, source = blank_region(plane[None])
    assert torch.equal(region, plane == value)
    assert torch.equal(source, plane != value)
    both = torch.stack([plane, plane.flip(1)])
    assert not blank_region(both)[0].any(), "of two channels, both must be blank"


def test_regions_are_filled_by_mirroring() -> None:
    plane = torch.zeros(1, 8, 3)
    plane[0, 3:6, 1] = torch.tensor([1.0, 2.0, 3.0])
    filled = mirrored_into(plane, plane[0] == 0, plane[0] != 0)
    assert filled[0, :, 1].tolist() == [1, 3, 2, 1, 2, 3, 2, 1]  # the outermost goes on where there is no more
    assert torch.equal(filled[0, :, 0], filled[0, :, 2])
    assert torch.equal(filled[0, :, 0], filled[0, :, 1])


def test_the_mirror_reaches_the_first_pixel_and_no_further() -> None:
    column = torch.tensor([1.0, 2, 0, 0])[None, :, None]
    for plane in (column, column.mT):
        filled = mirrored_into(plane, plane[0] == 0, plane[0] != 0)
        assert filled.flatten().tolist() == [1, 2, 1, 2]


@pytest.mark.parametrize("name", ["adl3d", "adl2d"])
def test_vessels_alone_are_not_taken_for_noise(name: str) -> None:
    """As a segmented angiogram shows them. Before, what was around them was filled with streaks of their own pixels."""
    rng = np.random.default_rng(0)
    clean = np.zeros(SHAPE, np.float32)
    for _ in range(3):
        paint_tubes(clean, rng)
    clean[clean < 0.1 * clean.max()] = 0
    vessels = clean > 0
    model = load_denoiser(name, precision="fp32")
    found = adl_monai.denoise(clean, model)
    assert error(found, clean, vessels) < 0.003 * clean.max()
    assert (found[~vessels] == 0).mean() > 0.9  # but for holes between them
    noisy = np.where(vessels, clean + rng.normal(0, 0.05 * clean.max(), SHAPE), 0).astype(np.float32)
    assert error(adl_monai.denoise(noisy, model), clean, vessels) < error(noisy, clean, vessels)


def test_what_is_as_deep_as_its_mirror_image_reaches_is_not_thin() -> None:
    for edge in (96, 400):  # however much there is around
        place = torch.arange(edge) - edge / 2
        disc = place[:, None] ** 2 + place[None] ** 2 < 30**2
        assert not is_thin(~disc, disc)
        long, narrow = place.abs() < 40, place.abs() < 3
        for bar in (long[:, None] & narrow, narrow[:, None] & long, narrow & torch.ones(edge, 1, dtype=torch.bool)):
            assert is_thin(~bar, bar)


def test_an_image_without_them_is_not_copied() -> None:
    image = torch.rand(1, 1, 24, 20, 8)
    regions = BlankRegions(lambda box: image[:, :, *box], (24, 20, 8))
    assert regions.filled((slice(0, 24), slice(0, 20), slice(0, 8))).data_ptr() == image.data_ptr()
    assert regions.none_found


@pytest.mark.parametrize("model", ["adl3d", "adl2d"])
@pytest.mark.parametrize("options", [{}, {"ensemble": 2, "strength": 0.7}])
def test_from_disk_to_disk_alike(
    tmp_path: Path, noisy: np.ndarray, monkeypatch: pytest.MonkeyPatch, model: str, options: dict
) -> None:
    stripped = np.where(HEAD, noisy, 0)
    stripped[:, :, :5] = 0
    stripped[24, 24, 20], stripped[20, 20, 22] = 60_000, -60_000
    nib.save(nib.Nifti1Image(stripped, np.eye(4)), tmp_path / "scan.nii")
    outputs = []
    for name, in_memory in (("memory", True), ("stream", False)):
        with monkeypatch.context() as patch:
            patch.setattr(DenoiserChoice, "fits", lambda *arguments, answer=in_memory: answer)
            (result,) = infer(
                [tmp_path / "scan.nii"], tmp_path / f"{name}.nii", model=model, precision="fp32", **options
            )
        outputs.append(nib.load(result.output).get_fdata())
    assert np.abs(outputs[0] - stripped).max() > 1, "nothing was changed"
    assert np.abs(outputs[0] - outputs[1]).max() < 0.02
    assert (outputs[1][stripped == 0] == outputs[0][stripped == 0]).all()


def test_columns_are_filled_alike(noisy: np.ndarray, model: Denoiser) -> None:
    """Planes too large for the memory are read and denoised in parts, and a region ends where it ends in the plane."""
    image = torch.from_numpy(np.where(HEAD, noisy, 0).astype(np.float32) / 1000)[None, None].tile(1, 1, 4, 1, 1)
    denoised = torch.full_like(image, torch.nan)
    boxes = []

    def write(box: tuple[slice, ...], part: torch.Tensor) -> None:
        boxes.append(box)
        denoised[:, :, *box] = part

    def inferer(max_memory: float | None) -> TiledInferer:
        return TiledInferer(3, 32, precision="fp32", max_memory=max_memory)

    with torch.inference_mode():
        inferer(500e6).stream(lambda box: image[:, :, *box], write, image.shape[2:], model.network)
        whole = inferer(None)(image, model.network)
    assert len({(box[0].start, box[1].start) for box in boxes}) > 1
    torch.testing.assert_close(denoised, whole, rtol=0, atol=1e-5)


def test_no_result_leaves_the_range_of_its_scan(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, identity_model: Callable[..., Path]
) -> None:
    """Magnitudes stay positive, and integers that held the scan hold the result."""
    stored = rng.choice(np.array([0, 255], np.uint8), (24, 16, 16), p=[0.9, 0.1])
    nib.save(nib.Nifti1Image(stored, np.eye(4)), tmp_path / "scan.nii")
    for spatial_dims in (2, 3):
        for in_memory in (True, False):
            with monkeypatch.context() as patch:
                patch.setattr(DenoiserChoice, "fits", lambda *arguments, answer=in_memory: answer)
                for dtype in ("same", "float32"):
                    output = tmp_path / f"{spatial_dims}{in_memory}{dtype}.nii"
                    (result,) = infer([tmp_path / "scan.nii"], output, model=f"adl{spatial_dims}d", dtype=dtype)
                    values = nib.load(result.output).get_fdata()
                    assert result.clipped == 0
                    assert values.min() >= 0
                    assert values.max() <= 255
                    assert np.unique(values).size > 2
