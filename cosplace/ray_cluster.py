"""A Ray cluster that describes photos and builds indexes: start one on this machine, or join a running one.

Ray comes with `pip install 'cosplace[cluster]'` and is imported only while a cluster is open.
Side effects: starts Ray, and ends it.
"""

import logging
import os
import re
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, TypeVar
from urllib.parse import urlsplit

from cosplace.errors import ConfigError, CosPlaceError, DeviceError

SAME_PACKAGES = ("cosplace", "pylance", "lancedb", "torch")  # whose versions must be the same on all machines
VARIABLE = "RAY_ADDRESS"
LOCAL = "local"  # Ray's word for a new cluster on this machine
AUTO = "auto"  # and for one that `ray start` has started there
CONNECT_S = 10.0  # for a connection to a head that is running
CONNECT_TRIES = "2"  # of Ray, after such a connection; by default it tries for a quarter of an hour
MISSING_MODULE = re.compile(r"ModuleNotFoundError: No module named '([^']+)'")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A running cluster."""

    num_cpus: int
    num_gpus: int

    def workers_for(self, *, needs_gpu: bool) -> int:
        """Number of processes for a task, one per GPU or CPU.  Raises DeviceError if the cluster has none of them."""
        available = self.num_gpus if needs_gpu else self.num_cpus
        if not available and needs_gpu:
            raise DeviceError("The Ray cluster has no GPU. Use --device cpu, or add a machine with a GPU.")
        if not available:
            raise DeviceError("The Ray cluster has no CPU for tasks. Add a machine that has.")
        return available


@contextmanager
def open_cluster(packages: Sequence[str] = ("ray",)) -> Generator[Cluster]:
    """Join the cluster of the environment variable RAY_ADDRESS, or start one on this machine; then leave or end it.

    RAY_ADDRESS: host:port, or auto for the one that `ray start` has started.  packages: those that the work needs.
    Raises ConfigError if one of them is not installed or a machine of the cluster has other versions, and DeviceError
    if the cluster cannot be reached.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise ConfigError(f"--engine ray needs {', '.join(missing)}. Install with: pip install 'cosplace[cluster]'.")
    address = os.environ.get(VARIABLE) or LOCAL
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # otherwise it prints a warning
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise it sends statistics to its makers
    os.environ.setdefault("LANCE_LOG", "error")  # Lance prints a warning about each file
    logging.getLogger("lance_ray").setLevel(logging.ERROR)
    if address != LOCAL:
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", CONNECT_TRIES)
    ray: Any = import_module("ray")

    # On a cluster, the dashboard is the one of its head.
    options = {"include_dashboard": False} if address == LOCAL else {}
    try:
        _connect(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:  # a plain one if processes of Ray take too long to start
        raise _cannot_join(address, error) from error
    try:
        if address != LOCAL:
            _check_machines()
        resources = ray.cluster_resources()
        yield Cluster(num_cpus=int(resources.get("CPU", 0)), num_gpus=int(resources.get("GPU", 0)))
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    """Raise OSError or ValueError unless the head of a running cluster accepts a connection."""
    if address in (LOCAL, AUTO):
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    if not parts.hostname or not parts.port:
        raise ValueError("an address is host:port, or auto")
    with socket.create_connection((parts.hostname, parts.port), CONNECT_S):
        pass


def _cannot_join(address: str, error: BaseException) -> CosPlaceError:
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    if "InvalidAuthToken" in f"{text} {error.__cause__}":
        return ConfigError(
            f"The Ray cluster at {address} requires its token. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or the file "
            "~/.ray/auth_token to the token of the cluster."
        )
    if "ersion mismatch" in text:
        return ConfigError(
            f"The Ray cluster at {address} has other versions than this machine ({text[:200]}). Install the same "
            "versions of Ray and Python on all machines."
        )
    reason = text[:200].rstrip(". ")
    if address == LOCAL:
        return DeviceError(
            f"Ray cannot be started on this machine ({reason}). Set {VARIABLE} to use a running cluster."
        )
    return DeviceError(
        f"The Ray cluster at {address} cannot be reached ({reason}). Check {VARIABLE}, or start one with "
        "`ray start --head`."
    )


def package_versions() -> dict[str, str]:
    """Versions of the packages that must be the same on all machines of a cluster."""
    found = {}
    for name in SAME_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a clone
            found[name] = "unknown"
    return found


def check_same_versions(here: dict[str, str]) -> None:
    """On a machine of the cluster: compare its packages with those of the one that started the run.

    Raises ConfigError.
    """
    for name, found in package_versions().items():
        if found != here[name]:
            raise ConfigError(
                f"A machine of the Ray cluster has {name} {found}, this one has {here[name]}. Install the same "
                "versions on all machines."
            )


def _check_machines() -> None:
    """Compare the packages of all machines of the open cluster with those of this one.  Raises ConfigError."""
    ray: Any = import_module("ray")
    strategies: Any = import_module("ray.util.scheduling_strategies")

    here, errors, running = package_versions(), [], []
    for machine in ray.nodes():
        if machine["Alive"]:
            place = strategies.NodeAffinitySchedulingStrategy(machine["NodeID"], soft=False)
            check = remote(check_same_versions, num_cpus=0, max_retries=0, scheduling_strategy=place)
            running.append(check.remote(here))
    for one in running:  # Ray prints the errors that nobody reads
        try:
            wait_for(partial(ray.get, one))
        except CosPlaceError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def wait_for(read: Callable[[], T]) -> T:
    """Call `read`, which waits for results of the cluster; its errors are those of the task, or say what to do."""
    exceptions: Any = import_module("ray.exceptions")

    try:
        return read()
    except exceptions.RayError as error:
        is_of_task = isinstance(error, exceptions.RayTaskError)
        if is_of_task and isinstance(error.cause, CosPlaceError):
            raise error.cause from None
        if missing := MISSING_MODULE.search(str(error)):
            raise ConfigError(
                f"A machine of the Ray cluster does not have the package {missing[1]}. Install the same versions on "
                "all machines."
            ) from error
        if is_of_task:
            raise
        text = " ".join(str(error).split())
        raise DeviceError(
            f"The Ray cluster has lost a process or its result ({type(error).__name__}: {text[:200].rstrip('. ')}). "
            "Everything stored so far is kept; run the command again to continue."
        ) from error


def remote(function: Any, **options: Any) -> Any:
    """A function or class that runs on the cluster.  options: those of ray.remote."""
    ray: Any = import_module("ray")

    return ray.remote(**options)(function)
