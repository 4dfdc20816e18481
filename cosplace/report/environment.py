"""Where a result comes from, as rows of a table: command, versions, machine, times.  Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from cosplace.errors import one_line
from cosplace.report.words import shorten

MAX_TEXT = 1_000  # characters of one value


def environment_rows(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (name, value) of each entry; the entries of an inner mapping become rows of their own.

    >>> environment_rows({"seed": 0, "model": {"file": "a.pth", "sizes": {"width": 2}}})
    [('seed', '0'), ('model: file', 'a.pth'), ('model: sizes', 'width 2')]
    """
    rows = []
    for name, value in environment.items():
        if isinstance(value, Mapping):
            rows += [(f"{name}: {inner}", _text(one)) for inner, one in value.items()]
        else:
            rows.append((str(name), _text(value)))
    return [(name.replace("_", " "), shorten(text, MAX_TEXT)) for name, text in rows if text]


def _text(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items() if one is not None)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_text(one) for one in value)
    return one_line(str(value))
