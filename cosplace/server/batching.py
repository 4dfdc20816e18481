"""Photos waiting in line: decoded by a few threads, then described and located together by one worker.

    submit -> decoded and shrunk (threads) -> waiting (bounded) -> described, located (one thread, a batch at a time)

The network exists once and one thread uses it, so that a batch is as large as what waits.  Every photo that is
accepted gets an answer or an error, also while the server stops.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from cosplace.errors import CosPlaceError, ImageError
from cosplace.index.filters import SearchFilter
from cosplace.localization.answers import Location
from cosplace.localization.localizer import Localizer
from cosplace.photos.opening import open_photo_bytes
from cosplace.server.metrics import Metrics
from cosplace.server.settings import ServerSettings

log = logging.getLogger("cosplace.server")


LEAST_SIDE = 32  # pixels: below, no network sees a place
MOST_TIMES_AS_LONG = 8  # as wide; a whole turn of the camera is about 6


class BusyError(CosPlaceError):
    """The line is full: come back in a moment."""


class ExpiredError(CosPlaceError):
    """A photo waited longer than a request may take."""


@dataclass(slots=True, kw_only=True)
class _Photo:
    """One photo in line."""

    name: str
    where: SearchFilter | None
    deadline: float  # of time.monotonic()
    answer: "Future[Location]" = field(default_factory=Future)
    pixels: Tensor | None = None  # (3, H, W) uint8, from when it is decoded
    since: float = 0.0  # when it began to wait

    def is_late(self) -> bool:
        """Nobody waits for it any more; then its answer says so."""
        if time.monotonic() < self.deadline:
            return False
        self.answer.set_exception(ExpiredError(f"{self.name} was not reached in time: send fewer photos at once."))
        return True


class Line:
    """The line of one server.  `start` it, `submit` photos, `close` it: what was accepted is finished first."""

    def __init__(self, localizer: Localizer, settings: ServerSettings, metrics: Metrics) -> None:
        self.localizer, self.settings, self.metrics = localizer, settings, metrics
        self.side = localizer.encoder.image_size
        self.num_inside, self.lock = 0, threading.Lock()
        self.waiting: queue.SimpleQueue[_Photo | None] = queue.SimpleQueue()  # bounded by num_inside
        self.decoders: ThreadPoolExecutor | None = None
        self.worker: threading.Thread | None = None
        self.closed = True

    def start(self) -> None:
        """Start the threads."""
        self.decoders = ThreadPoolExecutor(self.settings.decoding_threads, thread_name_prefix="cosplace-decode")
        self.worker = threading.Thread(target=self._work, name="cosplace-locate", daemon=True)
        self.worker.start()
        self.closed = False

    def close(self) -> None:
        """Take no more, finish what is inside, end the threads."""
        with self.lock:
            self.closed = True
        if self.decoders is not None and self.worker is not None:
            self.decoders.shutdown(wait=True)  # what they have decoded waits now
            self.waiting.put(None)
            self.worker.join()

    def is_working(self) -> bool:
        """Whether answers can be expected."""
        return self.worker is not None and self.worker.is_alive() and not self.closed

    def reserve(self, num_photos: int) -> None:
        """Take that many places in line, each given back when its photo is answered.  Raises BusyError."""
        with self.lock:
            if self.closed:
                raise BusyError("The server is stopping.")
            if self.num_inside + num_photos > self.settings.max_queue:
                raise BusyError(f"{self.num_inside} photos are in line already: try again in a moment.")
            self.num_inside += num_photos

    def release(self, num_photos: int = 1) -> None:
        """Give back places."""
        with self.lock:
            self.num_inside -= num_photos

    def is_full(self) -> bool:
        """Whether there is no place for one more."""
        return self.num_inside >= self.settings.max_queue

    def submit(self, raw: bytes, name: str, where: SearchFilter | None, deadline: float) -> "Future[Location]":
        """Locate one photo in a reserved place.  The future raises ImageError, ExpiredError or what went wrong."""
        photo = _Photo(name=name, where=where, deadline=deadline)
        photo.answer.set_running_or_notify_cancel()  # whoever stops waiting must not free a place that is still used
        photo.answer.add_done_callback(lambda _: self.release())
        assert self.decoders is not None, "reserve comes first"
        try:
            self.decoders.submit(self._decode, raw, photo)
        except RuntimeError:  # closed between the reservation and now
            photo.answer.set_exception(BusyError("The server is stopping."))
        return photo.answer

    def _decode(self, raw: bytes, photo: _Photo) -> None:
        if photo.is_late():
            return
        started = time.perf_counter()
        try:
            photo.pixels = decode(raw, photo.name, self.settings, self.side)
        except ImageError as error:
            photo.answer.set_exception(error)
            return
        except BaseException as error:
            log.exception("decoding failed", extra={"event": "bug"})
            photo.answer.set_exception(error)
            return
        finally:
            self.metrics.stages.labels("decode").observe(time.perf_counter() - started)
        photo.since = time.perf_counter()
        self.waiting.put(photo)

    # --- the worker --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (photo := self.waiting.get()) is not None:
            batch, ended = self._gather(photo)
            batch = [photo for photo in batch if not photo.is_late()]
            if batch:
                now = time.perf_counter()
                for photo in batch:
                    self.metrics.stages.labels("wait").observe(now - photo.since)
                self.metrics.batches.observe(len(batch))
                self._answer(batch)
            if ended:
                return

    def _gather(self, first: _Photo) -> tuple[list[_Photo], bool]:
        """`first` and those that join it within a moment, and whether the line ends behind them."""
        batch, until = [first], time.monotonic() + self.settings.batch_wait_ms / 1_000
        while len(batch) < self.settings.max_batch:
            try:
                photo = self.waiting.get(timeout=max(until - time.monotonic(), 0))
            except queue.Empty:
                break
            if photo is None:
                return batch, True
            batch.append(photo)
        return batch, False

    def _answer(self, batch: list[_Photo]) -> None:
        """Answer each photo of a batch; when together they fail, each alone: none spoils the others' answers."""
        try:
            found = self._locate(batch)
        except Exception as error:
            if len(batch) > 1:
                for photo in batch:
                    self._answer([photo])
                return
            if not isinstance(error, CosPlaceError):
                log.exception("locating failed", extra={"event": "bug"})
            batch[0].answer.set_exception(error)
            return
        for photo, location in zip(batch, found, strict=True):
            photo.answer.set_result(location)

    def _locate(self, batch: list[_Photo]) -> list[Location]:
        with _measured(self.metrics, "describe"):
            descriptors = self.localizer.encoder.encode(
                [photo.pixels for photo in batch], batch_size=self.settings.max_batch
            )
        found: dict[int, Location] = {}
        with _measured(self.metrics, "locate"):
            for where in {photo.where for photo in batch}:
                places = [place for place, photo in enumerate(batch) if photo.where == where]
                names = [batch[place].name for place in places]
                rows: np.ndarray = descriptors[places]
                located = self.localizer.locate_descriptors(rows, names, where=where)
                found.update(zip(places, located, strict=True))
        return [found[place] for place in range(len(batch))]


class _measured:  # noqa: N801 - reads as a statement
    """Within: the seconds count as a stage's."""

    def __init__(self, metrics: Metrics, stage: str) -> None:
        self.keep: Callable[[float], None] = metrics.stages.labels(stage).observe

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.keep(time.perf_counter() - self.started)


def decode(raw: bytes, name: str, settings: ServerSettings, side: int | None) -> Tensor:
    """A photo from bytes, as `shrink` leaves it.  Raises ImageError."""
    return shrink(open_photo_bytes(raw, name, max_pixels=settings.max_pixels), name, settings, side)


def shrink(photo: Tensor, name: str, settings: ServerSettings, side: int | None) -> Tensor:
    """A photo (3, H, W) uint8 no larger than the network wants it, so that what waits takes little memory.

    side: the index's image_size, the pixels of the shorter side; describing then leaves the photo as it is.  None: the
    photo's own size, up to settings.max_side.  Raises ImageError for one that is too small or too narrow.
    """
    height, width = photo.shape[1:]
    shorter, longer = sorted((height, width))
    if shorter < LEAST_SIDE or longer > MOST_TIMES_AS_LONG * shorter:
        raise ImageError(
            f"{name} is {width} x {height} pixels: send a photo of at least {LEAST_SIDE} pixels a side, "
            f"and at most {MOST_TIMES_AS_LONG} times as long as wide."
        )
    if side is None and shorter > settings.max_side:
        side = settings.max_side
    return photo if side is None else resize(photo, [side], InterpolationMode.BILINEAR, antialias=True)
