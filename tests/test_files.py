"""A file is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from adl_monai.errors import OutputError
from adl_monai.files import replacing


def test_the_new_file_takes_the_name(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second, and longer")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_may_be_as_long_as_the_system_takes_it(tmp_path: Path) -> None:
    path = tmp_path / ("日" * 83 + ".json")  # 254 bytes
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"


@pytest.mark.parametrize(
    ("raised", "expected"), [(OSError(28, "No space left"), OutputError), (KeyError("x"), KeyError)]
)
def test_a_failure_leaves_the_old_file(raised: Exception, expected: type[Exception], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(expected), replacing(path) as temporary:  # noqa: PT012 (what the block raises is the point)
        temporary.write_text("half")
        raise raised
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
