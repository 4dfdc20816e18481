"""Checksums of the files of a local index: changed, truncated and missing files are detected before decoding.

Lance writes each file once and never changes it, so a checksum stays valid.  The writer records sizes and
checksums in `<address>/checksums.json` after each commit.  Files that it does not list were written by a run that was
killed before it recorded them; they are not checked here, but their rows have their own checksums.

A reader checks small files (versions, removed photos, records) whenever it opens a version, and the search index before
its first use.  Of data files it checks the size and the end, which describes the rest: with some damage there, Lance
takes all memory.  Their rows have checksums, see `cosplace.index.checksums`, and `cosplace index verify` checks whole
files.  Side effects: reads the files of the index, writes checksums.json.
"""

import hashlib
import json
import logging
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from cosplace.errors import DamagedIndexError, MissingIndexError, PhotoIndexError
from cosplace.storage import problem_with_kind, write_text

FILE_NAME = "checksums.json"
FORMAT = 1
TABLES = ("photos", "records")
MAX_NAME_BYTES = 255
MAX_RECORD_BYTES = 1 << 25  # of the checksums: more than a hundred thousand files
MIN_ENTRY_BYTES = 32  # of the checksums of a file, which are a list
FOOTER = struct.Struct("<QQQIIHH4s")  # starts of columns, their table and that of buffers; counts; version; magic
FOOTER_MAGIC = b"LANC"
BUFFER = struct.Struct("<QQ")  # position and bytes of a buffer, in their table
END_BYTES = 1 << 16  # of a data file without a known footer
SKIPPED_FOLDERS = ("_transactions",)  # of concurrent commits; readers never open them
SEARCH_FOLDER, DATA_FOLDER, VERSIONS_FOLDER = "_indices", "data", "_versions"
MANIFEST_DIGITS = 20  # of names of versions that count down from 2^64 - 1; others are the version itself

log = logging.getLogger(__name__)


def is_local(address: str) -> bool:
    """Whether an address is a folder, not object storage."""
    return "://" not in address


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChecksums:
    """Sizes and checksums of the files of an index, by path below its address."""

    versions: dict[str, int] = field(default_factory=dict)  # newest version of each table
    files: dict[str, tuple[int, str]] = field(default_factory=dict)  # path -> (bytes, checksum)
    ends: dict[str, tuple[int, str]] = field(default_factory=dict)  # path of a data file -> (start, checksum)


def read_checksums(address: str) -> FileChecksums | None:
    """The recorded checksums; None if there are none.  Raises DamagedIndexError, and MissingIndexError for a file."""
    path = Path(address) / FILE_NAME
    try:
        record = json.loads(read_record_file(path))
        content = record["content"]
        if record["checksum"] != checksum_of(content) or content["format"] != FORMAT:
            raise ValueError("checksum")
        files, ends = (
            {_inside(name): (int(number), str(checksum)) for name, (number, checksum) in content.get(kind, {}).items()}
            for kind in ("files", "ends")
        )
        versions = dict(content["versions"])
        if not (set(versions) <= set(TABLES) and all(isinstance(version, int) for version in versions.values())):
            raise ValueError("versions")
        return FileChecksums(versions=versions, files=files, ends=ends)
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise MissingIndexError(
            f"{address} {problem_with_kind(address, 'folder')}. Use the folder of an index, as `cosplace index build` "
            f"writes it."
        ) from error
    except PermissionError as error:
        raise no_permission(path) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise damaged(address, f"{FILE_NAME} cannot be read") from error


def read_record_file(path: Path) -> bytes:
    """The content of a file of checksums.

    Raises ValueError for a link or a pipe, which may never end, for a huge file, and for one with more lists than
    checksums have: as objects, these would take 30 times the memory.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ValueError("no regular file")
    with path.open("rb") as file:
        content = file.read(MAX_RECORD_BYTES + 1)
    num_lists = content.count(b"[") + content.count(b"{")
    if len(content) > MAX_RECORD_BYTES or num_lists > MIN_ENTRY_BYTES + len(content) // MIN_ENTRY_BYTES:
        raise ValueError("size")
    return content


def _inside(name: str) -> str:
    """The path of a file of the tables, or of a copy for readers.  Raises ValueError for any other."""
    parts = name.split("/")
    if not (is_copy(name) if len(parts) == 1 else parts[0].removesuffix(".lance") in TABLES):
        raise ValueError(name)
    if {"", ".."} & set(parts) or "\0" in name or max(map(len, map(os.fsencode, parts))) > MAX_NAME_BYTES:
        raise ValueError(name)
    return name


def record_checksums(address: str, versions: dict[str, int], former: FileChecksums | None) -> FileChecksums:
    """Record the checksums of the files of some tables; those of `former` are not computed again.

    versions: newest version of each table; files of earlier ones are left out.
    """
    former = FileChecksums() if former is None else former
    files, ends = {}, {}
    for path in sorted(_files(Path(address), versions)):
        name, size = path.relative_to(address).as_posix(), path.stat().st_size
        is_known = name in former.files and former.files[name][0] == size
        files[name] = former.files[name] if is_known else (size, file_checksum(path))
        if is_of_photos(name):
            ends[name] = former.ends[name] if is_known and name in former.ends else _end_of(path)
    copy = Path(address) / reader_copy_name(versions)
    if copy.is_file():  # unlike the files of Lance, it may be written again
        files[copy.name] = copy.stat().st_size, file_checksum(copy)
    content = {"format": FORMAT, "versions": versions, "files": files, "ends": ends}
    write_text(Path(address) / FILE_NAME, json.dumps({"checksum": checksum_of(content), "content": content}))
    return FileChecksums(versions=versions, files=files, ends=ends)


def _end_of(path: Path) -> tuple[int, str]:
    """(start, checksum) of the end of a data file of Lance: the tables of its columns and its footer."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - FOOTER.size))
        footer = file.read(FOOTER.size)
        start = max(0, size - END_BYTES)
        if len(footer) == FOOTER.size and footer.endswith(FOOTER_MAGIC):
            columns, _, buffers, num_buffers, *_ = FOOTER.unpack(footer)
            if buffers + BUFFER.size * num_buffers <= size:
                file.seek(buffers)
                table = file.read(BUFFER.size * num_buffers)
                start = min([columns, *(position for position, _ in BUFFER.iter_unpack(table))])
    return start, file_checksum(path, start)


def changed_ends(address: str, checksums: FileChecksums, names: Sequence[str]) -> list[str]:
    """The names of data files whose end has changed; without files that no longer exist, and pipes, which never end."""
    changed = []
    for name in names:
        if name not in checksums.ends:  # recorded by an earlier version
            continue
        path, (start, checksum) = Path(address) / name, checksums.ends[name]
        try:
            if path.is_file() and file_checksum(path, start) != checksum:
                changed.append(name)
        except FileNotFoundError:  # a writer removes the files of earlier versions
            continue
        except PermissionError as error:
            raise no_permission(path) from error
        except (OSError, ValueError):
            changed.append(name)
    return changed


def find_changes(
    address: str, checksums: FileChecksums, names: Sequence[str], *, only_sizes: bool = False
) -> list[str]:
    """The names of files whose content has changed; files that no longer exist are left out."""
    changed = []
    for name in names:
        path, (size, checksum) = Path(address) / name, checksums.files[name]
        try:
            is_same_size = path.stat().st_size == size and path.is_file()  # a pipe or a device may never end
            if not (is_same_size and (only_sizes or file_checksum(path) == checksum)):
                changed.append(name)
        except FileNotFoundError:  # a writer removes the files of earlier versions
            continue
        except PermissionError as error:
            raise no_permission(path) from error
        except OSError:
            changed.append(name)
    return changed


def file_checksum(path: Path, start: int = 0) -> str:
    """Checksum of a file, from byte `start` on."""
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def content_checksum(raw: bytes) -> str:
    """Checksum of the content of a file."""
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def is_of_photos(name: str) -> bool:
    """Whether a file holds photos."""
    return name.startswith(f"photos.lance/{DATA_FOLDER}/")


def is_manifest(name: str) -> bool:
    """Whether a file lists the files of a version of a table."""
    return name.endswith(".manifest")


def is_of_search(name: str) -> bool:
    """Whether a file belongs to the search index, which is derived from the photos."""
    return f"/{SEARCH_FOLDER}/" in name


def is_derived(name: str) -> bool:
    """Whether a file can be made again from others: of the search index, or a copy for readers."""
    return is_of_search(name) or is_copy(name)


def is_copy(name: str) -> bool:
    """Whether a file is a copy for readers, of any versions."""
    return fnmatch(name, reader_copy_name(dict.fromkeys(TABLES, "*")))


def reader_copy_name(versions: Mapping[str, int | str]) -> str:
    """Name of the copy of some versions of the tables, see `cosplace.index.reader_copy`."""
    return f"reader-{versions['photos']}-{versions['records']}.safetensors"


def newest_versions(address: str) -> dict[str, int]:
    """The newest version of each table of a local index that has any; empty for object storage."""
    found: dict[str, int] = {}
    for table in TABLES if is_local(address) else ():
        for path in (Path(address) / f"{table}.lance" / VERSIONS_FOLDER).glob("*.manifest"):
            if path.stem.isdecimal():
                number = int(path.stem)
                version = 2**64 - 1 - number if len(path.stem) == MANIFEST_DIGITS else number
                found[table] = max(version, found.get(table, version))
    return found


def version_files(address: str, versions: dict[str, int]) -> FileChecksums:
    """The files of a local index that describe some versions of its tables; a copy that was changed has other ones."""
    files = {}
    for table, version in versions.items() if is_local(address) else ():
        for path in manifests(address, table, version):
            with suppress(FileNotFoundError):  # a writer has just removed that version
                files[path.relative_to(address).as_posix()] = path.stat().st_size, file_checksum(path)
    return FileChecksums(versions=versions, files=files)


def manifests(address: str, table: str, version: int) -> list[Path]:
    """The manifest of a version, which has one of two names; none if a writer has removed that version."""
    folder = Path(address) / f"{table}.lance" / VERSIONS_FOLDER
    return [path for name in _manifest_names(version) if (path := folder / name).is_file()]


def _manifest_names(version: int) -> tuple[str, str]:
    """Both names that Lance uses."""
    return f"{version}.manifest", f"{2**64 - 1 - version:0{MANIFEST_DIGITS}}.manifest"


def damaged(address: str, problem: str) -> DamagedIndexError:
    """The error of a damaged index."""
    return DamagedIndexError(f"{address} is damaged: {problem}. Run `cosplace index verify {address}`.")


def no_permission(path: Path) -> PhotoIndexError:
    """The error of a file of an index that this user may not read."""
    return PhotoIndexError(f"No permission to read {path}. Ask its owner, or run this command as another user.")


def warn_not_used(address: str, name: str) -> None:
    """Warn that a derived file is damaged."""
    log.warning("%s/%s is damaged and not used. Run `cosplace index compact %s`.", address, name, address)


def checksum_of(content: dict[str, Any]) -> str:
    """Checksum of JSON."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _files(address: Path, versions: dict[str, int]) -> Iterable[Path]:
    for table, version in versions.items():
        folder = address / f"{table}.lance"
        manifests = _manifest_names(version)
        for path in folder.rglob("*"):
            kind = path.relative_to(folder).parts[0]
            if path.is_file() and kind not in SKIPPED_FOLDERS and (kind != VERSIONS_FOLDER or path.name in manifests):
                yield path
