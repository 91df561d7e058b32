"""Columns cover a plane once, see what they need, and fit the memory."""

from __future__ import annotations

import pytest
import torch

from adl_monai.errors import OutOfMemoryError
from adl_monai.inferers.columns import plan_columns

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("plane", "most"), [((64, 64), 1e9), ((512, 512), 200_000), ((1024, 2048), 150_000), ((904,), 300)]
)
def test_columns_cover_each_pixel_once_with_halos_inside_the_image(plane: tuple[int, ...], most: float) -> None:
    columns = plan_columns(plane, 40, most, 8)
    covered = torch.zeros(plane, dtype=torch.int32)
    for column in columns:
        assert column.pixels() <= most
        covered[column.core] += 1
        for read, core, size in zip(column.read, column.core, plane, strict=True):
            assert read.start == max(0, core.start - 40)
            assert read.stop == min(size, core.stop + 40)
            assert not read.start % 8
    assert (covered == 1).all()


def test_where_nothing_fits_the_memory_it_is_said() -> None:
    with pytest.raises(OutOfMemoryError, match="--max-memory"):
        plan_columns((512, 512), 40, 50 * 50, 8)
