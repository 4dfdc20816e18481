"""Lists of photos: the scan of a folder, or the file beside it that replaces the scan."""

import os
from bisect import bisect_left
from pathlib import Path

import numpy as np

from cosplace.errors import DatasetError
from cosplace.photos.image_list import BLOCK_BYTES, ImageList, list_from_lines, sorted_list

SUFFIXES = (b".jpg", b".jpeg", b".png")
LIST_SUFFIX = "_images_paths.txt"
LISTED_FILES_CHECKED = 100


def scan_images(folder: str | Path) -> ImageList:
    """All .jpg, .jpeg and .png files below a folder (any case, nested, links followed; hidden files left out).

    Where `<folder>_images_paths.txt` lies beside the folder, its lines (paths relative to the folder) replace the
    scan.  Raises DatasetError when the folder is missing, holds no photos, or does not match its list.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DatasetError(f"{folder} {what}: give the folder that holds the photos.")
    listed = folder.resolve().parent / (folder.resolve().name + LIST_SUFFIX)
    beside = folder.parent / (folder.name + LIST_SUFFIX)
    for list_file in (beside, listed):
        if list_file.is_file():
            return _read_list(folder, list_file)
    names = bytearray()
    try:
        _scan_into(names, os.fsencode(folder), b"", frozenset())
    except OSError as error:
        raise DatasetError(f"Cannot read {error.filename}: {error.strerror}.") from error
    if not names:
        raise DatasetError(f"{folder} holds no photos (.jpg, .jpeg or .png, in any subfolder).")
    return list_from_lines(folder, names)


def _scan_into(names: bytearray, folder: bytes, prefix: bytes, parents: frozenset[tuple[int, int]]) -> None:
    """Append the relative paths below `folder` in sorted order, without a list of all of them."""
    status = os.stat(folder)  # noqa: PTH116 - bytes, as names need not be text
    if (status.st_dev, status.st_ino) in parents:  # a link back to a folder above
        return
    parents |= {(status.st_dev, status.st_ino)}
    with os.scandir(folder) as entries:
        # A folder sorts as its name with the slash: then depth first is the order of whole paths.
        found = [entry.name + b"/" if entry.is_dir() else entry.name for entry in entries]
    found.sort()
    del found[bisect_left(found, b".") : bisect_left(found, b"/")]  # hidden ones: "/" comes right after "."
    wanted = (*SUFFIXES, b"/")
    found = [name for name in found if name.endswith(wanted) or name.lower().endswith(wanted)]
    any_folder = b"/" in b"".join(found)
    folders = [place for place, name in enumerate(found) if name.endswith(b"/")] if any_folder else []
    at = 0
    for place in folders:
        _append_photos(names, prefix, found[at:place])
        _scan_into(names, folder + b"/" + found[place][:-1], prefix + found[place], parents)
        at = place + 1
    _append_photos(names, prefix, found[at:])


def _append_photos(names: bytearray, prefix: bytes, photos: list[bytes]) -> None:
    if photos:
        names += prefix
        first, line = len(names), b"\n" + prefix
        names += line.join(photos) + b"\n"
        if names.count(b"\n", first) != len(photos):
            bad = next(name for name in photos if b"\n" in name)
            raise DatasetError(f"The file name {os.fsdecode(prefix + bad)!r} holds a line break: rename it.")


def _read_list(folder: Path, list_file: Path) -> ImageList:
    """The photos that a list names; the file itself is mapped into memory when it is sorted and clean."""
    starts = _starts_if_clean(list_file)
    if starts is not None:
        names = np.memmap(list_file, np.uint8, mode="r")
        images = ImageList(folder=folder, names=names, starts=starts, list_file=list_file)
    else:
        images = sorted_list(folder, [line for line in list_file.read_bytes().splitlines() if line.strip()])
    if not len(images):
        raise DatasetError(f"{list_file} lists no photos: delete it, or list the photos of {folder} in it.")
    _check_listed(images, list_file)
    return images


def _starts_if_clean(list_file: Path) -> np.ndarray | None:
    """(I + 1,) int64: where the lines start and the last one ends; None unless they are sorted and none is blank."""
    starts, at, rest, previous = [np.zeros(1, np.int64)], 0, b"", b""
    with list_file.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            block = rest + block
            lines = block.split(b"\n")
            rest = lines.pop()
            if not lines:
                continue
            # Sorting what is sorted takes one comparison a line.
            if b"\r" in block or not lines[0] or lines[0] < previous or lines != sorted(lines):
                return None
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + (at + 1)
            starts.append(ends)
            at, previous = int(ends[-1]), lines[-1]
    return np.concatenate(starts) if at and not rest else None


def _check_listed(images: ImageList, list_file: Path) -> None:
    """Look whether listed photos exist: all of a short list, an even sample of a long one."""
    for index in np.unique(np.linspace(0, len(images) - 1, LISTED_FILES_CHECKED).astype(np.int64)):
        if not images.path(int(index)).is_file():
            raise DatasetError(
                f"{list_file} lists '{images.name(int(index))}', which is not in {images.folder}: "
                f"correct or delete the list (without it the folder is scanned)."
            )
