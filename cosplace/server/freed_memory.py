"""Memory that requests leave behind is given back to the system.

The process keeps the memory that it has freed, because the next batch needs it again (`cosplace.memory`).  Between
photos of many sizes, pieces of it remain that are too small for the next large one, so it would grow by gigabytes
within an hour.  Giving all of it back stops allocations for 0.1 s or more, so it happens at most twice a minute.
"""

import asyncio
import logging
from collections.abc import Callable

from cosplace.memory import resident_bytes, return_freed_memory

CHECK_S = 30.0
GROWTH_BYTES = 512 << 20  # more than the feature maps of a batch take up mostly

log = logging.getLogger(__name__)


class FreedMemory:
    """Compares the memory of this process with the least that it has used since memory was given back."""

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
        """Check at an interval, whatever goes wrong."""
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                await asyncio.to_thread(self.check)
            except Exception:
                log.exception("freed memory cannot be returned to the system", extra={"event": "memory"})
