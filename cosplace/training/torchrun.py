"""The job that torchrun started this process for, and the run that a restarted job continues.

torchrun restarts all processes of a job when one of them ends, or when a machine joins or leaves; their number and
ranks may change.  So that the run continues by itself, its folder has a file that names the job:

    logs/<save_dir>/<time>/torchrun.json    {"job": "..."}
"""

import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cosplace.errors import ConfigError
from cosplace.storage import write_text

RECORD = "torchrun.json"
RESULTS = "results.json"  # the last file of a run
NO_NAME = "none"  # torchrun's name of a job that was started on several machines without --rdzv-id


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the environment variables of torchrun say."""

    rank: int  # of this process, from 0
    world_size: int  # number of processes
    local_rank: int  # of this process, on its machine
    local_world_size: int  # number of processes on its machine
    name: str  # different for each job, and the same after a restart
    is_named: bool  # whether the name is that of torchrun, which users may give to several jobs
    num_restarts: int


def torchrun_job() -> Job | None:
    """The job of this process; None if torchrun did not start it.  Raises ConfigError for incomplete variables."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is None:
        return None
    numbers = {}
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        try:
            numbers[key.lower()] = int(os.environ.get(key, ""))
        except ValueError as error:
            raise ConfigError(
                f"The environment variable {key} must be a number, got '{os.environ.get(key, '')}'. Start training "
                f"with torchrun, which sets it, or unset TORCHELASTIC_RUN_ID."
            ) from error
    is_named = name not in ("", NO_NAME)
    return Job(
        **numbers,
        name=name if is_named else _launcher(),
        is_named=is_named,
        num_restarts=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
    )


def require_one_process(command: str) -> None:
    """Raise ConfigError if torchrun started several processes of a command that trains in one."""
    job = torchrun_job()
    if job is not None and job.world_size > 1:
        raise ConfigError(
            f"`cosplace {command}` trains in one process, and torchrun started {job.world_size}. Start it without "
            f"torchrun."
        )


def _launcher() -> str:
    """The torchrun that started this process, by machine, process id and start: it stays when it restarts processes."""
    parent, start = os.getppid(), ""
    with suppress(OSError, IndexError):  # other systems than Linux; there, ids are rarely used twice
        start = Path(f"/proc/{parent}/stat").read_text("utf-8").rpartition(")")[2].split()[19]
    return f"{socket.gethostname()} {parent} {start}"


def record_job(folder: Path, job: Job) -> None:
    """Write which job a run belongs to."""
    write_text(folder / RECORD, json.dumps({"job": job.name}) + "\n")


def find_run(runs: Path, job: Job) -> Path | None:
    """The folder of the newest run of a job, among the folders in `runs`; None if it has not begun one.

    A finished run belongs to an earlier job of the same name, unless the processes were restarted.
    """
    for record in sorted(runs.glob(f"*/{RECORD}"), reverse=True):
        with suppress(OSError, ValueError, AttributeError):
            if json.loads(record.read_text("utf-8")).get("job") != job.name:
                continue
            is_finished = (record.parent / RESULTS).exists()
            if not is_finished or job.num_restarts or not job.is_named:
                return record.parent
    return None


def torchrun_command(job: Job) -> list[str]:
    """The words that start as many processes on each machine as this job has."""
    words = ["torchrun"]
    if job.world_size > job.local_world_size:
        words.append(f"--nnodes={-(-job.world_size // job.local_world_size)}")
    return [*words, f"--nproc_per_node={job.local_world_size}"]
