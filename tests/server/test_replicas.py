"""Two servers of one index on object storage: the same answers, also after photos were added."""

import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from cosplace.cli import main
from tests.indexed_city import queries, write_indexed_city
from tests.object_store import BUCKET, MISSING, REASON, run_object_store
from tests.synthetic_dataset import write_place

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=REASON)]
WAIT_S = 60


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[str]:
    with run_object_store(tmp_path) as store:
        for name, value in store.variables.items():
            monkeypatch.setenv(name, value)
        yield f"s3://{BUCKET}/city"


def start(address: str, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "cosplace", "serve", "--index", address, "--port", "0", "--device", "cpu",
               "--uncalibrated", "--refresh_s", "0.2"]  # fmt: skip
    with (folder / "server.log").open("a") as log:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ})


def test_two_servers_answer_the_same(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_indexed_city(tmp_path)
    build = ["index", "build", str(folder / "city"), "--model", str(folder / "model.pth"), "--image_size", "48",
             "--device", "cpu", "--to", address, "--no_calibrate"]  # fmt: skip
    assert main(build) == 0
    assert "24 photos added" in capsys.readouterr().out
    assert main(build) == 0
    assert "0 photos added, 24 were already in the index" in capsys.readouterr().out
    query = queries(folder)[0]
    assert main(["locate", str(query), "--index", address, "--device", "cpu", "--uncalibrated"]) == 0
    assert query.name in capsys.readouterr().out

    with ExitStack() as stack:
        processes = [start(address, tmp_path) for _ in range(2)]
        for process in processes:
            stack.callback(process.communicate)
            stack.callback(process.terminate)
        urls = [str(process.stdout.readline()).split()[-1] for process in processes if process.stdout is not None]
        clients = [stack.enter_context(httpx.Client(base_url=url, timeout=WAIT_S, trust_env=False)) for url in urls]

        def answers(photo: Path) -> list[Any]:
            files = {"files": (photo.name, photo.read_bytes())}
            return [client.post("/locate", files=files).raise_for_status().json()["results"] for client in clients]

        one, other = answers(query)
        assert one == other
        new = [write_place(tmp_path / "new", place, 0) for place in range(4000, 4003)]
        assert main(["index", "add", address, str(tmp_path / "new"), "--device", "cpu"]) == 0
        deadline = time.monotonic() + WAIT_S
        while any(client.get("/health").json()["photos"] != 27 for client in clients):
            assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
            time.sleep(0.1)
        one, other = answers(new[1])
        assert one == other
        assert one[0]["neighbours"][0]["similarity"] == pytest.approx(1, abs=1e-3)
