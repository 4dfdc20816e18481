"""Where each photo goes in a dataset, and putting it there: copied, linked, or left where it is.

A photo gets the path that its source proposes, with a number if another photo has it.  It is written under a temporary
name and renamed.  Side effects: writes below the folder of the dataset.
"""

import errno
import hashlib
import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path, PurePosixPath

from cosplace.errors import DatasetError, ImageError
from cosplace.importing.dataset_table import GONE, DatasetTable, is_same_photo
from cosplace.importing.positions import has_position
from cosplace.importing.records import FoundPhoto, Problem
from cosplace.importing.report import REPORT_NAME
from cosplace.photos.opening import read_file
from cosplace.photos.paths import printable
from cosplace.photos.tables import TABLE_NAME, PhotoRecord
from cosplace.storage import storage_errors

ADDED, UPDATED, UNCHANGED = "added", "updated", "unchanged"
MAX_NAME_BYTES = 255
NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES)  # where hard links are impossible
RESERVED = (TABLE_NAME, REPORT_NAME)
LINE_BREAK = "its name has a line break. Rename the photo."


@dataclass(frozen=True, slots=True)
class Job:
    """A photo whose path in the dataset is decided: that of its record."""

    photo: FoundPhoto
    is_new: bool  # else its row is updated
    must_write: bool  # whether its file is not in the dataset yet


class Placement:
    """Puts photos into the folder of a dataset, and into its table.

    `decide` and `record` are called from one thread, `place` from any.
    """

    def __init__(self, folder: Path, mode: str, temporary: Path | None) -> None:
        """temporary: folder for unfinished files, on the same disk as `folder`; None: nothing is written."""
        self.folder, self.mode, self.temporary = folder, mode, temporary
        self.real_folder = Path(os.path.abspath(folder))  # noqa: PTH100 - keeps the names of links
        self.table = DatasetTable(folder)
        self.waiting: dict[str, PhotoRecord] = {}  # photos that are decided but not recorded, by path
        self.waiting_paths: defaultdict[str, list[str]] = defaultdict(list)  # theirs, by checksum
        self.num_symbolic_links = 0
        self.has_changed = False
        self.num_written = len(self.table)  # photos in the table on disk
        self._lock = threading.Lock()

    # --- decide ------------------------------------------------------------------------------------------------------

    def decide(self, photo: FoundPhoto) -> Job | Problem:
        """The path of a photo, or why it is left out.  Raises DatasetError for one outside, with --mode table."""
        record, table = photo.record, self.table
        # A photo that is in the dataset already stays where it is, in any mode.
        stays = not self._is_temporary(photo.file) and (self.mode == "table" or is_within(photo.file, self.folder))
        wanted = self._path_of_file(photo.file) if stays else _clean(record.path)
        if stays and "\n" in wanted:
            return Problem(name=str(photo.file), reason=LINE_BREAK)
        for path in [wanted] if stays else _numbered(wanted):
            record = replace(record, path=path)
            if (
                path in self.waiting and self.waiting[path].checksum == record.checksum
            ):  # the same file twice: the first is recorded first
                return Job(replace(photo, record=record), is_new=False, must_write=False)
            if table.has_photo(path, record.checksum) or (stays and table.has(path)):
                is_there = stays or self.temporary is None or (self.folder / path).is_file()
                if stays:  # it was imported from somewhere else
                    photo = replace(photo, record=replace(record, source=""))
                return self._job(photo, path, is_new=False, must_write=not is_there)
            if table.has(path) or path in self.waiting:
                continue
            same = table.path_of_same(record) or self._waiting_path(record)
            if same:
                return self._duplicate(photo, same)
            if stays or not os.path.lexists(self.folder / path):
                return self._job(photo, path, is_new=True, must_write=not stays)
            if _has_checksum(self.folder / path, record.checksum):  # of an import that was stopped
                return self._job(photo, path, is_new=True, must_write=False)
        raise AssertionError(wanted)

    def _job(self, photo: FoundPhoto, path: str, *, is_new: bool, must_write: bool) -> Job:
        photo = replace(photo, record=replace(photo.record, path=path))
        self._forget(path)
        self.waiting[path] = photo.record
        self.waiting_paths[photo.record.checksum].append(path)
        return Job(photo, is_new, must_write)

    def _waiting_path(self, record: PhotoRecord) -> str:
        """The path of the same photo among those that are decided; "" if there is none."""
        paths = self.waiting_paths.get(record.checksum, ())
        return next((path for path in paths if is_same_photo(record, self.waiting[path])), "")

    def other_with_content(self, job: Job) -> str:
        """The path of a photo with the content of a new one, at another position or heading; "" if there is none."""
        record = job.photo.record
        waiting = (path for path in self.waiting_paths.get(record.checksum, ()) if path != record.path)
        return self.table.path_of_content(record.checksum) or next(waiting, "")

    def _forget(self, path: str) -> None:
        """A photo is not waiting anymore."""
        if path in self.waiting:
            checksum = self.waiting.pop(path).checksum
            self.waiting_paths[checksum].remove(path)
            if not self.waiting_paths[checksum]:
                del self.waiting_paths[checksum]

    def cancel(self, job: Job) -> None:
        """Undo the decision for a photo."""
        self._forget(job.photo.record.path)
        self.discard(job.photo)

    def _duplicate(self, photo: FoundPhoto, path: str) -> Problem:
        self.discard(photo)
        where = "at the same position" if has_position(photo) else "without a position"
        reason = f"the same photo {where} is already in the dataset: {printable(path)}"
        return Problem(name=self.name_of(photo), reason=reason)

    def _path_of_file(self, file: Path) -> str:
        """The path of a photo relative to the dataset.  Raises DatasetError if it is outside."""
        path = Path(os.path.abspath(file))  # noqa: PTH100
        if not path.is_relative_to(self.real_folder):
            raise DatasetError(
                f"{file} is outside {self.folder}, so the table there cannot refer to it. Use --mode link or --mode "
                "copy, or set --to to a folder that contains all photos."
            )
        return path.relative_to(self.real_folder).as_posix()

    # --- place -------------------------------------------------------------------------------------------------------

    def place(self, job: Job) -> Job | Problem:
        """Copy or link a photo into the dataset.  Raises StorageError."""
        if not job.must_write or self.temporary is None:
            self.discard(job.photo)
            return job
        file, target = job.photo.file, self.folder / job.photo.record.path
        with storage_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if self._is_temporary(file):
                file.replace(target)
            elif self.mode == "link":
                self._link(file, target)
            else:
                unfinished = self.temporary / f"{threading.get_ident()}.part"
                try:
                    shutil.copyfile(file, unfinished)
                except FileNotFoundError as error:
                    if error.filename != str(file):
                        raise
                    return self._failed(job, f"was removed during the import ({error.strerror})")
                status = file.stat()
                os.utime(unfinished, ns=(status.st_atime_ns, status.st_mtime_ns))
                unfinished.replace(target)
        return job

    def _failed(self, job: Job, reason: str) -> Problem:
        return Problem(name=self.name_of(job.photo), reason=reason)

    def _link(self, file: Path, target: Path) -> None:
        real = os.path.realpath(file)
        if target.is_symlink():  # to a file that has been removed
            target.unlink()
        try:
            os.link(real, target)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            target.symlink_to(real)
            with self._lock:
                self.num_symbolic_links += 1

    def discard(self, photo: FoundPhoto) -> None:
        """Remove the temporary file of a photo that is not used."""
        if self.temporary is not None and self._is_temporary(photo.file):
            photo.file.unlink(missing_ok=True)

    def _is_temporary(self, file: Path) -> bool:
        return self.temporary is not None and file.parent == self.temporary

    def name_of(self, photo: FoundPhoto) -> str:
        """How the report names a photo: its file, or its video and time."""
        record = photo.record
        if record.video_time == record.video_time:
            return f"{record.source} at {record.video_time:.3f} s"
        return record.source if self._is_temporary(photo.file) else str(photo.file)

    # --- record ------------------------------------------------------------------------------------------------------

    def record(self, job: Job) -> str:
        """Enter a photo that is in place into the table: ADDED, UPDATED or UNCHANGED."""
        record = job.photo.record
        self._forget(record.path)
        if job.is_new:
            self.table.add(record)
            outcome = ADDED
        else:
            outcome = UPDATED if self.table.update(record) else UNCHANGED
        self.has_changed |= outcome != UNCHANGED
        return outcome

    def remove_missing(self) -> Iterator[Problem]:
        """Remove the rows whose files do not exist from the table, at the end of an import."""
        for path in self.table.remove_missing():
            self.has_changed = True
            yield Problem(name=path, reason=GONE)
        if num_missing := self.table.num_missing():
            reason = (
                f"lists {num_missing:,} files that do not exist, which are kept, because most are missing. "
                f"Connect their disk; or delete this table, and import all sources again."
            )
            yield Problem(name=str(self.table.path), reason=reason, is_left_out=False)

    def write(self) -> None:
        """Write the table, if it has changed.  Raises StorageError."""
        if self.has_changed:
            self.table.write()
            self.has_changed, self.num_written = False, len(self.table)


def is_within(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or below it, without following links."""
    inner, outer = os.path.abspath(path), os.path.abspath(folder)  # noqa: PTH100 - keeps the names of links
    return inner == outer or inner.startswith(outer.rstrip(os.sep) + os.sep)


def _has_checksum(path: Path, checksum: str) -> bool:
    try:
        return hashlib.sha256(read_file(path)).hexdigest() == checksum
    except ImageError:
        return False


def _clean(path: str) -> str:
    """A path that stays inside the dataset, with names that any file system of this machine accepts."""
    parts = [part for part in PurePosixPath(path.replace("\0", "_")).parts if part not in ("/", "..", ".")]
    parts = [_short(part.replace("\n", "_").replace("\r", "_")) for part in parts]
    parts[:1] = [f"_{part}" if part in RESERVED or part.startswith(".") else part for part in parts[:1]]
    return "/".join(parts) or "photo"


def _short(name: str, ending: str = "") -> str:
    """A file name with an ending before its suffix, cut to the length that file systems allow."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - a name, not a path
    room = MAX_NAME_BYTES - len(os.fsencode(ending + suffix))
    raw = os.fsencode(stem)
    if len(raw) > room:
        stem = raw[: max(room, 1)].decode("utf-8", "ignore")
    return f"{stem}{ending}{suffix}"


def _numbered(path: str) -> Iterator[str]:
    """A path, then the same with _2, _3 and so on before its suffix."""
    folder, slash, name = path.rpartition("/")
    return (f"{folder}{slash}{_short(name, f'_{number}' if number > 1 else '')}" for number in count(1))
