"""Folders of photos with EXIF, XMP or '@' names: lists the photos; they are read later (see `reading`).

Hidden files and folders of the system are not listed.  Side effects: reads folders.
"""

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from cosplace.config.importing import ImportSettings
from cosplace.importing.records import Entry, FoundPhoto, Problem
from cosplace.photos.formats import (
    FORMAT_BYTES,
    OTHER_IMAGE_SUFFIXES,
    OTHER_SUFFIXES,
    RAW_SUFFIXES,
    SUFFIXES,
    VIDEO_SUFFIXES,
    detect_format,
    other_format,
    refused_format,
    suffix_of,
)
from cosplace.photos.scanning import MAX_DEPTH, SYSTEM_FOLDERS
from cosplace.photos.tables import PhotoRecord

HEIC_SUFFIXES = frozenset(suffix for suffix, kind in OTHER_IMAGE_SUFFIXES.items() if kind == "HEIC")
POSITION_SUFFIXES = frozenset(b".csv .tsv .json .geojson .gpkg .gpx .nmea .parquet".split())
ARCHIVE_SUFFIXES = frozenset(b".zip .tar .gz .tgz .bz2 .xz .7z .rar".split())
ARCHIVE = "is an archive. Unpack it, and pass its folder as SOURCE."
PHOTOS_FOLDER = "photos"  # of a dataset


def detects(path: Path) -> bool:
    """Whether a path is a folder, or a photo."""
    return path.is_dir() or _is_photo(path)


def read(path: Path, settings: ImportSettings) -> Iterator[Entry]:
    """The photos below a folder, sorted by name within each folder, or one photo."""
    if not path.is_dir():
        yield FoundPhoto(file=path, record=PhotoRecord(path=f"{PHOTOS_FOLDER}/{path.name}"))
        return
    name = Path(os.path.abspath(path)).name  # noqa: PTH100 - keeps the name of a link
    prefix = f"{PHOTOS_FOLDER}/{name}/" if name and name != PHOTOS_FOLDER else f"{PHOTOS_FOLDER}/"
    for file in list_files(path):
        if isinstance(file, Problem):
            yield file
        elif problem := left_out(file):
            yield Problem(name=str(file), reason=problem)
        else:
            record = PhotoRecord(path=prefix + file.relative_to(path).as_posix())
            yield FoundPhoto(file=file, record=record)


def list_files(
    folder: Path, depth: int = 0, root: str = "", without: Collection[Path] = ()
) -> Iterator[Path | Problem]:
    """All files below a folder, sorted by name within each folder, and what cannot be listed.

    without: files and folders that are not listed.

    Links to places inside the folder are followed; others could copy private files of this machine.
    """
    root = root or os.path.realpath(folder)
    try:
        names, links, folders = _names_in(folder)
    except OSError as error:
        yield Problem(name=str(folder), reason=f"cannot be read ({error.strerror})")
        return
    for name in sorted(names):
        path = folder / name
        if path in without:
            continue
        if name in links:
            real = os.path.realpath(path)
            if real != root and not real.startswith(root.rstrip(os.sep) + os.sep):
                yield Problem(name=str(path), reason="is a link that leads outside the folder")
                continue
            if os.path.isdir(real):  # noqa: PTH112 - its photos are listed where they are
                continue
        if name not in folders:
            yield path
        elif os.fsencode(name).lower() in SYSTEM_FOLDERS:
            continue
        elif depth == MAX_DEPTH:
            yield Problem(name=str(path), reason=f"is more than {MAX_DEPTH} levels deep")
        else:
            yield from list_files(path, depth + 1, root, without)


def _names_in(folder: Path) -> tuple[list[str], set[str], set[str]]:
    """Names in a folder that are not hidden: all of them, links, and folders.  Raises OSError.

    Only names are kept, because there may be a hundred thousand.
    """
    names, links, folders = list[str](), set[str](), set[str]()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            names.append(entry.name)
            if entry.is_symlink():
                links.add(entry.name)
            elif entry.is_dir():
                folders.add(entry.name)
    return names, links, folders


def left_out(file: Path) -> str:
    """Why a file of a folder is not imported; empty for a photo.  Only files of unknown suffix are opened."""
    name = os.fsencode(file.name)
    suffix = suffix_of(name)
    if suffix in SUFFIXES or suffix in HEIC_SUFFIXES:
        return ""
    if suffix in VIDEO_SUFFIXES:
        return "is a video. To import its frames, pass the video itself as SOURCE."
    if suffix in RAW_SUFFIXES:
        return "is a camera raw image. Export it as JPEG."
    if suffix in POSITION_SUFFIXES:
        return "is not a photo. To use its positions, also pass it as SOURCE."
    if suffix in ARCHIVE_SUFFIXES:
        return ARCHIVE
    if suffix in OTHER_SUFFIXES:
        return "is not a photo"
    start = _start(file)
    return "" if detect_format(start) or other_format(start) == "HEIC" else refused_format(start, name)


def _is_photo(path: Path) -> bool:
    start = _start(path)
    return detect_format(start) is not None or other_format(start) == "HEIC"


def _start(path: Path) -> bytes:
    """The first bytes of a regular file; empty for others, and for one that cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return b""
        with path.open("rb") as file:
            return file.read(FORMAT_BYTES)
    except OSError:
        return b""
