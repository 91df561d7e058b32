"""Pictures of what the network does during training: noisy | denoised | clean | residual."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from ignite.engine import Events
from monai.engines import Workflow
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


class PreviewHandler:
    """Writes one row of slices per validated case to TensorBoard.

    Attach to the evaluator, whose outputs hold ``image`` (noisy), ``pred`` (denoised) and ``label`` (clean).

    Args:
        log_dir: TensorBoard folder.
        max_cases: Rows written per validation.
        active: False on every process but the first.
    """

    def __init__(self, log_dir: str | Path, max_cases: int = 2, active: bool = True) -> None:
        self.log_dir = str(log_dir)
        self.max_cases = max_cases
        self.active = active

    def attach(self, engine: Workflow) -> None:
        """Follow an evaluator."""
        if self.active:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)

    def _write(self, engine: Workflow) -> None:
        case = engine.state.iteration - 1
        if case >= self.max_cases:
            return
        output = engine.state.output
        item = output[0] if isinstance(output, list) else {key: value[0] for key, value in output.items()}
        row = preview_row(item["image"], item["pred"], item["label"])
        with SummaryWriter(self.log_dir) as writer:
            writer.add_image(f"case {case}: noisy, denoised, clean, residual", row, engine.state.epoch)


def preview_row(
    noisy: Tensor,
    denoised: Tensor,
    clean: Tensor | None = None,
    gain: float = 3.0,
    affine: np.ndarray | Tensor | None = None,
) -> Tensor:
    """The middle slices of a case side by side, as one picture, the way up that viewers show them.

    Args:
        noisy: (C, H, W[, D]), about [0, 1]; shown clipped.
        denoised: Same shape.
        clean: Same shape, or None where it is not known.
        gain: Amplification of the residual (noisy - denoised), which is shown around mid-grey.
        affine: (4, 4) voxel to RAS+ mm; None takes that of ``noisy``, or RAS+ axes where it has none.

    Returns:
        (1, rows, columns) float32 in [0, 1]: noisy, denoised, clean (if given), residual.
    """
    affine = getattr(noisy, "affine", np.eye(4)) if affine is None else affine
    upwards = _points_up(np.asarray(affine, np.float64)[:3, 1])
    slices = [_middle_slice(image, upwards) for image in (noisy, denoised, clean) if image is not None]
    residual = 0.5 + gain * (slices[0] - slices[1])
    return torch.cat([*slices, residual], dim=1).clamp(0, 1)[None]


def _points_up(axis: np.ndarray) -> bool:
    """Whether an axis (RAS+) is drawn upwards: front and head are up, as are rows that run from left to right."""
    return bool(axis[np.abs(axis).argmax()] > 0)


def _middle_slice(image: Tensor, upwards: bool) -> Tensor:
    plane = torch.as_tensor(image).detach().float().cpu()[0]
    if plane.ndim == 3:
        plane = plane[:, :, plane.shape[2] // 2]
    rows = plane.T
    return rows.flip(0) if upwards else rows
