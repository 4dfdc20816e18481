"""Jobs as torchrun starts them: several processes of one command on this machine, which tests can end one by one."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from torch.distributed import TCPStore

from tests.synthetic_dataset import SETTINGS

LIMIT_S = 600.0  # a busy machine may take long
TRAIN = ("-m", "cosplace", "train")


def flags(dataset_folder: Path, **changes: object) -> list[str]:
    """The settings of a run on a dataset, as words of a command line."""
    return as_words({**SETTINGS, "dataset_folder": dataset_folder, "report_matches": 0, **changes})


def as_words(values: Mapping[str, object]) -> list[str]:
    """Settings as words of a command line."""
    words = []
    for name, value in values.items():
        if isinstance(value, bool):
            words += [f"--{name}"] if value else []
        elif isinstance(value, list | tuple):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={value}")
    return words


def environment() -> dict[str, str]:
    """That of this process, for a process of a job."""
    names = [name for _, name in socket.if_nameindex()]
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if "lo" in names else {}
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        **loopback,
    }


def new_store() -> TCPStore:
    """A store that this process holds, as torchrun's agent does, on a free port."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


class Job:
    """Several Python processes, each with its own words, and their store, which may be that of an earlier job."""

    def __init__(
        self,
        words: Sequence[Sequence[str]],
        folder: Path,
        *,
        name: str = "test",
        restarts: int = 0,
        store: TCPStore | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.store = store or new_store()
        self.outputs = [folder / f"process-{rank}.txt" for rank in range(len(words))]
        self.processes: list[subprocess.Popen] = []
        for rank, (own, output) in enumerate(zip(words, self.outputs, strict=True)):
            with output.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, *own],
                        cwd=folder,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env={**environment(), **self._variables(rank, len(words), name, restarts)},
                    )
                )

    def _variables(self, rank: int, world_size: int, name: str, restarts: int) -> Mapping[str, str]:
        return {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0",
            "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.store.port),
            "TORCHELASTIC_RUN_ID": name, "TORCHELASTIC_RESTART_COUNT": str(restarts),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def wait(self) -> list[int]:
        """The exit codes, when all processes have ended."""
        limit = time.monotonic() + LIMIT_S
        return [process.wait(timeout=max(1.0, limit - time.monotonic())) for process in self.processes]

    def kill(self, rank: int) -> None:
        """Kill one process."""
        self.processes[rank].kill()

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to one process."""
        self.processes[rank].send_signal(number)

    def texts(self) -> list[str]:
        """What each process printed."""
        return [output.read_text() for output in self.outputs]

    def errors(self) -> list[str]:
        """The error lines of all processes."""
        return [line for text in self.texts() for line in text.splitlines() if line.startswith("error: ")]


def run_job(words: Sequence[str], world_size: int, folder: Path, *, name: str = "test") -> list[str]:
    """Run a job to its end, which must be a success; returns what each process printed."""
    with Job([words] * world_size, folder, name=name) as job:
        codes = job.wait()
        assert codes == [0] * world_size, "\n".join(job.texts())
        return job.texts()


def only_run(folder: Path) -> Path:
    """The folder of the only run that was started in a folder."""
    (found,) = (folder / "logs" / "default").iterdir()
    return found
