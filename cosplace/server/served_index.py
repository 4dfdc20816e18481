"""The photo index of a server: photos for the map in memory, changes one at a time."""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import HTTPException

from cosplace.errors import ImageError, PhotoIndexError, StorageError
from cosplace.geo import bounding_box
from cosplace.index.photo_index import PhotoIndex, open_index
from cosplace.localization.localizer import Localizer
from cosplace.server.batching import BusyError
from cosplace.server.new_photos import read_new_photo
from cosplace.server.points import map_points
from cosplace.server.settings import ServerSettings
from cosplace.server.uploads import Upload

MAX_WAITING_CHANGES = 8

log = logging.getLogger("cosplace.server")
T = TypeVar("T")


class ServedIndex:
    """The index of a localizer, with its positions in memory and one thread for changes."""

    def __init__(self, localizer: Localizer, settings: ServerSettings) -> None:
        self.localizer, self.settings = localizer, settings
        self.model = localizer.encoder.name.rpartition("/")[2] or "model"
        self.num_changes, self.lock = 0, threading.Lock()  # waiting or running
        self.writer: ThreadPoolExecutor | None = None
        self._read_columns()

    @property
    def index(self) -> PhotoIndex:
        """The index, opened for reading."""
        return self.localizer.index

    def start(self) -> None:
        """Start the thread."""
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="cosplace-write")

    def close(self) -> None:
        """Finish the accepted changes, end the thread."""
        if self.writer is not None:
            self.writer.shutdown(wait=True)

    def refresh(self) -> None:
        """Read what other processes have written."""
        if self.index.refresh():
            self._read_columns()

    def _read_columns(self) -> None:
        columns = self.index.columns()
        self.points = map_points(columns)
        self.bounds = bounding_box(self.points.latitudes, self.points.longitudes)
        self.num_photos = len(columns)

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
                readable.append((result, *read_new_photo(upload, fields, self.settings, self.localizer)))
            except ImageError as error:
                result["error"] = " ".join(str(error).split())
        if readable:
            readable_results, photos, pixels = zip(*readable, strict=True)
            descriptors = self.localizer.encoder.encode(list(pixels), batch_size=self.settings.max_batch)
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
        """Change the index as its only writer, then read it again.  Raises HTTPException 409 or 507."""
        if self.index.can_write:
            result = change(self.index)
        else:
            try:
                writable = open_index(self.index.address, write=True)
            except PhotoIndexError as error:
                log.warning("%s", error, extra={"event": "locked"})
                raise HTTPException(409, "Another process is writing to the index. Try again later.") from error
            try:
                with writable:
                    result = change(writable)
            except StorageError as error:
                log.exception("", extra={"event": "storage"})
                raise HTTPException(507, "The index cannot be written; nothing was lost.") from error
            self.index.refresh()
        self._read_columns()
        return result
