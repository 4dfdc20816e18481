"""Which part of each dataset an index holds (`--part`), so that `index sync` adds photos of the same part.

A dataset is stored relative to a root of the index, and moves with it.  Side effects: reads and writes a record.
"""

import logging
import os
from pathlib import Path
from typing import Any

from cosplace.index.file_checksums import damaged
from cosplace.index.photo_index import PhotoIndex
from cosplace.index.roots import is_below
from cosplace.photos.paths import path_text, printable
from cosplace.photos.tables import TABLE_NAME

RECORD = "parts"  # the key of the record

log = logging.getLogger("cosplace")


def choose_part(index: PhotoIndex, dataset: str | Path, part: str | None) -> str | None:
    """The part of a dataset to index: the given one, else the one that was given when the dataset was indexed.

    The log says what is chosen without being given, and which part contradicts the earlier one.
    """
    earlier = next((entry["part"] for entry in _entries(index) if _place(index, entry) == _folder_of(dataset)), None)
    if part is None and earlier is not None:
        log.info("%s: --part %s, as when it was indexed", printable(dataset), earlier)
        return earlier
    if earlier is not None and part != earlier:
        log.warning(
            "%s was indexed with --part %s; from now on it is --part %s. Photos that are in the index stay there.",
            printable(dataset), earlier, part,
        )  # fmt: skip
    return part


def record_part(index: PhotoIndex, dataset: str | Path, photos: Path, part: str | None) -> None:
    """Store the part of a dataset with an index; None stores nothing.  photos: the folder of its photos."""
    if part is None:
        return
    index.add_root(photos)
    folder, inside = _folder_of(dataset), path_text(photos.resolve())
    root = next(number for number, known in enumerate(index.roots) if is_below(inside, known))
    entry = {"root": root, "folder": os.path.relpath(folder, index.roots[root]), "part": part}
    entries = [one for one in _entries(index) if _place(index, one) != folder]
    if [*entries, entry] != _entries(index):
        index.write_record(RECORD, {"datasets": [*entries, entry]})


def _entries(index: PhotoIndex) -> list[dict[str, Any]]:
    entries = list((index.read_record(RECORD) or {}).get("datasets", ()))
    if any(entry["root"] >= len(index.roots) for entry in entries):
        raise damaged(index.address, f"the record '{RECORD}' names an unknown root")
    return entries


def _place(index: PhotoIndex, entry: dict[str, Any]) -> str:
    """The folder or table of an entry, as text, where it is now."""
    return os.path.normpath(os.path.join(index.roots[entry["root"]], entry["folder"]))  # noqa: PTH118 - text


def _folder_of(dataset: str | Path) -> str:
    """The folder or table of a dataset, as text, without links."""
    path = Path(dataset).resolve()
    return path_text(path.parent if path.name == TABLE_NAME else path)
