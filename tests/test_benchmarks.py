"""What the comparison with other denoisers rests on."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from adl_monai.bundle import shipped_bundle
from adl_monai.data.noise import KINDS
from adl_monai.data.noise_field import level_map, random_transfer
from adl_monai.inferers.unet_stream import can_roll
from adl_monai.networks.efficient_unet import EfficientUNet
from tests.conftest import TINY, generated_manifest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import folder_manifest
import loader
import network_variants
import peers
import phantoms
import quality
import reference_noise
import scanner_noise
import small_structures
import thick_slices
from peers import without_rician_bias


@pytest.mark.parametrize("sigma", [0.01, 0.1])
def test_the_mean_of_rician_noise_is_mapped_back_to_the_clean_value(sigma: float) -> None:
    rng = np.random.default_rng(0)
    for clean in (0.5 * sigma, 2 * sigma, 10 * sigma, 1.0):
        real, imaginary = rng.normal(0, sigma, (2, 400_000))
        mean = np.mean(np.hypot(clean + real, imaginary))
        assert without_rician_bias(np.array([mean]), sigma)[0] == pytest.approx(clean, abs=0.02 * sigma + 1e-4 * clean)
    assert without_rician_bias(np.array([0.0]), sigma)[0] == 0.0


def quality_options(tmp_path: Path, **options: Any) -> argparse.Namespace:
    """What ``quality.run`` takes, for generated volumes of 32³."""
    (tmp_path / "manifest.json").write_text(json.dumps(generated_manifest((32, 32, 32))))
    defaults: dict[str, Any] = {"manifest": str(tmp_path / "manifest.json"), "split": "test", "output": tmp_path}
    defaults |= {"model": [], "ensemble": [1], "peers": None, "crop": 32, "range": None, "seed": 0}
    return argparse.Namespace(**{**defaults, "device": "cpu", "precision": "fp32", **options})


def test_every_method_gets_the_same_noisy_image_and_a_line_in_the_table(tmp_path: Path) -> None:
    options = quality_options(
        tmp_path, model=["adl3d"], ensemble=[1, 2], peers=["TV"], noise=["gaussian:25/255", "rician:5/100"], crop=24
    )
    results = quality.run(options)
    rows = results["rows"]
    assert len(rows) == 2 * 2 * 4
    assert {row["method"] for row in rows} == {"noisy", "TV", "adl3d", "adl3d, 2 mirror images"}
    for case, level in {(row["case"], row["level"]) for row in rows}:
        psnr = {row["method"]: row["psnr"] for row in rows if (row["case"], row["level"]) == (case, level)}
        assert min(psnr["adl3d, 2 mirror images"], psnr["adl3d"]) > psnr["noisy"]
        if level == "25/255":  # at the other one, total variation flattens more texture than noise
            assert psnr["TV"] > psnr["noisy"]
    noisy = [row for row in rows if row["method"] == "noisy" and row["noise"] == "gaussian"]
    assert all(abs(row["psnr"] - 20.17) < 0.2 for row in noisy)
    assert all(abs(row["flat_bias"]) < 0.01 for row in noisy)
    lines = quality.table(rows).splitlines()
    assert len(lines) == 2 + 2 + 1
    assert "adl3d" in lines[0]


def test_models_see_grey_values_where_the_range_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    monkeypatch.setattr(quality, "denoise", lambda noisy, model: seen.append(noisy) or noisy)
    options = quality_options(tmp_path, model=["adl3d"], peers=[], noise=["gaussian:25/255"], range=255.0)
    rows = quality.run(options)["rows"]
    (_, clean), *_ = quality.clean_images(options.manifest, "test", 32, 255.0)
    assert np.std(seen[0] - 255 * clean) == pytest.approx(25, rel=0.02)
    noisy, model = rows[:2]
    assert model["psnr"] == pytest.approx(noisy["psnr"], abs=1e-4)


def test_correlated_noise_is_told_by_its_spectrum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, list[Any]] = {"BM4D": [], "TV": []}

    def spy(peer: str) -> quality.Method:
        def method(noisy: np.ndarray, known: Any) -> np.ndarray:
            told[peer].append((noisy, known))
            return noisy

        return method

    monkeypatch.setattr(quality, "PEERS", {peer: ((3,), spy(peer)) for peer in told})
    options = quality_options(tmp_path, noise=["gaussian:0.1", "correlated:0.1", "correlated_rician:0.1"])
    rows = quality.run(options)["rows"]
    clean = [array for _, array in quality.clean_images(options.manifest, "test", 32, None)]
    assert [known for _, known in told["TV"]] == [0.1, 0.1, 0.1] * len(clean)
    for index, array in enumerate(clean):
        (_, white), (noisy, spectrum), (magnitude, same) = told["BM4D"][3 * index : 3 * index + 3]
        assert white == 0.1
        np.testing.assert_array_equal(same, spectrum)
        inside = spectrum > spectrum.max() * 1e-6
        power = np.abs(np.fft.fftn(noisy - array)) ** 2
        assert np.mean(power[inside] / spectrum[inside]) == pytest.approx(1, abs=0.05)
        assert spectrum.sum() / array.size**2 == pytest.approx(0.01, rel=1e-3)
        unbiased = peers.without_rician_bias(magnitude, 0.1)
        (row,) = [
            r for r in rows[9 * index : 9 * index + 9] if (r["noise"], r["method"]) == ("correlated_rician", "TV")
        ]
        assert row["psnr"] == pytest.approx(-10 * np.log10(np.mean((unbiased - array) ** 2)), abs=1e-3)


@pytest.mark.parametrize("kind", ["nonstationary", "nonstationary_rician"])
def test_the_spectrum_of_nonstationary_noise_is_told_whatever_its_level_is_where(kind: str) -> None:
    degradation = quality.Degradation(kind, 0.1, 5)
    bright = torch.full((500, 24, 32), 20.0)  # so that a magnitude shows its real channel
    numbers = torch.Generator().manual_seed(5)
    random_transfer((24, 32), numbers)
    constant = level_map((24, 32), numbers)
    noise = (degradation.apply(bright) - bright) / constant
    power = torch.fft.fft2(noise).abs().square().mean(0).double().numpy()
    told = quality.power_spectrum(degradation, (24, 32))
    signal = power.mean() / told.mean()  # of noise that rises with it
    np.testing.assert_allclose(power / signal, told, rtol=0.25, atol=1e-3 * told.max())
    assert kind == "nonstationary" or signal == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("name", scanner_noise.SCANNERS)
def test_simulated_scanners_make_noise_of_the_level_and_the_spectrum_that_are_told(name: str) -> None:
    shape = (24, 20, 16)
    add = scanner_noise.add_noise(name, rician=name != "ct")
    bright = torch.full((1, *shape), 20.0)
    for seed in (3, 4):
        noise = (add(bright, 0.1, torch.Generator().manual_seed(seed)) - bright)[0].double().numpy()
        again = (add(bright, 0.1, torch.Generator().manual_seed(seed)) - bright)[0].double().numpy()
        np.testing.assert_array_equal(noise, again)
        assert np.sqrt(np.mean(noise**2)) == pytest.approx(0.1, rel=0.12)
        spectrum = scanner_noise.transfer(name, shape, torch.Generator().manual_seed(seed)).numpy() ** 2
        assert spectrum.mean() == pytest.approx(1)
        power = np.abs(np.fft.fftn(noise)) ** 2 / noise.size / 0.1**2
        assert spectrum.std() > 0.3, "not white"
        loud = spectrum > np.quantile(spectrum, 0.7)
        assert power[loud].mean() == pytest.approx(spectrum[loud].mean(), rel=0.2)
        assert power[~loud].mean() == pytest.approx(spectrum[~loud].mean(), rel=0.2, abs=0.05)
        other = (add(bright, 0.1, torch.Generator().manual_seed(seed + 9)) - bright)[0].numpy()
        assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.1


def test_noise_of_scanners_is_known_to_no_other_program(tmp_path: Path) -> None:
    assert not {"ct", "resampled_rician", "sense_rician"} & KINDS.keys()
    options = quality_options(tmp_path, noise=[])
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import quality, scanner_noise\n"
        "quality.plot = lambda rows, path: None  # needs matplotlib\n"
        "scanner_noise.main()"
    )
    arguments = [str(Path(scanner_noise.__file__).parent), str(options.manifest), "-o", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--crop", "16", "--peers"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out" / "quality.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:-1]] == [
        f"| {spec.replace(':', ' ')}" for spec in scanner_noise.NOISE
    ]


def test_slices_have_the_mean_of_a_volumes_spectrum(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setitem(sys.modules, "bm3d", SimpleNamespace(bm3d=lambda image, sigma: told.append(sigma) or image))
    degradation = quality.Degradation("correlated", 0.1, 5)
    noise = degradation.apply(torch.zeros(1, 24, 20, 400))[0].double().numpy()
    spectrum = quality.power_spectrum(degradation, noise.shape)
    peers.bm3d(noise, spectrum)
    power = np.mean(np.abs(np.fft.fft2(noise, axes=(0, 1))) ** 2, axis=-1)
    inside = told[0] > 0.01 * told[0].max()
    assert np.mean(power[inside] / told[0][inside]) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("peer, shape", [("BM3D", (40, 48)), ("BM4D", (24, 20, 16))])
def test_the_packages_of_the_peers_take_a_spectrum(peer: str, shape: tuple[int, ...]) -> None:
    """The real ones, where they are installed, each first in its process: one must not rest on what the other did."""
    pytest.importorskip(peer.lower())
    code = (
        "import sys, numpy, torch; sys.path.insert(0, sys.argv[1]); import peers, quality\n"
        f"noise = quality.Degradation('correlated', 0.1, 5); spectrum = quality.power_spectrum(noise, {shape})\n"
        f"noisy = noise.apply(torch.zeros(1, *{shape}))[0].numpy()\n"
        f"assert peers.PEERS[{peer!r}][1](noisy, spectrum).std() < 0.5 * noisy.std()"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(peers.__file__).parent)], check=True)


@pytest.mark.parametrize(
    "spec, sigma", [("gaussian:25/255", 25 / 255), ("gaussian:2.5/255", 2.5 / 255), ("rician:0.05", 0.05)]
)
def test_noise_is_a_kind_and_a_level(spec: str, sigma: float) -> None:
    assert quality.parse_noise(spec) == (*spec.split(":"), sigma)
    assert quality.checked_noise(spec) == spec


@pytest.mark.parametrize("spec", ["gaussian", "gaussian:", "gaussian:1/0", "gaussian:x/255", "gaussian:-1", "gaus:0.1"])
def test_other_noise_is_refused_before_anything_is_measured(spec: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not kind:level"):
        quality.checked_noise(spec)


@pytest.mark.parametrize("shape", [(96, 80), (48, 40, 32)])
def test_the_level_of_a_references_own_noise_is_found_beside_shading_and_edges(shape: tuple[int, ...]) -> None:
    places = np.meshgrid(*(np.linspace(0, 1, size) for size in shape), indexing="ij")
    image = 0.5 + 0.3 * places[0] ** 2 - 0.2 * places[1]
    image[places[0] < 0.3] = 0.2
    assert reference_noise.high_frequency_level(image) < 1e-4
    for sigma in (0.005, 0.02):
        noise = np.random.default_rng(0).normal(0, sigma, shape)
        assert reference_noise.high_frequency_level(image + noise) == pytest.approx(sigma, rel=0.1)
    with pytest.raises(ValueError, match="no block"):
        reference_noise.high_frequency_level(0.1 * image)


def test_the_level_is_printed_for_each_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(generated_manifest((32, 32, 32))))
    reference_noise.main([str(tmp_path / "manifest.json"), "--split", "test"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("synthetic:") and line.endswith(" %") for line in lines), lines


def test_phantoms_are_what_is_said_of_them() -> None:
    found = {name: (image, measure) for name, image, measure in phantoms.phantoms()}
    body, lesions = phantoms.BODY, phantoms.LESIONS
    assert lesions.sum() == 4 * 27
    assert body[phantoms.NEAR].all()
    for name, truth in (
        ("SPECT, 2 a voxel: sum", 2.0 * body),
        ("PET, 10 counts a voxel: sum", 10.0 * body),
        ("lesions: sum", 20.0 * (body + 2 * lesions)),
        ("lesions: peaks", 20.0 * (body + 2 * lesions)),
        ("nothing but counts, 1.5 a voxel: sum", np.full(body.shape, 1.5)),
    ):
        image, measure = found[name]
        assert measure(truth) == pytest.approx(1)
        assert measure(0.5 * truth) < 0.6
        assert image.mean() == pytest.approx(truth.mean(), rel=0.02)
    assert found["PET, 1 count a voxel: deviation"][1](1.0 * body) == 0
    lungs, mean = found["CT, lungs of -950 HU: mean"]
    assert lungs.min() == -1024
    assert -949 < mean(lungs) < -944  # what is cut off lifts it
    for name, level in (
        ("CT, {} noise of 20 HU", 20),
        ("CT, {} noise of 150 HU", 150),
        ("flat block, {} noise of 1", 1),
    ):
        for kind in ("white", "shared"):
            block, deviation = found[f"{name.format(kind)}: deviation"]
            assert deviation(block) == pytest.approx(level, rel=0.05)


def test_phantoms_are_measured_with_and_without_their_means(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(phantoms, "phantoms", lambda: [("mean", np.full((16, 16, 16), 2.0), np.mean)])
    monkeypatch.setattr(phantoms, "load_denoiser", lambda *_, **__: None)
    monkeypatch.setattr(phantoms, "denoise", lambda image, _, noise_floor: image - (noise_floor == "remove"))
    phantoms.main([])
    assert capsys.readouterr().out.splitlines()[-1] == "| mean | 2 | 1 | 2 |"


def test_thick_slices_are_means_and_interpolation_keeps_what_was_there() -> None:
    volume = np.random.default_rng(0).random((16, 12, 11)).astype(np.float32)
    groups = thick_slices.thick(volume, 3, gap=False)
    np.testing.assert_allclose(groups[..., 0], volume[..., 1:4].mean(-1), rtol=1e-6)
    np.testing.assert_array_equal(thick_slices.thick(volume, 3, gap=True)[..., 2], volume[..., 7])
    smooth = 3 + np.sin(2 * np.pi * np.arange(16) / 16)[:, None, None] * np.ones((16, 12, 2), np.float32)
    larger = thick_slices.zero_filled(smooth, 2)
    assert larger.shape == (32, 24, 2)
    np.testing.assert_allclose(larger[::2, ::2], smooth, atol=1e-5)
    np.testing.assert_allclose(larger[:, 0, 0], 3 + np.sin(2 * np.pi * np.arange(32) / 32), atol=1e-5)


def test_thick_slices_are_measured_with_both_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(generated_manifest((32, 32, 32))))
    options = ["--thickness", "2", "4", "--crop", "16", "--zero-fill", "1.5", "--noise", "gaussian:0.1"]
    thick_slices.main([str(tmp_path / "manifest.json"), *options])
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert header == "| voxels | gaussian:0.1 |"
    for row, thickness in zip(rows, ("3", "6"), strict=True):
        name, cell = row.strip("| ").split(" | ")
        of_3d, _, of_2d, difference = cell.split()
        assert name == thickness
        assert float(difference.strip("()")) == pytest.approx(float(of_2d) - float(of_3d), abs=0.011)


def folder_manifest_of(folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, Any]:
    """What ``folder_manifest.py`` writes."""
    monkeypatch.setattr(sys, "argv", ["folder_manifest.py", str(folder), "-o", str(output), *options])
    folder_manifest.main()
    return json.loads(output.read_text())


def test_reduced_copies_are_trained_on_and_belong_to_their_images_subject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    ramp = np.broadcast_to(np.arange(50, 250, 2, dtype=np.uint8), (60, 100))
    for name in ("a.png", "a.tif", "b.png", "c.png"):
        Image.fromarray(np.ascontiguousarray(ramp)).save(pictures / name)
    before = {path: path.read_bytes() for path in pictures.iterdir()}

    manifest = folder_manifest_of(
        pictures, tmp_path / "all.json", monkeypatch, "--validation", "1", "--scales", "0.5", "0.9"
    )

    subjects = [case["patient"] for case in manifest["training"]]
    assert subjects == ["a.tif", "b.png", "c.png"] * 3
    assert [case["patient"] for case in manifest["validation"]] == ["a.png"]
    assert len({case["image"] for case in manifest["training"]}) == 9
    assert {path: path.read_bytes() for path in pictures.iterdir()} == before
    for case, width in zip(manifest["training"], [100] * 3 + [50] * 3 + [90] * 3, strict=True):
        with Image.open(case["image"]) as picture:
            assert picture.size == (width, width * 60 // 100)
            row = np.asarray(picture)[10, 5:-5].astype(float)
        slope = 2 * 100 / width  # grey values a pixel; 50 at the middle of the first pixel of the original
        np.testing.assert_allclose(row, 49 + slope * (np.arange(width)[5:-5] + 0.5), atol=1)


@pytest.mark.parametrize(("name", "scale"), [("a.png", "1.5"), ("a.nii.gz", "0.5")])
def test_what_cannot_be_reduced_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, scale: str
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / name).touch()
    with pytest.raises(SystemExit):
        folder_manifest_of(pictures, tmp_path / "all.json", monkeypatch, "--scales", scale)
    assert list(tmp_path.iterdir()) == [pictures]


def test_the_cost_of_patches_is_set_against_that_of_steps(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(generated_manifest()))
    cost = loader.measure(tmp_path / "manifest.json", 3, "default", 1, TINY)
    assert cost["batch"] > 0
    assert cost["step"] > 0


def test_the_noise_level_is_read_off_the_image() -> None:
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 32).view(1, 1, 32, 1, 1).expand(2, 1, 32, 32, 32)
    levels = torch.tensor([0.03, 0.1]).view(2, 1, 1, 1, 1)
    noisy = ramp + levels * torch.randn(ramp.shape, generator=generator)
    torch.testing.assert_close(network_variants.noise_level(noisy), levels, rtol=0.03, atol=0.0)


@pytest.mark.parametrize("variant", network_variants.VARIANTS.values())
def test_a_variant_has_the_biases_of_the_network(variant: Any) -> None:
    arguments = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "filters": [8, 8, 16, 16], "norm": None}
    arguments |= {"act": "relu", "head": "residual", "content_enhancer": False}

    def biases(network: torch.nn.Module) -> list[str]:
        return [name.removeprefix("inner.") for name, _ in network.named_parameters() if name.endswith("bias")]

    assert biases(variant(**arguments, bias=True)) == biases(EfficientUNet(**arguments, bias=True)) != []


@pytest.mark.parametrize("variant", network_variants.VARIANTS.values())
@pytest.mark.parametrize("dims", [2, 3])
def test_a_variant_gives_what_the_network_gives(variant: Any, dims: int) -> None:
    arguments = {"spatial_dims": dims, "in_channels": 1, "out_channels": 1, "filters": [8, 8, 16, 16], "norm": None}
    network = variant(**arguments, act="relu", head="residual", content_enhancer=False)
    image = torch.rand(2, 1, *[32] * dims)
    assert [scale.shape for scale in network(image)] == [(2, 1, *[size] * dims) for size in (32, 16, 8)]
    network.multi_scale = False
    assert network(image).shape == image.shape
    assert not can_roll(network.eval()), "plane by plane, it would run without what it was exchanged for"


def test_a_variant_takes_the_place_of_the_network(tmp_path: Path) -> None:
    """From training to evaluation, in the command; another command does not know its weights."""
    manifest, run = tmp_path / "manifest.json", tmp_path / "run"
    manifest.write_text(json.dumps(generated_manifest()))
    script = [sys.executable, network_variants.__file__, "level"]
    options = [part for key, value in {**TINY, "max_epochs": 1}.items() for part in ("--set", f"{key}={value}")]
    evaluation: list[Any] = ["evaluate", manifest, "--model", run, "-o", tmp_path / "metrics.json"]
    subprocess.run([*script, "train", manifest, "-o", run, *options], check=True)
    subprocess.run([*script, *evaluation], check=True)
    assert json.loads((tmp_path / "metrics.json").read_text())["rows"]
    result = subprocess.run([sys.executable, "-m", "adl_monai", *evaluation, "--overwrite"], capture_output=True)
    assert b"encode1.conv1.weight" in result.stderr or b"encode1.shortcut.weight" in result.stderr
    assert result.returncode != 0


@pytest.mark.parametrize("dims", [2, 3])
def test_small_structures_are_of_the_size_they_say_and_far_apart(dims: int) -> None:
    found = small_structures.structures(dims)
    for n, name in enumerate(("1 voxel wide", "2 voxels wide", "3 voxels wide"), 1):
        _, count = ndimage.label(found[name])
        assert found[name].sum() == count * n**dims
    for name in ("straight line", "diagonal line"):
        _, count = ndimage.label(found[name], np.ones((3,) * dims))
        assert count > 1
        assert found[name].mean() < 0.05


def test_small_structures_are_measured_beside_a_peer(capsys: pytest.CaptureFixture[str]) -> None:
    model = str(shipped_bundle(2))
    options = ["--model", model, "--precision", "fp32"]
    small_structures.main(["--dims", "2", "--contrast", "30", "--peers", "gaussian filter", *options])
    lines = capsys.readouterr().out.splitlines()
    assert f"| {model} | 30 σ |" in lines
    rows = [line.split("|")[1:3] for line in lines if "voxel" in line]
    kept = [float(value) for _, value in rows]
    assert len(kept) == 6
    assert kept[0] < kept[1]  # the model: a single pixel is hardest
    assert all(abs(value - 1) < 0.1 for value in kept[1:3])
    assert abs(kept[3] - 0.25) < 0.05  # a Gaussian of 0.8 pixels leaves a quarter of a single one
