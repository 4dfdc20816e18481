"""The files of one index while it is open: what kinds they are, how large, and whether they are as they were written.

Side effects: reads the files of the index; a writer records their checksums.
"""

import os
import re
import stat
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from cosplace.index.file_checksums import (
    DATA_FOLDER,
    SEARCH_FOLDER,
    TABLES,
    VERSIONS_FOLDER,
    changed_ends,
    checksum_of,
    content_checksum,
    damaged,
    file_checksum,
    find_changes,
    is_derived,
    is_local,
    is_manifest,
    is_of_photos,
    is_of_search,
    manifests,
    newest_versions,
    read_checksums,
    record_checksums,
    warn_not_used,
)
from cosplace.index.manifests import ManifestError, check_manifest
from cosplace.progress import format_bytes

READ_FOLDERS = (DATA_FOLDER, "_deletions")  # of photos and records
FOLDERS = {*READ_FOLDERS, VERSIONS_FOLDER, SEARCH_FOLDER, "_transactions"}  # of a table; others have tags and branches
MAX_SMALL_BYTES = 4 << 30  # of versions, lists of removed photos, and records: more than those of 100 million photos
MAX_DERIVED_BYTES = 256 << 20  # of a copy for readers, which a writer makes of small indexes
MAX_HOLE_BYTES = 256 << 20  # of files that are mostly holes
SMALL_FILE, LEAST_STORED = 1 << 20, 0.01  # bytes of a file that is not looked at; share on the disk of any other
MAX_DEPTH = 5  # of folders: those of a search index are two below that of the table
MAX_MANIFEST_BYTES = 32 << 20  # more than a quarter of a million data files need
NAME = re.compile(r"[0-9A-Za-z._-]+(#[0-9]+)?")  # of a file of Lance; with a number, it is not finished
# Of a version: its number, or that counted down from 2^64 - 1.  Lance takes some other names for versions, too.
COUNTED_DOWN = "18446744"
MANIFEST = re.compile(rf"([0-9]{{1,12}}|{COUNTED_DOWN}[0-9]{{12}})\.manifest")
BLOCK = 512  # bytes, the unit of st_blocks


def check_kinds(address: str) -> None:
    """Raise DamagedIndexError for tables of a local index with files that no writer makes, which may never end.

    These are links, pipes, sockets and devices, names that Lance would read in another way, large files that are mostly
    holes, and too many bytes where writers store few.
    """
    num_small_bytes = num_hole_bytes = num_stored_bytes = 0
    for table in TABLES:
        if (Path(address) / f"{table}.lance").is_symlink():  # whose target a writer would change
            raise damaged(address, f"{table}.lance is a link")
        _check_names(address, Path(address) / f"{table}.lance")
        for folder, folders, names in os.walk(Path(address) / f"{table}.lance"):
            if len(Path(folder).relative_to(address).parts) > MAX_DEPTH:
                raise damaged(address, f"{table}.lance has more folders in each other than any writer makes")
            for path in (Path(folder) / name for name in (*folders, *names)):
                with suppress(FileNotFoundError):  # a writer has just removed it
                    status, name = _checked_status(address, path), path.relative_to(address).as_posix()
                    num_small_bytes += 0 if is_of_photos(name) or is_of_search(name) else status.st_size
                    num_hole_bytes += _hole_bytes(path, status)
                    num_stored_bytes += _stored_bytes(status)
    if num_stored_bytes and num_hole_bytes > MAX_HOLE_BYTES:  # some systems say that all files have no bytes on a disk
        raise damaged(address, f"its files have {format_bytes(num_hole_bytes)}, mostly holes")
    if num_small_bytes > MAX_SMALL_BYTES:
        raise damaged(address, f"its versions and records have {format_bytes(num_small_bytes)}, more than any index")


def _check_names(address: str, table: Path) -> None:
    """Raise DamagedIndexError for a table with folders that no writer makes, or versions that are named in two ways."""
    folders = {path.name for path in table.glob("*") if path.is_dir()}
    if foreign := sorted(folders - FOLDERS):
        raise damaged(address, f"{table.name} has a folder that no writer makes ({foreign[0]!a})")
    names = [path.name for path in (table / VERSIONS_FOLDER).glob("*.manifest") if MANIFEST.fullmatch(path.name)]
    if len({name.startswith(COUNTED_DOWN) for name in names}) > 1:
        raise damaged(address, f"the versions of {table.name} are named in two ways")


def _checked_status(address: str, path: Path) -> os.stat_result:
    """What the system says about a file or folder of the tables.  Raises DamagedIndexError if no writer makes it."""
    status, name = path.lstat(), path.relative_to(address).as_posix()
    if stat.S_ISLNK(status.st_mode):
        raise damaged(address, f"{name} is a link")
    if not NAME.fullmatch(path.name) or (is_manifest(name) and not MANIFEST.fullmatch(path.name)):
        raise damaged(address, f"{path.parent.name} has a file with a name that no writer gives ({path.name!a})")
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise damaged(address, f"{name} is not a regular file")
    if is_manifest(name) and status.st_size > MAX_MANIFEST_BYTES:
        raise damaged(address, f"{name} has {format_bytes(status.st_size)}, more than any version needs")
    return status


def check_manifests(address: str) -> None:
    """Raise DamagedIndexError if the newest version of a table in a folder says what no writer says."""
    for table, version in newest_versions(address).items():
        for path in manifests(address, table, version):
            try:
                check_manifest(path.read_bytes())
            except ManifestError as error:
                raise damaged(address, f"the newest version of {table}.lance {error}") from error


def unreadable_versions(address: str) -> list[str]:
    """Manifests of older versions that cannot be read; nothing needs them, but joining files reads them."""
    newest, found = newest_versions(address), []
    for table in newest:
        needed = manifests(address, table, newest[table])
        for path in sorted((Path(address) / f"{table}.lance" / VERSIONS_FOLDER).glob("*.manifest")):
            try:
                if path not in needed:
                    check_manifest(path.read_bytes())
            except FileNotFoundError:  # a writer has just removed it
                continue
            except ManifestError:
                found.append(path.relative_to(address).as_posix())
    return found


def table_bytes(address: str, *, stored: bool = True) -> int:
    """Bytes of the files that hold the photos and records of a local index.

    stored: on the disk, without holes; some systems count new files only after some seconds.
    """
    folders = [Path(address) / f"{table}.lance" / folder for table in TABLES for folder in READ_FOLDERS]
    num_bytes = 0
    for path in (path for folder in folders for path in folder.glob("*")):
        with suppress(FileNotFoundError):  # a writer has just removed it
            status = path.stat()
            num_bytes += _stored_bytes(status) if stored else status.st_size
    return num_bytes


def _hole_bytes(path: Path, status: os.stat_result) -> int:
    """Bytes of a file that is mostly holes; 0 for others."""
    if status.st_size < SMALL_FILE or _stored_bytes(status) >= LEAST_STORED * status.st_size:
        return 0
    with suppress(OSError), path.open("rb") as file:
        os.fsync(file.fileno())  # some systems count new files only after some seconds
        status = os.fstat(file.fileno())
    return status.st_size if _stored_bytes(status) < LEAST_STORED * status.st_size else 0


def _stored_bytes(status: os.stat_result) -> int:
    """Bytes of a file on the disk; its size where the system does not tell."""
    blocks = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else min(status.st_size, BLOCK * blocks)


def _is_named(folder: str, manifest: bytes) -> bool:
    """Whether a manifest names a folder of the search index: by the 16 bytes of its UUID."""
    try:
        return uuid.UUID(folder).bytes in manifest
    except ValueError:
        return True


class CheckedFiles:
    """The files of one index, compared with their checksums; each file only once, because it never changes.

    Files on object storage have no checksums, so there is nothing to compare.
    """

    def __init__(self, address: str, *, check: bool = True) -> None:
        """check: compare files; without it, they are only recorded."""
        self.address, self.is_checked = address, check and is_local(address)
        self.versions: dict[str, int] = {}  # newest version of each table, as recorded
        self.names: list[str] = []  # of the files that have checksums and are not derived
        self.trusted_key: str | None = None  # see `cosplace.index.tables`
        self._found_intact: set[str] = set()

    def record(self, versions: dict[str, int], *, again: bool = False) -> None:
        """Record the checksums of new files; the writer calls this after each commit.  again: of all files."""
        if is_local(self.address):
            former = None if again else read_checksums(self.address)
            record_checksums(self.address, versions, former)

    def check(self) -> None:
        """Compare files with their checksums before Lance reads them.  Raises DamagedIndexError."""
        if is_local(self.address):
            check_kinds(self.address)
        checksums = read_checksums(self.address) if self.is_checked else None
        self.versions = {} if checksums is None else checksums.versions
        self.names = [] if checksums is None else [name for name in checksums.files if not is_derived(name)]
        if checksums is None:
            return
        new = [name for name in self.names if name not in self._found_intact]
        large = [name for name in new if is_of_photos(name)]
        small = [name for name in new if not is_of_photos(name)]
        changed = find_changes(self.address, checksums, large, only_sizes=True)
        changed += changed_ends(self.address, checksums, large)
        changed += find_changes(self.address, checksums, small)
        if changed:
            raise damaged(self.address, f"{changed[0]} has changed")
        self._found_intact |= set(new)

    def missing(self) -> list[str]:
        """The files of the tables that were recorded and do not exist; a writer may have just removed them."""
        return [name for name in self.names if not (Path(self.address) / name).is_file()]

    def check_versions(self, versions: dict[str, int]) -> None:
        """Raise DamagedIndexError if the newest version of a table is older than the one that was recorded."""
        for table, version in self.versions.items():
            if versions[table] < version:
                raise damaged(self.address, f"the newest version of {table}.lance is missing")

    def read_intact(self, name: str) -> bytes | None:
        """The content of a derived file; None if it or another file is missing, or if it has changed."""
        checksums = read_checksums(self.address) if self.is_checked else None
        if checksums is None or name not in checksums.files:
            return None
        if not all((Path(self.address) / other).is_file() for other in checksums.files):
            return None  # a writer is at work, or the index is damaged
        if (Path(self.address) / name).is_symlink():  # a file that may never end
            return None
        try:
            with (Path(self.address) / name).open("rb") as file:
                raw = file.read(MAX_DERIVED_BYTES)  # a longer file has another checksum
        except OSError:  # a writer has removed it
            return None
        if (len(raw), content_checksum(raw)) != checksums.files[name]:
            warn_not_used(self.address, name)
            return None
        return raw

    def tables_key(self) -> str:
        """A checksum of all that the newest versions of the tables are read from, in a folder.

        Files of photos and records count by when they were changed, which nobody can choose, and by their number on the
        disk, because several may be written within one tick of the clock.
        """
        key: dict[str, Any] = {}
        for table, version in newest_versions(self.address).items():
            manifest = b"".join(path.read_bytes() for path in manifests(self.address, table, version))
            key[table] = content_checksum(manifest)
            for folder in READ_FOLDERS:
                for path in (Path(self.address) / f"{table}.lance" / folder).glob("*"):
                    if folder != DATA_FOLDER or path.name.encode() in manifest:
                        with suppress(FileNotFoundError):  # a writer has just removed it
                            status = path.stat()
                            times = status.st_mtime_ns, status.st_ctime_ns
                            key[f"{table}/{path.name}"] = status.st_size, *times, status.st_ino
        return checksum_of(key)

    def search_key(self, version: int) -> str | None:
        """A checksum of the search index of one version of the photos; None without files, and for object storage.

        Files that were not recorded count, too.
        """
        checksums = read_checksums(self.address) if self.is_checked else None
        if checksums is None:
            return None
        folder = Path(self.address) / f"{TABLES[0]}.lance" / SEARCH_FOLDER
        contents = b"".join(path.read_bytes() for path in manifests(self.address, TABLES[0], version))
        files = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file() and _is_named(path.relative_to(folder).parts[0], contents):
                name = path.relative_to(self.address).as_posix()
                files[name] = checksums.files[name][1] if name in checksums.files else file_checksum(path)
        return checksum_of(files) if files else None

    def is_search_intact(self, version: int) -> bool:
        """Whether the files of the search index are as they were written; they are derived from the photos.

        version: that of the photos that are read.
        """
        checksums = read_checksums(self.address) if self.is_checked else None
        if checksums is None:
            return True
        names = [name for name in checksums.files if is_of_search(name)]
        is_newest = checksums.versions.get("photos") == version
        if is_newest and not all((Path(self.address) / name).is_file() for name in names):
            return False
        new = [name for name in names if name not in self._found_intact]
        if find_changes(self.address, checksums, new):
            return False
        self._found_intact |= set(new)
        return True
