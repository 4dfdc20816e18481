"""What the speed of an engine depends on besides the network: the processor, the cores in use, the versions."""

import hashlib
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from cosplace.engines.kinds import ONNX_RUNTIME, OPENVINO, TORCH, versions


def describe_machine() -> dict[str, Any]:
    """Processor, cores in use and versions of the programs; without importing them."""
    return {
        "processor": processor_name(),
        "instructions": _instructions(),
        "cores": num_cores(),
        "nvidia": Path("/proc/driver/nvidia/version").exists(),
        "versions": versions((TORCH, ONNX_RUNTIME, OPENVINO)),
    }


def num_cores() -> int:
    """How many cores compute: the number of threads of OpenMP, if it is set, else the cores of this process."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads):
        return int(threads)
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def processor_name() -> str:
    """Name of the processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _instructions() -> str:
    """A digest of the instructions that the processor has; names of virtual processors say little.  "" if unknown."""
    flags = _cpuinfo("flags") or _cpuinfo("Features")
    return hashlib.sha256(flags.encode()).hexdigest()[:16] if flags else ""


def _cpuinfo(field: str) -> str:
    """A field of the first processor, on Linux; "" if it is not known."""
    with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""
