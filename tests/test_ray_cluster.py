"""A Ray cluster that cannot be used is one line.  tests/index and tests/retrieval use a real one."""

import socket
import sys
from collections.abc import Generator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from cosplace import ray_cluster
from cosplace.errors import ConfigError, DeviceError
from cosplace.ray_cluster import Cluster, check_same_versions, open_cluster, package_versions, wait_for


@pytest.fixture
def head() -> Generator[str]:
    """The address of something that accepts connections, as the head of a cluster does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def refusal(monkeypatch: pytest.MonkeyPatch, address: str, init: Any) -> str:
    """The error of a command with this address of a cluster.  init: stands for ray.init."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: name)
    with pytest.raises((ConfigError, DeviceError)) as caught, open_cluster():
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("has_head", "cause", "message"),
    [
        (True, "timed out", "The Ray cluster at {} cannot be reached (Failed to connect. Second line). Check RAY_ADDR"),
        (True, "RPC error: InvalidAuthToken: missing", "The Ray cluster at {} requires its token. "),
        (False, "no space left", "Ray cannot be started on this machine (Failed to connect. Second line). "),
    ],
)
def test_a_cluster_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, head: str, has_head: bool, cause: str, message: str
) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("Failed to connect.\nSecond line.") from RuntimeError(cause)

    assert refusal(monkeypatch, head if has_head else "", refuse).startswith(message.format(head))


def test_processes_that_start_too_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray raises a plain Exception."""

    def refuse(**_: Any) -> None:
        raise Exception("The current node timed out during startup.")

    error = refusal(monkeypatch, "", refuse)
    assert error.startswith("Ray cannot be started on this machine (The current node timed out during startup). ")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "head", "head:x", "127.0.0.1:99999"])
def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Ray itself would try for many minutes."""
    error = refusal(monkeypatch, address, lambda **_: pytest.fail("Ray was asked"))
    assert error.startswith(f"The Ray cluster at {address} cannot be reached (")


def test_a_machine_with_other_packages() -> None:
    check_same_versions(package_versions())
    with pytest.raises(ConfigError, match=r"has lancedb [\d.]+, this one has 0\.0\.1\. Install the same versions"):
        check_same_versions(package_versions() | {"lancedb": "0.0.1"})


class RayError(Exception):
    """Stands for that of Ray."""


class RayTaskError(RayError):
    """Stands for that of Ray."""

    def __init__(self, text: str, cause: Exception) -> None:
        super().__init__(text)
        self.cause = cause


@pytest.fixture
def exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
    monkeypatch.setitem(sys.modules, "ray.exceptions", found)


def test_errors_of_tasks(exceptions: None) -> None:
    def fail(error: Exception) -> Any:
        raise error

    with pytest.raises(DeviceError, match="no GPU"):
        wait_for(lambda: fail(RayTaskError("traceback", DeviceError("no GPU"))))
    with pytest.raises(RayTaskError):  # a bug keeps its traceback
        wait_for(lambda: fail(RayTaskError("traceback", KeyError("name"))))
    with pytest.raises(
        DeviceError, match=r"lost a process or its result \(RayError: It died\)\. Everything stored so far"
    ):
        wait_for(lambda: fail(RayError("It died.")))
    # As Ray says it when a function, or the class of an actor, cannot be imported.
    text = "RuntimeError: failed to import on the worker\n  ...\nModuleNotFoundError: No module named 'cosplace'"
    for error in (RayTaskError(text, RuntimeError(text)), RayError(text)):
        with pytest.raises(
            ConfigError, match=r"does not have the package cosplace\. Install the same versions"
        ) as caught:
            wait_for(lambda error=error: fail(error))
        assert "\n" not in str(caught.value)


def test_all_machines_of_a_running_cluster_are_compared(
    monkeypatch: pytest.MonkeyPatch, head: str, exceptions: None
) -> None:
    asked: list[str] = []

    def remote(scheduling_strategy: str, **_: Any) -> Any:
        def start(function: Any) -> Any:
            asked.append(scheduling_strategy)
            versions = package_versions() | ({"torch": "0.0.1"} if scheduling_strategy == "second" else {})
            return SimpleNamespace(remote=lambda here: partial(function, versions))

        return start

    def get(task: Any) -> None:
        try:
            task()
        except ConfigError as error:
            raise RayTaskError("traceback", error) from error

    machines = [{"NodeID": name, "Alive": name != "gone"} for name in ("first", "second", "gone")]
    ray = SimpleNamespace(
        init=lambda **_: None, shutdown=lambda: None, nodes=lambda: machines, remote=remote, get=get,
        cluster_resources=lambda: pytest.fail("The cluster is used"),
    )  # fmt: skip
    strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda name, soft: name)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", strategies)
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: name)
    monkeypatch.setenv("RAY_ADDRESS", head)
    with (
        pytest.raises(ConfigError, match=r"A machine of the Ray cluster has torch .*, this one has 0\.0\.1"),
        open_cluster(),
    ):
        pass
    assert asked == ["first", "second"]


def test_a_cluster_without_the_processors_that_are_needed() -> None:
    with pytest.raises(DeviceError, match="has no GPU"):
        Cluster(num_cpus=2, num_gpus=0).workers_for(needs_gpu=True)
    with pytest.raises(DeviceError, match="has no CPU"):
        Cluster(num_cpus=0, num_gpus=0).workers_for(needs_gpu=False)
