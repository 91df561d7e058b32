"""Write a manifest of a folder of unrelated clean images, each its own subject: training sets such as BSDS400.

    python benchmarks/folder_manifest.py FOLDER -o manifest.json [--validation 12] [--test] [--scales 0.9 0.8 0.7]

``adl-monai prepare`` does this for scans, and takes names such as test_001 and test_002 for one patient's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

PICTURES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
SUFFIXES = (*PICTURES, ".nii", ".gz", ".mha", ".nrrd")


def reduced(case: dict[str, str], scale: float, folder: Path) -> dict[str, str]:
    """Write a case's picture at ``scale`` of its size into ``folder``; the case of it, of the same subject."""
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(case["image"]).name
    path = folder / (name if name.lower().endswith(".png") else f"{name}.png")
    with Image.open(case["image"]) as picture:
        width, height = (round(size * scale) for size in picture.size)
        picture.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return {**case, "image": str(path)}


def main() -> None:
    """Parse, list, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--validation", type=int, default=0, help="so many, evenly spread, validate")
    parser.add_argument("--test", action="store_true", help="all are for testing instead of training")
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[],
        help="train on reduced copies as well (bicubic; written beside the manifest), which have finer detail",
    )
    options = parser.parse_args()
    if any(not 0 < scale < 1 for scale in options.scales):
        parser.error(f"scales {options.scales} given; expected numbers between 0 and 1.")
    files = sorted(path for path in options.folder.resolve().iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        parser.error(f"{options.folder} holds no image.")
    volumes = [path.name for path in files if path.suffix.lower() not in PICTURES]
    if options.scales and volumes:
        parser.error(f"--scales is for pictures, and {volumes[0]} is none; leave it out.")
    cases = [{"image": str(path), "patient": path.name} for path in files]
    chosen = {round(k * len(files) / options.validation) for k in range(options.validation)}
    splits = {
        "training": [case for index, case in enumerate(cases) if index not in chosen and not options.test],
        "validation": [case for index, case in enumerate(cases) if index in chosen and not options.test],
        "test": cases if options.test else [],
    }
    originals = list(splits["training"])
    for scale in options.scales:
        folder = options.output.resolve().with_suffix("") / str(scale)
        splits["training"] += [reduced(case, scale, folder) for case in originals]
    options.output.write_text(json.dumps({"name": options.folder.name, **splits}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
