"""Downloads: resumed, checked, shared by processes, and one line when they fail."""

import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from cosplace.errors import CosPlaceError, DownloadError, StorageError
from cosplace.models import downloads
from cosplace.models.downloads import (
    _SafeRedirects,
    download,
    file_sha256,
    partial_path,
    recorded_sha256,
    sha256_record,
    weights_folder,
)
from cosplace.models.imagenet import imagenet_file
from tests.models.file_server import Server, serve

BODY = np.random.default_rng(0).bytes(3_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve(BODY) as state:
        yield state


def names_in(folder: Path) -> list[str]:
    """Names of the files in a folder, except lock files, which stay there on Unix."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def one_line(error: pytest.ExceptionInfo[CosPlaceError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- one process ------------------------------------------------------------------------------------------------------


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path):
    path = download(f"{server.address}/weights.pth", tmp_path / "new", sha256=SHA256)
    assert path == tmp_path / "new" / "weights.pth"
    assert path.read_bytes() == BODY
    assert download(f"{server.address}/weights.pth", tmp_path / "new", sha256=SHA256[:10].upper()) == path
    assert len(server.ranges) == 1
    assert names_in(path.parent) == ["weights.pth"]


def test_the_checksum_in_a_file_name_is_checked(server: Server, tmp_path: Path):
    right, wrong = f"w-{SHA256[:8]}.pth", "w-0123abcd.pth"
    assert download(f"{server.address}/{right}", tmp_path).name == right
    with pytest.raises(
        DownloadError, match=rf"sha256 {SHA256[:16]}\.\.\. instead of 0123abcd.*copy the file to"
    ) as error:
        download(f"{server.address}/{wrong}", tmp_path)
    one_line(error)
    assert names_in(tmp_path) == [right]


def test_a_damaged_file_in_the_cache_is_downloaded_again(server: Server, tmp_path: Path):
    path = tmp_path / f"w-{SHA256[:8]}.pth"
    path.write_bytes(b"half")
    assert download(f"{server.address}/{path.name}", tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("accepts_ranges", [True, False])
@pytest.mark.parametrize("sends_tags", [True, False])
def test_a_broken_download_is_resumed(server: Server, tmp_path: Path, accepts_ranges: bool, sends_tags: bool):
    server.break_after = [1_500_000, 0, 100]
    server.accepts_ranges, server.sends_tags = accepts_ranges, sends_tags
    path = download(f"{server.address}/weights.pth", tmp_path, sha256=SHA256)
    assert path.read_bytes() == BODY
    resumed = ["bytes=1500000-", "bytes=1500000-", "bytes=1500100-"]
    assert server.ranges == [None, *(resumed if accepts_ranges else ["bytes=1500000-", None, "bytes=100-"])]


def test_a_download_that_keeps_breaking_fails_and_is_resumed_by_a_later_call(server: Server, tmp_path: Path):
    server.break_after = [1000, 0, 0, 0]
    url = f"{server.address}/weights.pth"
    with pytest.raises(DownloadError, match="broke 4 times, the last time after 1000 of 3000000 bytes") as error:
        download(url, tmp_path)
    one_line(error)
    assert names_in(tmp_path) == ["weights.pth.part", "weights.pth.part.json"]
    assert download(url, tmp_path).read_bytes() == BODY
    assert server.ranges == [None, *["bytes=1000-"] * 4]
    assert names_in(tmp_path) == ["weights.pth", "weights.pth.sha256"]


def break_download(server: Server, url: str, folder: Path, sha256: str | None = None) -> None:
    """Leave the first 1000 bytes."""
    server.ranges.clear()
    server.break_after = [1000, 0, 0, 0]
    with pytest.raises(DownloadError, match="broke 4 times"):
        download(url, folder, sha256=sha256)
    server.ranges.clear()
    server.break_after = []


def test_a_file_that_changed_on_the_server_is_downloaded_from_the_start(server: Server, tmp_path: Path):
    url = f"{server.address}/weights.pth"
    break_download(server, url, tmp_path)
    server.body = BODY[::-1]
    assert download(url, tmp_path).read_bytes() == BODY[::-1]
    assert server.ranges == ["bytes=1000-"]  # the server answered with the whole file


def test_without_version_a_later_call_resumes_only_with_a_checksum(server: Server, tmp_path: Path):
    server.sends_tags = False
    url = f"{server.address}/weights.pth"
    for sha256, first in ((None, None), (SHA256, "bytes=1000-")):
        break_download(server, url, tmp_path, sha256)
        path = download(url, tmp_path, sha256=sha256)
        assert (path.read_bytes(), server.ranges[0]) == (BODY, first)
        path.unlink()
    # Two parts of different files are detected, and the whole file is downloaded.
    break_download(server, url, tmp_path, SHA256)
    partial_path(path).write_bytes(bytes(1000))
    assert download(url, tmp_path, sha256=SHA256).read_bytes() == BODY
    assert server.ranges == ["bytes=1000-", None]


def test_a_part_longer_than_the_file_is_discarded(server: Server, tmp_path: Path):
    url = f"{server.address}/weights.pth"
    break_download(server, url, tmp_path, SHA256)
    partial_path(tmp_path / "weights.pth").write_bytes(bytes(len(BODY) + 5))
    assert download(url, tmp_path, sha256=SHA256).read_bytes() == BODY


def test_a_complete_part_is_renamed(server: Server, tmp_path: Path):
    url = f"{server.address}/weights.pth"
    break_download(server, url, tmp_path)
    partial_path(tmp_path / "weights.pth").write_bytes(BODY)
    assert download(url, tmp_path).read_bytes() == BODY
    assert server.ranges == ["bytes=3000000-"]


def test_a_part_from_another_url_is_discarded(server: Server, tmp_path: Path):
    break_download(server, f"{server.address}/old/weights.pth", tmp_path, SHA256)
    assert download(f"{server.address}/new/weights.pth", tmp_path, sha256=SHA256).read_bytes() == BODY
    assert server.ranges == [None]


def test_files_of_unknown_length_are_downloaded(server: Server, tmp_path: Path):
    server.sends_length = False
    assert download(f"{server.address}/weights.pth", tmp_path, sha256=SHA256).read_bytes() == BODY


@pytest.mark.parametrize("sends_length", [True, False])
def test_huge_files_are_refused(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sends_length: bool):
    monkeypatch.setattr("cosplace.models.downloads.MAX_BYTES", 2 << 20)
    server.sends_length = sends_length
    with pytest.raises(DownloadError, match=r"larger than 0\.00195312 GiB") as error:
        download(f"{server.address}/weights.pth", tmp_path)
    one_line(error)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabcdefgh\r\n0\r\n\r\n", "broke"),
        (b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n-5\r\nabcdefgh\r\n0\r\n\r\n", "broke"),
        (b"204 No Content\r\n\r\n", "204"),
        (b"206 Partial Content\r\nContent-Range: bytes -5-9/10\r\nContent-Length: 5\r\n\r\nabcde", "206"),
    ],
    ids=["chunk of negative length", "later chunk of negative length", "no content", "a part that was not wanted"],
)
def test_answers_that_are_not_a_whole_file_are_refused(server: Server, tmp_path: Path, answer: bytes, reason: str):
    server.raw = b"HTTP/1.1 " + answer
    with pytest.raises(DownloadError, match=reason) as error:
        download(f"{server.address}/model.pth", folder=tmp_path)
    assert one_line(error)
    assert not [name for name in names_in(tmp_path) if name == "model.pth"]


@pytest.mark.parametrize("name", ["..", "%2e%2e", ".", "", "a%2F..%2Fb", "..%5Cup.pth", "a%00b", "a%0ab", "x" * 300])
def test_names_that_are_not_of_a_file_in_the_folder_are_refused(server: Server, tmp_path: Path, name: str):
    folder = tmp_path / "inside"
    with pytest.raises(DownloadError, match="URL of a file") as error:
        download(f"{server.address}/{name}", folder)
    one_line(error)
    assert (server.paths, list(tmp_path.rglob("*"))) == ([], [])


def test_an_address_that_is_not_a_url_is_one_line(tmp_path: Path):
    with pytest.raises(DownloadError, match="Check the URL") as error:
        download("http://[::1/weights.pth", tmp_path)
    one_line(error)


@pytest.mark.parametrize("length", ["-1", "-3000000", "\xb2", "1e3", "0x10", "9" * 5000, "9" * 17])
def test_lengths_that_are_not_lengths_are_refused(server: Server, tmp_path: Path, length: str):
    server.length = length
    with pytest.raises(DownloadError, match=r"invalid length|larger than 4 GiB") as error:
        download(f"{server.address}/weights.pth", tmp_path)
    assert len(one_line(error)) < 500
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://127.0.0.1:9/w.pth", "data:,x", "gopher://x/"])
def test_redirects_to_other_schemes_are_refused(server: Server, tmp_path: Path, location: str):
    server.location = location
    with pytest.raises(DownloadError, match=r"redirect|Redirection") as error:
        download(f"{server.address}/weights.pth", tmp_path)
    one_line(error)
    assert names_in(tmp_path) == []


def test_https_is_not_redirected_to_http(server: Server, tmp_path: Path):
    def follow(start: str, to: str) -> str:
        request = urllib.request.Request(start)
        following = _SafeRedirects().redirect_request(request, io.BytesIO(), 302, "Found", {}, to)
        assert following is not None
        return following.full_url

    assert follow("http://a/w.pth", "https://b/w.pth") == "https://b/w.pth"
    assert follow("http://a/w.pth", "http://b/w.pth") == "http://b/w.pth"
    with pytest.raises(urllib.error.URLError, match=r"redirects to http://b/w\.pth, which is not https"):
        follow("https://a/w.pth", "http://b/w.pth")
    with serve(BODY) as other:
        server.location = f"{other.address}/other.pth"
        assert download(f"{server.address}/weights.pth", tmp_path, sha256=SHA256).name == "weights.pth"


@pytest.mark.skipif(os.name != "posix", reason="pipes are files on POSIX systems only")
def test_a_pipe_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "w.pth")
    with pytest.raises(DownloadError, match="not a regular file"):
        download((tmp_path / "w.pth").as_uri(), tmp_path / "to")


def test_the_first_checksum_is_recorded_and_checked_later(server: Server, tmp_path: Path):
    url = f"{server.address}/weights.pth"
    path = download(url, tmp_path)
    assert sha256_record(path).read_text() == f"{SHA256}  weights.pth\n"
    assert recorded_sha256(path) == SHA256 == file_sha256(path)
    path.write_bytes(BODY[:-1] + b"?")  # damaged on the disk
    assert download(url, tmp_path).read_bytes() == BODY
    path.unlink()
    server.body = BODY[::-1]
    with pytest.raises(DownloadError, match=r"recorded in weights\.pth\.sha256\. Try again, or remove") as error:
        download(url, tmp_path)
    one_line(error)
    assert names_in(tmp_path) == ["weights.pth.sha256"]
    sha256_record(path).unlink()
    assert download(url, tmp_path).read_bytes() == BODY[::-1]


def test_a_file_copied_by_hand_is_accepted(server: Server, tmp_path: Path):
    (tmp_path / "weights.pth").write_bytes(b"mine")
    assert download(f"{server.address}/weights.pth", tmp_path).read_bytes() == b"mine"
    assert server.ranges == []


def test_without_network_the_error_suggests_other_imagenet_weights(tmp_path: Path):
    with pytest.raises(DownloadError, match=r"refused.*--imagenet_weights none or PATH") as error:
        imagenet_file("ResNet18", "v1", tmp_path, base="http://127.0.0.1:9")
    one_line(error)
    assert names_in(tmp_path) == []


def test_a_missing_file_gives_one_line(server: Server, tmp_path: Path):
    server.status = 404
    with pytest.raises(DownloadError, match=r"answered 404 .*copy the file to .*weights\.pth yourself") as error:
        download(f"{server.address}/weights.pth", tmp_path)
    one_line(error)


def test_a_file_url_can_be_downloaded(tmp_path: Path):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "weights.pth").write_bytes(BODY)
    path = download((tmp_path / "mirror" / "weights.pth").as_uri(), tmp_path / "cache", sha256=SHA256)
    assert path.read_bytes() == BODY


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_read_only_folder_is_a_storage_error(server: Server, tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="Choose another folder") as error:
        download(f"{server.address}/weights.pth", tmp_path)
    one_line(error)


def test_a_file_in_place_of_the_folder_is_a_storage_error(server: Server, tmp_path: Path):
    (tmp_path / "cache").touch()
    with pytest.raises(StorageError, match="Choose another folder"):
        download(f"{server.address}/weights.pth", tmp_path / "cache")


# --- several processes ------------------------------------------------------------------------------------------------

DOWNLOAD = """
import sys
from pathlib import Path
from cosplace.models.downloads import download
print("started", flush=True)
print(download(sys.argv[1], Path(sys.argv[2])).stat().st_size)
"""


def downloading_process(url: str, folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", DOWNLOAD, url, str(folder)], stdout=subprocess.PIPE, text=True)


def wait_until(condition) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the condition never became true")


@pytest.mark.slow
def test_of_two_processes_one_downloads_and_both_have_the_file(server: Server, tmp_path: Path):
    server.waits = threading.Event()
    url = f"{server.address}/weights.pth"
    first = downloading_process(url, tmp_path)
    wait_until(lambda: server.ranges and (tmp_path / "weights.pth.lock").exists())
    second = downloading_process(url, tmp_path)
    assert second.stdout is not None
    assert second.stdout.readline() == "started\n"
    time.sleep(0.2)
    assert not (tmp_path / "weights.pth").exists()
    server.waits.set()
    outputs = [process.communicate(timeout=30)[0] for process in (first, second)]
    assert [output.splitlines()[-1] for output in outputs] == ["3000000", "3000000"]
    assert len(server.ranges) == 1
    assert (tmp_path / "weights.pth").read_bytes() == BODY
    assert names_in(tmp_path) == ["weights.pth", "weights.pth.sha256"]


@pytest.mark.slow
def test_a_killed_process_leaves_a_part_and_no_lock(server: Server, tmp_path: Path):
    server.waits = threading.Event()
    process = downloading_process(f"{server.address}/weights.pth", tmp_path)
    part = partial_path(tmp_path / "weights.pth")
    wait_until(lambda: part.exists() and part.stat().st_size > 1_000_000)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    server.waits.set()
    server.ranges.clear()
    size = part.stat().st_size
    assert download(f"{server.address}/weights.pth", tmp_path).read_bytes() == BODY
    assert server.ranges == [f"bytes={size}-"]
    assert names_in(tmp_path) == ["weights.pth", "weights.pth.sha256"]


def test_many_threads_download_once(server: Server, tmp_path: Path):
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(download(f"{server.address}/weights.pth", tmp_path).read_bytes()))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [BODY] * 8
    assert len(server.ranges) == 1


@pytest.mark.skipif(os.name == "nt", reason="fcntl")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_needs_none(server: Server, tmp_path: Path, monkeypatch, number: int):
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    assert download(f"{server.address}/weights.pth", tmp_path).read_bytes() == BODY


def test_a_waiting_thread_downloads_when_the_first_one_fails(server: Server, tmp_path: Path, caplog):
    caplog.set_level("INFO")
    server.waits = threading.Event()
    server.break_after = [1000, 0, 0, 0]

    def fail() -> None:
        with pytest.raises(DownloadError, match="broke 4 times"):
            download(f"{server.address}/weights.pth", tmp_path)

    first = threading.Thread(target=fail)
    found: list[Path] = []
    second = threading.Thread(target=lambda: found.append(download(f"{server.address}/weights.pth", tmp_path)))
    first.start()
    wait_until(lambda: server.ranges)
    second.start()
    wait_until(lambda: "waiting for it" in caplog.text)
    server.waits.set()
    first.join()
    second.join()
    assert found[0].read_bytes() == BODY
    assert caplog.text.count("waiting for it") == 1


def test_a_download_that_hangs_in_another_process_is_not_waited_for_forever(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "STALLED_S", 0.3)
    monkeypatch.setattr(downloads, "LOOK_S", 0.05)
    looks: list[int] = []

    def part_size(_: Path) -> int:
        """The other process downloads for a while, and then hangs."""
        looks.append(min(len(looks), 20))
        return looks[-1]

    monkeypatch.setattr(downloads, "_part_size", part_size)
    with (
        FileLock(tmp_path / "weights.pth.lock"),
        pytest.raises(
            DownloadError, match=r"Another process has been downloading .+ without progress\. End it"
        ) as error,
    ):
        download(f"{server.address}/weights.pth", tmp_path)
    one_line(error)
    assert looks.count(20) > 2
    assert download(f"{server.address}/weights.pth", tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(
    "url", ["weights.pth", "gopher://host/weights.pth", "http://host with space/weights.pth", "http://127.0.0.1:9/"]
)
def test_invalid_urls_are_download_errors(url: str, tmp_path: Path):
    with pytest.raises(DownloadError, match="Cannot download") as error:
        download(url, tmp_path)
    one_line(error)


def test_proxies_are_taken_from_the_environment(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    # urllib keeps its first opener, with the proxies of that time.
    monkeypatch.setattr(urllib.request, "_opener", None)
    assert download("http://nowhere.invalid/weights.pth", tmp_path).read_bytes() == BODY


def test_the_cache_is_in_cosplace_home_or_where_torch_hub_keeps_weights(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("COSPLACE_HOME", str(tmp_path))
    assert weights_folder() == tmp_path / "weights"
    monkeypatch.delenv("COSPLACE_HOME")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    assert weights_folder() == tmp_path / "torch" / "hub" / "checkpoints"
