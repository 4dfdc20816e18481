"""Memory that requests leave behind is given back to the system.

The process keeps the memory that it has freed, because the next batch needs it again (`cosplace.memory`).  Photos of
many sizes leave pieces that are too small for the next large allocation, so the process would grow by gigabytes within
minutes.  Returning them blocks allocations for 0.1 s or more, so it happens at most twice a minute.
"""

import asyncio
import logging
from collections.abc import Callable

from cosplace.memory import resident_bytes, return_freed_memory

CHECK_S = 30.0
GROWTH_BYTES = 512 << 20  # more than the feature maps of most batches

log = logging.getLogger(__name__)


class FreedMemory:
    """Compares the memory of this process with the least that it has used since memory was last given back."""

    def __init__(
        self, used: Callable[[], int] = resident_bytes, give_back: Callable[[], None] = return_freed_memory
    ) -> None:
        self.used, self.give_back = used, give_back
        self.least: int | None = None  # bytes

    def check(self) -> None:
        """Give memory back if it has grown."""
        now = self.used()
        if self.least is not None and now > self.least + GROWTH_BYTES:
            self.give_back()
            self.least = self.used()
        else:
            self.least = now if self.least is None else min(self.least, now)

    async def check_forever(self) -> None:
        """Check every CHECK_S seconds, also after errors."""
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                await asyncio.to_thread(self.check)
            except Exception:
                log.exception("freed memory could not be returned to the system", extra={"event": "memory"})
