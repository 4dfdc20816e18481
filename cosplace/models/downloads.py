"""Download a file once, check it and keep it.  An interrupted download is resumed, by this process or a later one.

Files in the download folder, for a file NAME:

    NAME               the file, complete and checked
    NAME.sha256        its checksum at the first download, if none is published; in the format of `sha256sum -c`
    NAME.part          the part downloaded so far
    NAME.part.json     URL and version (ETag or Last-Modified) of that part
    NAME.lock          locked by the process that downloads, while others wait for it; empty
"""

import hashlib
import http.client
import json
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit
from urllib.response import addinfourl

import torch
from filelock import FileLock, Timeout

from cosplace.errors import DownloadError
from cosplace.progress import format_duration
from cosplace.storage import NO_LOCKS, cache_folder, storage_errors, write_text

TIMEOUT_S = 30.0
STALLED_S = 600.0  # without progress of another process that downloads; it ends earlier by itself unless it hangs
LOOK_S = 5.0  # between two looks at its progress
MAX_CONNECTIONS = 4  # per download: a connection that breaks is tried again, an error of the server is not
CHUNK_BYTES = 1 << 20
MAX_BYTES = 4 << 30  # several times the largest model for place recognition
SCHEMES = ("http", "https", "file")
SHA256 = re.compile(r"[0-9a-f]{64}")
SHA256_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[^.]+$")  # in torchvision's file names: resnet18-f37072fd.pth
FILE_NAME = re.compile(r"(?!\.+$)[^/\\:\x00-\x1f\x7f]{1,200}")  # not "..", and without separators
MAX_DIGITS = 15  # of a size in a header

log = logging.getLogger(__name__)


def weights_folder() -> Path:
    """Folder of downloads: $COSPLACE_HOME/weights, else the folder where torch.hub keeps checkpoints."""
    return cache_folder("weights", default=Path(torch.hub.get_dir()) / "checkpoints")


def partial_path(path: Path) -> Path:
    """File with the part of `path` that was downloaded so far."""
    return path.with_name(f"{path.name}.part")


def sha256_record(path: Path) -> Path:
    """File that records the checksum of `path` at its first download."""
    return path.with_name(f"{path.name}.sha256")


def recorded_sha256(path: Path) -> str:
    """SHA-256 of `path` at its first download; "" if there is no record."""
    try:
        found = SHA256.match(sha256_record(path).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return found[0] if found else ""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, folder: Path | None = None, sha256: str | None = None, advice: str = "") -> Path:
    """Download a file into `folder` (default: `weights_folder()`) unless it is there, and return its path.

    sha256: the expected checksum or its first digits; default: the digits that torchvision puts into its file names,
    else the checksum of the first download.  A file with another checksum is downloaded again.
    advice: what else the user can do when the download fails.
    An interrupted download is resumed.  Processes that need the same file wait for the one that downloads it.  Proxies
    are taken from the environment.  Raises DownloadError, or StorageError when the disk is full or not writable; then
    there is no file at the path.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise DownloadError(f"Cannot download {url}: {error}. Check the URL.") from error
    name = unquote(parts.path.rpartition("/")[2])
    if parts.scheme not in SCHEMES or not FILE_NAME.fullmatch(name):
        raise DownloadError(f"Cannot download {url}: it is not the http, https or file URL of a file. Check the URL.")
    path = (weights_folder() if folder is None else folder) / name
    if sha256 is None:
        in_name = SHA256_IN_NAME.search(name)
        sha256 = in_name[1] if in_name else ""
    if _is_complete(path, sha256):
        return path
    advice = f"copy the file to {path} yourself" + (f", or {advice}" if advice else "")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _one_process(path):
            if not _is_complete(path, sha256):  # another process may have downloaded it meanwhile
                _Download(url=url, path=path, sha256=sha256.lower(), advice=advice).run()
    return path


def _is_complete(path: Path, sha256: str) -> bool:
    """Whether the file exists and has the expected checksum."""
    if not path.is_file():
        return False
    expected = sha256.lower() or recorded_sha256(path)
    if not expected or file_sha256(path).startswith(expected):
        return True
    log.warning("%s does not have the expected sha256 %s...: downloading it again", path, expected[:16])
    return False


@contextmanager
def _one_process(path: Path) -> Generator[None]:
    """Keep other processes and threads from downloading `path`.  The system releases the lock of a killed process."""
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("Another process is downloading %s: waiting for it", path)
            _wait_for_lock(lock, path)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        # Some network file systems have no locks; there, each process downloads the file itself.
    try:
        yield
    finally:
        lock.release()


def _wait_for_lock(lock: FileLock, path: Path) -> None:
    """Wait for another process, as long as its part of the file changes.  Raises DownloadError if it does not."""
    seen, seen_time = _part_size(path), time.monotonic()
    while True:
        try:
            lock.acquire(timeout=LOOK_S)
            return
        except Timeout as error:
            if (size := _part_size(path)) != seen:
                seen, seen_time = size, time.monotonic()
            elif time.monotonic() - seen_time > STALLED_S:
                raise DownloadError(
                    f"Another process has been downloading {path} for {format_duration(STALLED_S)} without progress. "
                    f"End it, then run the same command again."
                ) from error


def _part_size(path: Path) -> int:
    try:
        return partial_path(path).stat().st_size
    except OSError:
        return 0


class _TooLargeError(DownloadError):
    """The file is too large to be weights; nothing of it is kept."""


@dataclass(slots=True, kw_only=True)
class _Download:
    """One file that is being downloaded."""

    url: str
    path: Path
    sha256: str  # published checksum or its first digits; "": only the record of the first download, if there is one
    advice: str  # what the user can do when the download fails
    version: str = ""  # of the file on the server, for If-Range: its ETag or Last-Modified

    def run(self) -> None:
        """Download the file, check it, and rename it to its final name."""
        log.info("Downloading %s to %s", self.url, self.path)
        recorded = "" if self.sha256 else recorded_sha256(self.path)
        expected = self.sha256 or recorded
        resumed = self._open_part()
        sha256 = self._complete_part_or_clean_up()
        if resumed and not sha256.startswith(expected):
            log.warning("%s does not match the part downloaded earlier: downloading all of it again", self.url)
            self._remove_part()
            sha256 = self._complete_part_or_clean_up()
        if not sha256.startswith(expected):
            self._remove_part()
            problem = f"{self.url} has sha256 {sha256[:16]}... instead of {expected[:16]}..."
            if recorded:
                record = sha256_record(self.path)
                raise DownloadError(
                    f"{problem}, which was recorded in {record.name}. Try again, or remove {record} if the file has "
                    f"changed on the server."
                )
            raise DownloadError(f"{problem}. Try again, or {self.advice}.")
        if not expected:
            write_text(sha256_record(self.path), f"{sha256}  {self.path.name}\n")
        partial_path(self.path).replace(self.path)
        self._part_info().unlink(missing_ok=True)

    # --- the part on the disk ---

    def _part_info(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part.json")

    def _open_part(self) -> bool:
        """Whether an earlier download left a part that can be continued; another part is removed."""
        try:
            info = json.loads(self._part_info().read_text(encoding="utf-8"))
            usable = info["url"] == self.url and partial_path(self.path).stat().st_size > 0
            self.version = str(info["validator"])
        except (OSError, ValueError, KeyError, TypeError):
            usable = False
        # Without a version, only a checksum can find out whether two parts belong to the same file.
        if usable and (self.version or self.sha256):
            return True
        self._remove_part()
        return False

    def _remove_part(self) -> None:
        self.version = ""
        partial_path(self.path).unlink(missing_ok=True)
        self._part_info().unlink(missing_ok=True)

    def _restart_part(self, file: BinaryIO) -> None:
        self._part_info().unlink(missing_ok=True)
        file.truncate(0)
        self.version = ""

    def _write_part_info(self, headers: Any) -> None:
        """Record the version of the file; before its first bytes, so that a part never has an older record."""
        tag = headers.get("ETag", "")
        self.version = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")
        write_text(self._part_info(), json.dumps({"url": self.url, "validator": self.version}))

    # --- the network ---

    def _complete_part_or_clean_up(self) -> str:
        """Call `_complete_part`; if it fails, remove a part that cannot be continued."""
        try:
            return self._complete_part()
        except DownloadError as error:
            if isinstance(error, _TooLargeError) or partial_path(self.path).stat().st_size == 0:
                self._remove_part()
            raise

    def _complete_part(self) -> str:
        """Download what is missing in the part, over several connections if they break; returns its sha256."""
        reason, total = "it ended early", None
        with partial_path(self.path).open("a+b") as file, _progress_bar(self.path.name) as bar:
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256")
            done = file.tell()
            for _ in range(MAX_CONNECTIONS):
                response = self._connect(done)
                if response is None:  # the part does not belong to the file on the server
                    self._restart_part(file)
                    digest, done, total = hashlib.sha256(), 0, None
                    continue
                with response:
                    if done and response.status != http.HTTPStatus.PARTIAL_CONTENT:
                        # The whole file: another version, or a server that cannot send parts.
                        self._restart_part(file)
                        digest, done = hashlib.sha256(), 0
                    if not done:
                        self._write_part_info(response.headers)
                    total = self._total_bytes(response.headers, done)
                    broken = False
                    for chunk in _read_chunks(response):
                        if isinstance(chunk, Exception):
                            reason, broken = _reason(chunk), True
                            break
                        done += len(chunk)
                        self._check_size(done)
                        file.write(chunk)
                        digest.update(chunk)
                        if bar is not None:
                            bar.total = total
                            bar.update(done - bar.n)
                if not broken and total in (None, done):
                    file.flush()
                    os.fsync(file.fileno())
                    return digest.hexdigest()
        raise DownloadError(
            f"The connection to {self.url} broke {MAX_CONNECTIONS} times, the last time after {done} of "
            f"{total or 'unknown'} bytes ({reason}). Try again to continue from there, or {self.advice}."
        )

    def _connect(self, start: int) -> Any:
        """Open a response that starts at byte `start` if the server can; None if its file is shorter than that."""
        headers = {"User-Agent": "cosplace"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if self.version:
                headers["If-Range"] = self.version
        try:
            _refuse_special_file(self.url)
            opener = urllib.request.build_opener(_SafeRedirects)
            response = opener.open(urllib.request.Request(self.url, headers=headers), timeout=TIMEOUT_S)
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
                if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    if error.headers.get("Content-Range") != f"bytes */{start}":
                        return None
                    empty: Any = {"Content-Length": "0"}  # the part is already complete
                    return addinfourl(BytesIO(), empty, self.url, http.HTTPStatus.PARTIAL_CONTENT)
            raise DownloadError(f"Cannot download {self.url}: {_reason(error)}. Try to {self.advice}.") from error
        if response.status not in (None, http.HTTPStatus.OK, *[http.HTTPStatus.PARTIAL_CONTENT] * bool(start)):
            response.close()
            raise DownloadError(
                f"Cannot download {self.url}: the server answered {response.status}, without the file. Try to "
                f"{self.advice}."
            )
        first_byte = re.match(rf"bytes (\d{{1,{MAX_DIGITS}}})-", response.headers.get("Content-Range", ""))
        if first_byte and int(first_byte[1]) != start:
            response.close()
            return None
        return response

    def _total_bytes(self, headers: Any, done: int) -> int | None:
        """Size of the whole file; None if the server does not report it."""
        length = headers.get("Content-Length")
        if length is None:
            return None
        if not re.fullmatch(r"[0-9]+", length):
            raise DownloadError(
                f"Cannot download {self.url}: the server reports the invalid length '{length[:40]}'. Try to "
                f"{self.advice}."
            )
        digits = length.lstrip("0") or "0"
        total = done + int(digits) if len(digits) <= MAX_DIGITS else MAX_BYTES + 1
        self._check_size(total)
        return total

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > MAX_BYTES:
            raise _TooLargeError(
                f"{self.url} is larger than {MAX_BYTES / 2**30:g} GiB, too large for weights. Check the URL."
            )


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, and from https only to https."""

    def redirect_request(  # noqa: PLR0917 - the signature of the base class
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Return the request that follows a redirect."""
        fp.close()  # otherwise its whole body would be read into memory
        scheme = urlsplit(newurl).scheme.lower()
        if scheme != "https" and (scheme != "http" or req.type == "https"):
            raise urllib.error.URLError(f"it redirects to {newurl[:200]}, which is not {req.type}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _refuse_special_file(url: str) -> None:
    """Raise URLError for a file URL of a pipe or device: reading one could wait forever."""
    parts = urlsplit(url)
    path = Path(urllib.request.url2pathname(parts.path))
    if parts.scheme == "file" and path.exists() and not path.is_file():
        raise urllib.error.URLError("it is not a regular file")


def _read_chunks(response: Any) -> Iterator[bytes | Exception]:
    """Yield the body in chunks, and last the error of a broken connection.

    The error is yielded, not raised, so that errors of the disk in the calling loop are not taken for it.
    """
    while True:
        try:
            chunk = response.read(CHUNK_BYTES)
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: a chunk of negative length
            yield error
            return
        if not chunk:
            return
        yield chunk


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split()) or type(error).__name__


def _progress_bar(name: str) -> Any:
    """Progress bar on terminals; none without tqdm, because torch.hub installs only torch and torchvision."""
    try:
        from tqdm import tqdm
    except ImportError:
        return nullcontext()
    return tqdm(desc=name, unit="B", unit_scale=True, leave=False, disable=None)  # None: only on terminals
