"""The processes of a job find each other in the store of torchrun.

torchrun may restart processes with the same store, so it has what those before them wrote, such as addresses that
nobody listens to any more.  So each process draws a name, process 0 lists the names that it finds, and the processes
have met when each of them has found its own name in the same list.
"""

import hashlib
import secrets
import time
from typing import TYPE_CHECKING

from cosplace.errors import CosPlaceError
from cosplace.progress import format_duration

if TYPE_CHECKING:
    from torch.distributed import Store

MAX_PAUSE_S = 0.2  # between two looks at what other processes have written
RESTART = "Start the same command again with --resume_train; torchrun does so itself with --max-restarts."
ADVICE = f"It hangs, or a task takes longer than --process_timeout_minutes. Check its machine and storage. {RESTART}"


class LostProcessError(CosPlaceError):
    """Another process ended without a word, hangs, or cannot be reached."""


def meet(store: "Store", rank: int, world_size: int, timeout_s: float) -> str:
    """Wait until all processes have started; returns a name that no other processes use in the store.

    Signals take effect meanwhile; they do not while torch waits.  Raises LostProcessError.
    """
    own, ranks = secrets.token_hex(8), range(world_size)
    started = [f"cosplace/started/{one}" for one in ranks]
    store.set(started[rank], own)
    end, pause = time.monotonic() + timeout_s, 0.005
    while True:
        if rank == 0 and store.check(started):
            store.set("cosplace/list", " ".join(store.get(key).decode() for key in started))
        names = store.get("cosplace/list").decode() if store.check(["cosplace/list"]) else ""
        meeting = f"cosplace/{hashlib.sha256(names.encode()).hexdigest()[:16]}"
        agreed = [f"{meeting}/agreed/{one}" for one in ranks]
        is_listed = names.split()[rank : rank + 1] == [own]
        if is_listed:
            store.set(agreed[rank], "")
            if store.check(agreed):
                return meeting
        if time.monotonic() > end:
            absent = [one for one in ranks if not store.check([started[one]])]
            absent = absent or [one for one in ranks if is_listed and not store.check([agreed[one]])] or [0]
            raise LostProcessError(f"Process {absent[0]} did not start within {format_duration(timeout_s)}. {ADVICE}")
        time.sleep(pause)
        pause = min(MAX_PAUSE_S, pause * 1.5)
