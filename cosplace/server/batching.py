"""Bounded queues of photos: decoded by threads, then encoded and located in batches by other threads.

    submit -> wait -> decode and resize (threads) -> wait -> encode and locate (threads, batch by batch)

Photos of all requests share batches; `cosplace.server.threads` divides the photos in the queue, and the cores, among
the batches that are computed at a time.  A batch waits for its share of the photos, or ENOUGH_PHOTOS, but not longer
than a tenth of the time that batches take: clients that have just been answered often send their next photo within it,
and a lone photo does not wait.  Where photos wait, requests take turns.  Every accepted photo gets a location or an
error, even when the server stops.

Limits are on what photos cost, not only on their number: on decoded bytes for places in the queue, on bytes for photos
that are being decoded or wait for the network, and on pixels for all batches that are computed at a time.
"""

import logging
import math
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import numpy as np
from threadpoolctl import threadpool_limits
from torch import Tensor

from cosplace.engines.encoder import Encoder
from cosplace.errors import CosPlaceError, ImageError, PhotoSizeError
from cosplace.index.filters import SearchFilter
from cosplace.localization.answers import Location
from cosplace.localization.localizer import Localizer
from cosplace.photos.opening import decode_upload, decoded_bytes
from cosplace.photos.resizing import resize, resized_shape
from cosplace.server.failures import BusyError, ExpiredError
from cosplace.server.fair_queue import FairQueue
from cosplace.server.metrics import Metrics
from cosplace.server.settings import MEGABYTE, ServerSettings
from cosplace.server.threads import (
    cores_of_network,
    decoders,
    plan_batch,
    use_one_thread_of_numpy,
    use_torch_threads,
)
from cosplace.server.uploads import Upload

MIN_SIDE = 32  # pixels; smaller photos show too little of a place
MAX_ASPECT_RATIO = 8  # a 360 degree panorama has about 6
NORMAL_ASPECT_RATIO = 2  # photos up to it are accepted for any image size of an index
PLACE_BYTES = 128_000_000  # to decode a JPEG of 21 megapixels; a larger photo takes several places in the queue
MAX_PIXEL_BYTES = 32  # to decode one pixel of any format
MAX_DECODING_BYTES = 512_000_000  # of all photos that are decoded at one time, except one that alone is larger
MAX_WAITING_BYTES = 256_000_000  # of all decoded and resized photos that wait for the network
ENOUGH_PHOTOS = 12  # a batch of more takes hardly less time per photo, and its core would be idle while it waits
WAIT_SHARE = 0.1  # of the time of a batch, to wait for more photos
PEAK_BATCHES = 2  # the largest number of photos in the queue counts for the time of so many batches

log = logging.getLogger("cosplace.server")


@dataclass(slots=True, kw_only=True)
class _QueuedPhoto:
    """One photo in the queue."""

    name: str
    raw: bytes
    request: object  # the photos of one request have the same
    where: SearchFilter | None
    deadline: float  # of time.monotonic()
    result: "Future[Location]" = field(default_factory=Future)
    pixels: Tensor | None = None  # (3, H, W) uint8, once decoded
    decoded_at: float = 0.0  # of time.perf_counter()

    def expire(self) -> bool:
        """If the deadline has passed, set ExpiredError as the result and return True."""
        if time.monotonic() < self.deadline:
            return False
        self.raw, self.pixels = b"", None
        self.result.set_exception(
            ExpiredError(f"{self.name} was not processed within the time limit. Send fewer photos at once.")
        )
        return True


class SharedLimit:
    """A limit on the sum of what several threads use at a time, such as the memory of photos that are being decoded."""

    def __init__(self, largest: int) -> None:
        self.largest, self.used, self.changed = largest, 0, threading.Condition()

    @contextmanager
    def reserve(self, amount: int) -> Generator[None]:
        """Within: the amount may be used.  Waits for others; what is above the limit on its own is used alone."""
        with self.changed:
            self.changed.wait_for(lambda: not self.used or self.used + amount <= self.largest)
            self.used += amount
        try:
            yield
        finally:
            with self.changed:
                self.used -= amount
                self.changed.notify_all()


class DecodingMemory:
    """Memory of photos that are being decoded: of all that are within the limit, and of one larger photo at a time.

    Photos within the limit do not wait for larger ones, each of which can take more than a second.
    """

    def __init__(self) -> None:
        self.usual, self.larger = SharedLimit(MAX_DECODING_BYTES), SharedLimit(MAX_DECODING_BYTES)

    def reserve(self, num_bytes: int) -> AbstractContextManager[None]:
        """Within: the memory may be used.  Waits for others."""
        limit = self.usual if num_bytes <= self.usual.largest else self.larger
        return limit.reserve(num_bytes)


class PhotoQueue:
    """The queue of one server.  `start` it, `submit` photos, `close` it; closing finishes all accepted photos."""

    def __init__(
        self, localizer: Localizer, settings: ServerSettings, metrics: Metrics, memory: DecodingMemory | None = None
    ) -> None:
        self.localizer, self.settings, self.metrics = localizer, settings, metrics
        encoder = localizer.encoder
        self.image_size = encoder.views.size_of_query(encoder.image_size)
        self.memory = memory or DecodingMemory()
        self.num_cores = cores_of_network(encoder.device)
        self.pixels_in_network = SharedLimit(settings.max_batch_pixels)
        self.num_running = 0  # batches that are being computed
        self.batch_s = 0.0  # the time of a batch: a mean in which recent ones count more
        self.peak, self.peak_at = 0, 0.0  # the largest number of photos in the queue lately, and when that was
        # Accepted and not yet answered: photos, and the places that they take.
        self.num_photos, self.num_places, self.lock = 0, 0, threading.Lock()
        self.received: FairQueue[_QueuedPhoto] = FairQueue()  # bounded by num_places
        self.decoded: FairQueue[_QueuedPhoto] = FairQueue(MAX_WAITING_BYTES)  # sizes: bytes
        self.decoders: list[threading.Thread] = []
        self.networks: list[threading.Thread] = []
        self.closed = True
        self.former_threads: threadpool_limits | None = None  # of numpy

    def start(self) -> None:
        """Start the threads."""
        if self.num_cores > 1:
            self.former_threads = use_one_thread_of_numpy()
        # Daemon threads: a photo that takes too long does not keep the process from ending.
        self.decoders = [
            threading.Thread(target=self._run_decoder, name=f"cosplace-decode-{number}", daemon=True)
            for number in range(decoders(self.settings.decoding_threads))
        ]
        self.networks = [
            threading.Thread(target=self._run_network, name=f"cosplace-locate-{number}", daemon=True)
            for number in range(self.num_cores)
        ]
        for thread in [*self.decoders, *self.networks]:
            thread.start()
        self.closed = False

    def close(self) -> None:
        """Accept no more photos, finish those in the queue, end the threads."""
        with self.lock:
            self.closed = True
        self.received.close()
        for thread in self.decoders:
            thread.join()
        self.decoded.close()  # now all accepted photos are in it
        for thread in self.networks:
            thread.join()
        if self.former_threads is not None:
            self.former_threads.restore_original_limits()

    def is_working(self) -> bool:
        """Whether photos are accepted and processed."""
        return not self.closed and all(thread.is_alive() for thread in [*self.decoders, *self.networks])

    def is_full(self) -> bool:
        """Whether no further photo is accepted now."""
        return self.num_places >= self.settings.max_queue

    def submit(
        self, uploads: Sequence[Upload], where: SearchFilter | None, deadline: float
    ) -> "list[Future[Location]]":
        """Locate the photos of one request.  The futures raise ImageError, ExpiredError or an unexpected error.

        Raises, for all of them, PhotoSizeError if together they cost too much for one request, and BusyError if they do
        not fit into the queue.
        """
        request = object()
        costs = [num_places(upload.raw, self.settings) for upload in uploads]
        limit = max_places(self.settings)
        if len(uploads) > 1 and sum(costs) > limit:
            raise PhotoSizeError(
                f"The photos take about {sum(costs) * PLACE_BYTES // MEGABYTE:,} MB to decode; the limit of one "
                f"request is {limit * PLACE_BYTES // MEGABYTE:,} MB. Send fewer photos at once."
            )
        with self.lock:
            if self.closed:
                raise BusyError("The server is stopping.")
            if self.num_places + sum(costs) > self.settings.max_queue:
                raise BusyError("The server is busy; try again in a moment.")
            self.num_photos += len(uploads)
            self.num_places += sum(costs)
            if self.num_photos >= self._photos_lately():
                self.peak, self.peak_at = self.num_photos, time.monotonic()
        futures = []
        for upload, cost in zip(uploads, costs, strict=True):
            photo = _QueuedPhoto(name=upload.name, raw=upload.raw, request=request, where=where, deadline=deadline)
            # A running future cannot be canceled, so a client that disconnects does not free a place that is in use.
            photo.result.set_running_or_notify_cancel()
            photo.result.add_done_callback(lambda _, cost=cost: self._release(cost))
            futures.append(photo.result)
            self.received.put(request, photo)
        return futures

    def _release(self, cost: int) -> None:
        with self.lock:
            self.num_photos -= 1
            self.num_places -= cost

    # --- decoding threads --------------------------------------------------------------------------------------------

    def _run_decoder(self) -> None:
        while (photo := self.received.get()) is not None:
            try:
                self._decode(photo)
            except BaseException as error:  # the thread must survive, and the photo must get an answer
                _fail(photo, error, "decoding failed")

    def _decode(self, photo: _QueuedPhoto) -> None:
        if photo.expire():
            return
        try:
            with self.memory.reserve(decoding_cost(photo.raw, self.settings)), self._timed("decode"):
                pixels = decode_upload(photo.raw, photo.name, max_pixels=self.settings.max_pixels)
                photo.pixels = resize_photo(pixels, photo.name, self.settings, self.image_size)
        except ImageError as error:
            photo.result.set_exception(error)
            return
        photo.raw, photo.decoded_at = b"", time.perf_counter()
        self.decoded.put(photo.request, photo, _num_bytes(photo))

    # --- threads of the network --------------------------------------------------------------------------------------

    def _run_network(self) -> None:
        while (first := self.decoded.get()) is not None:
            batch = [first]
            try:
                num_threads = self._collect(batch)
                with self.pixels_in_network.reserve(sum(map(_num_pixels, batch))):
                    waiting = [photo for photo in batch if not photo.expire()]
                    if waiting:
                        self._answer_batch(waiting, num_threads)
            except BaseException as error:  # the thread must survive, and the photos must get an answer
                for photo in batch:
                    _fail(photo, error, "locating failed")

    def _collect(self, batch: list[_QueuedPhoto]) -> int:
        """Extend a batch of one photo, up to its share of the photos in the queue and to the limits of a batch.

        Returns the number of threads to compute the batch with.
        """
        plan = plan_batch(self._photos_lately(), self.num_cores, self.num_running)
        until = time.monotonic() + self._max_wait_s()
        num_bytes = 3 * self.settings.max_batch_pixels // plan.num_batches - _num_bytes(batch[0])
        most = min(plan.max_photos, self.settings.max_batch)
        while len(batch) < most and num_bytes > 0:
            photo = self.decoded.get_up_to(num_bytes, until if len(batch) < ENOUGH_PHOTOS else 0.0)
            if photo is None:
                break
            batch.append(photo)
            num_bytes -= _num_bytes(photo)
        return plan.num_threads

    def _photos_lately(self) -> int:
        """The largest number of photos in the queue within the last batches."""
        is_recent = time.monotonic() < self.peak_at + PEAK_BATCHES * self.batch_s
        return max(self.num_photos, self.peak) if is_recent else self.num_photos

    def _max_wait_s(self) -> float:
        wanted_ms = self.settings.batch_wait_ms
        return WAIT_SHARE * self.batch_s if wanted_ms is None else wanted_ms / 1_000

    def _answer_batch(self, batch: list[_QueuedPhoto], num_threads: int) -> None:
        started = time.perf_counter()
        for photo in batch:
            self.metrics.stage_seconds.labels("wait").observe(started - photo.decoded_at)
        self.metrics.batch_sizes.observe(len(batch))
        if self.num_cores > 1:
            use_torch_threads(num_threads)
        with self.lock:
            self.num_running += 1
        try:
            self._answer(batch)
        finally:
            with self.lock:
                self.num_running -= 1
                self.batch_s += (time.perf_counter() - started - self.batch_s) / 4

    def _answer(self, batch: list[_QueuedPhoto]) -> None:
        """Set the result of each photo.  A batch that fails is repeated photo by photo, so one cannot fail others."""
        try:
            locations = self._locate(batch)
        except Exception as error:
            if len(batch) > 1:
                for photo in batch:
                    if not photo.expire():
                        self._answer([photo])
                return
            _fail(batch[0], error, "locating failed")
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


def _num_bytes(photo: _QueuedPhoto) -> int:
    return 0 if photo.pixels is None else photo.pixels.numel()


def _num_pixels(photo: _QueuedPhoto) -> int:
    return _num_bytes(photo) // 3


def _fail(photo: _QueuedPhoto, error: BaseException, what: str) -> None:
    """Set an error as the result, and log it unless it is one that a user can act on."""
    if not isinstance(error, CosPlaceError):
        log.error(what, exc_info=error, extra={"event": "bug"})
    if not photo.result.done():
        photo.result.set_exception(error)


def num_places(raw: bytes, settings: ServerSettings) -> int:
    """Return the places in the queue that a photo takes, at most all of them."""
    return min(max(1, math.ceil(decoding_cost(raw, settings) / PLACE_BYTES)), settings.max_queue)


def max_places(settings: ServerSettings) -> int:
    """Return the places in the queue that several photos of one request may take: half, or one for each photo."""
    return max(settings.max_queue // 2, settings.max_files)


def decoding_cost(raw: bytes, settings: ServerSettings) -> int:
    """Return the bytes that decoding a photo takes; 0 for one that is refused by its header because it is too large."""
    num_bytes = decoded_bytes(raw)
    return num_bytes if num_bytes <= MAX_PIXEL_BYTES * settings.max_pixels else 0


def encode_in_batches(encoder: Encoder, photos: Sequence[Tensor], settings: ServerSettings) -> np.ndarray:
    """Compute descriptors (n, D) of resized photos for an index, in batches within the limits of the server."""
    batches = split_by_pixels(photos, settings.max_batch_pixels)
    return np.concatenate([encoder.encode(batch, batch_size=settings.max_batch, database=True) for batch in batches])


def split_by_pixels(photos: Iterable[Tensor], max_pixels: int) -> list[list[Tensor]]:
    """Split photos (3, H, W) into consecutive parts of at most max_pixels, or of one photo."""
    parts: list[list[Tensor]] = []
    num_pixels = 0
    for photo in photos:
        height, width = photo.shape[1:]
        num_pixels += height * width
        if not parts or num_pixels > max_pixels:
            parts.append([])
            num_pixels = height * width
        parts[-1].append(photo)
    return parts


def resize_photo(photo: Tensor, name: str, settings: ServerSettings, image_size: int | None) -> Tensor:
    """Resize a photo (3, H, W) uint8 to what the network takes, so that queued photos take little memory.

    image_size: the index's, in pixels of the shorter side; encoding then does not resize again.  None: photos keep
    their size, up to settings.max_side.  Raises ImageError for a photo that is too small or too narrow, PhotoSizeError
    for one that has more pixels after resizing than a batch may have.
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
    if image_size is not None:
        height, width = resized_shape(height, width, image_size, name)
    limit = max(settings.max_batch_pixels, NORMAL_ASPECT_RATIO * (image_size or 0) ** 2)
    if height * width > limit:
        raise PhotoSizeError(
            f"{name} has {width} x {height} pixels after resizing, more than the limit of {limit:,}. Crop it."
        )
    return resize(photo, height, width)
