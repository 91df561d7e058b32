"""Columns cover a plane once, see what they need, and fit the memory."""

from __future__ import annotations

import pytest
import torch

from adl_monai.errors import OutOfMemoryError
from adl_monai.inferers.columns import plan_columns, smallest_column

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


@pytest.mark.parametrize("plane", [(512, 512), (1024, 2048), (48, 96), (904,), (16, 1000)])
def test_the_smallest_column_fits_and_nothing_smaller(plane: tuple[int, ...]) -> None:
    """Before: planes of more than 512 pixels could not be cut into what was said to be enough."""
    smallest = smallest_column(plane, 40, 8)
    assert max(column.pixels() for column in plan_columns(plane, 40, smallest, 8)) == smallest
    with pytest.raises(OutOfMemoryError, match=f"needs {smallest};"):
        plan_columns(plane, 40, smallest - 1, 8)


def test_where_halos_count_it_is_the_fewest_pixels() -> None:
    """The first cut that fits would be along the short axis, twice 256 x 24."""
    columns = plan_columns((256, 32), 8, 256 * 24, 8)
    assert [column.read for column in columns] == [
        (slice(0, 136), slice(0, 32)),
        (slice(120, 256), slice(0, 32)),
    ]
    assert [column.core[0] for column in columns] == [slice(0, 128), slice(128, 256)]
