"""The shipped bundles fulfil MONAI's contract, offline, and the command line runs these same files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.scripts import ckpt_export, onnx_export, verify_metadata, verify_net_in_out

from adl_monai.bundle import open_workflow, shipped_bundle, shipped_bundles
from adl_monai.bundle_of_a_run import write_bundle
from adl_monai.errors import UsageError, surfacing_user_errors
from adl_monai.networks import EfficientUNet
from adl_monai.stages.train import train
from tests.conftest import TINY, TINY_2D

SCHEMA = Path(__file__).parent / "schemas" / "bundle_metadata_schema.json"
DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])


def configs(spatial_dims: int) -> Path:
    return shipped_bundle(spatial_dims) / "configs"


def cli_settings(options: dict[str, object]) -> list[str]:
    return [part for key, value in options.items() for part in ("--" + key, str(value).replace(" ", ""))]


def test_both_bundles_are_found_with_their_files() -> None:
    assert list(shipped_bundles()) == ["adl2d", "adl3d"]
    for root in shipped_bundles().values():
        for name in ("LICENSE", "docs/README.md", "docs/data_license.txt"):
            assert (root / name).read_text().strip(), name
        metadata = json.loads((root / "configs" / "metadata.json").read_text())
        assert metadata["version"] in metadata["changelog"]


@DIMS
def test_verify_metadata(spatial_dims: int, tmp_path: Path) -> None:
    # An existing schema file is not downloaded.
    schema = tmp_path / "schema.json"
    schema.write_bytes(SCHEMA.read_bytes())
    verify_metadata(meta_file=str(configs(spatial_dims) / "metadata.json"), filepath=str(schema))
    broken = json.loads((configs(spatial_dims) / "metadata.json").read_text())
    del broken["network_data_format"]
    (tmp_path / "metadata.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="network_data_format"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(schema))


@DIMS
def test_verify_net_in_out(spatial_dims: int) -> None:
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(configs(spatial_dims) / "metadata.json"),
        config_file=str(configs(spatial_dims) / "inference.json"),
        device="cpu",
        n=2,
        p=2,
    )


@DIMS
def test_exports_agree_with_the_network(spatial_dims: int, tmp_path: Path) -> None:
    workflow = open_workflow(shipped_bundle(spatial_dims), ("inference",), "infer", {"device#name": "cpu"})
    workflow.initialize()
    network = workflow.network_def.eval()
    torch.save(network.state_dict(), tmp_path / "model.pt")
    common = {
        "net_id": "network_def",
        "ckpt_file": str(tmp_path / "model.pt"),
        "meta_file": str(configs(spatial_dims) / "metadata.json"),
        "config_file": str(configs(spatial_dims) / "inference.json"),
    }
    noisy = torch.rand(1, 1, *[16] * spatial_dims)
    with torch.no_grad():
        expected = network(noisy)

    ckpt_export(filepath=str(tmp_path / "model.ts"), **common)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "model.ts")(noisy), expected)

    onnx_export(filepath=str(tmp_path / "model.onnx"), input_shape=list(noisy.shape), **common)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (denoised,) = session.run(None, {session.get_inputs()[0].name: noisy.numpy()})
    np.testing.assert_allclose(denoised, expected.numpy(), atol=1e-4)


@DIMS
def test_train_workflow_has_all_properties(spatial_dims: int, manifest: Path, tmp_path: Path) -> None:
    options = TINY if spatial_dims == 3 else TINY_2D
    overrides = {"manifest": str(manifest), "output_dir": str(tmp_path / "run"), **options, "max_epochs": 1}
    workflow = open_workflow(shipped_bundle(spatial_dims), ("train",), "train", overrides)
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    assert workflow.trainer.state.epoch == 1


@DIMS
@pytest.mark.parametrize("names", [("inference",), ("inference", "evaluate")])
def test_infer_workflows_have_all_properties(
    spatial_dims: int, names: tuple[str, ...], manifest: Path, tmp_path: Path
) -> None:
    scan = tmp_path / "data" / "scan.nii.gz"
    scan.parent.mkdir()
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(100, 9, (17, 20, 11)).astype(np.float32), np.eye(4)), scan)
    overrides = {"dataset_dir": str(scan.parent), "output_dir": str(tmp_path / "out"), "device#name": "cpu"}
    if "evaluate" in names:
        overrides["manifest"] = str(manifest)
    workflow = ConfigWorkflow(
        config_file=[str(configs(spatial_dims) / f"{name}.json") for name in names],
        meta_file=str(configs(spatial_dims) / "metadata.json"),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(tmp_path),
        **overrides,
    )
    workflow.initialize()
    (tmp_path / "models").mkdir()
    torch.save(workflow.network_def.state_dict(), tmp_path / "models" / "model.pt")
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()
    if "evaluate" in names:
        assert {"psnr", "psnr_noisy", "ssim", "ssim_noisy"} <= set(workflow.evaluator.state.metrics)
        assert (tmp_path / "out" / "metrics.csv").is_file()
    else:
        assert nib.load(tmp_path / "out" / "scan_denoised.nii.gz").shape == (17, 20, 11)


@DIMS
def test_the_command_line_trains_what_the_bundle_trains(spatial_dims: int, manifest: Path, tmp_path: Path) -> None:
    options = {**(TINY if spatial_dims == 3 else TINY_2D), "seed": 3}
    train(manifest, tmp_path / "ours", spatial_dims=spatial_dims, overrides=options)
    command = [
        *(sys.executable, "-m", "monai.bundle", "run"),
        *("--config_file", str([str(configs(spatial_dims) / f"{name}.json") for name in ("train", "default")])),
        *("--meta_file", str(configs(spatial_dims) / "metadata.json")),
        *("--bundle_root", str(shipped_bundle(spatial_dims))),
        *("--manifest", str(manifest), "--output_dir", str(tmp_path / "theirs")),
        *cli_settings(options),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "INFO: epoch 3/3" in done.stderr, "its logging.conf tells how it goes"
    ours = torch.load(tmp_path / "ours" / "bundle" / "models" / "model.pt", weights_only=True)
    theirs = torch.load(tmp_path / "theirs" / "bundle" / "models" / "model.pt", weights_only=True)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_bundle_writes_what_the_command_line_writes(tmp_path: Path, identity_model, rng) -> None:
    from adl_monai.stages.infer import infer

    model = identity_model(3, 0.3)
    scan = tmp_path / "data" / "scan.nii"
    scan.parent.mkdir()
    nib.save(nib.Nifti1Image(rng.normal(100, 9, (19, 24, 35)).astype(np.float32), np.diag([1, 2, 3, 1])), scan)
    infer([scan], tmp_path / "ours", model=model, precision="fp32")
    command = [
        *(sys.executable, "-m", "monai.bundle", "run"),
        *("--config_file", str(model / "configs" / "inference.json")),
        *("--meta_file", str(model / "configs" / "metadata.json")),
        *("--bundle_root", str(model), "--dataset_dir", str(scan.parent), "--output_dir", str(tmp_path / "theirs")),
        *("--precision", "fp32"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"INFO: wrote {tmp_path / 'theirs' / 'scan_denoised.nii'}" in done.stderr
    ours, theirs = tmp_path / "ours" / "scan_denoised.nii", tmp_path / "theirs" / "scan_denoised.nii"
    assert ours.read_bytes() == theirs.read_bytes()


def test_the_bundle_refuses_a_folder_without_scans(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    overrides = {"dataset_dir": str(tmp_path / "empty"), "output_dir": str(tmp_path / "out"), "device#name": "cpu"}
    workflow = open_workflow(shipped_bundle(3), ("inference",), "infer", overrides)
    workflow.initialize()
    with pytest.raises(UsageError, match="holds no scans"), surfacing_user_errors():
        workflow.run()


@DIMS
def test_constant_scans_come_back_from_any_head(spatial_dims: int, tmp_path: Path) -> None:
    model, folder = tmp_path / "model", tmp_path / "data"
    arguments = {"spatial_dims": spatial_dims, "filters": [4, 4, 4, 4], "norm": None, "head": "sigmoid"}
    write_bundle(shipped_bundle(spatial_dims), model, {"_target_": "adl_monai.networks.EfficientUNet", **arguments}, {})
    torch.save(EfficientUNet(**arguments).state_dict(), model / "models" / "model.pt")
    folder.mkdir()
    for level in (7, 9):
        flat = np.full((16, 16, 8), level, np.float32)
        nib.save(nib.Nifti1Image(flat, np.eye(4)), folder / f"flat{level}.nii")
    for size in (1, 2):
        overrides = {"dataset_dir": str(folder), "output_dir": str(tmp_path / f"out{size}"), "device#name": "cpu"}
        workflow = open_workflow(model, ("inference",), "infer", {**overrides, "dataloader#batch_size": size})
        workflow.initialize()
        workflow.run()
        for level in (7, 9):
            assert (nib.load(tmp_path / f"out{size}" / f"flat{level}_denoised.nii").get_fdata() == level).all()


@DIMS
def test_batches_of_scans_keep_their_geometry(spatial_dims: int, tmp_path: Path, identity_model, rng) -> None:
    model = identity_model(spatial_dims, 0.3)
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(3):
        voxels = rng.normal(100 * index, 9, (16, 16, 8)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.diag([1 + index, 2, 3, 1])), folder / f"scan{index}.nii")
    for size in (1, 2):
        overrides = {"dataset_dir": str(folder), "output_dir": str(tmp_path / f"out{size}"), "device#name": "cpu"}
        overrides |= {"precision": "fp32", "dataloader#batch_size": size}
        workflow = open_workflow(model, ("inference",), "infer", overrides)
        workflow.initialize()
        workflow.run()
    for index in range(3):
        one, two = (nib.load(tmp_path / f"out{size}" / f"scan{index}_denoised.nii") for size in (1, 2))
        np.testing.assert_allclose(one.get_fdata(), two.get_fdata(), rtol=1e-5)
        np.testing.assert_array_equal(two.affine, np.diag([1 + index, 2, 3, 1]))


@DIMS
def test_batches_are_validated(spatial_dims: int, manifest: Path, tmp_path: Path) -> None:
    cases = {"synthetic": {"kind": "leaves", "shape": [24, 24, 24], "count": 3, "seed": 100}}
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "validation": [cases]}))
    figures = []
    for size in (1, 2):
        options = {**(TINY if spatial_dims == 3 else TINY_2D), "max_epochs": 1, "validate#dataloader#batch_size": size}
        result = train(manifest, tmp_path / f"run{size}", spatial_dims=spatial_dims, overrides=options)
        figures.append(result.metrics)
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)


@DIMS
@pytest.mark.parametrize(
    ("changed", "unused"),
    [
        ({}, False),
        ({"loss#scale_weights": [1.0, 0.1, 0.0]}, True),
        ({"network_def#multi_scale": False}, True),
        (
            {"network_def": {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": 3}},
            False,
        ),
    ],
    ids=["all scales", "loss of two scales", "network of one scale", "another network"],
)
def test_processes_look_for_unused_parameters_where_there_are(
    spatial_dims: int, changed: dict[str, Any], unused: bool
) -> None:
    configs = shipped_bundle(spatial_dims) / "configs"
    parser = ConfigParser()
    parser.read_config([str(configs / f"{name}.json") for name in ("train", "default", "multi_gpu_train")])
    parser.update(changed)
    assert parser.get_parsed_content("network#find_unused_parameters") is unused


@pytest.mark.parametrize(
    "changed",
    [{}, {"loss#scale_weights": [1.0, 0.0, 0.0]}, {"network_def#multi_scale": False}],
    ids=["all scales", "loss of one scale", "network of one scale"],
)
def test_two_processes_train_together(manifest: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    values = {**TINY, **changed}
    options = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
        *("-m", "adl_monai", "train", str(manifest), "-o", str(tmp_path / "run"), "--device", "auto", *options),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("3 epochs") == 1, "only the first process reports"
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert state["epoch"] == 3
    # 8 patches per epoch in batches of 4 make two iterations in one process, one in two.
    assert state["iteration"] == 3
    assert (tmp_path / "run" / "bundle" / "models" / "model.pt").is_file()
