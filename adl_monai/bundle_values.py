"""Values of bundles and runs from elsewhere: plain data, read and checked here, never run.

MONAI's configs run Python: strings that start with ``$`` are expressions, ``@`` and ``%`` refer and include, and keys
that start with an underscore (``_target_``) name what to call. None of these is taken from a file that is not ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adl_monai.errors import ModelError, UsageError

if TYPE_CHECKING:
    import torch

NETWORK_TARGET = "adl_monai.networks.EfficientUNet"
PLAIN_KEYS = ("tile", "overlap", "intensity_percentiles", "intensity_range")


def read_values(path: Path) -> dict[str, Any]:
    """The network and the ``PLAIN_KEYS`` of a bundle's ``inference.json``, as overrides of a shipped bundle's.

    Raises:
        ModelError: If it cannot be read, names another network class, or holds anything but plain values.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} cannot be read as JSON ({first_line(error)}); pass the folder of a complete bundle."
        ) from error
    network = config.get("network_def", {}) if isinstance(config, dict) else {}
    if not isinstance(network, dict) or network.get("_target_") != NETWORK_TARGET:
        raise ModelError(f"{path}: network_def must name {NETWORK_TARGET}; this program runs no other network.")
    values: dict[str, Any] = {"network_def": {**network, "multi_scale": False}}
    values.update({key: config[key] for key in PLAIN_KEYS if key in config})
    found = find_code(values)
    if found is not None:
        raise ModelError(f"{path} holds {found!r} where only plain values are read; the model is not run.")
    if network.get("spatial_dims") not in (2, 3):
        raise ModelError(f"{path}: network_def#spatial_dims is {network.get('spatial_dims')!r}, expected 2 or 3.")
    return values


def read_metadata(path: Path) -> dict[str, Any]:
    """A bundle's ``metadata.json``, which MONAI's parser can be given.

    Raises:
        ModelError: If it is no JSON object, or holds what the parser would run, reference or include.
    """
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(metadata, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} cannot be read as a JSON object ({first_line(error)}); mend it, or delete it to do without."
        ) from error
    found = find_code(metadata)
    if found is not None:
        raise ModelError(f"{path} holds {found!r} where only plain values are read; write it in another way.")
    return metadata


def check_values(values: Mapping[str, Any], weights: Mapping[str, torch.Tensor], root: Path) -> None:
    """Hold a model's plain values to what can be built, before anything of their size is allocated.

    Raises:
        ModelError: If they describe no network, not that of the weights, or no tiles.
    """
    import torch

    from adl_monai.data.normalization import check_fixed_range
    from adl_monai.inferers import TiledInferer
    from adl_monai.networks import EfficientUNet

    path = root / "configs" / "inference.json"
    arguments = {key: value for key, value in values["network_def"].items() if key != "_target_"}
    try:
        with torch.device("meta"):  # shapes only
            expected = EfficientUNet(**arguments).state_dict()
    except Exception as error:  # of many kinds: the arguments may be anything
        raise ModelError(
            f"{path}: network_def describes no network ({first_line(error)}); pass the folder that adl-monai train "
            "wrote."
        ) from error
    differing = [
        name
        for name in expected.keys() | weights.keys()
        if getattr(weights.get(name), "shape", None) != getattr(expected.get(name), "shape", ())
    ]
    if differing:
        raise ModelError(
            f"the weights of {root} do not load into the bundle's network: {len(differing)} of {len(expected)} tensors "
            f"are missing, too many or of another shape ({min(differing)}); pass the folder that adl-monai train wrote."
        )
    percentiles = values.get("intensity_percentiles", [0.5, 99.5])
    try:
        TiledInferer(arguments["spatial_dims"], values.get("tile", 32), values.get("overlap", 0.25))
        lower, upper = (float(value) for value in percentiles)
        if not 0 <= lower < upper <= 100:
            raise ValueError(f"intensity_percentiles {percentiles} must rise from at least 0 to at most 100.")
        if values.get("intensity_range") is not None:
            check_fixed_range(values["intensity_range"])
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{path}: {', '.join(PLAIN_KEYS)} are not usable ({first_line(error)}); pass the folder that adl-monai "
            "train wrote."
        ) from error


def refuse_recorded_code(recorded: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> None:
    """A run's recorded options are data too: what would run code has to be given again by whoever resumes the run.

    What is given takes the place of what is recorded, which then is never run, whether they are the same or not.

    Args:
        recorded: The options in the run's folder.
        given: Those of the command that resumes it.
        path: Where they are recorded.

    Raises:
        UsageError: Naming the option.
    """
    for name, value in recorded.items():
        found = f"{name}={value}" if "#_" in f"#{name}" else find_code(value)
        if found is not None and name not in given:
            raise UsageError(
                f"{path} holds {found!r}, which would be run as code; give the option {name} again with --set, with "
                "the same value if you trust this run, or with another."
            )


def refuse_expressions(values: Mapping[str, Any]) -> None:
    """Options are data: text that the config parser would run, reference or import is refused.

    Raises:
        UsageError: Naming the option.
    """
    for name, value in values.items():
        if isinstance(value, str) and value.startswith(("$", "@", "%")):
            raise UsageError(f"option {name} is {value!r}; a value may not start with $, @ or %.")


def find_code(value: Any) -> str | None:
    """The first text that MONAI's parser would run, reference, include or call; None if there is none.

    The one class that a ``_target_`` may name is this package's network.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if str(key).startswith("_") and (key, item) != ("_target_", NETWORK_TARGET):
                return str(key)
            if (found := find_code(item)) is not None:
                return found
    elif isinstance(value, list | tuple):
        return next((found for item in value if (found := find_code(item)) is not None), None)
    elif isinstance(value, str) and value.startswith(("$", "@", "%")):
        return value
    return None


def with_plain_values(config: Any, run: Any) -> Any:
    """A config of ours with the plain values of a run's config laid over it.

    Expressions, references and what names something to call stay ours, and so does what stands in their place in the
    run: nothing that its options brought along is run by whoever gets its bundle.

    Args:
        config: A shipped config, or a part of it.
        run: The same of a run, of JSON's types.
    """
    if find_code(run) is None and (find_code(config) is None or not isinstance(config, dict | list)):
        return run
    if not isinstance(config, dict) or not isinstance(run, dict) or config.get("_target_") != run.get("_target_"):
        return config
    known = {
        key: value if key.startswith("_") or key not in run else with_plain_values(value, run[key])
        for key, value in config.items()
    }
    added = {key: value for key, value in run.items() if key not in config and find_code({key: value}) is None}
    return {**known, **added}


def first_line(error: Exception) -> str:
    """The start of an exception's text, for one line of a message."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
