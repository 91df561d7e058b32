"""What is found inside an exception, whatever its chain of causes looks like."""

from __future__ import annotations

import pytest

from adl_monai.errors import is_out_of_memory, refused_values, system_error, user_error


@pytest.mark.timeout(10)
def test_a_chain_that_bites_its_tail_has_an_end() -> None:
    """An error that is raised from what wrapped it, to come out as itself, is the cause of its own cause."""
    inner, wrapper = RuntimeError("inner"), RuntimeError("wrapper")
    inner.__cause__, wrapper.__cause__ = wrapper, inner
    assert not is_out_of_memory(inner)
    assert system_error(inner) is None
    assert user_error(inner) is None
    assert refused_values(inner) is None
    inner.__cause__ = MemoryError()
    assert is_out_of_memory(wrapper)
