"""Photos that a JSON file names: found below its folder, or below the folders that the user imports with it.

A path in a file may not lead anywhere else: whoever wrote the file does not decide which files are copied.
"""

import json
import math
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cosplace.config.importing import ImportSettings
from cosplace.errors import DatasetError, one_line

MAX_JSON_BYTES = 1_000_000_000
MAX_PATH_CHARACTERS = 1024
HEAD_BYTES = 65_536  # enough to recognize a file


def json_head(path: Path) -> bytes:
    """The start of a JSON file; empty for other files."""
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError:
        return b""
    return head if head[:1] in (b"{", b"[") else b""


def read_json(path: Path) -> Any:
    """The content of a JSON file.  Raises DatasetError for one that is too large or invalid."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise DatasetError(f"{path} has {size / 1e6:,.0f} MB; the limit is {MAX_JSON_BYTES / 1e6:,.0f}. Split it.")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # also of text that is not UTF-8
        raise DatasetError(one_line(f"{path} is not valid JSON ({error}). Export it again.")) from error


def source_folders(path: Path, settings: ImportSettings) -> list[Path]:
    """Folders whose photos a JSON file may name: its own, and those among the sources of the import."""
    sources = [Path(source) for source in getattr(settings, "sources", ())]
    return [path.parent, *(source for source in sources if source.is_dir())]


def find_reference(name: str, folders: Sequence[Path]) -> tuple[Path | None, str]:
    """The file that a path in a JSON file means, and its path below the folder that has it.

    name: absolute, or relative to one of the folders.  Of a path of another machine, the longest end that exists below
    a folder counts.
    """
    if not is_path(name):
        return None, ""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    parts = tuple(part for part in parts if part not in ("/", ".") and not part.endswith(":"))
    roots = [(folder, os.path.realpath(folder)) for folder in folders]
    if name.startswith("/") or ".." in parts:
        real = os.path.realpath(name if name.startswith("/") else folders[0] / name)
        for _, root in roots:
            if real.startswith(root.rstrip(os.sep) + os.sep) and Path(real).is_file():
                return Path(real), Path(real).relative_to(root).as_posix()
        parts = tuple(part for part in parts if part != "..")
    for first in range(len(parts)):
        for end in map(Path, spellings("/".join(parts[first:]))):
            for folder, root in roots:
                real = os.path.realpath(folder / end)
                if real.startswith(root.rstrip(os.sep) + os.sep) and Path(real).is_file():
                    return folder / end, end.as_posix()
    return None, ""


def spellings(name: str) -> list[str]:
    """A name as it is, and with accented letters as one character or as two, as file systems of Apple write them."""
    return list(dict.fromkeys((name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))))


def is_path(name: str) -> bool:
    """Whether a text may be a path: the system raises errors for others, also when it looks for them."""
    try:
        parts = os.fsencode(name.replace("\\", "/")).split(b"/")
    except UnicodeEncodeError:
        return False
    return "\0" not in name and len(name) <= MAX_PATH_CHARACTERS and all(len(part) <= 255 for part in parts)


NOT_FOUND = (
    "was not found below the folder of the JSON file; move that file next to the photos, or also pass their folder as "
    "SOURCE"
)


def number(value: Any) -> float:
    """A finite number of JSON; nan for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan


def text(value: Any) -> str:
    """A text of JSON; empty for anything else."""
    return value.strip() if isinstance(value, str) else ""
