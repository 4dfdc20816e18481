"""List the photos of a folder: by a scan, or from a list file next to it."""

import os
from bisect import bisect_left
from pathlib import Path

import numpy as np

from cosplace.errors import DatasetError
from cosplace.photos.image_list import BLOCK_BYTES, ImageList, evenly_spaced, list_from_lines, sorted_list

SUFFIXES = (b".jpg", b".jpeg", b".png")
LIST_SUFFIX = "_images_paths.txt"
LISTED_FILES_CHECKED = 100


def scan_images(folder: str | Path) -> ImageList:
    """All .jpg, .jpeg and .png files below a folder (any case, nested, links followed; without hidden files).

    If there is a file `<folder>_images_paths.txt` next to the folder, its lines (paths relative to the folder) replace
    the scan.  Raises DatasetError if the folder is missing, has no photos, or does not match its list file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DatasetError(f"{folder} {problem}. Use the folder that contains the photos.")
    for path in (folder, folder.resolve()):
        list_file = path.parent / (path.name + LIST_SUFFIX)
        if list_file.is_file():
            return _read_list(folder, list_file)
    names = bytearray()
    try:
        _scan_into(names, os.fsencode(folder), b"", frozenset())
    except OSError as error:
        raise DatasetError(f"Cannot read {error.filename}: {error.strerror}.") from error
    if not names:
        raise DatasetError(
            f"{folder} has no photos (.jpg, .jpeg or .png, in any subfolder). Use the folder that contains the photos."
        )
    return list_from_lines(folder, names)


def _scan_into(names: bytearray, folder: bytes, prefix: bytes, parents: frozenset[tuple[int, int]]) -> None:
    """Append the relative paths below `folder` in sorted order, without building a list of all paths."""
    status = os.stat(folder)  # noqa: PTH116 - bytes, as file names may not be valid text
    if (status.st_dev, status.st_ino) in parents:  # a link to a folder above
        return
    parents |= {(status.st_dev, status.st_ino)}
    with os.scandir(folder) as entries:
        # With a slash after folders, a depth-first scan gives the order of whole paths.
        entry_names = [entry.name + b"/" if entry.is_dir() else entry.name for entry in entries]
    entry_names.sort()
    del entry_names[bisect_left(entry_names, b".") : bisect_left(entry_names, b"/")]  # hidden; "/" comes after "."
    endings = (*SUFFIXES, b"/")
    entry_names = [name for name in entry_names if name.endswith(endings) or name.lower().endswith(endings)]
    any_folder = b"/" in b"".join(entry_names)
    folders = [index for index, name in enumerate(entry_names) if name.endswith(b"/")] if any_folder else []
    next_index = 0
    for index in folders:
        subfolder = entry_names[index]
        _append_photos(names, prefix, entry_names[next_index:index])
        _scan_into(names, folder + b"/" + subfolder[:-1], prefix + subfolder, parents)
        next_index = index + 1
    _append_photos(names, prefix, entry_names[next_index:])


def _append_photos(names: bytearray, prefix: bytes, photos: list[bytes]) -> None:
    if photos:
        names += prefix
        first, line = len(names), b"\n" + prefix
        names += line.join(photos) + b"\n"
        if names.count(b"\n", first) != len(photos):
            bad = next(name for name in photos if b"\n" in name)
            raise DatasetError(f"The file name {os.fsdecode(prefix + bad)!r} contains a line break. Rename it.")


def _read_list(folder: Path, list_file: Path) -> ImageList:
    """The photos in a list file; the file is mapped into memory if it is sorted and has no blank lines."""
    starts = _starts_if_sorted(list_file)
    if starts is not None:
        names = np.memmap(list_file, np.uint8, mode="r")
        images = ImageList(folder=folder, names=names, starts=starts, list_file=list_file)
    else:
        images = sorted_list(folder, [line for line in list_file.read_bytes().splitlines() if line.strip()])
    if not len(images):
        raise DatasetError(f"{list_file} lists no photos. Delete it, or list the photos of {folder} in it.")
    _check_listed(images, list_file)
    return images


def _starts_if_sorted(list_file: Path) -> np.ndarray | None:
    """(I + 1,) int64: starts of the lines, and the end of the last one; None if unsorted or with blank lines."""
    starts, position, rest, previous = [np.zeros(1, np.int64)], 0, b"", b""
    with list_file.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            block = rest + block
            lines = block.split(b"\n")
            rest = lines.pop()
            if not lines:
                continue
            # Sorting a sorted list takes one comparison per line.
            if b"\r" in block or not lines[0] or lines[0] < previous or lines != sorted(lines):
                return None
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + (position + 1)
            starts.append(ends)
            position, previous = int(ends[-1]), lines[-1]
    return np.concatenate(starts) if position and not rest else None


def _check_listed(images: ImageList, list_file: Path) -> None:
    """Check that listed photos exist: all photos of a short list, an even sample of a long one."""
    for index in evenly_spaced(images, LISTED_FILES_CHECKED):
        if not images.path(index).is_file():
            raise DatasetError(
                f"{list_file} lists '{images.name(index)}', which is not in {images.folder}. "
                f"Correct the list, or delete it to scan the folder."
            )
