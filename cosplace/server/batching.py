"""A bounded queue of photos: decoded by a few threads, encoded and located in batches by one worker.

    submit -> decode and resize (threads) -> wait (bounded) -> encode and locate (one thread, batch by batch)

One thread uses the network, so photos of all requests share its batches.  Every accepted photo gets a location or an
error, also when the server stops.
"""

import logging
import queue
import threading
import time
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from cosplace.errors import CosPlaceError, ImageError
from cosplace.index.filters import SearchFilter
from cosplace.localization.answers import Location
from cosplace.localization.localizer import Localizer
from cosplace.photos.opening import decode_upload
from cosplace.photos.resizing import resize_shorter_side
from cosplace.server.metrics import Metrics
from cosplace.server.settings import ServerSettings

MIN_SIDE = 32  # pixels; smaller photos show too little of a place
MAX_ASPECT_RATIO = 8  # a 360 degree panorama has about 6

log = logging.getLogger("cosplace.server")


class BusyError(CosPlaceError):
    """The queue is full; the client should try again in a moment."""


class ExpiredError(CosPlaceError):
    """A photo was not processed within the time limit of its request."""


@dataclass(slots=True, kw_only=True)
class _QueuedPhoto:
    """One photo in the queue."""

    name: str
    where: SearchFilter | None
    deadline: float  # of time.monotonic()
    result: "Future[Location]" = field(default_factory=Future)
    pixels: Tensor | None = None  # (3, H, W) uint8, once decoded
    decoded_at: float = 0.0  # of time.perf_counter()

    def expire(self) -> bool:
        """If the deadline has passed, set ExpiredError as the result and return True."""
        if time.monotonic() < self.deadline:
            return False
        self.result.set_exception(
            ExpiredError(f"{self.name} was not processed within the time limit. Send fewer photos at once.")
        )
        return True


class PhotoQueue:
    """The queue of one server.  `start` it, `submit` photos, `close` it; closing finishes all accepted photos."""

    def __init__(self, localizer: Localizer, settings: ServerSettings, metrics: Metrics) -> None:
        self.localizer, self.settings, self.metrics = localizer, settings, metrics
        self.image_size = localizer.encoder.image_size
        self.num_photos, self.lock = 0, threading.Lock()  # accepted and not yet answered
        self.decoded: queue.SimpleQueue[_QueuedPhoto | None] = queue.SimpleQueue()  # bounded by num_photos
        self.decoders: ThreadPoolExecutor | None = None
        self.worker: threading.Thread | None = None
        self.closed = True

    def start(self) -> None:
        """Start the threads."""
        self.decoders = ThreadPoolExecutor(self.settings.decoding_threads, thread_name_prefix="cosplace-decode")
        self.worker = threading.Thread(target=self._run_worker, name="cosplace-locate", daemon=True)
        self.worker.start()
        self.closed = False

    def close(self) -> None:
        """Accept no more photos, finish those in the queue, end the threads."""
        with self.lock:
            self.closed = True
        if self.decoders is not None and self.worker is not None:
            self.decoders.shutdown(wait=True)  # from here on all accepted photos are in self.decoded
            self.decoded.put(None)
            self.worker.join()

    def is_working(self) -> bool:
        """Whether photos are accepted and processed."""
        return self.worker is not None and self.worker.is_alive() and not self.closed

    def is_full(self) -> bool:
        """Whether no further photo is accepted now."""
        return self.num_photos >= self.settings.max_queue

    def reserve(self, num_photos: int) -> None:
        """Reserve places in the queue; each is released when its photo is answered.  Raises BusyError."""
        with self.lock:
            if self.closed:
                raise BusyError("The server is stopping.")
            if self.num_photos + num_photos > self.settings.max_queue:
                raise BusyError("The server is busy; try again in a moment.")
            self.num_photos += num_photos

    def submit(self, raw: bytes, name: str, where: SearchFilter | None, deadline: float) -> "Future[Location]":
        """Locate one photo in a reserved place.  The future raises ImageError, ExpiredError or an unexpected error."""
        photo = _QueuedPhoto(name=name, where=where, deadline=deadline)
        # A running future cannot be canceled, so a client that disconnects does not free a place that is still in use.
        photo.result.set_running_or_notify_cancel()
        photo.result.add_done_callback(lambda _: self._release())
        assert self.decoders is not None, "reserve comes first"
        try:
            self.decoders.submit(self._decode, raw, photo)
        except RuntimeError:  # closed since the reservation
            photo.result.set_exception(BusyError("The server is stopping."))
        return photo.result

    def _release(self) -> None:
        with self.lock:
            self.num_photos -= 1

    def _decode(self, raw: bytes, photo: _QueuedPhoto) -> None:
        if photo.expire():
            return
        try:
            with self._timed("decode"):
                pixels = decode_upload(raw, photo.name, max_pixels=self.settings.max_pixels)
                photo.pixels = resize_photo(pixels, photo.name, self.settings, self.image_size)
        except ImageError as error:
            photo.result.set_exception(error)
        except BaseException as error:
            log.exception("decoding failed", extra={"event": "bug"})
            photo.result.set_exception(error)
        else:
            photo.decoded_at = time.perf_counter()
            self.decoded.put(photo)

    # --- the worker --------------------------------------------------------------------------------------------------

    def _run_worker(self) -> None:
        while (photo := self.decoded.get()) is not None:
            batch, closed = self._collect_batch(photo)
            batch = [photo for photo in batch if not photo.expire()]
            if batch:
                now = time.perf_counter()
                for photo in batch:
                    self.metrics.stage_seconds.labels("wait").observe(now - photo.decoded_at)
                self.metrics.batch_sizes.observe(len(batch))
                self._answer(batch)
            if closed:
                return

    def _collect_batch(self, first: _QueuedPhoto) -> tuple[list[_QueuedPhoto], bool]:
        """Return `first` with the photos decoded within batch_wait_ms, and whether the queue is closed after them."""
        batch, until = [first], time.monotonic() + self.settings.batch_wait_ms / 1_000
        while len(batch) < self.settings.max_batch:
            try:
                photo = self.decoded.get(timeout=max(until - time.monotonic(), 0))
            except queue.Empty:
                break
            if photo is None:
                return batch, True
            batch.append(photo)
        return batch, False

    def _answer(self, batch: list[_QueuedPhoto]) -> None:
        """Set the result of each photo.  A batch that fails is repeated photo by photo, so one cannot fail others."""
        try:
            locations = self._locate(batch)
        except Exception as error:
            if len(batch) > 1:
                for photo in batch:
                    self._answer([photo])
                return
            if not isinstance(error, CosPlaceError):
                log.exception("locating failed", extra={"event": "bug"})
            batch[0].result.set_exception(error)
            return
        for photo, location in zip(batch, locations, strict=True):
            photo.result.set_result(location)

    def _locate(self, batch: list[_QueuedPhoto]) -> list[Location]:
        with self._timed("describe"):
            descriptors = self.localizer.encoder.encode(
                [photo.pixels for photo in batch], batch_size=self.settings.max_batch
            )
        locations: dict[int, Location] = {}
        with self._timed("locate"):
            for where in {photo.where for photo in batch}:  # one search per filter
                rows = [row for row, photo in enumerate(batch) if photo.where == where]
                names = [batch[row].name for row in rows]
                found = self.localizer.locate_descriptors(descriptors[rows], names, where=where)
                locations.update(zip(rows, found, strict=True))
        return [locations[row] for row in range(len(batch))]

    @contextmanager
    def _timed(self, stage: str) -> Generator[None]:
        """Add the time of the block to a stage's metric."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.metrics.stage_seconds.labels(stage).observe(time.perf_counter() - started)


def resize_photo(photo: Tensor, name: str, settings: ServerSettings, image_size: int | None) -> Tensor:
    """Resize a photo (3, H, W) uint8 to what the network takes, so that queued photos take little memory.

    image_size: the index's, in pixels of the shorter side; encoding then does not resize again.  None: photos keep
    their size, up to settings.max_side.  Raises ImageError for a photo that is too small or too narrow.
    """
    height, width = photo.shape[1:]
    shorter, longer = sorted((height, width))
    if shorter < MIN_SIDE:
        raise ImageError(f"{name} is {width} x {height} pixels; the smallest side allowed is {MIN_SIDE}.")
    if longer > MAX_ASPECT_RATIO * shorter:
        raise ImageError(
            f"{name} is {width} x {height} pixels; the longer side may be at most {MAX_ASPECT_RATIO} times the shorter."
        )
    if image_size is None and shorter > settings.max_side:
        image_size = settings.max_side
    return resize_shorter_side(photo, image_size)
