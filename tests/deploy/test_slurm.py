"""The Slurm scripts of deploy/ on a Slurm cluster of one machine, with programs that print how they were called."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
PROGRAMS = {name: shutil.which(name, path=PATH) for name in ("sbatch", "srun", "scontrol", "slurmctld", "slurmd")}
MISSING = [name for name, path in PROGRAMS.items() if path is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd runs jobs only as root"),
]

# Without munge; the machine may say that it has more than it has.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=1000000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which jobs can be submitted; `cosplace` and `torchrun` print their arguments there."""
    folder = tmp_path_factory.mktemp("slurm")
    ports = []
    for _ in range(2):
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            ports.append(one.getsockname()[1])
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(host=socket.gethostname().split(".")[0], ports=ports, folder=folder)
    )
    for name in ("cosplace", "torchrun"):
        (folder / "bin" / name).write_text(f'#!/bin/sh\nprintf "%s|" {name} "$@"; echo "task $SLURM_ARRAY_TASK_ID"\n')
        (folder / "bin" / name).chmod(0o755)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    with ExitStack() as stack:
        for name in ("slurmctld", "slurmd"):
            log = stack.enter_context((folder / f"{name}.log").open("w"))
            daemon = subprocess.Popen([str(PROGRAMS[name]), "-D"], env=environment, stderr=log)
            stack.callback(daemon.wait, 30)
            stack.callback(daemon.terminate)
        yield folder


def submit(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Submit a job, and wait for its end."""
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{folder}/bin:{PATH}"}
    for name in [name for name in environment if name.startswith("SLURM_") and name != "SLURM_CONF"]:
        del environment[name]
    deadline = time.monotonic() + 60
    while True:
        done = subprocess.run([str(PROGRAMS["sbatch"]), "--wait", "--gres=none", *words], cwd=folder, env=environment,
                              capture_output=True, text=True, check=False, timeout=120)  # fmt: skip
        # The daemons may not have started yet.
        if "Unable to contact" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(0.2)


def test_each_task_of_an_array_computes_descriptors(slurm: Path) -> None:
    words = ["/data/my photos", "model.pth", "s3://bucket/store", "--dtype", "int8"]
    done = submit(slurm, "--array=0-2", str(DEPLOY / "slurm_extract.sh"), *words)
    assert done.returncode == 0, done.stderr + (slurm / "slurmctld.log").read_text()
    logs = sorted(slurm.glob("cosplace-extract-*-*.log"))
    expected = "cosplace|extract|/data/my photos|--model|model.pth|--to|s3://bucket/store|--num_workers|8|--dtype|int8|"
    assert [log.read_text() for log in logs] == [f"{expected}task {number}\n" for number in range(3)]


def test_training_starts_torchrun_on_each_machine(slurm: Path) -> None:
    words = ["--dataset_folder", "/data/sf-xl", "--batch_size", "64"]
    done = submit(slurm, "--nodes=1", str(DEPLOY / "slurm_train.sh"), *words)
    assert done.returncode == 0, done.stderr + (slurm / "slurmctld.log").read_text()
    (log,) = slurm.glob("cosplace-train-*.log")
    called = log.read_text().split("|")
    job = log.stem.rpartition("-")[2]
    assert called[0] == "torchrun" and called[-6:-1] == ["train", *words]
    flags = dict(zip(called[1:-6:2], called[2:-5:2], strict=False))
    assert flags["--nnodes"] == "1" and flags["--nproc_per_node"] == "gpu" and flags["-m"] == "cosplace"
    assert flags["--rdzv-id"] == f"cosplace-{job}"
    host, port = flags["--rdzv-endpoint"].split(":")
    assert host == socket.gethostname().split(".")[0] and 20_000 <= int(port) < 40_000


def test_torchrun_accepts_the_flags_of_the_script() -> None:
    from torch.distributed.run import get_args_parser

    text = (DEPLOY / "slurm_train.sh").read_text()
    words = text[text.index("torchrun \\") + len("torchrun \\") :].replace("\\\n", " ").replace('"$@"', "").split()
    found = get_args_parser().parse_args([word.strip('"') for word in words])
    assert found.module and found.training_script == "cosplace" and found.training_script_args == ["train"]
    assert found.max_restarts == 3 and found.rdzv_backend == "c10d"
