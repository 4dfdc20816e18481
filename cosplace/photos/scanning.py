"""List the photos of a folder, by a scan or from a list file next to it, or those of a table."""

import errno
import logging
import operator
import os
import stat
from bisect import bisect_left
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from cosplace.errors import DatasetError
from cosplace.photos.formats import (
    FORMAT_BYTES,
    OTHER_SUFFIXES,
    RAW_SUFFIXES,
    SUFFIXES,
    VIDEO_SUFFIXES,
    detect_format,
    other_format,
    suffix_of,
)
from cosplace.photos.image_list import (
    BLOCK_BYTES,
    FOLLOW_OUTSIDE,
    OTHER_FILES,
    ImageList,
    SkippedFiles,
    evenly_spaced,
    is_below,
    list_from_lines,
    sorted_list,
)
from cosplace.photos.table_lists import find_part, list_part, parts_in, splits_of
from cosplace.storage import problem_with_kind

LIST_SUFFIX = "_images_paths.txt"
LISTED_FILES_CHECKED = 100
CHECKED_BYTES = 2_000_000  # of a list file: each path in this part is checked
HIDDEN = b"."  # in place of the name of an entry that a scan leaves out
MAX_DEPTH = 200  # levels of folders
SYSTEM_FOLDERS = (
    b"#recycle", b"$recycle.bin", b"@recycle", b"@recently-snapshot", b"@eadir", b"@tmp", b"recycler",
    b"system volume information", b"__macosx", b"lost+found",
)  # fmt: skip
"""Names of folders of operating systems and network drives, in lower case; they are spelled in any case."""
SPLIT_FOLDERS = (b"train", b"val", b"test", b"database", b"queries", b"gallery", b"query")
"""Folders of a dataset, and with any ending such as queries_v1, that may be links to any other place."""

MAX_PART_DEPTH = 3  # levels of a part below the dataset that its user named, as in images/test/database
TABLE_SUFFIXES = (".csv", ".tsv", ".tab", ".json", ".geojson", ".jsonl", ".ndjson", ".gpkg", ".gpx")
"""Files with positions of photos, which `cosplace import` reads."""
VIDEOS, RAW_IMAGES, OUTSIDE = "videos", "raw images", "links that lead outside the folder"
LISTED = "links to folders that are already listed"
log = logging.getLogger("cosplace")


def scan_images(folder: str | Path, *, dataset: str | Path | None = None, follow_outside: bool = False) -> ImageList:
    """All photos below a folder (nested, sorted by whole path; without hidden files and folders of the system).

    Photos are files with a suffix of SUFFIXES, in any case, and others whose content is of such a format.  Everything
    else is counted in `skipped`, and one warning in the log names it: other formats, videos, links and folders that
    cannot be read, pipes and devices.
    dataset: the folder of the whole dataset; links may lead to any place in it.  Default: `folder`.
    follow_outside: also follow links that lead outside.  Without it, only the folder itself and its subfolders named
    train, val, test, database, queries and gallery may be such links.

    If there is a file `<folder>_images_paths.txt` next to the folder, its lines (paths relative to the folder) replace
    the scan.

    A folder with a table `photos.parquet`, and a Parquet file, have the photos of the table; so has a part of it, such
    as DATASET/train or DATASET/test/database, which need not be a folder (see `cosplace.photos.table_lists`).
    Raises DatasetError if the folder is missing, has no photos, or does not match its list file or table.
    """
    folder = Path(folder)
    part = find_part(folder)
    if part is None:
        require_folder(folder)
    if part is not None:
        return list_part(part, () if follow_outside else _real_folders(part.folder, dataset))
    inside = () if follow_outside else _real_folders(folder, dataset)
    for path in (folder, folder.resolve()):
        list_file = path.parent / (path.name + LIST_SUFFIX)
        if list_file.is_file():
            return _read_list(folder, list_file, inside)
    scan = _Scan(folder=os.path.realpath(folder), inside=inside)
    try:
        _scan_into(scan, os.fsencode(folder), b"", frozenset())
    except OSError as error:
        raise DatasetError(f"Cannot read {os.fsdecode(error.filename)}: {error.strerror}.") from error
    summary = scan.skipped.summary()
    remedies = [FOLLOW_OUTSIDE] if OUTSIDE in scan.skipped.counts else []
    if not scan.names:
        raise DatasetError(
            f"{folder} has no photos (JPEG, PNG, WebP, TIFF, BMP or GIF, in any subfolder). "
            f"{summary or 'Use the folder that contains the photos.'}",
            *remedies,
        )
    if summary:
        log.warning("%s", DatasetError(f"{folder}: {summary}", *remedies))  # as an error would be printed
    return replace(list_from_lines(folder, scan.names), skipped=scan.skipped)


def is_dataset_part(path: str | Path) -> bool:
    """Whether a path is a folder, a table of photos, or a part of a table: what `scan_images` accepts.

    Raises DatasetError for a table that cannot be read.
    """
    return _is_folder(Path(path)) or find_part(Path(path)) is not None


def require_folder(folder: str | Path) -> None:
    """Raise DatasetError unless a path is a folder, a table of photos, or a part of a table."""
    if not is_dataset_part(folder):
        raise missing_folder(Path(folder), "Use the folder that contains the photos.")


def missing_folder(folder: Path, advice: str) -> DatasetError:
    """The error for a path that `is_dataset_part` refuses.  advice: what to do where nothing better is known."""
    file = next((path for path in (folder, *folder.parents) if path.is_file()), None)
    if file is not None and file.suffix.lower() in TABLE_SUFFIXES:
        return DatasetError(
            f"{file} is a table of another format, not a dataset. Import it with its photos first: `cosplace import "
            f"PHOTOS {file} --to DATASET`."
        )
    if os.path.exists(folder):  # noqa: PTH110 - unlike pathlib, without an error for a folder that cannot be read
        return DatasetError(f"{folder} {problem_with_kind(folder, 'folder')}. {advice}")
    owner, part = next(
        (
            (path, part)
            for path in list(folder.parents)[:MAX_PART_DEPTH]
            if (part := find_part(path)) is not None and not part.part
        ),
        (folder.parent, None),
    )
    if part is None:
        if (problem := _problem_above(folder)) is not None:
            return DatasetError(f"{problem}. {advice}")
        parent = folder.parent
        if os.fsencode(folder.name) in SPLIT_FOLDERS and _is_folder(parent):
            advice += f" To split the photos in {parent}, import them first: `cosplace import {parent} --to DATASET`."
        return DatasetError(f"{folder} does not exist. {advice}")
    name, splits, split = folder.relative_to(owner).as_posix(), splits_of(part), f"`cosplace split {owner}`"
    if not splits:
        return DatasetError(f"{owner} has no {name}: its table has no splits. Split it first: {split}.")
    return DatasetError(
        f"{owner} has no {name}: its photos are in {', '.join(splits)}. Use one of these, or split it again: {split}."
    )


def _problem_above(folder: Path) -> str | None:
    """What is wrong with the nearest existing path above a missing folder, such as a file; None if it is a folder."""
    above = next((path for path in folder.parents if os.path.exists(path)), folder)  # noqa: PTH110
    return None if above.is_dir() or above == folder else f"{above} {problem_with_kind(above, 'folder')}"


def subfolders(path: str | Path) -> list[str]:
    """Names of the folders and the parts of a table directly below a path, sorted; without hidden ones."""
    path = Path(path)
    on_disk = [entry.name for entry in path.iterdir() if entry.is_dir()] if _is_folder(path) else []
    return sorted({name for name in [*on_disk, *parts_in(path)] if not name.startswith(".")})


def has_part(folder: str | Path, name: str) -> bool:
    """Whether a dataset has a part, such as test/database, without a user naming it.

    If the dataset has a table with splits, only its splits count: other folders may be left from before it was split.
    """
    return find_part(Path(folder) / name) is not None if _has_splits(folder) else is_dataset_part(Path(folder) / name)


def part_names(folder: str | Path) -> list[str]:
    """Names of the parts directly below a dataset or a part of it, sorted, as `has_part` counts them."""
    return parts_in(Path(folder)) if _has_splits(folder) else subfolders(folder)


def _has_splits(folder: str | Path) -> bool:
    part = find_part(Path(folder))
    return part is not None and bool(splits_of(part))


def _real_folders(*places: str | Path | None) -> tuple[str, ...]:
    return tuple(os.path.realpath(place) for place in places if place)


def _is_folder(folder: Path) -> bool:
    try:
        return stat.S_ISDIR(os.stat(folder).st_mode)  # noqa: PTH116
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return False


@dataclass(slots=True, kw_only=True)
class _Scan:
    """What a scan has found so far."""

    names: bytearray = field(default_factory=bytearray)  # relative paths, each ended by a newline
    skipped: SkippedFiles = field(default_factory=SkippedFiles)
    folder: str  # the real path of the folder that is scanned
    inside: tuple[str, ...]  # real folders that links may lead to; () for any
    linked: set[tuple[int, int]] = field(default_factory=set)  # folders that links led to, and those below them

    def skip(self, kind: str, name: bytes) -> None:
        self.skipped.add(kind, os.fsdecode(name))


def _scan_into(
    scan: _Scan, folder: bytes, prefix: bytes, parents: frozenset[tuple[int, int]], *, is_linked: bool = False
) -> None:
    """Append the relative paths below `folder` in sorted order, without building a list of all paths.

    is_linked: a link leads to the folder, or to one above it.
    """
    status = os.stat(folder)  # noqa: PTH116 - bytes, as file names may not be valid text
    identity = (status.st_dev, status.st_ino)
    if identity in parents or (is_linked and identity in scan.linked):
        scan.skip(LISTED, prefix[:-1])
        return
    parents |= {identity}
    if is_linked:
        scan.linked.add(identity)
    with os.scandir(folder) as entries:
        # With a slash after folders, a depth-first scan gives the order of whole paths.
        entry_names = [
            entry.name if entry.is_file(follow_symlinks=False) else _other_entry(scan, entry, folder, prefix)
            for entry in entries
        ]
    entry_names.sort()
    hidden = slice(bisect_left(entry_names, b"."), bisect_left(entry_names, b"/"))  # "/" comes after "."
    for name in entry_names[hidden]:
        if name.endswith(b"/"):
            scan.skip("hidden folders", prefix + name[:-1])
    del entry_names[hidden]
    endings = (*SUFFIXES, b"/")
    entry_names = [
        name
        for name in entry_names
        if name.endswith(endings) or name.lower().endswith(endings) or _is_photo(scan, folder, prefix, name)
    ]
    any_folder = b"/" in b"".join(entry_names)
    folders = [index for index, name in enumerate(entry_names) if name.endswith(b"/")] if any_folder else []
    next_index = 0
    for index in folders:
        _append_photos(scan, prefix, entry_names[next_index:index])
        _scan_subfolder(scan, folder, prefix, entry_names[index], parents, is_linked=is_linked)
        next_index = index + 1
    _append_photos(scan, prefix, entry_names[next_index:])


def _scan_subfolder(
    scan: _Scan,
    folder: bytes,
    prefix: bytes,
    subfolder: bytes,
    parents: frozenset[tuple[int, int]],
    *,
    is_linked: bool,
) -> None:
    name = subfolder[:-1]
    if name.lower() in SYSTEM_FOLDERS:
        scan.skip("system folders", prefix + name)
    elif b"\n" in name:
        scan.skip("folders with a line break in their name", prefix + name)
    elif prefix.count(b"/") >= MAX_DEPTH:
        scan.skip(f"folders more than {MAX_DEPTH} levels deep", prefix + name)
    else:
        path, inside, linked = folder + b"/" + name, scan.inside, scan.linked
        if os.path.islink(path):  # noqa: PTH114
            is_linked, place = True, os.path.realpath(os.fsdecode(path))
            if not prefix and name.startswith(SPLIT_FOLDERS):
                scan.inside, scan.linked = (*inside, place) if inside else (), set()
            elif _is_scanned(place, scan.folder):
                scan.skip(LISTED, prefix + name)
                return
        try:
            _scan_into(scan, path, prefix + subfolder, parents, is_linked=is_linked)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # not a problem of this folder
                raise
            scan.skip(f"folders that cannot be read ({error.strerror})", prefix + name)
        finally:
            scan.inside, scan.linked = inside, linked


def _is_scanned(place: str, folder: str) -> bool:
    """Whether a scan of a folder finds this place without links.  Both are real paths."""
    if not is_below(place, (folder,)):
        return False
    names = [os.fsencode(name) for name in Path(place).relative_to(folder).parts]
    return not any(name.startswith(b".") or name.lower() in SYSTEM_FOLDERS for name in names)


def _other_entry(scan: _Scan, entry: "os.DirEntry[bytes]", folder: bytes, prefix: bytes) -> bytes:
    """The name of a folder, with a slash, or of a link; a hidden name for what is skipped."""
    name = entry.name
    if entry.is_dir(follow_symlinks=False):
        return name + b"/"
    if name.startswith(b"."):
        return HIDDEN
    path = folder + b"/" + name
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except OSError:
        scan.skip("broken links", prefix + name)
        return HIDDEN
    is_folder = stat.S_ISDIR(mode)
    if not is_folder and not stat.S_ISREG(mode):
        scan.skip("pipes, sockets and devices", prefix + name)
        return HIDDEN
    is_split = is_folder and not prefix and name.startswith(SPLIT_FOLDERS)
    if scan.inside and not is_split and not is_below(os.path.realpath(os.fsdecode(path)), scan.inside):
        scan.skip(OUTSIDE, prefix + name)
        return HIDDEN
    return name + b"/" if is_folder else name


def _is_photo(scan: _Scan, folder: bytes, prefix: bytes, name: bytes) -> bool:
    """Whether a file without the suffix of a photo is a photo, by its first bytes; if not, it is counted."""
    suffix = suffix_of(name)
    if suffix in OTHER_SUFFIXES:
        scan.skip(OTHER_FILES, prefix + name)
        return False
    if suffix in VIDEO_SUFFIXES or suffix in RAW_SUFFIXES:
        scan.skip(VIDEOS if suffix in VIDEO_SUFFIXES else RAW_IMAGES, prefix + name)
        return False
    try:
        with open(folder + b"/" + name, "rb", buffering=0) as file:  # noqa: PTH123
            start = file.read(FORMAT_BYTES) or b""
    except OSError:
        scan.skip("files that cannot be read", prefix + name)
        return False
    if detect_format(start) is not None:
        return True
    kind = other_format(start, name)
    scan.skip({"video": VIDEOS, "raw": RAW_IMAGES, "": OTHER_FILES}.get(kind, f"{kind} files"), prefix + name)
    return False


def _append_photos(scan: _Scan, prefix: bytes, photos: list[bytes]) -> None:
    if photos:
        names = scan.names
        first, length, line = len(names), len(photos), b"\n" + prefix
        names += prefix + line.join(photos) + b"\n"
        if names.count(b"\n", first) != length:  # a list has one line per photo
            del names[first:]
            for name in photos:
                if b"\n" in name:
                    scan.skip("photos with a line break in their name", prefix + name)
            _append_photos(scan, prefix, [name for name in photos if b"\n" not in name])


def _read_list(folder: Path, list_file: Path, inside: tuple[str, ...]) -> ImageList:
    """The photos in a list file; the file is mapped into memory if it is sorted and has no blank lines.

    inside: real folders that may hold the photos; () for any.
    """
    starts = _starts_if_sorted(list_file, any_place=not inside)
    if starts is not None:
        names = np.memmap(list_file, np.uint8, mode="r")
        images = ImageList(folder=folder, names=names, starts=starts, list_file=list_file, inside=inside)
    else:
        lines = [line for line in list_file.read_bytes().splitlines() if line.strip()]
        if inside:
            _refuse_outside(lines, list_file)
        different = list(dict.fromkeys(lines))
        if num_repeated := len(lines) - len(different):
            what = "one line repeats another" if num_repeated == 1 else f"{num_repeated:,} lines repeat others"
            log.warning("%s: %s; each photo counts once.", list_file, what)
        images = replace(sorted_list(folder, different), inside=inside)
    if not len(images):
        raise DatasetError(f"{list_file} lists no photos. Delete it, or list the photos of {folder} in it.")
    _check_listed(images, list_file)
    return images


def _refuse_outside(lines: list[bytes], list_file: Path) -> None:
    """Raise DatasetError for a path of a list file that is absolute or leaves the folder."""
    for line in lines:
        if line[:1] == b"/" or (b".." in line and b".." in line.split(b"/")):
            raise DatasetError(
                f"{list_file} lists '{os.fsdecode(line)}', which is outside the folder. Correct the list.",
                FOLLOW_OUTSIDE,
            )


def _starts_if_sorted(list_file: Path, *, any_place: bool) -> np.ndarray | None:
    """(I + 1,) int64: starts of the lines, and the end of the last one; None if lines are unsorted, blank or equal."""
    starts, position, rest, previous = [np.zeros(1, np.int64)], 0, b"", b""
    with list_file.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            block = rest + block
            lines = block.split(b"\n")
            rest = lines.pop()
            if not lines:
                continue
            # Paths that start with "/" or "../" sort before "0"; others are checked in short lists, and when opened.
            if not any_place and (position < CHECKED_BYTES or lines[0] < b"0"):
                _refuse_outside(lines, list_file)
            # Sorting a sorted list takes one comparison per line.
            if b"\r" in block or not lines[0] or lines[0] <= previous or lines != sorted(lines):
                return None
            if any(map(operator.eq, lines, islice(lines, 1, None))):
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
