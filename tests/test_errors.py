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


@pytest.mark.parametrize(
    "text, expected",
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", True),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", True),
        ("DataLoader worker (pid 7) exited unexpectedly with exit code 1. Details are lost", False),
        ("DataLoader worker (pid 7) is killed by signal: Segmentation fault. ", False),
    ],
)
def test_processes_that_the_system_killed_for_memory(text: str, expected: bool) -> None:
    assert is_out_of_memory(RuntimeError(text)) is expected
