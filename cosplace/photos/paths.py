"""Paths as text: to store, to print, in a CSV table.

A file name may contain line breaks, control characters, and bytes that are not UTF-8.  Python represents such bytes as
lone surrogates, which no text file, database or terminal accepts.
"""

import csv
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

from cosplace.errors import one_line

ESCAPE = re.compile(r"\\x([0-9a-f]{2})")
FORMULA = re.compile(r"[=+\-\t\r]|@[A-Za-z]")  # an '@' name, such as @0549850.07@..., is not one
NOT_UTF8 = re.compile("[\udc80-\udcff]")


def path_text(path: str | os.PathLike[str]) -> str:
    r"""A path as text that is valid UTF-8, to store.  `path_from_text` gives the same path back.

    A byte that is not UTF-8 becomes \x and two digits, as in `caf\xe9.jpg`; if a name already contains such a text, its
    backslash becomes \x5c.  All other paths do not change, even if they contain line breaks.
    """
    text = os.fspath(path)
    if "\\x" in text:
        text = ESCAPE.sub(r"\\x5cx\1", text)
    return text if text.isascii() else NOT_UTF8.sub(lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", text)


def path_from_text(text: str) -> Path:
    """The path that `path_text` wrote."""
    return Path(_unescaped(text) if "\\x" in text else text)


def _unescaped(text: str) -> str:
    raw = b"".join(
        bytes([int(part, 16)]) if place % 2 else part.encode("utf-8", "surrogateescape")
        for place, part in enumerate(ESCAPE.split(text))
    )
    return raw.decode("utf-8", "surrogateescape")


def writable(text: str) -> str:
    r"""A text that can be written as UTF-8: bytes that are not UTF-8 become \x and two digits."""
    if text.isascii():
        return text
    text = NOT_UTF8.sub(lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", text)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def csv_line(values: Iterable[object]) -> str:
    """One line of a CSV table.

    All cells of a line with a carriage return are quoted, because many readers would end the line there otherwise.  A
    text that a spreadsheet would run as a formula gets "./" in front; a path still means the same file.
    """
    cells = [_cell(value) for value in values]
    has_return = any(isinstance(cell, str) and "\r" in cell for cell in cells)
    line = io.StringIO()
    csv.writer(line, lineterminator="\n", quoting=csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL).writerow(cells)
    return line.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"  # as in JSON
    if not isinstance(value, str | os.PathLike):
        return value
    text = os.fspath(value)
    return f"./{text}" if FORMULA.match(text) else text


def printable(path_or_text: str | os.PathLike[str]) -> str:
    """A path or a text in one line, for terminals and logs: control characters and invalid bytes are escaped."""
    return one_line(os.fspath(path_or_text))
