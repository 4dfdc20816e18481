"""Errors as responses: the status, and one line for the client that says what to do.

Messages of errors about the index or the disk contain paths of the server, so clients get another text, and the message
goes to the log.
"""

import errno
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from cosplace.errors import (
    CosPlaceError,
    DamagedIndexError,
    ImageError,
    IndexInUseError,
    MissingIndexError,
    PhotoFormatError,
    PhotoIndexError,
    PhotoSizeError,
    ReplacedIndexError,
    StorageError,
)
from cosplace.localization.answers import Location
from cosplace.storage import FULL_DISK

TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
RETRY_STORAGE_S = 30
FORGET_FAILURES_S = 60.0  # a kind of failure that has not occurred for this long is new

log = logging.getLogger("cosplace.server")


class BusyError(CosPlaceError):
    """The server is busy; the client should try again in a moment."""


class ExpiredError(CosPlaceError):
    """A photo was not processed within the time limit of its request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The response to an error."""

    status: int
    message: str
    headers: dict[str, str] = field(default_factory=dict)


# The first class that an error belongs to decides.  None: the message of the error itself, which names only the upload.
STATUSES: tuple[tuple[type[Exception], int, str | None], ...] = (
    (BusyError, 429, None),
    (ExpiredError, 504, None),
    (PhotoFormatError, 415, None),
    (PhotoSizeError, 413, None),
    (ImageError, 422, None),
    (IndexInUseError, 409, "Another process is writing to the index. Try again later."),
    (
        MissingIndexError,
        503,
        "The index is missing or incomplete. Mount or restore its folder; the server then continues automatically.",
    ),
    (
        DamagedIndexError,
        503,
        "The index is damaged. Run `cosplace index verify` on the server, and restore the index or build it again.",
    ),
    (ReplacedIndexError, 503, "Another index is now at the address of the index. Restart the server."),
    (PhotoIndexError, 503, "The index cannot be read. See the server log."),
    (
        StorageError,
        507,
        "The server cannot write: too little space is free on its disk, or it has no permission. Free some space on "
        "the server, then try again; its log has the details. Nothing was lost.",
    ),
)
RETRY_AFTER_S: tuple[tuple[type[Exception], int], ...] = (
    (BusyError, 1),
    (MissingIndexError, RETRY_STORAGE_S),
    (IndexInUseError, RETRY_STORAGE_S),
)


class FailureLog:
    """Logs failures of requests that a user can act on in one line each: of a kind the 1st, 2nd, 4th, 8th, ..."""

    def __init__(self) -> None:
        self.counts: dict[str, tuple[int, float]] = {}  # kind -> number in a row, time of the last
        self.index_problem = ""  # why the index could not be read to answer the last photo

    def note(self, error: Exception) -> None:
        """Log a failure, or only count it."""
        kind, now = type(error).__name__, time.monotonic()
        count, last = self.counts.get(kind, (0, now))
        count = 1 if now - last > FORGET_FAILURES_S else count + 1
        self.counts[kind] = count, now
        if is_logged(count):
            log.error("%s", error, extra={"event": "failed", "details": {"failures": count}})

    def note_answers(self, outcomes: Sequence[Location | BaseException]) -> None:
        """Remember whether the index could be read to answer the photos of a request."""
        for outcome in outcomes:
            if isinstance(outcome, PhotoIndexError):
                self.note(outcome)
                self.index_problem = describe_failure(outcome).message
            elif isinstance(outcome, Location):
                self.index_problem = ""


def is_logged(count: int) -> bool:
    """Whether the log has a line for a failure: the 1st, 2nd, 4th, 8th, ... in a row."""
    return count & (count - 1) == 0


def describe_failure(error: BaseException) -> Failure:
    """Return status, message and headers for an error."""
    seconds = next((seconds for kind, seconds in RETRY_AFTER_S if isinstance(error, kind)), None)
    headers = {} if seconds is None else {"Retry-After": str(seconds)}
    for kind, status, message in STATUSES:
        if isinstance(error, kind):
            text = " ".join(str(error).split()) if message is None else message
            return Failure(status=status, message=text, headers=headers)
    return Failure(status=500, message="The server failed. See the server log.", headers=headers)


def describe_upload_failure(error: OSError) -> Failure:
    """Return status and message for an upload that the server could not store."""
    if error.errno in TOO_MANY_FILES:
        return Failure(status=503, message="The server has too many open files; try again in a moment.")
    if error.errno in FULL_DISK:
        problem = "The folder for temporary files on the server is full."
    else:
        problem = "The server cannot write to its folder for temporary files."
    advice = "Free some space there, or restart the server with TMPDIR set to another folder."
    return Failure(status=507, message=f"{problem} {advice}")
