"""The folders that hold the photos of an index: photos are stored relative to them, so that both can move.

An index has one root for each folder of photos that was added and is not below another.  A root is found at its
absolute path, else at its path relative to the index as it was when photos were added; `--root` gives another place.
Side effects: looks for folders.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cosplace.errors import ConfigError, DamagedIndexError, DatasetError
from cosplace.index.file_checksums import is_local
from cosplace.photos.paths import path_from_text, path_text

RECORD = "roots"  # the key of the record that lists them


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A folder of photos, as text (see `cosplace.photos.paths`)."""

    path: str  # absolute
    relative: str | None = None  # to the index; None on object storage, and on another drive


def read_roots(record: dict[str, Any] | None) -> list[Root]:
    """The roots of a record; none for an index without one."""
    try:
        return [] if record is None else [Root(**root) for root in record["folders"]]
    except (KeyError, TypeError) as error:
        raise DamagedIndexError("The record 'roots' of the index cannot be read. Build the index again.") from error


def roots_record(roots: Sequence[Root]) -> dict[str, Any]:
    """The record of roots."""
    return {"folders": [asdict(root) for root in roots]}


def new_root(address: str, folder: str) -> Root:
    """The root of an absolute folder."""
    try:
        relative = (
            None if not is_local(address) else Path(os.path.relpath(path_from_text(folder), os.path.realpath(address)))
        )
    except ValueError:  # another drive of Windows
        relative = None
    return Root(path=folder, relative=None if relative is None else path_text(relative.as_posix()))


def find_folder(address: str, root: Root) -> str:
    """Where a root is now: its absolute path, or the one relative to the index; the absolute one if neither exists."""
    if root.relative is None or path_from_text(root.path).is_dir():
        return root.path
    beside = Path(os.path.normpath(Path(os.path.realpath(address)) / path_from_text(root.relative)))
    return path_text(beside) if beside.is_dir() else root.path


def given_folders(folders: Sequence[str], given: Sequence[str]) -> list[str]:
    """Folders of roots, some of them replaced.  given: NEW, for an index with one root, or OLD=NEW.

    OLD is a root or a folder above some.  Raises ConfigError for one that is neither, DatasetError if NEW is missing.
    """
    folders = list(folders)
    for text in given:
        old, is_pair, new = text.partition("=")
        old = path_text(os.path.normpath(Path(old).absolute()))
        matching = [place for place, folder in enumerate(folders) if is_below(folder, old)] if is_pair else []
        if not matching:
            if len(folders) != 1 or (is_pair and not Path(text).is_dir()):
                known = ", ".join(folders) or "none"
                raise ConfigError(f"--root must be OLD=NEW with one of the roots of the index ({known}), got '{text}'.")
            matching, old, new = [0], folders[0], text
        if not Path(new).is_dir():
            raise DatasetError(f"--root: {new} does not exist. Use the folder that contains the photos now.")
        new = path_text(Path(new).resolve())
        for place in matching:
            folders[place] = join_path(new, folders[place][len(old.rstrip("/")) :].strip("/")).rstrip("/") or "/"
    return folders


def is_below(path: str, folder: str) -> bool:
    """Whether an absolute path is a folder, or below it; both as text."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def join_path(folder: str, name: str) -> str:
    """The path of a photo; a name is the whole path where its folder is not known ("")."""
    return f"{folder.rstrip('/')}/{name}" if folder else name


def common_folder(paths: Sequence[str]) -> str:
    """The folder that contains all absolute paths."""
    folders = {os.path.dirname(path) for path in paths}  # noqa: PTH120 - of text
    return os.path.commonpath(folders) if folders else ""
