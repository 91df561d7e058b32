"""Results as Markdown: a table or two a part, its sentences below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def cell(value: Any) -> str:
    """Text as it is, numbers at four digits, spreads as median (least-greatest), None as nothing."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return f"{number(value['median'])} ({number(value['min'])}-{number(value['max'])})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, int | float) else str(value)


def number(value: float) -> str:
    """Four digits, thousands separated."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Tables below one another; a row goes to that of its first key."""
    heads = dict.fromkeys(next(iter(row)) for row in rows)
    return "\n".join(table([row for row in rows if next(iter(row)) == head]) for head in heads)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A column for every key that some row has, in the order of their first use."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(cell(row.get(column)) for column in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def markdown(results: Mapping[str, Any]) -> str:
    """All that was measured, from what is written to ``speed.json``."""
    machine = ", ".join(f"{key} {cell(value)}" for key, value in results["machine"].items())
    parts = [f"{machine}; figures of {results['settings']['pairs']} rounds as median (least-greatest).\n"]
    for name, part in results["parts"].items():
        parts.append(f"## {name}\n\n{part['about']}\n")
        if part.get("error"):
            parts.append(f"Not measured: {part['error']}\n")
        if part["rows"]:
            parts.append(tables(part["rows"]))
        if part["statements"]:
            parts.append("".join(f"- {sentence}\n" for sentence in part["statements"]))
    return "\n".join(parts)
