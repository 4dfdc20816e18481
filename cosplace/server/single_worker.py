"""One thread that runs tasks of requests one after the other, with a limit on those that wait."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from cosplace.server.failures import BusyError


class SingleWorker:
    """For tasks that take a core or much memory.  The thread starts with the first task."""

    def __init__(self, name: str, max_waiting: int) -> None:
        self.pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self.num_waiting, self.max_waiting = 0, max_waiting

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[None]:
        """Within: a task may be run.  Enter it before the body is read.  Raises BusyError if too many wait."""
        if self.num_waiting >= self.max_waiting:
            raise BusyError("The server is busy; try again in a moment.")
        self.num_waiting += 1
        try:
            yield
        finally:
            self.num_waiting -= 1

    async def run(self, task: Callable[..., Any], *arguments: Any) -> Any:
        """Run a task in the thread."""
        return await asyncio.wrap_future(self.pool.submit(task, *arguments))
