"""The models in the box: what was released, small, and good for any scan without an option."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy.ndimage import gaussian_filter

import adl_monai
from adl_monai.bundle import find_bundle, load_denoiser, load_weights, shipped_bundle, shipped_bundles
from adl_monai.cli import cli
from adl_monai.data.degradations import Degradation
from adl_monai.data.synthetic import synthetic_volume
from adl_monai.errors import ModelError, UsageError
from adl_monai.stages.evaluate import evaluate
from adl_monai.stages.infer import infer
from adl_monai.stages.train import train
from tests.conftest import TINY, generated_manifest

DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])
SHAPES = {2: (160, 144), 3: (56, 48, 40)}
MOST_BYTES = 8 * 10**6


def psnr(denoised: np.ndarray, clean: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((denoised - clean) ** 2)))


def phantom(spatial_dims: int, seed: int = 777) -> np.ndarray:
    """Clean, in [0, 1]; seeds that no release manifest uses."""
    image = synthetic_volume(SHAPES[spatial_dims], seed=seed, kind="scan")
    low, high = np.percentile(image, (0.5, 99.5))
    return (image - low) / (high - low)


def noisy_phantom(spatial_dims: int, sigma: float, seed: int = 777) -> tuple[np.ndarray, np.ndarray]:
    clean = phantom(spatial_dims, seed)
    noise = np.random.default_rng(5).normal(0, sigma, clean.shape)
    return (clean + noise).astype(np.float32), clean


@DIMS
def test_weights_are_small_and_what_the_bundle_says(spatial_dims: int) -> None:
    root = shipped_bundle(spatial_dims)
    path = root / "models" / "model.pt"
    metadata = json.loads((root / "configs" / "metadata.json").read_text())
    assert path.stat().st_size < MOST_BYTES
    assert hashlib.sha256(path.read_bytes()).hexdigest() == metadata["weights_sha256"]
    card = (root / "docs" / "model_card.md").read_text()
    assert metadata["weights_sha256"] in card
    assert all(f"| {figure} /" in card for figure in metadata["eval_metrics"].values())
    assert all(isinstance(value, torch.Tensor) for value in load_weights(root).values())


def test_altered_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "adl3d"
    shutil.copytree(shipped_bundle(3), root)
    monkeypatch.setattr("adl_monai.bundle.shipped_bundles", lambda: {"adl3d": root})
    load_weights(root)
    path = root / "models" / "model.pt"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ModelError, match="SHA-256"):
        load_weights(root)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="SHA-256"):
        load_weights(root)


def test_a_damaged_model_of_ones_own_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for raw in (b"", b"junk", (shipped_bundle(3) / "models" / "model.pt").read_bytes()[:1000]):
        (tmp_path / "models" / "model.pt").write_bytes(raw)
        with pytest.raises(ModelError, match="cannot be read"):
            load_weights(tmp_path)


@pytest.mark.parametrize(
    ("spatial_dims", "sigma", "gain"),
    [(2, 0.05, 3.5), (2, 0.1, 6.0), (2, 0.2, 8.5), (3, 0.05, 10.8), (3, 0.1, 13.1), (3, 0.2, 15.45)],
)
def test_they_denoise(spatial_dims: int, sigma: float, gain: float) -> None:
    """By so many dB on the mean of some textured and some flat images; a weaker model does not belong in the box."""
    gains = []
    for seed in range(777, 781):
        noisy, clean = noisy_phantom(spatial_dims, sigma, seed)
        gains.append(psnr(adl_monai.denoise(noisy), clean) - psnr(noisy, clean))
    assert min(gains) > 1
    assert np.mean(gains) > gain


@pytest.mark.parametrize(
    ("spatial_dims", "kind", "sigma", "gain"),
    [
        (2, "correlated", 0.05, 4.9),
        (2, "correlated", 0.1, 6.6),
        (2, "correlated", 0.2, 8.3),
        (2, "correlated_rician", 0.1, 6.8),
        (2, "nonstationary", 0.05, 4.2),
        (2, "nonstationary", 0.1, 5.8),
        (2, "nonstationary", 0.2, 7.6),
        (2, "nonstationary_rician", 0.1, 5.9),
        (3, "correlated", 0.05, 8.7),
        (3, "correlated", 0.1, 10.55),
        (3, "correlated", 0.2, 12.65),
        (3, "correlated_rician", 0.05, 9.9),
        (3, "correlated_rician", 0.1, 11.9),
        (3, "correlated_rician", 0.2, 13.65),
        (3, "nonstationary", 0.05, 7.25),
        (3, "nonstationary", 0.1, 8.4),
        (3, "nonstationary", 0.2, 10.1),
        (3, "nonstationary_rician", 0.05, 8.95),
        (3, "nonstationary_rician", 0.1, 10.4),
        (3, "nonstationary_rician", 0.2, 11.9),
    ],
)
def test_they_remove_noise_that_neighbours_share(spatial_dims: int, kind: str, sigma: float, gain: float) -> None:
    """As scans carry it that were interpolated or smoothed; each seed has a spectrum of its own."""
    gains = []
    for seed in range(777, 785):
        clean = phantom(spatial_dims, seed)
        noisy = Degradation(kind, sigma, seed).apply(torch.from_numpy(clean).float()[None])[0].numpy()
        gains.append(psnr(adl_monai.denoise(noisy), clean) - psnr(noisy, clean))
    assert min(gains) > (1 if spatial_dims == 3 else 0.3)  # faint noise on a textured image
    assert np.mean(gains) > gain


@pytest.mark.parametrize(("spatial_dims", "line", "cubes"), [(2, 0.95, 0.7), (3, 0.83, 0.72)])
def test_thin_lines_and_small_structures_stay(spatial_dims: int, line: float, cubes: float) -> None:
    """The share of their height that is left: lines one voxel across at 8 times the noise, cubes of two at 5 times."""
    index = np.indices((96, 96) if spatial_dims == 2 else (60, 60, 60))
    step, sigma = 12, 0.03
    inner = ((index >= step) & (index < index.shape[1] - step)).all(axis=0)
    background = 0.5 + 0.1 * np.sin(index.sum(axis=0) / 20)
    noise = np.random.default_rng(3).normal(0, sigma, background.shape)
    for mask, height, least in (
        (inner & (index[1:] % step == 0).all(axis=0), 8 * sigma, line),
        (inner & (index % step < 2).all(axis=0), 5 * sigma, cubes),
    ):
        noisy = (background + height * mask + noise).astype(np.float32)
        left = (adl_monai.denoise(noisy) - background)[mask].mean() / height
        assert least < left < 1.1


@DIMS
def test_noise_of_pet_and_of_clipped_ct_is_removed_too(spatial_dims: int) -> None:
    """What no noise surrounds, or noise that is cut off, shows the network regions that look clean."""
    places = np.meshgrid(*(np.arange(size) - (size - 1) / 2 for size in (64, 64, 32)), indexing="ij")
    radius = np.hypot(places[0] / 24, places[1] / 20)
    body, inside = radius < 1, radius < 0.8
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.standard_normal(body.shape), 0.8)
    scans = {
        "PET, 1 count a voxel": gaussian_filter(rng.poisson(1.0 * body).astype(float), 0.8),
        "PET, 10 counts a voxel": gaussian_filter(rng.poisson(10.0 * body).astype(float), 0.8),
        "CT": np.clip(1040.0 * body - 1000 + 60 * smooth / smooth.std(), -1024, None),
    }
    bounds = {"PET, 1 count a voxel": 0.5, "PET, 10 counts a voxel": 0.33, "CT": 0.4}
    for name, scan in scans.items():
        denoised = adl_monai.denoise(scan.astype(np.float32), f"adl{spatial_dims}d", noise_floor="keep")
        assert denoised[inside].std() < bounds[name] * scan[inside].std(), name


@DIMS
def test_every_scale_of_the_network_is_at_work(spatial_dims: int) -> None:
    """With dead or exploded stages a network still denoises, but less well, and sees no farther than its first ones."""
    denoiser = load_denoiser(f"adl{spatial_dims}d", precision="fp32")
    noisy = torch.from_numpy(noisy_phantom(spatial_dims, 0.1)[0])[None, None]
    sizes: dict[str, float] = {}

    def record(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: sizes.update({name: float(output.square().mean().sqrt())})

    network = denoiser.network
    stages = {f"encoder.{name}": getattr(network.encoder, name) for name in ("encode1", "encode2", "encode3", "bridge")}
    for name, stage in (stages | {name: getattr(network, name) for name in ("decode3", "decode2", "decode1")}).items():
        stage.register_forward_hook(record(name))
    with torch.no_grad():
        before = network(noisy)
        assert all(0.01 < size < 100 for size in sizes.values()), sizes
        centre = tuple(size // 2 for size in noisy.shape[2:])
        noisy[(0, 0, *centre)] += 1
        reached = ((network(noisy) - before).abs() > 1e-6).nonzero()[:, 2:] - torch.tensor(centre)
    assert reached.abs().max() > 16


@DIMS
def test_a_clean_image_stays_as_it_is(spatial_dims: int) -> None:
    clean = phantom(spatial_dims).astype(np.float32)
    assert psnr(adl_monai.denoise(clean), clean) > 45


@DIMS
@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.1, 0.2])
def test_flat_regions_keep_their_mean(spatial_dims: int, sigma: float) -> None:
    """Within 0.3 % of the range."""
    image = np.zeros((96, 96) if spatial_dims == 2 else (48, 48, 48))
    image[20:], image[30:, 24:] = 0.6, 1.0
    noisy = (image + np.random.default_rng(1).normal(0, sigma, image.shape)).astype(np.float32)
    denoised = adl_monai.denoise(noisy)
    inner = slice(36, -6) if spatial_dims == 3 else slice(40, -8)
    region = (inner, slice(30, -6)) if spatial_dims == 3 else (inner, slice(34, -8))
    assert abs(float((denoised - image)[region].mean())) < 0.003 + 3 * sigma / np.sqrt(image[region].size)


@DIMS
def test_any_scale_and_offset_gives_the_same_relative_result(spatial_dims: int) -> None:
    noisy, _ = noisy_phantom(spatial_dims, 0.1)
    for precision, worst, typical in (("fp32", 2e-4, 1e-5), ("auto", 0.03, 0.001)):
        plain = adl_monai.denoise(noisy, precision=precision)
        for scale, offset in ((1000.0, 500.0), (2000.0, -1000.0), (0.001, 0.0)):
            other = adl_monai.denoise((noisy * scale + offset).astype(np.float32), precision=precision)
            difference = (other - offset) / scale - plain
            assert np.abs(difference).max() < worst
            assert np.sqrt(np.mean(difference**2)) < typical


def test_volumes_get_the_3d_model_and_images_the_2d_model(tmp_path: Path) -> None:
    volume = (noisy_phantom(3, 0.1)[0] * 200 + 100).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "volume.nii.gz")
    Image.fromarray(np.clip(noisy_phantom(2, 0.1)[0] * 200, 0, 255).astype(np.uint8)).save(tmp_path / "image.png")
    infer([tmp_path / "image.png", tmp_path / "volume.nii.gz"], tmp_path / "by_default")
    infer([tmp_path / "image.png"], tmp_path / "by_name", model="adl2d")
    infer([tmp_path / "volume.nii.gz"], tmp_path / "by_name", model="adl3d")
    for name in ("image_denoised.png", "volume_denoised.nii.gz"):
        assert (tmp_path / "by_default" / name).read_bytes() == (tmp_path / "by_name" / name).read_bytes()
    with pytest.raises(ModelError, match="2D"):
        infer([tmp_path / "image.png"], tmp_path / "wrong", model="adl3d")


def test_evaluate_takes_the_model_of_the_images_kind(tmp_path: Path) -> None:
    for shape in ((64, 64), (24, 24, 24)):
        (tmp_path / "manifest.json").write_text(json.dumps(generated_manifest(shape)))
        rows = evaluate(tmp_path / "manifest.json", tmp_path / "metrics.json", overwrite=True)
        assert rows[-1]["psnr"] > rows[-1]["psnr_noisy"]
        recorded = json.loads((tmp_path / "metrics.json").read_text())["model"]
        assert recorded == str(find_bundle(f"adl{len(shape)}d"))
    (tmp_path / "manifest.json").write_text(json.dumps(generated_manifest((64, 64))))
    with pytest.raises(ModelError, match="2D model"):
        evaluate(tmp_path / "manifest.json", tmp_path / "metrics.json", model="adl3d", overwrite=True)


def test_the_ensemble_is_better(tmp_path: Path) -> None:
    noisy, clean = noisy_phantom(3, 0.1)
    results = [psnr(adl_monai.denoise(noisy, ensemble=count), clean) for count in (1, 2, 4, 8)]
    assert results == sorted(results)
    assert results[-1] > results[0] + 0.1


def test_the_command_line_takes_the_size_of_the_ensemble(tmp_path: Path) -> None:
    noisy = noisy_phantom(3, 0.1)[0]
    scan = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(noisy, np.eye(4)), scan)
    outputs = []
    for count in (1, 4):
        result = CliRunner().invoke(
            cli, ["infer", str(scan), "-o", str(tmp_path / f"{count}.nii"), "--ensemble", f"{count}"]
        )
        assert result.exit_code == 0, result.output
        outputs.append(np.asarray(nib.load(tmp_path / f"{count}.nii").dataobj))
        np.testing.assert_allclose(outputs[-1], adl_monai.denoise(noisy, ensemble=count), atol=1e-3)
    assert np.abs(outputs[0] - outputs[1]).max() > 0.01
    result = CliRunner().invoke(cli, ["infer", str(scan), "-o", str(tmp_path / "none.nii"), "--ensemble", "3"])
    assert result.exit_code == 2
    assert "'1', '2', '4', '8'" in result.output


@DIMS
def test_their_network_is_that_of_the_release_preset(spatial_dims: int) -> None:
    configs = shipped_bundle(spatial_dims) / "configs"
    train, release, run = (
        json.loads((configs / f"{name}.json").read_text()) for name in ("train", "release", "inference")
    )
    trained = {**train["network_def"], "multi_scale": False}
    assert run["network_def"] == {**trained, "filters": release.get("network_def#filters", trained["filters"])}


def test_training_starts_from_a_model(manifest: Path, tmp_path: Path) -> None:
    one_step = {"max_epochs": 1, "patches_per_epoch": 4, "learning_rate": 1e-9, "loss#adversarial": 0.0}
    options = {key: value for key, value in TINY.items() if not key.startswith(("network_def", "phases"))}
    train(manifest, tmp_path / "run", init="adl3d", overrides={**options, **one_step})
    tuned = load_weights(tmp_path / "run" / "bundle")
    for name, value in load_weights(shipped_bundle(3)).items():
        torch.testing.assert_close(tuned[name], value, atol=1e-6, rtol=0)
    metadata = json.loads((tmp_path / "run" / "bundle" / "configs" / "metadata.json").read_text())
    assert "weights_sha256" not in metadata
    assert not (tmp_path / "run" / "bundle" / "docs" / "model_card.md").exists()
    load_denoiser(tmp_path / "run")
    # And from a run of one's own, whose network comes along; the other dimension is refused.
    train(manifest, tmp_path / "small", overrides=TINY)
    train(manifest, tmp_path / "again", init=tmp_path / "small", overrides={**options, **one_step})
    for name, value in load_weights(tmp_path / "small" / "bundle").items():
        torch.testing.assert_close(load_weights(tmp_path / "again" / "bundle")[name], value, atol=1e-6, rtol=0)
    # A wider network grows from it; a narrower one is refused.
    wider = {**options, **one_step, "network_def#filters": [40, 64, 96, 128]}
    train(manifest, tmp_path / "grown", init="adl3d", overrides=wider)
    noisy = noisy_phantom(3, 0.1)[0]
    grown = adl_monai.denoise(noisy, tmp_path / "grown", precision="fp32")
    np.testing.assert_allclose(grown, adl_monai.denoise(noisy, precision="fp32"), atol=1e-4)
    # Or what it was is held, in further runs too; what has not grown from it cannot hold it.
    held = {key: value for key, value in wider.items() if key != "learning_rate"}  # that of a fresh network
    train(manifest, tmp_path / "held", hold="adl3d", overrides=held)
    assert "learning_rate" not in json.loads((tmp_path / "held" / "options.json").read_text())["overrides"]
    further = {key: value for key, value in held.items() if key != "network_def#filters"}
    train(manifest, tmp_path / "further", hold="adl3d", init=tmp_path / "held", overrides=further)
    before, once, twice = map(
        load_weights, (shipped_bundle(3), *(tmp_path / run / "bundle" for run in ("held", "further")))
    )
    for name in (name for name in before if name.startswith(("encoder.", "head1."))):
        for after in (once, twice):
            kept = after[name][tuple(map(slice, before[name].shape))]
            torch.testing.assert_close(kept, before[name].float(), atol=0, rtol=0)
    new = slice(before["head1.project.weight"].shape[1], None)
    assert (once["head1.project.weight"][:, new] != 0).any()
    assert (once["head1.project.weight"][:, new] != twice["head1.project.weight"][:, new]).any()
    with pytest.raises(ModelError, match="does not hold what"):
        train(manifest, tmp_path / "stranger", hold=tmp_path / "small", init="adl3d", overrides=further)
    with pytest.raises(ModelError, match="no new channel"):
        train(manifest, tmp_path / "nothing", hold="adl3d", overrides=further)
    with pytest.raises(ModelError, match="shrink"):
        train(manifest, tmp_path / "narrow", init="adl3d", overrides={**wider, "network_def#filters": [8, 16, 24, 32]})
    with pytest.raises(UsageError, match="not 3D"):
        train(manifest, tmp_path / "wrong", init="adl2d", overrides=options)
    assert not (tmp_path / "wrong").exists()


def test_training_learns_from_models(manifest: Path, tmp_path: Path) -> None:
    train(manifest, tmp_path / "small", overrides=TINY)
    models = ["adl3d", tmp_path / "small"]  # each with a network of its own
    train(manifest, tmp_path / "taught", teachers=models, overrides={**TINY, "teacher_share": 1.0})
    taught, alone = (load_weights(tmp_path / run / "bundle") for run in ("taught", "small"))
    assert any((taught[name] != value).any() for name, value in alone.items())
    # A run that goes on may have another teacher.
    train(manifest, tmp_path / "taught", teachers=["adl3d"], resume=True, overrides={"max_epochs": 4})
    options = json.loads((tmp_path / "taught" / "options.json").read_text())
    assert [model["weights"] for model in options["overrides"]["teachers"]] == [
        str(shipped_bundle(3) / "models" / "model.pt")
    ]
    with pytest.raises(UsageError, match="share of a label is 2"):
        train(manifest, tmp_path / "more", teachers=models, overrides={**TINY, "teacher_share": 2})
    with pytest.raises(UsageError, match="not 3D"):
        train(manifest, tmp_path / "wrong", teachers=["adl2d"], overrides=TINY)
    with pytest.raises(ModelError, match="neither a shipped model"):
        train(manifest, tmp_path / "wrong", teachers=["none"], overrides=TINY)
    assert not (tmp_path / "wrong").exists()


def test_names_of_the_shipped_models() -> None:
    assert list(shipped_bundles()) == ["adl2d", "adl3d"]
    assert find_bundle(None) == find_bundle("adl3d") == shipped_bundle(3)
    assert find_bundle(None, 2) == find_bundle("adl2d") == shipped_bundle(2)
