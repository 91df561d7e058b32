"""A trained model for other programs: a plain bundle folder, TorchScript, or ONNX, by MONAI's own exporters."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from adl_monai.bundle import find_bundle, inference_overrides, load_weights, network_definition
from adl_monai.bundle_of_a_run import metadata_of_a_run
from adl_monai.bundle_values import read_metadata
from adl_monai.data.output import make_folder_of
from adl_monai.errors import OutputError, UsageError
from adl_monai.quiet import quiet_libraries

SUFFIXES = {"torchscript": ".ts", "onnx": ".onnx"}


def export(model: str | Path, output: str | Path, *, kind: str = "bundle", overwrite: bool = False) -> Path:
    """Write a model in another form.

    Args:
        model: See ``adl_monai.bundle.find_bundle``.
        output: A folder for ``bundle``, a file otherwise.
        kind: ``bundle``, ``torchscript`` or ``onnx`` (needs the packages onnx and onnxscript). Both network files take
            any batch, and sizes that are multiples of 8, and hold the network alone: what ``infer`` does around it
            (intensities, mirror images, blank regions, noise floor) is up to the caller. A TorchScript file holds its
            own name, under which MONAI Deploy looks for its configs: it must not be renamed.
        overwrite: Replace an existing output.

    Returns:
        The path written.
    """
    root = find_bundle(model)
    output = Path(output).resolve()
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists; pass --overwrite to replace it, or another -o.")
    if kind == "bundle":
        return _copy_bundle(root, output)
    if kind not in SUFFIXES:
        raise UsageError(f"export kind {kind!r} is unknown; expected bundle, torchscript or onnx.")
    if output.suffix != SUFFIXES[kind]:
        raise UsageError(f"output {output.name} must end in {SUFFIXES[kind]} for {kind}.")
    if kind == "onnx" and not (find_spec("onnx") and find_spec("onnxscript")):
        raise UsageError("export to ONNX needs the packages onnx and onnxscript; install them with pip.")
    from monai.bundle.scripts import ckpt_export, onnx_export

    load_weights(root)  # refused here, in words
    spatial_dims = network_definition(root)["spatial_dims"]
    make_folder_of(output, "another -o")
    options = _onnx_options(spatial_dims) if kind == "onnx" else {}
    try:
        with TemporaryDirectory(prefix=".tmp.", dir=output.parent) as folder, quiet_libraries(), _quiet_onnx():
            temporary = Path(folder, output.name)  # torch calls the folder inside the file by the file's name
            metadata, config = _describe(root, Path(folder))
            (ckpt_export if kind == "torchscript" else onnx_export)(
                net_id="network_def",
                filepath=str(temporary),
                ckpt_file=str(root / "models" / "model.pt"),
                meta_file=str(metadata),
                config_file=str(config),
                input_shape=[1, 1] + [64] * spatial_dims,
                **options,
            )
            os.replace(temporary, output)
    except OSError as error:
        raise OutputError(f"{output} cannot be written ({error.strerror or error}); choose another place.") from error
    except ImportError as error:
        if kind != "onnx":
            raise
        raise UsageError(
            f"the installed onnx and onnxscript do not fit torch {version('torch')} ({error}); update both (pip "
            "install --upgrade onnx onnxscript)."
        ) from error
    return output


def _describe(root: Path, folder: Path) -> tuple[Path, Path]:
    """Write the metadata and the inference config of a model into a folder, for an exported file to carry along.

    They are the model's own: of a shipped one its files, of one from elsewhere the shipped config with its network and
    plain values, and its metadata.

    Raises:
        ModelError: As ``inference_overrides``; or if the metadata are no JSON object, or hold what would run as code.
    """
    trusted, values = inference_overrides(root)
    path = root / "configs" / "metadata.json"
    if path.is_file():
        metadata = read_metadata(path)
    else:  # it needs none to be run
        metadata = metadata_of_a_run(trusted)
    config = json.loads((trusted / "configs" / "inference.json").read_text(encoding="utf-8"))
    config.update({key: value for key, value in values.items() if key != "checkpoint"})  # a place on this machine
    for name, content in (("metadata", metadata), ("inference", config)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder / "metadata.json", folder / "inference.json"


def _onnx_options(spatial_dims: int) -> dict[str, Any]:
    """What makes MONAI's exporter leave batch and sizes open, and print nothing."""
    sizes = {axis + 2: f"size{axis}" for axis in range(spatial_dims)}
    names = {"input_names": ["noisy"], "output_names": ["denoised"]}
    # Only with use_trace does MONAI hand the others on to torch.
    return {
        "use_trace": True,
        "converter_kwargs": {**names, "dynamic_shapes": ({0: "batch", **sizes},), "verbose": False},
    }


@contextmanager
def _quiet_onnx() -> Iterator[None]:
    """Torch warns of operators of packages that are not installed, which this network has none of.

    And onnxscript 0.6 prints how many patterns it has rewritten, where scripts look for the output's path.
    """
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        exporter.setLevel(level)


def _copy_bundle(root: Path, output: Path) -> Path:
    """Copy the files of a bundle (no links: they may lead anywhere) and only then replace what is there."""
    if root.is_relative_to(output) or output.is_relative_to(root):
        raise OutputError(f"{output} holds the model {root} or lies in it; choose another -o.")
    if output.exists() and not (output / "configs" / "inference.json").is_file():
        raise OutputError(f"{output} exists and is no bundle; --overwrite replaces bundles only. Choose another -o.")
    temporary = output.with_name(f".{output.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(root, temporary, ignore=_left_out)
        if output.exists():
            shutil.rmtree(output)
        os.replace(temporary, output)
    except (OSError, shutil.Error) as error:
        raise OutputError(f"{output} cannot be written ({error}); choose another place.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return output


def _left_out(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name == "__pycache__" or (Path(folder) / name).is_symlink()}
