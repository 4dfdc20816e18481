"""Wall time, CPU time, memory and disk space of a command with all its processes.

Memory is that which belongs to no file (anonymous and shared memory), summed over the processes of the command, where
pages that several of them share count once in total.  The kernel computes it on request (`smaps_rollup`), here every
0.2 s.  Linux only.
"""

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.stage import BenchmarkError

SAMPLE_S = 0.2
COUNTED = ("Pss_Anon", "Pss_Shmem")  # proportional shares, in kB


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandFigures:
    """What a command took."""

    wall_s: float
    cpu_s: float  # of all its processes
    memory_mib: float  # at its peak


def measure_command(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], *, name: str
) -> CommandFigures:
    """Run a command in a folder.  name: for errors.  Raises BenchmarkError with its last line if it fails."""
    started = time.perf_counter()
    with (folder / "output.log").open("w+") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=dict(environment), stdout=output, stderr=output, start_new_session=True
        )
        try:
            sampler = _MemorySampler(process.pid)
            sampler.start()
            _, status, usage = os.wait4(process.pid, 0)
            wall_s = time.perf_counter() - started
            process.returncode = os.waitstatus_to_exitcode(status)  # otherwise Popen would wait for it again
            sampler.stop()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        output.seek(0)
        lines = output.read().strip().splitlines()
    if process.returncode:
        last = lines[-1] if lines else "no output"
        raise BenchmarkError(f"{name} ended with exit code {process.returncode}: {last}")
    return CommandFigures(wall_s=wall_s, cpu_s=usage.ru_utime + usage.ru_stime, memory_mib=sampler.peak_mib)


class _MemorySampler(threading.Thread):
    """Samples the memory of all processes of a session, whose leader it is given."""

    def __init__(self, leader: int) -> None:
        super().__init__(daemon=True)
        self.leader, self.peak_mib = leader, 0.0
        self._ended = threading.Event()

    def run(self) -> None:
        """Sample until `stop`."""
        while not self._ended.wait(SAMPLE_S):
            self.peak_mib = max(self.peak_mib, sum(map(memory_mib, processes_of_session(self.leader))))

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self.join()


def processes_of_session(leader: int) -> list[int]:
    """Process ids of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # pid (name) state parent group session …; a name may contain spaces and parentheses.
                session = int((entry / "stat").read_text().rpartition(")")[2].split()[3])
            except OSError:  # it has ended
                continue
            if session == leader:
                found.append(int(entry.name))
    return found


def memory_mib(pid: int) -> float:
    """Memory of a process that belongs to no file; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(int(values[name].split()[0]) for name in COUNTED if name in values) / 1024


def disk_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
