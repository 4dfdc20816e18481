"""Where the photos of an index are: its roots as recorded, the folders where they are now, and paths as stored.

Side effects: reads and writes the record of roots, looks for folders.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cosplace.index.file_checksums import damaged
from cosplace.index.photo_table import NO_ROOT
from cosplace.index.records import Columns
from cosplace.index.roots import (
    RECORD,
    common_folder,
    find_folder,
    given_folders,
    is_below,
    new_root,
    read_roots,
    roots_record,
)
from cosplace.index.store import Store


class RootFolders:
    """The roots of one index, and the folders where they are now."""

    def __init__(self, store: Store, given: Sequence[str] = ()) -> None:
        """given: new places of roots, see `cosplace.index.roots.given_folders`."""
        self._store, self._given = store, tuple(given)
        self.read()

    def read(self) -> None:
        """Read the record of roots, and look for their folders."""
        self.roots = read_roots(self._store.read_record(RECORD))
        found = [find_folder(self._store.address, root) for root in self.roots]
        self.folders = given_folders(found, self._given)  # absolute, as text

    def record_moves(self) -> None:
        """Record where the roots are now, if that has changed."""
        if [root.path for root in self.roots] != self.folders:
            self.roots = [new_root(self._store.address, folder) for folder in self.folders]
            self._store.write_record(RECORD, roots_record(self.roots))

    def add(self, folder: str) -> None:
        """Record an absolute folder, as text, as a root, unless it is below one already."""
        if not any(is_below(folder, known) for known in self.folders):
            self.roots.append(new_root(self._store.address, folder))
            self.folders.append(folder)
            self._store.write_record(RECORD, roots_record(self.roots))

    def facts(self) -> list[dict[str, str]]:
        """Each root as recorded, and where it is now."""
        pairs = zip(self.roots, self.folders, strict=True)
        return [{"path": root.path, "found": folder} for root, folder in pairs]

    def stored_path(self, path: str) -> tuple[int, str]:
        """A path as it is stored: its root, and the path relative to it; NO_ROOT and the whole path without a root."""
        for place, folder in enumerate(self.folders):
            if is_below(path, folder) and path != folder:
                return place, path[len(folder.rstrip("/")) + 1 :]
        return NO_ROOT, path

    def placed(self, stored: Columns) -> Columns:
        """Columns with the roots where they are now; whole paths become relative to the folder that contains them."""
        rows = np.flatnonzero(stored.roots == NO_ROOT)
        if (stored.roots >= len(self.folders)).any() or (stored.roots < NO_ROOT).any():
            raise damaged(self._store.address, "a photo has an unknown root")
        if not len(rows):
            return dataclasses.replace(stored, folders=(*self.folders, ""))
        import pyarrow as pa

        texts = stored.names()  # checks all of them
        absolute = [row for row in rows.tolist() if texts[row].startswith("/") or Path(texts[row]).is_absolute()]
        folder = common_folder([texts[row] for row in absolute])
        roots = stored.roots.copy()
        roots[rows] = len(self.folders)
        for row in absolute:
            texts[row] = texts[row][len(folder.rstrip("/")) + 1 :]
            roots[row] = len(self.folders) + 1
        return dataclasses.replace(
            stored,
            roots=roots,
            texts=pa.array(texts, pa.string()),
            folders=(*self.folders, "", folder),
            path_checks=None,
        )
