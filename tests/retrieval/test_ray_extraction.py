"""Extraction by tasks of Ray: a stand-in that runs them at once, and a real cluster on this machine."""

import os
import socket
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cosplace.cli import main
from cosplace.ray_cluster import package_versions
from cosplace.retrieval import ray_extraction
from tests.retrieval.store_samples import contents, write_model, write_photos_folder

NUM_PHOTOS = 18
QUICK = ["--device=cpu", "--num_workers=0", "--shard_rows=4", "--infer_batch_size=3"]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    ray_extraction._opened.cache_clear()
    photos = write_photos_folder(tmp_path / "photos", NUM_PHOTOS).folder
    return ["extract", str(photos), f"--model={write_model(tmp_path / 'model.pth')}", *QUICK]


class Ray:
    """The part of Ray that is used; tasks run when they are started.  lost: the first tasks, which do nothing."""

    class RayError(Exception): ...

    class RayTaskError(RayError):
        def __init__(self, cause: Exception) -> None:
            self.cause = cause

    def __init__(self, lost: int = 0, error: Exception | None = None) -> None:
        self.exceptions = SimpleNamespace(RayError=self.RayError, RayTaskError=self.RayTaskError)
        self.lost, self.error, self.is_connected = lost, error, False
        self.__spec__ = ModuleSpec("ray", None)

    def init(self, **_: Any) -> None:
        if self.error is not None:
            raise self.error
        self.is_connected = True

    def shutdown(self) -> None:
        self.is_connected = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **options: Any) -> Any:
        assert options == {"num_cpus": 1, "num_gpus": 0, "max_retries": 20}
        return lambda function: SimpleNamespace(remote=lambda *given: self._start(function, *given))

    def _start(self, function: Any, *given: Any) -> Any:
        if self.lost:
            self.lost -= 1
            return 0
        try:
            return function(*given)
        except Exception as error:
            return self.RayTaskError(error)

    def wait(self, waiting: list, **_: Any) -> tuple[list, list]:
        return waiting[:1], waiting[1:]

    def get(self, result: Any) -> int:
        if isinstance(result, Exception):
            raise result
        return result


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    stand_in = Ray()
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    monkeypatch.setitem(sys.modules, "ray.exceptions", stand_in.exceptions)
    return stand_in


def test_tasks_write_the_files_of_one_process(
    command: list[str], ray: Ray, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    command += ["--scales", "1", "0.7"]  # a list, which tasks get like the other settings
    assert main([*command, "--to=alone"]) == 0
    ray.lost = 2
    assert main([*command, "--to=store", "--engine=ray"]) == 0
    assert f"computed here: {NUM_PHOTOS} photos" in capsys.readouterr().out
    assert contents(tmp_path / "store") == contents(tmp_path / "alone")
    assert not ray.is_connected
    (tmp_path / "store" / "descriptors-00002.npy").unlink()
    assert main([*command, "--to=store", "--engine=ray"]) == 0
    assert "computed here: 4 photos" in capsys.readouterr().out
    assert contents(tmp_path / "store") == contents(tmp_path / "alone")


def test_a_task_that_fails_is_one_line(command: list[str], ray: Ray, capsys: pytest.CaptureFixture) -> None:
    assert main([*command, "--to=store"]) == 0
    capsys.readouterr()
    Path("store", "descriptors-00002.npy").unlink()
    assert main([*command, "--to=store", "--engine=ray", "--flip"]) == 2
    error = capsys.readouterr().err
    assert "descriptors of another extraction (views was not set, now it is flip)" in error and error.count("\n") == 1
    assert not ray.is_connected


def test_tasks_that_do_nothing_are_not_repeated_forever(
    command: list[str], ray: Ray, capsys: pytest.CaptureFixture
) -> None:
    ray.lost = 1000
    assert main([*command, "--to=store", "--engine=ray"]) == 2
    assert "Ray finished its tasks, but shards are missing" in capsys.readouterr().err


def test_a_cluster_of_another_version_is_one_line(
    command: list[str], ray: Ray, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.error = RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.12.0")
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert main([*command, "--to=store", "--engine=ray"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(
        f"error: The Ray cluster at {address} has other versions than this machine (Version mismatch"
    )
    assert shown.count("\n") == 1


def test_a_machine_of_another_version_is_one_line(
    command: list[str], ray: Ray, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = package_versions()
    monkeypatch.setattr(ray_extraction, "package_versions", lambda: here | {"torch": "1.0"})
    assert main([*command, "--to=store", "--engine=ray"]) == 2
    shown = capsys.readouterr().err
    assert f"A machine of the Ray cluster has torch {here['torch']}, this one has 1.0." in shown
    assert shown.count("\n") == 1
    assert not Path("store").exists()


def test_without_ray(command: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main([*command, "--to=store", "--engine=ray"]) == 2
    assert "--engine ray needs ray. Install with: pip install 'cosplace[cluster]'." in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.extras
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'cosplace[cluster]'")
@pytest.mark.filterwarnings("default")
def test_a_real_cluster_on_this_machine(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert main([*command, "--to=alone"]) == 0
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (Path(__file__).parents[2], *sys.path))))
    assert main([*command, "--to=store", "--engine=ray"]) == 0
    assert f"computed here: {NUM_PHOTOS} photos" in capsys.readouterr().out
    assert contents(tmp_path / "store") == contents(tmp_path / "alone")
