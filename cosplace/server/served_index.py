"""The photo index of a server: photos for the map in memory, changes one at a time."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from fastapi import HTTPException

from cosplace.errors import CosPlaceError, ImageError, ReplacedIndexError
from cosplace.geo import bounding_box
from cosplace.index.photo_index import PhotoIndex, open_index
from cosplace.localization.localizer import Localizer
from cosplace.server.batching import DecodingMemory, encode_in_batches
from cosplace.server.failures import BusyError, is_logged
from cosplace.server.new_photos import read_new_photo
from cosplace.server.points import map_points, times_of
from cosplace.server.sequences import Sequences, find_sequences, photos_of_sequence
from cosplace.server.settings import ServerSettings
from cosplace.server.uploads import Upload

MAX_WAITING_CHANGES = 8
MAX_RETRY_S = 5.0  # between two checks for changes of an index that cannot be read, unless --refresh_s is longer
LATE_CHECKS, LATE_S = 3, 60.0  # a check is late after this many intervals plus this many seconds

log = logging.getLogger("cosplace.server")
T = TypeVar("T")


def index_name(address: str) -> str:
    """Return the name of an index for visitors: the last part of its address; "" if it is only "index"."""
    name = address.replace("\\", "/").rstrip("/").rpartition("/")[2].removesuffix(".index")
    return "" if name == "index" else name


class ServedIndex:
    """The index of a localizer, with its positions in memory and one thread for changes."""

    def __init__(self, localizer: Localizer, settings: ServerSettings, memory: DecodingMemory | None = None) -> None:
        self.localizer, self.settings, self.memory = localizer, settings, memory or DecodingMemory()
        self.model = localizer.encoder.name.rpartition("/")[2] or "model"
        self.num_changes, self.lock = 0, threading.Lock()  # waiting or running
        self.writer: ThreadPoolExecutor | None = None
        self.num_failures, self.failure = 0, ""  # of the last checks for changes, in a row
        self.photo_problem = ""  # why the last photo that was asked for could not be read
        self.missing: set[str] = set()  # files of the index, at the last check
        self.lost: list[str] = []  # those that were missing at the check before, too: no writer is replacing them
        self.checked_at = time.monotonic()  # the last successful check
        self.is_outdated = False  # the index has changed, and reading the changes failed
        self.reading = threading.Lock()  # so that what was read last is what is shown
        self._sequences: Sequences | None = None
        self.certainty = localizer.certainty()  # for the pages; read with the photos
        self._read_columns()

    @property
    def sequences(self) -> Sequences:
        """The sequences of the index, found when they are first used after a change."""
        with self.reading:
            if self._sequences is None:
                self._sequences = find_sequences(self.index.columns())
            return self._sequences

    def ids_of_sequence(self, photo_id: int | None) -> np.ndarray | None:
        """Return the ids (n,) int64 of the sequence that a photo is in; None for None.  Raises HTTPException 422."""
        if photo_id is None:
            return None
        ids = photos_of_sequence(self.sequences, photo_id)
        if not len(ids):
            raise HTTPException(422, f"Photo {photo_id} is not part of a sequence.")
        return ids

    @property
    def index(self) -> PhotoIndex:
        """The index, opened for reading."""
        return self.localizer.index

    def start(self) -> None:
        """Start the thread."""
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="cosplace-write")
        self.checked_at = time.monotonic()

    def close(self) -> None:
        """Finish the running change, drop the waiting ones, and end the thread."""
        if self.writer is not None:
            self.writer.shutdown(wait=True, cancel_futures=True)

    # --- changes by other processes ----------------------------------------------------------------------------------

    async def refresh_forever(self) -> None:
        """Read what other processes write, at an interval.  Whatever goes wrong, the next check may succeed."""
        while interval_s := self.settings.refresh_s:
            # After failures in a row, checks become less frequent, so that they do not load a failing storage.
            longest_s = max(interval_s, MAX_RETRY_S)
            await asyncio.sleep(min(interval_s * 2 ** min(self.num_failures, 16), longest_s))
            try:
                await asyncio.to_thread(self.refresh)
            except Exception as error:
                self._note_failure(error)
            else:
                if self.num_failures:
                    log.info("the index can be read again", extra={"event": "recovered"})
                    self.photo_problem = ""
                self.num_failures, self.failure, self.checked_at = 0, "", time.monotonic()

    def refresh(self) -> None:
        """Read what other processes have written."""
        if self.index.refresh():
            self.is_outdated = True
        missing = set(self.index.missing_files())
        self.missing, self.lost = missing, sorted(missing & self.missing)
        self.certainty = self.localizer.certainty()
        if self.is_outdated:
            self._read_columns()

    def _note_failure(self, error: Exception) -> None:
        """Log the first failure of a kind, then the 2nd, 4th, 8th, ... in a row."""
        kind = type(error).__name__
        self.num_failures += 1
        if kind != self.failure or is_logged(self.num_failures):
            what = "the index cannot be read"
            extra = {"event": "refresh_failed", "details": {"failures": self.num_failures}}
            if isinstance(error, CosPlaceError):
                log.error("%s: %s", what, error, extra=extra)
            else:
                log.error(what, exc_info=error, extra=extra)
        self.failure = kind

    def problems(self) -> list[str]:
        """Problems that need attention although photos are located; empty if there are none."""
        problems = self._index_problems() + ([self.photo_problem] if self.photo_problem else [])
        if self.certainty.is_former:
            problems.append(
                "The new calibration of the index cannot be used; answers use the previous one. See the server log."
            )
        return problems

    def _index_problems(self) -> list[str]:
        interval_s, seconds = self.settings.refresh_s, time.monotonic() - self.checked_at
        if self.failure == ReplacedIndexError.__name__:
            return [
                "Another index is now at the address of the index. Answers use the photos that were read before. "
                "Restart the server."
            ]
        if self.failure:
            return [
                f"The index could not be read for {seconds:.0f} s. Answers use the photos that were read before. See "
                "the server log."
            ]
        if self.lost:
            return [
                f"{len(self.lost)} files of the index are missing, such as {self.lost[0]}. Answers use the photos that "
                "were read before. Restore the files, or run `cosplace index verify`."
            ]
        if interval_s and self.writer is not None and seconds > LATE_CHECKS * interval_s + LATE_S:
            return [f"A check for changes of the index has not ended for {seconds:.0f} s. Its storage may not respond."]
        return []

    def _read_columns(self) -> None:
        with self.reading:
            columns = self.index.columns()
            self.points = map_points(columns)
            self.bounds = bounding_box(self.points.latitudes, self.points.longitudes)
            self.times = times_of(self.points)
            self._sequences = None
            self.num_photos = len(columns)
            # Ids are never reused: with the number of photos, it tells whether photos were added or removed.
            self.last_id = int(columns.ids.max()) if len(columns) else None
            self.is_outdated = False

    # --- changes by this server --------------------------------------------------------------------------------------

    async def run_change(self, change: Callable[[], T]) -> T:
        """Run a change after all earlier ones.  Raises BusyError when too many are waiting."""
        with self.lock:
            if self.writer is None or self.num_changes >= MAX_WAITING_CHANGES:
                raise BusyError("Too many changes are waiting; try again in a moment.")
            self.num_changes += 1

        def run() -> T:
            try:
                return change()
            finally:
                with self.lock:
                    self.num_changes -= 1

        # Shielded: a change that has started is finished even if the client disconnects.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self.writer, run))

    def add(self, uploads: Sequence[Upload], fields: dict[str, str]) -> list[dict[str, Any]]:
        """Add photos to the index.  Returns for each {"photo", "id", "added"} or {"photo", "error"}."""
        results: list[dict[str, Any]] = [{"photo": upload.name} for upload in uploads]
        readable = []
        for upload, result in zip(uploads, results, strict=True):
            try:
                readable.append((result, *read_new_photo(upload, fields, self.settings, self.localizer, self.memory)))
            except ImageError as error:
                result["error"] = " ".join(str(error).split())
        if readable:
            readable_results, photos, pixels = zip(*readable, strict=True)
            descriptors = encode_in_batches(self.localizer.encoder, pixels, self.settings)
            added = self._write(lambda index: index.add(photos, descriptors))
            for result, photo_id, is_new in zip(
                readable_results, added.ids.tolist(), added.is_new.tolist(), strict=True
            ):
                result |= {"id": photo_id, "added": is_new}
            log.info("", extra={"event": "added", "details": {"photos": int(added.is_new.sum())}})
        return results

    def remove(self, photo_id: int) -> bool:
        """Remove a photo.  Returns whether it was in the index."""
        removed = self._write(lambda index: index.remove([photo_id])) > 0
        if removed:
            log.info("", extra={"event": "removed", "details": {"photo": photo_id}})
        return removed

    def _write(self, change: Callable[[PhotoIndex], T]) -> T:
        """Change the index as its only writer, then read it again.

        Raises IndexInUseError if another process writes to it, and the other errors of the index.
        """
        if self.index.can_write:
            result = change(self.index)
        else:
            with open_index(self.index.address, write=True) as writable:
                self.index.check_same(writable)
                result = change(writable)
            self.is_outdated = True  # also if reading it fails here
            self.index.refresh()
        self.certainty = self.localizer.certainty()
        self._read_columns()
        return result
