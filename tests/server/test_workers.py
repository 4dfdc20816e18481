"""Several processes on one port: started, started again, stopped together; their metrics are summed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from cosplace.errors import ConfigError
from cosplace.localization.answers import as_json
from cosplace.localization.localizer import Localizer
from cosplace.photos.opening import decode_upload
from cosplace.server import ServerSettings, create_app
from cosplace.server.workers import serve_with_workers, share_of, usable_cores
from tests.server.server_samples import NUM_PLACES, good_photo, make_index

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux divides connections among processes")


def wait_until(condition: Callable[[], Any], seconds: float = WAIT_S) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "the condition did not become true in time"
        time.sleep(0.02)
    return found


def is_running(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# --- the process that starts the workers -----------------------------------------------------------------------------


@contextmanager
def stub_server(*arguments: object) -> Iterator[tuple[subprocess.Popen, str]]:
    """Start stub workers with four cores; yield the process and the first line that it prints."""
    command = [sys.executable, "-m", "tests.server.stub_workers", *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "4", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def ask(address: str) -> tuple[int, int, str]:
    """Number and process id of the worker that answers a new connection, and what else it says."""
    with socket.create_connection(("127.0.0.1", int(address.rstrip("/").rpartition(":")[2])), WAIT_S) as connection:
        number, pid, rest = connection.recv(1_000).decode().split(" ", 2)
    return int(number), int(pid), rest


def workers_of(address: str) -> dict[int, int]:
    """Process ids of the workers, by their numbers; of 40 connections, one in 2^39 times all go to the same of two."""
    workers = {}
    for _ in range(40):
        with suppress(ConnectionResetError):  # it was waiting for a worker that was killed
            number, pid, _ = ask(address)
            workers[number] = pid
    return workers


@linux
def test_a_killed_worker_is_started_again_and_all_end_together() -> None:
    with stub_server(2) as (process, address):
        before = workers_of(address)
        assert sorted(before) == [1, 2]
        assert ask(address)[2] == "2"  # of four cores
        os.kill(before[1], signal.SIGKILL)
        wait_until(lambda: not is_running(before[1]))
        after = wait_until(lambda: workers_of(address) if len(workers_of(address)) == 2 else None)
        assert after[2] == before[2] and after[1] != before[1]
        assert ask(address)[2] == "2"  # without a problem
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert "a worker ended and is started again: Worker 1 ended with code -9." in log
    assert not any(map(is_running, [*before.values(), *after.values()]))


@linux
def test_a_worker_that_cannot_start_ends_all_with_its_message() -> None:
    with stub_server(3, "The index is damaged. Build it again.") as (process, line):
        assert line == "error: The index is damaged. Build it again."
        process.communicate(timeout=WAIT_S)
    assert process.returncode == 2


@linux
def test_workers_end_with_the_first_process() -> None:
    with stub_server(2) as (process, address):
        pids = workers_of(address).values()
        process.kill()
        wait_until(lambda: not any(map(is_running, pids)))


@linux
def test_a_port_in_use_is_refused() -> None:
    """Also one that another server with workers uses, whose port could be shared."""
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, option, 1)
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            with pytest.raises(ConfigError, match=f"port {port}"):
                serve_with_workers(print, ServerSettings(port=port, workers=2))


def test_other_systems_and_other_servers_have_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--workers 3"):
        create_app(None, ServerSettings(workers=3))  # ty: ignore[invalid-argument-type]
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match="--workers"):
        serve_with_workers(print, ServerSettings(workers=2))


def test_limits_are_divided() -> None:
    settings = ServerSettings(workers=3, max_queue=128, max_connections=100, decoding_threads=2, max_files=50)
    share = share_of(settings, 3)
    assert (share.workers, share.max_queue, share.max_connections, share.decoding_threads) == (1, 50, 34, 1)
    assert share_of(ServerSettings(workers=2), 2).max_queue == 64
    assert share_of(ServerSettings(workers=2), 2).decoding_threads is None


def test_cores_are_those_that_torch_would_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    for value, expected in (("5", 5), ("", 3), ("0", 3), ("many", 3)):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert usable_cores() == expected


def test_metrics_of_all_workers_are_summed(tmp_path: Path) -> None:
    code = (
        "import sys; from cosplace.server.metrics import Metrics; metrics = Metrics(); count = int(sys.argv[1])\n"
        "metrics.set_gauges(queued=lambda: count, indexed=lambda: 10 * count, body_bytes=lambda: 0)\n"
        "for _ in range(count): metrics.count_request('/locate', 'POST', 200, 0.1)\n"
        "print(metrics.text().decode() + 'end', flush=True); input()"
    )
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    processes, lines = [], list[str]()
    for count in (2, 3):  # the second one sums both
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        processes.append(process)
        assert process.stdout is not None
        lines = list(iter(lambda process=process: process.stdout.readline().strip(), "end"))
    for process in processes:
        process.communicate("\n")
    assert 'cosplace_requests_total{method="POST",route="/locate",status="200"} 5.0' in lines
    assert "cosplace_queue_photos 5.0" in lines and "cosplace_index_photos 30.0" in lines


# --- the server ------------------------------------------------------------------------------------------------------


@linux
@pytest.mark.long
def test_two_workers_answer_and_stop_after_all_accepted_photos(tmp_path: Path) -> None:
    index = make_index(tmp_path)
    localizer = Localizer(index, device="cpu", uncalibrated=True)
    command = [sys.executable, "-m", "cosplace", "serve", "--index", str(index), "--port", "0", "--uncalibrated",
               "--workers", "2"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().split()[-1]
    answering = set()
    for number in range(NUM_PLACES):
        with httpx.Client(base_url=address, timeout=WAIT_S, trust_env=False) as client:  # a connection of its own
            answering.add(client.get("/health").json()["worker"])
            raw = good_photo(number)
            (found,) = client.post("/locate", content=raw).json()["results"]
            expected = as_json(localizer.locate(decode_upload(raw, "photo"), name="photo"))
            assert found["confidence"] == pytest.approx(expected["confidence"], abs=2e-4)
            assert found["neighbours"][0]["id"] == expected["neighbours"][0]["id"]
    with httpx.Client(base_url=address, timeout=WAIT_S, trust_env=False) as client:
        metrics = client.get("/metrics").text
        counts = [line for line in metrics.splitlines() if line.startswith("cosplace_photos_total{")]
        assert sum(float(line.split()[-1]) for line in counts) == NUM_PLACES
        assert f"cosplace_index_photos {3 * NUM_PLACES}.0" in metrics
        assert client.get("/health").json()["status"] == "ok"
        process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0 and answering <= {1, 2}
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events.count("start") == events.count("stop") == 2 and "bug" not in events
