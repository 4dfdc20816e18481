"""A server as a process of its own, with many connections and few open files, and with costly photos.

The judges are HTTP, the shell's exit code, JSON, and the memory that the system reports for the process.
"""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.unusual_input.samples import encoded, place_pixels
from tests.unusual_input.test_server import is_true_in_time, running_server, status_of, write_index

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc"),
]

NUM_CLIENTS = 1030
MAX_OPEN_FILES = 700  # of the server
TIME_LIMIT_S = 3
REQUEST = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
SCRIPT = b"GET /static/vendor/leaflet.js HTTP/1.1\r\nHost: localhost\r\n\r\n"  # 150 kB


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_index(tmp_path_factory.mktemp("stored"), [0.001, 0.002], image_size=None)


class Process:
    """A running server, and the lines of its log."""

    def __init__(self, process: subprocess.Popen) -> None:
        assert process.stdout is not None and process.stderr is not None
        self.process, self.log = process, list[str]()
        self.address = process.stdout.readline().split()[-1].rstrip("/")
        self.reader = threading.Thread(target=self.log.extend, args=(process.stderr,))
        self.reader.start()

    @property
    def host(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.address.rsplit(":", 1)[1])

    def memory_mb(self, kind: str) -> int:
        """kind: VmRSS, now, or VmHWM, at most so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = re.search(rf"{kind}:\s+(\d+) kB", status)  # not there once the process has ended
        return int(found[1]) // 1000 if found else 0


@contextmanager
def server_process(index: Path, *flags: str, max_open_files: int | None = None) -> Iterator[Process]:
    command = [sys.executable, "-m", "cosplace", "serve", "--index", str(index), "--port", "0", "--uncalibrated"]
    limit = "" if max_open_files is None else f"ulimit -n {max_open_files} && "
    process = subprocess.Popen(
        ["sh", "-c", f'{limit}exec "$@"', "sh", *command, "--device", "cpu", *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    running = Process(process)
    try:
        yield running
    finally:
        process.kill()
        process.wait()
        running.reader.join()
        for stream in (process.stdout, process.stderr):
            stream.close()


@pytest.fixture
def _many_files() -> Iterator[None]:
    """Allow this process to have that many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = NUM_CLIENTS + 500
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"this process may open only {hard} files")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def read_one_response(connection: socket.socket) -> None:
    received = b""
    while b"\r\n\r\n" not in received and (part := connection.recv(10_000)):
        received += part


@pytest.mark.usefixtures("_many_files")
@pytest.mark.parametrize("kind", ["one byte of the next header", "reads nothing"])
def test_more_connections_than_open_files_do_not_keep_new_clients_out(stored: Path, kind: str) -> None:
    """HTTP: new clients get 200.  JSON: each line of the log.  The promise: it stops 5 s after the time of a request.

    The server may open 700 files; none of the 1,030 connections is closed by its client.
    """
    flags = "--time_limit_s", str(TIME_LIMIT_S)
    with server_process(stored, *flags, max_open_files=MAX_OPEN_FILES) as server, ExitStack() as stack:
        for _ in range(NUM_CLIENTS):
            connection = stack.enter_context(socket.socket())
            connection.settimeout(10)
            try:
                if kind == "reads nothing":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    connection.connect(server.host)
                    connection.sendall(SCRIPT * 60)
                else:
                    connection.connect(server.host)
                    connection.sendall(REQUEST + b"G")
                    read_one_response(connection)
            except OSError:  # the server may close connections
                continue
        assert is_true_in_time(lambda: status_of(server.host) == 200)
        assert [status_of(server.host) for _ in range(5)] == [200] * 5
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(TIME_LIMIT_S + 5 + 4) == 0
    assert server.log and all(isinstance(json.loads(line), dict) for line in server.log)


async def large_app(scope: Any, receive: Any, send: Any) -> None:
    """Answers `/large` with 30 MB, more than the buffers of a connection, and everything else with two bytes."""
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{kind}.complete"})
        return
    body = bytes(30_000_000 if scope["path"] == "/large" else 2)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def test_clients_that_read_nothing_do_not_keep_new_ones_out() -> None:
    """HTTP: as many clients as the server has connections do not read their responses; another one gets 200."""
    with running_server(lambda _: large_app, max_connections=10, time_limit_s=60) as address, ExitStack() as stack:
        for _ in range(10):
            connection = stack.enter_context(socket.create_connection(address, timeout=10))
            connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(1)  # its response has begun
        assert is_true_in_time(lambda: status_of(address) == 200)


LIMIT_MB = 1500  # more than before the request


def test_large_photos_of_a_small_request_do_not_take_the_memory_and_time_of_the_server(stored: Path) -> None:
    """/proc: the memory of the process.  HTTP: the photo of an honest client, sent a moment later, is answered.

    16 PNGs of 1024 x 8192 pixels with one color each are 0.5 MB; in one batch they would need 10 GB.
    """
    bodies = [encoded(np.full((8192, 1024, 3), n, np.uint8), "PNG", optimize=True) for n in range(16)]
    assert sum(map(len, bodies)) < 600_000
    files = [("files", (f"{n}.png", body)) for n, body in enumerate(bodies)]
    honest = encoded(place_pixels(0))
    is_exceeded = threading.Event()
    with server_process(stored) as server, httpx.Client(base_url=server.address, timeout=60, trust_env=False) as client:
        assert client.post("/locate", content=honest).status_code == 200
        before_mb = server.memory_mb("VmRSS")

        def watch() -> None:  # ends a server that takes too much, for the sake of this machine
            while server.process.poll() is None:
                if server.memory_mb("VmRSS") > before_mb + LIMIT_MB:
                    is_exceeded.set()
                    server.process.kill()
                    return
                time.sleep(0.02)

        def attack() -> None:
            with suppress(httpx.HTTPError):
                answers.append(httpx.post(f"{server.address}/locate", files=files, timeout=60, trust_env=False))

        answers: list[httpx.Response] = []
        threads = [threading.Thread(target=target) for target in (watch, attack)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        try:
            status = client.post("/locate", content=honest).status_code
        except httpx.HTTPError as error:
            status = repr(error)
        threads[1].join()
        peak_mb = server.memory_mb("VmHWM") if server.process.poll() is None else None
        server.process.terminate()
        threads[0].join()
    assert not is_exceeded.is_set() and status == 200
    assert peak_mb is not None and peak_mb < before_mb + LIMIT_MB
    assert answers[0].status_code in (200, 413, 422) and "Traceback" not in "".join(server.log)
