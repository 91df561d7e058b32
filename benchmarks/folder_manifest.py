"""Write a manifest of a folder of unrelated clean images, each its own subject: training sets such as BSDS400.

    python benchmarks/folder_manifest.py FOLDER -o manifest.json [--validation 12] [--test]

``adl-monai prepare`` does this for scans, and takes names such as test_001 and test_002 for one patient's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg", ".nii", ".gz", ".mha", ".nrrd")


def main() -> None:
    """Parse, list, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--validation", type=int, default=0, help="so many, evenly spread, validate")
    parser.add_argument("--test", action="store_true", help="all are for testing instead of training")
    options = parser.parse_args()
    files = sorted(path for path in options.folder.resolve().iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        parser.error(f"{options.folder} holds no image.")
    cases = [{"image": str(path), "patient": path.name} for path in files]
    chosen = {round(k * len(files) / options.validation) for k in range(options.validation)}
    splits = {
        "training": [case for index, case in enumerate(cases) if index not in chosen and not options.test],
        "validation": [case for index, case in enumerate(cases) if index in chosen and not options.test],
        "test": cases if options.test else [],
    }
    options.output.write_text(json.dumps({"name": options.folder.name, **splits}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
