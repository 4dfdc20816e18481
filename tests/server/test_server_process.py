"""`cosplace serve` as a process: its errors, a stop by signal, a short load test."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from cosplace.cli import main
from cosplace.index.photo_index import create_index, open_index
from cosplace.server import ServerSettings, require_extra
from cosplace.server.process import listening_socket, make_server
from tests.server.server_samples import NUM_PLACES, client_of, good_photo, make_index
from tests.synthetic_dataset import write_place

pytestmark = pytest.mark.slow  # too slow for make check; make test runs all

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def index_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("index"))


def error_of(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Return the one line that a wrong command prints."""
    assert main(["serve", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


# --- errors ----------------------------------------------------------------------------------------------------------


def test_help_does_not_import_torch_or_fastapi() -> None:
    code = (
        "import sys; from cosplace.cli import main\n"
        "try: main(['serve', '--help'])\nfinally: print({'torch', 'fastapi', 'uvicorn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    for flag in ("--index", "--token", "--max_upload_mb", "--max_pixels", "--tiles", "--max_queue", "--host"):
        assert flag in done.stdout


def test_a_missing_invalid_or_empty_index(tmp_path, index_folder, capsys) -> None:
    assert "cosplace index build" in error_of(capsys, "--index", tmp_path / "nothing", "--port", 0)
    (tmp_path / "folder").mkdir()
    assert "not a photo index" in error_of(capsys, "--index", tmp_path / "folder", "--port", 0)
    with open_index(index_folder) as index, create_index(tmp_path / "empty", index.spec):
        pass
    assert "no photos" in error_of(capsys, "--index", tmp_path / "empty", "--port", 0, "--uncalibrated")
    assert "calibrate" in error_of(capsys, "--index", index_folder, "--port", 0, "--precision", 0.9)


def test_a_port_in_use_and_an_unknown_host(index_folder, capsys) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"port {port}" in error_of(capsys, "--index", index_folder, "--uncalibrated", "--port", port)
    assert "--host" in error_of(capsys, "--index", index_folder, "--uncalibrated", "--host", "no.such.host.invalid")


def test_invalid_flags(index_folder, capsys, monkeypatch) -> None:
    assert "--max_files" in error_of(capsys, "--index", index_folder, "--max_files", 0)
    assert "--tiles" in error_of(capsys, "--index", index_folder, "--attribution", "me")
    monkeypatch.setenv("COSPLACE_TOKEN", "short")
    assert "token" in error_of(capsys, "--index", index_folder, "--port", 0)


def test_a_missing_extra_is_named(index_folder, capsys, monkeypatch) -> None:
    monkeypatch.setattr("cosplace.server.find_spec", lambda name: None if name == "uvicorn" else object())
    line = error_of(capsys, "--index", index_folder)
    assert "uvicorn" in line and "cosplace[serve]" in line
    monkeypatch.undo()
    require_extra()


# --- a process -------------------------------------------------------------------------------------------------------


def start(index_folder: Path, *flags: str, **variables: str) -> tuple[subprocess.Popen, str]:
    command = [sys.executable, "-m", "cosplace", "serve", "--index", str(index_folder), "--port", "0", "--uncalibrated"]
    process = subprocess.Popen(
        [*command, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )
    assert process.stdout is not None
    return process, process.stdout.readline().split()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_after_all_accepted_photos(index_folder, number) -> None:
    process, address = start(index_folder, "--max_batch", "1", COSPLACE_TOKEN="a-token-from-outside")
    with ThreadPoolExecutor(12) as clients, httpx.Client(base_url=address, timeout=30, trust_env=False) as client:
        assert client.get("/config.json").json()["can_write"]
        files = [("files", (f"{n}.jpg", good_photo(n))) for n in range(16)]
        futures = [clients.submit(client.post, "/locate", files=files) for _ in range(6)]
        while client.get("/health").json()["in_line"] < 32:
            time.sleep(0.005)
        process.send_signal(number)
        answers = [future.result() for future in futures]
    out, log = process.communicate(timeout=30)
    assert [answer.status_code for answer in answers if answer.status_code != 200] == []
    assert all(len(answer.json()["results"]) == 16 for answer in answers)
    assert process.returncode == 0
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [lines[0]["event"], lines[-1]["event"]] == ["start", "stop"]
    assert lines[0]["photos"] == 3 * NUM_PLACES
    assert "a-token-from-outside" not in log + out


def test_a_second_signal_leaves_no_traceback_in_the_log(index_folder) -> None:
    process, address = start(index_folder)
    assert httpx.get(f"{address}health", trust_env=False).status_code == 200
    process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in log
    assert json.loads(log.splitlines()[-1])["event"] == "stop"


def test_connections_without_a_complete_header_are_closed(index_folder, monkeypatch) -> None:
    from cosplace.localization.localizer import Localizer

    monkeypatch.setattr("cosplace.server.connections.WAITING_LIMIT_S", 0.2)
    with client_of(Localizer(index_folder, device="cpu", uncalibrated=True)) as client:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
            connection.sendall(b"POST /locate HTTP/1.1\r\nHost: 127")
            connection.settimeout(5)
            assert connection.recv(100) == b""
        assert client.get("/health").status_code == 200


def test_settings_reach_uvicorn() -> None:
    settings = ServerSettings(max_connections=7, time_limit_s=12)
    server = make_server(None, settings)  # ty: ignore[invalid-argument-type]
    assert server.connections.max_connections == 7 and server.config.timeout_graceful_shutdown > 12  # ty: ignore[unresolved-attribute]
    with listening_socket("localhost", 0) as listener:
        assert listener.getsockname()[0] in ("127.0.0.1", "::1")


def test_correct_answers_and_steady_memory_under_load(index_folder, tmp_path) -> None:
    for place in range(NUM_PLACES):
        write_place(tmp_path / "photos", place, 9)
    done = subprocess.run(
        [
            sys.executable, "benchmarks/load_server.py", "--index", str(index_folder), "--uncalibrated",
            "--photos", str(tmp_path / "photos"), "--clients", "16", "--seconds", "8", "--malformed", "200",
        ],
        check=False, cwd=ROOT, capture_output=True, text=True, timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["wrong"] == 0 and report["in_line_after"] == 0 and report["exit_code"] == 0
    assert report["malformed"]["sent"] == 200
    assert all(400 <= int(status) < 500 for status in report["malformed"]["statuses"])
    assert report["statuses"]["200"] > 0 and report["photos_per_batch"] > 1
    # In a few seconds the allocator is still warming up; the benchmark itself runs for a minute.
    assert report["memory"]["end_mb"] < 1.6 * report["memory"]["middle_mb"]
