"""How this process gets memory."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
from cosplace.memory import keep_freed_memory
{call}
for _ in range(20):
    block = bytearray(40 << 20)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def page_faults(call: str, **variables: str) -> int:
    """Pages that the system clears for 20 blocks of 40 MiB, one after another, and for the start of Python."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", FAULTS.format(call=call)]
    return int(subprocess.check_output(command, env=environment | variables, text=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is a function of glibc")
def test_freed_memory_is_used_again() -> None:
    once = (40 << 20) // os.sysconf("SC_PAGE_SIZE")
    without, kept = page_faults(""), page_faults("keep_freed_memory()")
    assert without - kept > 15 * once
    # Settings in the environment are those of the user.
    assert page_faults("keep_freed_memory()", MALLOC_ARENA_MAX="4") - kept > 15 * once


RETURNED = """
from cosplace.memory import keep_freed_memory, resident_bytes, return_freed_memory
keep_freed_memory()
blocks = [bytearray(b"1" * (1 << 20)) for _ in range(64)]
last = bytearray(b"1")  # above them
del blocks
kept = resident_bytes()
return_freed_memory()
print(kept - resident_bytes())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is a function of glibc")
def test_freed_memory_is_returned() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    returned = int(subprocess.check_output([sys.executable, "-c", RETURNED], env=environment, text=True))
    assert returned > 60 << 20
