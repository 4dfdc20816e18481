"""Which row of a table belongs to which photo: by path, else by file name.  Pure, except for absolute paths.

A row names its photo as a path, of this machine or another one, or as a file name, with suffix or without.  A photo
belongs to the row whose path agrees with its own in the most folders, counted from the file name.  A file name alone
must be unique among all rows and all photos: otherwise neither is used, and both are listed.
"""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

ANY_FOLDER, SUBFOLDERS, WHOLE_PATH = range(3)  # how much of the path of a row agrees with that of a photo
Place = tuple[int, int]  # one of these, and the number of folders that agree


class RowNames:
    """The names of the photos in the rows of a table."""

    def __init__(self, names: Sequence[str], folder: Path) -> None:
        """names: of each row, or "" for none; folder: that of the table, to which paths may be relative."""
        self.paths = [_parts(name) for name in names]
        self.folder = _parts(os.path.abspath(folder))  # noqa: PTH100 - keeps the names of links
        self.rows: dict[str, list[int]] = defaultdict(list)  # by file name, and by file name without suffix
        for row, path in enumerate(self.paths):
            if path:
                self.rows[_key(path[-1])].append(row)
        self.best: dict[int, Place] = {}  # of each row: how well the photos fit that fit best
        self.num_photos: Counter[int] = Counter()  # that fit this well
        self.used: set[int] = set()
        self.unclear: set[int] = set()  # rows that `find` has refused

    def compare(self, files: Iterable[Path]) -> None:
        """Compare the files of all photos with the rows, before `find` is called."""
        for file in files:
            rows, place = self._fitting(file)
            for row in rows:
                if place > self.best.get(row, (-1, 0)):
                    self.best[row], self.num_photos[row] = place, 0
                self.num_photos[row] += place == self.best[row]

    def find(self, file: Path) -> tuple[int | None, str]:
        """The row of a photo, and why there is none, or "" if no row names the photo."""
        rows, place = self._fitting(file)
        rows = [row for row in rows if self.best.get(row, place) == place]
        if not rows:
            return None, ""
        if len(rows) > 1:
            self.unclear.update(rows)
            return None, f"{len(rows):,} rows name this photo: rows {', '.join(str(row + 1) for row in rows[:3])}"
        if self.num_photos[rows[0]] > 1:
            count = self.num_photos[rows[0]]
            self.unclear.add(rows[0])
            return None, f"row {rows[0] + 1} may mean any of {count:,} photos with this name: add folders to the names"
        self.used.add(rows[0])
        return rows[0], ""

    def unused(self) -> list[int]:
        """Rows that no photo got.  Those of photos that cannot be opened, which are listed themselves, are not here."""
        unopened = self.best.keys() - self.unclear
        return [row for row in range(len(self.paths)) if row not in self.used and row not in unopened]

    def _fitting(self, file: Path) -> tuple[list[int], Place]:
        """The rows that fit a photo best, and how well they do."""
        photo = _parts(os.path.abspath(file))  # noqa: PTH100
        name = _key(photo[-1])
        rows = self.rows.get(name) or self.rows.get(PurePosixPath(name).stem, [])
        places = [self._place(row, photo) for row in rows]
        best = max(places, default=(ANY_FOLDER, 0))
        return [row for row, place in zip(rows, places, strict=True) if place == best], best

    def _place(self, row: int, photo: tuple[str, ...]) -> Place:
        path = self.paths[row]
        if photo in (path, _without_parents(self.folder + path)):
            return WHOLE_PATH, 0
        path = path[path.count("..") :]
        agree = 0
        for ours, theirs in zip(reversed(photo[:-1]), reversed(path[:-1]), strict=False):
            if ours != theirs:
                break
            agree += 1
        return (SUBFOLDERS if agree and agree == len(path) - 1 else ANY_FOLDER), agree


def _without_parents(path: tuple[str, ...]) -> tuple[str, ...]:
    """A path without "..", each of which removes the folder before it."""
    if ".." not in path:
        return path
    found: list[str] = []
    for part in path:
        if part != "..":
            found.append(part)
        elif found:
            found.pop()
    return tuple(found)


def _parts(name: str) -> tuple[str, ...]:
    r"""The parts of a path, of this system or of Windows: ("", "C:", "DCIM", "1.jpg") for C:\DCIM\1.jpg."""
    name = name.strip().removeprefix("file://")
    if "\\" in name:
        name = name.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return ("", *parts) if name.startswith("/") else tuple(parts)


def _key(name: str) -> str:
    """A file name as it is compared: macOS writes letters with accents in another form than most programs."""
    return unicodedata.normalize("NFC", name).casefold()
