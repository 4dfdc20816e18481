"""Files fetched once, checked, kept: what stopped goes on, what is damaged never gets its name.

In the folder of downloads, while NAME is fetched and after:

    NAME.part          what has arrived; the next call goes on from there, in this process or another
    NAME.part.json     its address, and the version that the server gave it
    NAME.lock          held by the process that fetches; others wait and find NAME
    NAME               the file, checked
    NAME.sha256        its digest as first fetched, where none is published; `sha256sum -c` reads it
"""

import hashlib
import http.client
import json
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit
from urllib.response import addinfourl

import torch

from cosplace.errors import DownloadError
from cosplace.models.locking import locked
from cosplace.storage import cache_folder, storage_errors, write_text

TIMEOUT_S = 30.0
ATTEMPTS = 4  # connections per download; only broken ones are tried again, refused ones are not
CHUNK_BYTES = 1 << 20
MAX_BYTES = 4 << 30  # several times the largest network of this field
SCHEMES = ("http", "https", "file")
HEX_DIGITS = re.compile(r"[0-9a-f]{64}")

log = logging.getLogger(__name__)


def weights_folder() -> Path:
    """Where downloads are kept: $COSPLACE_HOME/weights, else the folder that torch.hub uses for checkpoints."""
    return cache_folder("weights", default=Path(torch.hub.get_dir()) / "checkpoints")


def part_of(path: Path) -> Path:
    """Where the beginning of `path` is kept while it is fetched."""
    return path.with_name(f"{path.name}.part")


def digest_record(path: Path) -> Path:
    """Where the digest of `path` is recorded, when none is published."""
    return path.with_name(f"{path.name}.sha256")


def recorded_digest(path: Path) -> str:
    """Return the sha256 with which `path` was first fetched; "" when there is no record."""
    try:
        found = HEX_DIGITS.match(digest_record(path).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return found[0] if found else ""


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(
    url: str, folder: Path | None = None, sha256: str | None = None, progress: bool = True, or_else: str = ""
) -> Path:
    """Fetch a file into `folder` (default: `weights_folder()`) unless it is there, and return its path.

    sha256: hexadecimal digest or the start of it; by default what torchvision puts before the suffix of its file names
    (`resnet18-f37072fd.pth`), else the digest of the first download, which is recorded.  A file that is there with
    another digest is fetched anew.  A download that was stopped goes on; processes that want the same file wait for
    one of them.  Proxies are taken from the environment.  Raises DownloadError, which ends with `or_else`, and
    StorageError when the disk refuses; `path` is whole and checked, or not there.
    """
    name = Path(unquote(urlsplit(url).path)).name
    path = (weights_folder() if folder is None else folder) / name
    if sha256 is None:
        found = re.search(r"-([0-9a-f]{8,64})\.[^.]+$", name)
        sha256 = found[1] if found else ""
    if _is_whole(path, sha256):
        return path
    go_on = f"put the file at {path} by hand" + (f", {or_else}" if or_else else "")
    if urlsplit(url).scheme not in SCHEMES or not name:
        raise DownloadError(f"Cannot fetch {url} (no address of a file at http, https or file): {go_on}.")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{name}.lock")
        with locked(lock, lambda: log.info("Another process fetches %s: waiting for it", path)):
            if not _is_whole(path, sha256):  # it may have come while we waited
                _Fetching(url=url, path=path, sha256=sha256.lower(), go_on=go_on, progress=progress).run()
    return path


def _is_whole(path: Path, sha256: str) -> bool:
    """Whether the file is there, with the digest that is published or recorded."""
    if not path.is_file():
        return False
    expected = sha256.lower() or recorded_digest(path)
    if not expected or file_sha256(path).startswith(expected):
        return True
    log.warning("%s has another sha256 than %s...: fetching it anew", path, expected[:16])
    return False


class _TooLargeError(DownloadError):
    """What comes is no file of weights, so nothing of it is kept."""


@dataclass(slots=True, kw_only=True)
class _Fetching:
    """One file on its way."""

    url: str
    path: Path
    sha256: str  # published, or the start of it; "": only the record of the first download, if there is one
    go_on: str  # what a user can do when it fails
    progress: bool
    validator: str = ""  # the server's word for this version of the file

    def run(self) -> None:
        """Fetch, check, give the file its name."""
        log.info("Fetching %s to %s", self.url, self.path)
        recorded = "" if self.sha256 else recorded_digest(self.path)
        expected = self.sha256 or recorded
        found_some = self._open_part()
        digest = self._fetch_or_tidy()
        if found_some and not digest.startswith(expected):
            log.warning("%s does not fit what had been fetched before: fetching all of it anew", self.url)
            self._forget()
            digest = self._fetch_or_tidy()
        if not digest.startswith(expected):
            self._forget()
            told = f"{self.url} has sha256 {digest[:16]}... instead of {expected[:16]}..."
            if recorded:
                record = digest_record(self.path)
                raise DownloadError(
                    f"{told}, as {record.name} recorded: retry, or remove {record} if the file was renewed."
                )
            raise DownloadError(f"{told}: retry, or {self.go_on}.")
        if not expected:
            write_text(digest_record(self.path), f"{digest}  {self.path.name}\n")
        part_of(self.path).replace(self.path)
        self._note().unlink(missing_ok=True)

    # --- what has arrived ---

    def _note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part.json")

    def _open_part(self) -> bool:
        """Whether an earlier call left a beginning that can be gone on from; else it is removed."""
        try:
            note = json.loads(self._note().read_text(encoding="utf-8"))
            usable = note["url"] == self.url and part_of(self.path).stat().st_size > 0
            self.validator = str(note["validator"])
        except (OSError, ValueError, KeyError, TypeError):
            usable = False
        # Without the server's word, only a digest can tell whether two pieces belong together.
        if usable and (self.validator or self.sha256):
            return True
        self._forget()
        return False

    def _forget(self) -> None:
        self.validator = ""
        part_of(self.path).unlink(missing_ok=True)
        self._note().unlink(missing_ok=True)

    # --- the network ---

    def _fetch_or_tidy(self) -> str:
        """As `_fetch`; of what failed, only a beginning that is worth going on from stays."""
        try:
            return self._fetch()
        except DownloadError as error:
            if isinstance(error, _TooLargeError) or part_of(self.path).stat().st_size == 0:
                self._forget()
            raise

    def _fetch(self) -> str:
        """Fill the part, going on where a connection broke, and return its sha256."""
        reason, total = "it ended early", None
        with part_of(self.path).open("a+b") as file, _progress_bar(self.path.name, self.progress) as bar:
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256")
            done = file.tell()
            for _ in range(ATTEMPTS):
                response = self._connect(done)
                if response is None:  # the part is no beginning of what the server has
                    self._restart(file)
                    digest, done, total = hashlib.sha256(), 0, None
                    continue
                with response:
                    if (
                        done and response.status != http.HTTPStatus.PARTIAL_CONTENT
                    ):  # whole: other version, or no ranges
                        self._restart(file)
                        digest, done = hashlib.sha256(), 0
                    if not done:
                        self._begin(response.headers)
                    total = self._total(response.headers, done)
                    broken = False
                    for piece in _pieces(response):
                        if isinstance(piece, Exception):
                            reason, broken = _reason(piece), True
                            break
                        done += len(piece)
                        self._check_size(done)
                        file.write(piece)
                        digest.update(piece)
                        if bar is not None:
                            bar.total = total
                            bar.update(done - bar.n)
                if not broken and total in (None, done):
                    file.flush()
                    os.fsync(file.fileno())
                    return digest.hexdigest()
        raise DownloadError(
            f"{self.url} broke off {ATTEMPTS} times, at last after {done} of {total or 'unknown'} bytes ({reason}): "
            f"retry, which goes on from there, or {self.go_on}."
        )

    def _restart(self, file: BinaryIO) -> None:
        self._note().unlink(missing_ok=True)
        file.truncate(0)
        self.validator = ""

    def _begin(self, headers: Any) -> None:
        """Note which version of the file the part begins; written before the part, so that it is never an older one."""
        tag = headers.get("ETag", "")
        self.validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")
        write_text(self._note(), json.dumps({"url": self.url, "validator": self.validator}))

    def _total(self, headers: Any, done: int) -> int | None:
        """All bytes of the file, if the server says."""
        length = headers.get("Content-Length", "")
        total = done + int(length) if length.isdigit() else None
        self._check_size(total or 0)
        return total

    def _check_size(self, size: int) -> None:
        if size > MAX_BYTES:
            raise _TooLargeError(
                f"{self.url} is larger than {MAX_BYTES / 2**30:g} GiB, too large for weights: check the address."
            )

    def _connect(self, start: int) -> Any:
        """Open a response with the body from byte `start` on if the server can; None: it has fewer bytes than that."""
        headers = {"User-Agent": "cosplace"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if self.validator:
                headers["If-Range"] = self.validator
        try:
            response = urllib.request.urlopen(urllib.request.Request(self.url, headers=headers), timeout=TIMEOUT_S)
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
                if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    if error.headers.get("Content-Range") != f"bytes */{start}":
                        return None
                    nothing: Any = {"Content-Length": "0"}  # all of it had arrived already
                    return addinfourl(BytesIO(), nothing, self.url, http.HTTPStatus.PARTIAL_CONTENT)
            raise DownloadError(f"Cannot fetch {self.url} ({_reason(error)}): {self.go_on}.") from error
        place = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if place and int(place[1]) != start:
            response.close()
            return None
        return response


def _pieces(response: Any) -> Iterator[bytes | Exception]:
    """Read the body in pieces; what breaks it comes last, as a value: errors of the disk must not be taken for it."""
    while True:
        try:
            piece = response.read(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            yield error
            return
        if not piece:
            return
        yield piece


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split()) or type(error).__name__


def _progress_bar(name: str, wanted: bool) -> Any:
    """Show a bar on terminals; none where tqdm is missing, as torch.hub asks for nothing but torch and torchvision."""
    try:
        from tqdm import tqdm
    except ImportError:
        return nullcontext()
    # disable=None: no bar where stderr is no terminal.
    return tqdm(desc=name, unit="B", unit_scale=True, leave=False, disable=None) if wanted else nullcontext()
