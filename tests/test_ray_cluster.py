"""A Ray cluster that cannot be used is one line.  tests/index and tests/retrieval use a real one."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from cosplace import ray_cluster
from cosplace.errors import ConfigError, DeviceError
from cosplace.ray_cluster import Cluster, check_same_versions, open_cluster, package_versions


@pytest.mark.parametrize(
    ("address", "cause", "message"),
    [
        (
            "127.0.0.1:1",
            "timed out",
            r"^The Ray cluster at 127\.0\.0\.1:1 cannot be reached \(Failed to connect\. Second line\)",
        ),
        (
            "127.0.0.1:1",
            "RPC error: InvalidAuthToken: missing",
            r"^The Ray cluster at 127\.0\.0\.1:1 requires its token",
        ),
        ("", "no space left", r"^Ray cannot be started on this machine \(Failed to connect\. Second line\)"),
    ],
)
def test_a_cluster_that_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, address: str, cause: str, message: str
) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("Failed to connect.\nSecond line.") from RuntimeError(cause)

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=refuse))
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: name)
    with pytest.raises((ConfigError, DeviceError), match=message) as caught, open_cluster():
        pass
    assert "\n" not in str(caught.value)


def test_a_machine_with_other_packages() -> None:
    check_same_versions(package_versions())
    with pytest.raises(ConfigError, match=r"has lancedb [\d.]+, this one has 0\.0\.1\. Install the same versions"):
        check_same_versions(package_versions() | {"lancedb": "0.0.1"})


def test_a_cluster_without_the_processors_that_are_needed() -> None:
    with pytest.raises(DeviceError, match="has no GPU"):
        Cluster(num_cpus=2, num_gpus=0).workers_for(needs_gpu=True)
    with pytest.raises(DeviceError, match="has no CPU"):
        Cluster(num_cpus=0, num_gpus=0).workers_for(needs_gpu=False)
