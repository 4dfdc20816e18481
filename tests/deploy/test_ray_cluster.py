"""deploy/ray_cluster.yaml: Ray accepts it, and its commands start a head and a machine that joins it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

FILE = Path(__file__).resolve().parents[2] / "deploy" / "ray_cluster.yaml"
CLUSTER = yaml.safe_load(FILE.read_text())
HEAD, WORKER = (CLUSTER[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker"))
RAY = shutil.which("ray", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
SMALL = "--num-cpus=1 --object-store-memory=80000000"  # so that it starts on any machine
LIMIT_S = 600.0  # a busy machine may take long


def test_it_installs_this_repository_on_all_machines() -> None:
    assert CLUSTER["file_mounts"]["~/cosplace"] == "."
    assert any("pip install" in command and "cd ~/cosplace " in command for command in CLUSTER["setup_commands"])


def test_machines_join_at_the_port_of_the_head() -> None:
    (port,) = re.findall(r"--port=(\d+)", HEAD)
    assert f"--address=$RAY_HEAD_IP:{port}" in WORKER
    assert "~/.ray/auth_token" in CLUSTER["file_mounts"]


@pytest.mark.extras
def test_ray_accepts_the_file() -> None:
    pytest.importorskip("ray")
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(dict(CLUSTER)))
    with pytest.raises(Exception, match="setup_comands"):
        validate_config(prepare_config(CLUSTER | {"setup_comands": []}))


@contextmanager
def started(command: str, folder: str, **variables: str) -> Iterator[None]:
    """Run a command of the file in a process group of its own, which ends afterwards.

    Without --block, and with `ray stop`, clusters of others on this machine would be in the way, or would end.
    """
    words = command.replace("~/cosplace-venv/bin/ray", str(RAY)).replace("ray start", f"ray start --block {SMALL}")
    with Path(folder, "log").open("a") as log:
        process = subprocess.Popen(["bash", "-c", words], stdout=log, stderr=log, start_new_session=True,
                                   env=os.environ | {"RAY_TMPDIR": folder} | variables)  # fmt: skip
        try:
            yield
        finally:
            process.terminate()  # it ends the others of its group; told themselves, they make it wait
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for_cpus(count: int, address: str, folder: str, **variables: str) -> None:
    deadline, text = time.monotonic() + LIMIT_S, ""
    while time.monotonic() < deadline and f"/{count}.0 CPU" not in text:
        time.sleep(1)
        done = subprocess.run([str(RAY), "status", "--address", address], capture_output=True, text=True, check=False,
                              env=os.environ | {"RAY_AUTH_MODE": "token"} | variables)  # fmt: skip
        text = done.stdout
    assert f"/{count}.0 CPU" in text, Path(folder, "log").read_text() + text + done.stderr


@pytest.mark.slow
@pytest.mark.extras
@pytest.mark.skipif(RAY is None, reason="needs ray")
def test_its_commands_start_a_cluster() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    # Without the autoscaler, which would connect to the machines of the file.
    head = re.sub(r" --autoscaling-config=\S+", "", HEAD).replace("6379", str(port))
    assert "--head" in head and "autoscaling" not in head
    address = f"127.0.0.1:{port}"
    token = {"RAY_AUTH_TOKEN": "a-token-of-this-test-0123456789"}
    # Paths of sockets must be short, so not in the folder of the test.
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
        started(head, folder, **token),
    ):
        wait_for_cpus(1, address, folder, **token)
        with started(WORKER.replace("6379", str(port)), folder, RAY_HEAD_IP="127.0.0.1", **token):
            wait_for_cpus(2, address, folder, **token)
