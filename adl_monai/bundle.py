"""Find a MONAI bundle, apply overrides, hand out its parts. The only file that knows the bundles' config ids.

A bundle's configs run Python (``$`` expressions, ``_target_`` names). The bundles inside this package are trusted; a
model folder from elsewhere is data: of its ``inference.json`` only plain values are read (network arguments, tile,
percentiles), checked, and laid over the shipped bundle of the same kind. Its weights load with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from adl_monai.bundle_values import check_values, first_line, read_values, refuse_expressions
from adl_monai.errors import ModelError, surfacing_user_errors
from adl_monai.quiet import quiet_libraries

if TYPE_CHECKING:
    import torch
    from monai.bundle import ConfigWorkflow

    from adl_monai.inferers import TiledInferer

WEIGHTS_HASH = "weights_sha256"  # in a shipped bundle's metadata.json
MODEL_CARD = "model_card.md"

_parsing = RLock()
"""Python 3.11 counts how deep it parses for all threads together, and raises a SystemError where the sums differ."""


@dataclass(frozen=True)
class Denoiser:
    """A model ready to denoise: what ``inference.json`` describes, built once."""

    name: str
    spatial_dims: int
    device: torch.device
    network: torch.nn.Module
    inferer: TiledInferer
    preprocessing: Any
    postprocessing: Any
    percentiles: tuple[float, float]
    fixed_range: tuple[float, float] | None = None


def shipped_bundles() -> dict[str, Path]:
    """The bundles inside the package, by name."""
    root = Path(str(resources.files("adl_monai.pipelines")))
    return {path.parent.parent.name: path.parent.parent for path in sorted(root.glob("*/configs/metadata.json"))}


def shipped_bundle(spatial_dims: int) -> Path:
    """The shipped bundle for 2D or 3D networks."""
    return shipped_bundles()[f"adl{spatial_dims}d"]


def find_bundle(model: str | Path | None, spatial_dims: int = 3) -> Path:
    """The folder of a bundle that has weights.

    Args:
        model: The name of a shipped bundle, a bundle folder, a training run's folder, or the ``model.pt`` inside a
            bundle (no other file). None takes the shipped bundle for ``spatial_dims``.
        spatial_dims: Of the image, 2 or 3; only asked when ``model`` is None.

    Raises:
        ModelError: If there is no such bundle, it has no weights, or a file is not a bundle's ``models/model.pt``.
    """
    shipped = shipped_bundles()
    if model is None:
        root = shipped_bundle(spatial_dims)
    elif str(model) in shipped and not Path(model).exists():
        root = shipped[str(model)]
    else:
        path = Path(model).expanduser()
        path = _folder_of_weights(path) if path.is_file() else path.resolve()
        candidates = (path, path / "bundle")
        root = next((c for c in candidates if (c / "configs" / "inference.json").is_file()), path)
        if not (root / "configs" / "inference.json").is_file():
            raise ModelError(
                f"model {str(model)!r} is neither a shipped model ({', '.join(shipped)}) nor a bundle folder, a run "
                "folder or a bundle's models/model.pt: there is no configs/inference.json. Pass the folder that "
                "adl-monai train wrote."
            )
    if not (root / "models" / "model.pt").is_file():
        raise ModelError(f"bundle {root} has no weights (models/model.pt); train it first with adl-monai train.")
    return root


def _folder_of_weights(path: Path) -> Path:
    """The bundle whose ``models/model.pt`` a file is, or a link to or from it.

    Raises:
        ModelError: If it is any other file: the weights that would be used are not those that were named.
    """
    for file in (path.absolute(), path.resolve()):
        weights = file.parent.parent / "models" / "model.pt"
        if weights.is_file() and weights.samefile(path):
            return file.parent.parent.resolve()
    if path.name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz")):
        raise ModelError(f"model {str(path)!r} is an archive; unpack it, and pass the bundle folder that was in it.")
    raise ModelError(
        f"model {str(path)!r} is a file, but not a bundle's models/model.pt; no other is taken. Pass the folder that "
        "adl-monai train wrote, whose best weights are used; for other weights, a copy of its bundle folder with these "
        "as its models/model.pt."
    )


def load_weights(root: Path) -> dict[str, torch.Tensor]:
    """A bundle's weights, as plain tensors; those of a shipped bundle only if they are what was released.

    Weights stored in half precision come back in single precision.

    Raises:
        ModelError: If the file cannot be read as tensors, or a shipped one differs from the SHA-256 in the bundle's
            ``metadata.json``.
    """
    import torch

    path = root / "models" / "model.pt"
    try:
        raw = path.read_bytes()
        if root in shipped_bundles().values():
            metadata = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))
            if hashlib.sha256(raw).hexdigest() != metadata[WEIGHTS_HASH]:
                raise ModelError(f"weights {path} are not the released ones (SHA-256 differs); install adl_monai anew.")
        weights: dict[str, torch.Tensor] = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
            raise ModelError(f"weights {path} are not a dictionary of tensors; pass a bundle's models/model.pt.")
        weights = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    except ModelError:
        raise
    except Exception as error:  # of many kinds, as many as ways to damage a file
        raise ModelError(f"weights {path} cannot be read ({first_line(error)}); train or install anew.") from error
    return weights


def open_workflow(root: Path, configs: tuple[str, ...], kind: str, overrides: Mapping[str, Any]) -> ConfigWorkflow:
    """A trusted bundle's workflow, with overrides, not yet initialised.

    Args:
        root: Bundle folder. Its configs are run as code: pass shipped ones only.
        configs: Config names without suffix; later ones override earlier ones.
        kind: ``train`` or ``infer``.
        overrides: Config ids and their values; strings starting with ``$`` are code here too.
    """
    from monai.bundle import ConfigWorkflow

    folder = root / "configs"
    files = [str(folder / f"{name}.json") for name in configs]
    with quiet_libraries():
        return ConfigWorkflow(
            config_file=files,
            meta_file=str(folder / "metadata.json"),
            logging_file=False,  # type: ignore[arg-type]
            workflow_type=kind,
            bundle_root=str(root),
            **dict(overrides),
        )


def inference_overrides(root: Path) -> tuple[Path, dict[str, Any]]:
    """What to run for a model: a trusted bundle, and the plain values of the model's own config laid over it.

    Raises:
        ModelError: If the config cannot be read, names another network class, holds anything but plain values, or does
            not fit the weights.
    """
    if root in shipped_bundles().values():
        return root, {}
    overrides = read_values(root / "configs" / "inference.json")
    check_values(overrides, load_weights(root), root)
    overrides["checkpoint"] = str(root / "models" / "model.pt")
    return shipped_bundle(overrides["network_def"]["spatial_dims"]), overrides


def network_definition(root: Path) -> dict[str, Any]:
    """The ``network_def`` of a model's ``inference.json``, checked as in ``inference_overrides``."""
    values = inference_overrides(root)[1]
    if not values:  # a shipped one
        values = json.loads((root / "configs" / "inference.json").read_text(encoding="utf-8"))
    return dict(values["network_def"])


def load_denoiser(
    model: str | Path | None, *, spatial_dims: int = 3, device: str = "auto", precision: str = "auto", **values: Any
) -> Denoiser:
    """Build a model's parts from its bundle's ``inference.json`` and load its weights.

    The random numbers, log levels and filters of warnings of the process stay as they are.

    Args:
        model: See ``find_bundle``.
        spatial_dims: See ``find_bundle``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        **values: Further values of ``inference.json`` (``strength``, ``overwrite``, ...).

    Raises:
        ModelError: If there is no such model or its weights do not fit its network.
        UsageError: If an option holds a config expression, or a value that its part refuses.
    """
    import torch

    from adl_monai.data.derivation import model_name

    options = {"device#name": device, "precision": precision, **values}
    refuse_expressions(options)
    root = find_bundle(model, spatial_dims)
    trusted, overrides = inference_overrides(root)
    weights = load_weights(root)
    with _parsing, surfacing_user_errors(), quiet_libraries():
        workflow = open_workflow(trusted, ("inference",), "infer", {**overrides, **options})
        parser = workflow.parser
        workflow.initialize()
        # Shapes only: initial weights would be random numbers, and the caller's own would go on elsewhere after them.
        with torch.device("meta"):
            bare = parser.get_parsed_content("network_def")
        bare.to_empty(device="cpu")
        network = parser.get_parsed_content("network")  # the same, in its place
        lower, upper = parser.get_parsed_content("intensity_percentiles")
        fixed = parser.get_parsed_content("intensity_range")
        parts = {
            name: parser.get_parsed_content(name) for name in ("inferer", "preprocessing", "postprocessing", "device")
        }
        axes = parser.get_parsed_content("network_def#spatial_dims")
    try:
        network.load_state_dict(weights)
    except Exception as error:
        raise ModelError(
            f"the weights of {root} do not load into the bundle's network ({first_line(error)})."
        ) from error
    network.eval()
    return Denoiser(
        name=model_name(root),
        spatial_dims=axes,
        network=network,
        percentiles=(float(lower), float(upper)),
        fixed_range=None if fixed is None else (float(fixed[0]), float(fixed[1])),
        **parts,
    )
