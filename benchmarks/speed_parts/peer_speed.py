"""Voxels per second of BM4D, non-local means and us, end to end and the network alone."""

from __future__ import annotations

import importlib.util

from peak_memory import run_alone
from peers import bm4d, nlm_dipy
from timing import interleave

from adl_monai.bundle import load_denoiser
from adl_monai.stages.arrays import denoise
from speed_parts.command_line import infer_command, scan_of
from speed_parts.roofline import network_forward, random_tile
from speed_parts.scans import SIGMA, clean_volume, noisy_copy
from speed_parts.settings import Report, Row, Settings

PEERS = {"BM4D": ("bm4d", bm4d), "NLM (dipy)": ("dipy", nlm_dipy)}


def measure(settings: Settings) -> Report:
    """All in turn; the slow ones on a crop, so what is compared is voxels per second."""
    sizes = settings.sizes
    noisy = noisy_copy(clean_volume(sizes.crop, settings.seed), SIGMA, settings.seed)
    scan, scan_voxels = scan_of(settings)
    denoiser = load_denoiser("adl3d", device="cpu")
    tile = random_tile(3, sizes.tile, settings.seed)
    command = infer_command(scan, settings.scratch / "denoised.nii.gz")
    own = {
        "adl3d, command line": (lambda: run_alone(command), scan_voxels),
        "adl3d, array in memory": (lambda: denoise(noisy, denoiser), noisy.size),
        "adl3d, network alone": (network_forward(denoiser.network, tile, "auto"), tile.numel()),
    }
    present = {name: run for name, (package, run) in PEERS.items() if importlib.util.find_spec(package)}
    peers = {name: (lambda run=run: run(noisy, SIGMA), noisy.size) for name, run in present.items()}
    methods = own | peers
    rounds = interleave({name: run for name, (run, _) in methods.items()}, settings.pairs, warmup=settings.warmup)
    rates = {name: rounds[name].rate(voxels) for name, (_, voxels) in methods.items()}
    rows: list[Row] = []
    for name, (_, voxels) in methods.items():
        row: Row = {"method": name, "voxels": voxels, "voxels/s": rates[name]}
        rows.append(row | {f"times as fast as {peer}": rates[name] / rates[peer] for peer in peers if peer != name})
    rows += [{"method": f"{name}: not installed"} for name in PEERS if name not in present]
    statements = [
        f"{name}: {(rates[name] / rates[peer]).median:.3g} times the voxels per second of {peer}."
        for peer in peers
        for name in own
    ]
    return Report(rows, tuple(statements))
