"""Which worker computes which shard: one file for each claim, next to the shards.

    <store>/claim-00012.json   who computes shard 12, and how far that is

A claim is a courtesy, not a lock: two workers that compute the same shard waste time, but both write the same file, in
one step.  So claims need neither conditional writes nor synchronized clocks.  A worker renews its claims as its photos
are finished.  A claim that has not changed for STALE_S seconds, by the clock of the worker that looks at it, is taken
over; at once, if its process was on this machine and has ended.

Side effects: reads and writes these files.
"""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex

from cosplace.retrieval.store_files import StoreFiles
from cosplace.retrieval.store_shapes import CLAIM_SHAPE, MAX_TEXT
from cosplace.shapes import parse

CLAIM, PHOTOS_CLAIM = "claim-{}.json", "claim-photos.json"
STALE_S = 120.0  # more than the 60 s for which a network file system may show old files
RENEW_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The content of a claim."""

    worker: str
    host: str
    pid: int
    count: int  # of renewals
    time: float  # seconds since 1970, by the clock of the worker; for people
    done: int  # photos of the shard
    photos_per_s: float  # of the worker

    def text(self) -> bytes:
        """The claim as JSON."""
        return json.dumps(asdict(self)).encode()


def claim_name(number: int) -> str:
    """File name of the claim of a shard."""
    return CLAIM.format(f"{number:05}")


def read_claim(files: StoreFiles, name: str) -> Claim | None:
    """A claim; None if it is gone or not whole."""
    try:
        return Claim(**parse(files.read(name, 0, MAX_TEXT + 1), CLAIM_SHAPE, max_length=MAX_TEXT))
    except (FileNotFoundError, ValueError, TypeError):
        return None


class ShardClaims:
    """The claims of one worker."""

    def __init__(self, files: StoreFiles, stale_s: float = STALE_S, renew_s: float = RENEW_S) -> None:
        self.files, self.stale_s, self.renew_s = files, stale_s, renew_s
        self.host, self.pid = this_host(), os.getpid()
        self.worker = f"{socket.gethostname()}-{self.pid}-{token_hex(3)}"
        self.held: dict[str, int] = {}  # renewals by name
        self.renewed = time.monotonic()
        self.seen: dict[str, tuple[bytes, float]] = {}  # claims of others, and when they were first seen like that

    def claim(self, name: str, *, exists: bool) -> bool:
        """Try to claim; whether this worker may begin.  exists: whether another worker has a claim, as files say."""
        if exists and not self._is_stale(name):
            return False
        claim = self._new(name, done=0, photos_per_s=0.0)
        if exists:
            self.files.write(name, [claim.text()])
        elif not self.files.create(name, claim.text()):
            return False
        written = read_claim(self.files, name)  # on object storage, another worker may have written at the same time
        if written is None or written.worker != self.worker:
            return False
        self.held[name] = 0
        self.renewed = time.monotonic()
        return True

    def renew(self, done: dict[str, int], photos_per_s: float) -> None:
        """Write the claims of this worker again, if that is due.  done: photos of each shard, by the claim's name."""
        if time.monotonic() - self.renewed < self.renew_s:
            return
        self.renewed = time.monotonic()
        for name in self.held:
            self.held[name] += 1
            claim = self._new(name, done=done.get(name, 0), photos_per_s=photos_per_s)
            self.files.write(name, [claim.text()])

    def release(self, name: str) -> None:
        """Remove a claim of this worker, unless another one has taken it over."""
        if self.held.pop(name, None) is not None:
            claim = read_claim(self.files, name)
            if claim is None or claim.worker == self.worker:
                self.files.remove(name)

    def release_all(self) -> None:
        """Remove all claims of this worker."""
        for name in list(self.held):
            self.release(name)

    def _new(self, name: str, *, done: int, photos_per_s: float) -> Claim:
        return Claim(
            worker=self.worker,
            host=self.host,
            pid=self.pid,
            count=self.held.get(name, 0),
            time=time.time(),
            done=done,
            photos_per_s=round(photos_per_s, 3),
        )

    def _is_stale(self, name: str) -> bool:
        try:
            content = self.files.read(name)
        except FileNotFoundError:  # released since: it can be claimed the next time
            return False
        now = time.monotonic()
        before = self.seen.get(name)
        if before is None or before[0] != content:
            self.seen[name] = before = content, now
        claim = read_claim(self.files, name)
        has_ended = claim is not None and claim.host == self.host and not is_running(claim.pid)
        return has_ended or now - before[1] >= self.stale_s


def this_host() -> str:
    """A name of this machine, or of this container, in which a process is known by its number."""
    try:
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def is_running(pid: int) -> bool:
    """Whether a process of this machine is running; always true where that cannot be asked."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True
