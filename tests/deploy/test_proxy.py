"""deploy/nginx.conf with a real nginx and two real servers: requests are shared, and a server may be killed."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.server.server_samples import good_photo, make_index

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
CONFIGURATION = Path(__file__).resolve().parents[2] / "deploy" / "nginx.conf"

pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def write_configuration(folder: Path, port: int, servers: list[str]) -> Path:
    """The file, with addresses of this machine and with files in a folder."""
    text = CONFIGURATION.read_text()
    for number, server in enumerate(servers, 1):
        assert text.count(f"server replica-{number}:8000 ") == 1
        text = text.replace(f"replica-{number}:8000", server)
    assert text.count("listen 8080;") == 1
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};").replace("/tmp/", f"{folder}/")
    # Started by root, nginx would become a user who cannot write to the folder.
    text = ("user root;\n" if os.geteuid() == 0 else "") + text.replace("worker_processes auto", "worker_processes 1")
    (folder / "nginx.conf").write_text(text)
    return folder / "nginx.conf"


@contextmanager
def run_nginx(configuration: Path) -> Iterator[subprocess.Popen]:
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-e", "stderr", "-c", configuration, "-g", "daemon off;"],
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


@contextmanager
def run_server(index: Path, port: int) -> Iterator[subprocess.Popen]:
    """Run `cosplace serve` with the options of deploy/compose.yaml, on this machine."""
    words = ["--index", str(index), "--port", str(port), "--uncalibrated", "--allowed_hosts", "localhost"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cosplace", "serve", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def photos_located(address: str) -> int:
    text = httpx.get(f"{address}/metrics", trust_env=False).text
    return sum(int(float(value)) for value in re.findall(r"^cosplace_photos_total\{\S+ (\S+)$", text, re.MULTILINE))


def test_nginx_accepts_the_configuration(tmp_path: Path) -> None:
    assert NGINX is not None
    configuration = write_configuration(tmp_path, 8080, ["127.0.0.1:1", "127.0.0.1:2"])
    done = subprocess.run(
        [NGINX, "-e", "stderr", "-t", "-c", configuration], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr


@pytest.mark.long
def test_two_servers_behind_the_proxy_of_which_one_is_killed(tmp_path: Path) -> None:
    index, ports, port = make_index(tmp_path), [free_port(), free_port()], free_port()
    addresses = [f"http://127.0.0.1:{one}" for one in ports]
    configuration = write_configuration(tmp_path, port, [f"127.0.0.1:{one}" for one in ports])
    with ExitStack() as stack:
        servers = [stack.enter_context(run_server(index, one)) for one in ports]
        for server in servers:
            assert server.stdout is not None and "http://" in server.stdout.readline()
        stack.enter_context(run_nginx(configuration))
        client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False))

        def locate(number: int) -> httpx.Response:
            return client.post("/locate", files=[("files", (f"{number}.jpg", good_photo(number % 12)))])

        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                if client.get("/health").status_code == 200:
                    break
            except httpx.TransportError:  # nginx is not listening yet
                time.sleep(0.05)
        direct = [httpx.post(f"{addresses[0]}/locate", files=[("files", (f"{number}.jpg", good_photo(number)))],
                             timeout=60, trust_env=False).json() for number in range(3)]  # fmt: skip
        assert [locate(number).json() for number in range(3)] == direct

        before = [photos_located(address) for address in addresses]
        with ThreadPoolExecutor(4) as threads:
            assert {answer.status_code for answer in threads.map(locate, range(24))} == {200}
        shares = [photos_located(address) - count for address, count in zip(addresses, before, strict=True)]
        assert sum(shares) == 24 and min(shares) >= 1

        # A page that the proxy has delivered may send photos, a page of another site may not.
        for origin, status in ((f"http://127.0.0.1:{port}", 200), ("http://elsewhere.example", 403)):
            answer = client.post("/locate", content=good_photo(1), headers={"Origin": origin})
            assert answer.status_code == status

        # No request is lost when a server is killed, not even one that it was working on.
        with ThreadPoolExecutor(4) as threads:
            futures = [threads.submit(locate, number) for number in range(40)]
            while sum(future.done() for future in futures) < 6:
                time.sleep(0.005)
            servers[0].kill()
            answers = [future.result() for future in futures]
        assert {answer.status_code for answer in answers} == {200}
        assert [answer.json() for answer in answers[:3]] == direct

        # A server that is back gets requests again.
        server = stack.enter_context(run_server(index, ports[0]))
        assert server.stdout is not None and "http://" in server.stdout.readline()
        deadline = time.monotonic() + 30
        while photos_located(addresses[0]) == 0 and time.monotonic() < deadline:
            assert locate(0).status_code == 200
        assert photos_located(addresses[0]) > 0
