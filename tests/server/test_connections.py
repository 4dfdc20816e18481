"""Connections: each state has a deadline, floods do not shut out other clients, a stop ends in time."""

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest

from cosplace.server import ServerSettings
from cosplace.server.connections import MAX_SENT_AHEAD, usable_connections
from cosplace.server.process import SHUTDOWN_MARGIN_S, listening_socket, make_server

pytestmark = pytest.mark.slow  # too slow for make check; make test runs all

LARGE = 30_000_000  # bytes, more than the buffers of a connection


async def small_app(scope: Any, receive: Any, send: Any) -> None:
    """Answer `/large` with many bytes, everything else with a few, after the body of the request."""
    if scope["type"] != "http":
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        return
    while (await receive()).get("more_body"):
        pass
    body = bytes(LARGE if scope["path"] == "/large" else 10)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextmanager
def running(app: Any = small_app, **changes: Any) -> Iterator[tuple[Any, tuple[str, int]]]:
    """Run an app; yield its server and address."""
    settings = ServerSettings(**changes)
    with listening_socket("127.0.0.1", 0) as listener:
        server = make_server(app, settings)
        address = listener.getsockname()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield server, address
        finally:
            server.should_exit = True
            thread.join()


def connect(address: tuple[str, int], sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(address, timeout=10)
    connection.sendall(sent)
    return connection


def seconds_until_closed(connection: socket.socket) -> float:
    """Read until the server ends the connection; return how long it took."""
    started = time.monotonic()
    try:
        while connection.recv(65_536):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - started


def read_responses(connection: socket.socket, count: int) -> None:
    """Read so many whole responses."""
    received = b""
    while received.count(b"HTTP/1.1 200") < count or not received.endswith(b"\r\n\r\n" + bytes(10)):
        received += (part := connection.recv(1_000))
        assert part, "the connection has ended"


def get(address: tuple[str, int], path: str = "/") -> int:
    with httpx.Client(base_url="http://{}:{}".format(*address), timeout=10, trust_env=False) as client:
        return client.get(path).status_code


REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
SLOW_BODY = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nx"
LARGE_REQUEST = b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n"


# --- bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count", "status"), [(1, 100, 200), (1, 5_000, 400), (1_000, 5_000, 200)])
def test_a_body_in_many_tiny_chunks_is_refused(size: int, count: int, status: int) -> None:
    header = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (size, bytes(size))
    with running() as (_, address), connect(address, header) as connection:
        with suppress(OSError):
            connection.sendall(chunk * count + b"0\r\n\r\n")
        assert connection.recv(1_000).startswith(b"HTTP/1.1 %d " % status)
        assert get(address) == 200


# --- deadlines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HT", REQUEST, REQUEST + b"G"], ids=["nothing", "header", "idle", "next header"]
)
def test_a_connection_that_waits_for_a_request_is_ended(monkeypatch, sent) -> None:
    monkeypatch.setattr("cosplace.server.connections.WAITING_LIMIT_S", 0.5)
    with running() as (_, address), connect(address, sent) as connection:
        assert seconds_until_closed(connection) < 3


def test_bytes_of_a_header_do_not_extend_its_deadline(monkeypatch) -> None:
    monkeypatch.setattr("cosplace.server.connections.WAITING_LIMIT_S", 0.5)
    with running() as (_, address), connect(address, REQUEST) as connection:
        connection.recv(1_000)
        started = time.monotonic()
        with pytest.raises(OSError):
            for letter in b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1_000:
                connection.sendall(bytes([letter]))
                time.sleep(0.1)
        assert time.monotonic() - started < 3


def test_a_client_that_reads_nothing_is_ended(monkeypatch) -> None:
    monkeypatch.setattr("cosplace.server.connections.WAITING_LIMIT_S", 0.3)
    with running(time_limit_s=1) as (server, address), connect(address, LARGE_REQUEST):
        wait_until(lambda: len(server.server_state.connections) == 1)
        wait_until(lambda: not server.server_state.connections, 5)


def test_a_client_that_reads_in_time_gets_all(monkeypatch) -> None:
    monkeypatch.setattr("cosplace.server.connections.WAITING_LIMIT_S", 0.3)
    with running(time_limit_s=20) as (_, address), connect(address, LARGE_REQUEST) as connection:
        num_bytes = 0
        while num_bytes < LARGE:  # for longer than WAITING_LIMIT_S
            num_bytes += len(connection.recv(500_000))
            time.sleep(0.01)


def test_a_body_that_does_not_arrive_is_ended(monkeypatch) -> None:
    monkeypatch.setattr("cosplace.server.connections.RESPONSE_MARGIN_S", 0.5)
    with running(time_limit_s=0.5) as (_, address), connect(address, SLOW_BODY) as connection:
        assert seconds_until_closed(connection) < 3


def test_requests_on_one_connection(monkeypatch) -> None:
    monkeypatch.setattr("cosplace.server.connections.WAITING_LIMIT_S", 1.0)
    with running(time_limit_s=1) as (_, address), connect(address, REQUEST * 5) as connection:
        read_responses(connection, 5)
        for _ in range(4):  # together longer than each limit
            time.sleep(0.6)
            connection.sendall(REQUEST)
            read_responses(connection, 1)


def test_a_connection_with_many_requests_ahead_is_closed_after_some() -> None:
    with running() as (_, address), connect(address, REQUEST * 400) as connection:
        received = bytearray()
        while part := connection.recv(65_536):
            received += part
        assert received.count(b"HTTP/1.1 200") == MAX_SENT_AHEAD + 1
        assert received.lower().count(b"connection: close") == 1
        assert get(address) == 200


# --- too many connections --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"GET", REQUEST, REQUEST + b"G", SLOW_BODY, LARGE_REQUEST, REQUEST * 400])
def test_other_clients_are_served_during_a_flood(sent) -> None:
    with running(max_connections=20) as (server, address), ExitStack() as open_connections:
        for _ in range(60):
            open_connections.enter_context(connect(address, sent))
        for _ in range(5):  # a client may be told to try again: while all places are taken by requests in work
            wait_until(lambda: get(address) == 200, 5)
        assert len(server.server_state.connections) <= 21


def test_connections_that_are_answered_are_not_dropped() -> None:
    busy = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/slow":
            await asyncio.to_thread(busy.wait, 10)
        await small_app(scope, receive, send)

    with running(app, max_connections=2) as (server, address), ExitStack() as stack:
        stack.callback(busy.set)
        slow = [stack.enter_context(connect(address, REQUEST.replace(b"/ ", b"/slow "))) for _ in range(2)]
        wait_until(lambda: len(server.server_state.tasks) == 2)
        with connect(address) as refused:
            assert refused.recv(1_000).startswith(b"HTTP/1.1 503")
        busy.set()
        for connection in slow:
            read_responses(connection, 1)
        assert get(address) == 200


def wait_until(condition: Any, seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition did not become true in time"
        time.sleep(0.01)


def test_the_number_of_connections_stays_below_the_limit_of_open_files() -> None:
    code = """
        import resource, sys
        from cosplace.server.connections import RESERVED_FILES, usable_connections
        for soft, hard in ((300, 1_000), (300, 300)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, 1_000))
            if hard == 300:
                resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
            usable = usable_connections(5_000)
            soft_now = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            assert soft_now == hard, soft_now
            assert 8 <= usable <= hard - RESERVED_FILES, usable
            print(usable)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    more, fewer = map(int, done.stdout.split())
    assert more > 500 and fewer < 50
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert soft == resource.RLIM_INFINITY or usable_connections(10) == 10


# --- stop ------------------------------------------------------------------------------------------------------------


def test_a_stop_ends_in_time_with_stuck_clients() -> None:
    with running(time_limit_s=1) as (server, address), ExitStack() as stack:
        for sent in (b"", b"GET", REQUEST, REQUEST + b"G", SLOW_BODY, LARGE_REQUEST, LARGE_REQUEST * 3):
            stack.enter_context(connect(address, sent))
        wait_until(lambda: len(server.server_state.connections) == 7)
        time.sleep(0.2)
        started = time.monotonic()
        server.should_exit = True
        wait_until(lambda: not server.server_state.connections, 1 + SHUTDOWN_MARGIN_S)
    assert time.monotonic() - started < 1 + SHUTDOWN_MARGIN_S


STUCK = """
    import asyncio, logging, sys, threading, time
    from cosplace.server import ServerSettings
    from cosplace.server.process import listening_socket, make_server
    logging.basicConfig(stream=sys.stderr)

    async def app(scope, receive, send):
        await receive(); await send({"type": "lifespan.startup.complete"})
        await receive(); await asyncio.to_thread(time.sleep, 60)   # a thread that does not end

    with listening_socket("127.0.0.1", 0) as listener:
        server = make_server(app, ServerSettings(time_limit_s=0.1))
        threading.Thread(target=lambda: (time.sleep(1), print("ready", flush=True)), daemon=True).start()
        server.run(sockets=[listener])
"""


def test_a_thread_that_does_not_end_does_not_hold_the_process() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(STUCK)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert time.monotonic() - started < SHUTDOWN_MARGIN_S + 3
    assert process.returncode == 1 and "before all threads had ended" in log


# --- a flood on the real command -------------------------------------------------------------------------------------


def test_a_flood_of_connections_on_the_command(tmp_path) -> None:
    from tests.server.server_samples import good_photo, make_index

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (800, 800))

    command = [sys.executable, "-m", "cosplace", "serve", "--index", str(make_index(tmp_path)), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--uncalibrated", "--time_limit_s", "5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=limit_files,  # noqa: PLW1509 - no threads are started before
    )
    assert process.stdout is not None
    url = process.stdout.readline().split()[-1]
    address = (httpx.URL(url).host, httpx.URL(url).port)
    header = b"POST /locate HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\n"
    health = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    large = b"GET /photos HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20
    log_lines: list[str] = []
    reader = threading.Thread(target=lambda: log_lines.extend(process.stderr))  # ty: ignore[invalid-argument-type]
    reader.start()
    try:
        with ExitStack() as stack, httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
            for number in range(1_100):
                sent = (b"", b"GET /", health, health + b"G", header + b"x", large)[number % 6]
                stack.enter_context(connect(address, sent))
                if number % 100 == 99:
                    assert client.get("/health").status_code == 200
            assert client.post("/locate", content=good_photo(3)).status_code == 200
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.wait(5 + SHUTDOWN_MARGIN_S + 2)
            assert time.monotonic() - started < 5 + SHUTDOWN_MARGIN_S + 1
    finally:
        process.kill()
        reader.join()
        process.communicate()
    assert process.returncode == 0
    assert log_lines and all(line.startswith("{") and json.loads(line) for line in log_lines)
    events = {json.loads(line)["event"] for line in log_lines}
    assert "connections" in events and "bug" not in events
