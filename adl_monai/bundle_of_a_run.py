"""The bundle that a training run leaves: a shipped one's files with the run's network, values and words of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adl_monai.bundle import MODEL_CARD, WEIGHTS_HASH
from adl_monai.bundle_values import with_plain_values

PLACES = (
    *("bundle_root", "dataset_dir", "manifest", "output_dir", "model_path", "cache_dir", "init", "hold", "teachers"),
    *("resume", "device", "progress", "num_workers"),
)
"""Values of a ``train.json`` that belong to the machine it ran on, or to one start of it."""


def write_bundle(
    source: Path,
    target: Path,
    network_def: Mapping[str, Any],
    values: Mapping[str, Any],
    training: Mapping[str, Any] | None = None,
) -> None:
    """Copy a shipped bundle's files, with the network and plain values of one training run.

    What is said of the shipped weights (their figures, hash and model card) is left out, as are the weights.

    Args:
        source: Shipped bundle.
        target: Folder to write; existing config files in it are replaced.
        network_def: Arguments of the trained network, ``_target_`` included.
        values: Of ``PLAIN_KEYS``, those that the run changed.
        training: The run's whole ``train.json``, of which plain values are taken, see ``with_plain_values``.
    """
    for path in source.rglob("*"):
        relative = path.relative_to(source)
        left_out = relative.parts[0] == "models" or path.name == MODEL_CARD or "__pycache__" in relative.parts
        if path.is_file() and not left_out:
            destination = target / relative
            destination.parent.mkdir(parents=True, exist_ok=True)
            destination.write_bytes(path.read_bytes())
    (target / "models").mkdir(parents=True, exist_ok=True)
    path = target / "configs" / "metadata.json"
    metadata = metadata_of_a_run(source)
    if values.get("intensity_range") is not None:
        low, high = values["intensity_range"]
        metadata["image_classes"] = f"one channel, intensities mapped affinely so that {low} and {high} are 0 and 1"
    path.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    for name, text in docs_of_a_run(source).items():
        (target / "docs" / name).write_text(text, encoding="utf-8")
    path = target / "configs" / "default.json"  # which is laid over train.json
    path.write_text(json.dumps({"network_def#filters": list(network_def["filters"])}) + "\n", encoding="utf-8")
    run = _of_any_machine(training or {})
    for name, multi_scale in (("inference", False), ("train", True)):
        path = target / "configs" / f"{name}.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        if name == "train":
            config = with_plain_values(config, run)
        config["network_def"] = {**network_def, "multi_scale": multi_scale}
        config.update({key: value for key, value in values.items() if key in config})
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def metadata_of_a_run(source: Path) -> dict[str, Any]:
    """A shipped bundle's metadata without what is said of its weights."""
    metadata: dict[str, Any] = json.loads((source / "configs" / "metadata.json").read_text(encoding="utf-8"))
    metadata.pop(WEIGHTS_HASH, None)
    metadata.update(
        name=f"{metadata['name']}-run",
        changelog={metadata["version"]: "a run of adl-monai train"},
        authors="whoever trained it",
        copyright=f"{metadata['copyright']} (the configurations)",
        data_source="the scans of the manifest it was trained with",
        eval_metrics={},
    )
    return metadata


def docs_of_a_run(source: Path) -> dict[str, str]:
    """Texts by the names of the shipped ones in ``docs/`` that they replace."""
    docs = {name: (source / "docs" / name).read_text(encoding="utf-8") for name in ("README.md", "data_license.txt")}
    _, section, of_any_model = docs["README.md"].partition("## Input and output")
    return {
        "README.md": _README.format(name=source.name) + section + of_any_model,
        "data_license.txt": _DATA_LICENSE.format(name=source.name) + docs["data_license.txt"],
    }


def _of_any_machine(training: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in JSON's types, without ``PLACES`` and the lists of scans."""
    run: dict[str, Any] = json.loads(json.dumps(dict(training), default=str))
    for part in ("train", "validate"):
        run.get(part, {}).pop("data", None)
    return {key: value for key, value in run.items() if key not in PLACES}


_README = """# A run of adl-monai train

A model of the kind of {name}, with weights of its own. `configs/train.json` holds the values that the run had; not its
paths, nor what was given as an expression, which the run's `options.json` has.

"""

_DATA_LICENSE = """\
These weights carry the terms of the scans that they were trained with. Where they started from a model that ships with
adl_monai, or learned from one, the terms of that model hold as well. Those of {name}:

"""
