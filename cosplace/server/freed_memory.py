"""Memory that requests leave behind is given back to the system.

The process keeps the memory that it has freed, because the next batch needs it again (`cosplace.memory`).  Between
photos of many sizes, pieces of it remain that are too small for the next large one, so it would grow by gigabytes
within an hour.  Giving all of it back stops allocations for 0.1 s or more, so it happens only after a growth.
"""

import asyncio
import logging
from collections.abc import Callable

from cosplace.memory import resident_bytes, return_freed_memory

CHECK_S = 10.0
GROWTH_BYTES = 256 << 20

log = logging.getLogger(__name__)


class FreedMemory:
    """Compares the memory of this process with what it needs for the usual load."""

    def __init__(
        self, used: Callable[[], int] = resident_bytes, give_back: Callable[[], None] = return_freed_memory
    ) -> None:
        self.used, self.give_back = used, give_back
        self.usual: int | None = None  # bytes, measured at the check after memory was given back

    def check(self) -> None:
        """Give memory back if it has grown."""
        now = self.used()
        if self.usual is None:
            self.usual = now
        elif now > self.usual + GROWTH_BYTES:
            self.give_back()
            self.usual = None

    async def check_forever(self) -> None:
        """Check at an interval, whatever goes wrong."""
        while True:
            await asyncio.sleep(CHECK_S)
            try:
                await asyncio.to_thread(self.check)
            except Exception:
                log.exception("freed memory cannot be returned to the system", extra={"event": "memory"})
