"""A queue between threads that takes turns between requests, so that a large request does not delay small ones."""

import math
import threading
import time
from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of several owners: one of each owner in turn, and those of one owner in the order of arrival.

    max_size: items wait outside, in `put`, while the sizes of those inside add up to more.
    """

    def __init__(self, max_size: float = math.inf) -> None:
        self.max_size, self.size, self.is_closed = max_size, 0.0, False
        self.turns: dict[Hashable, deque[tuple[T, float]]] = {}  # by owner; the first owner's turn is next
        self.changed = threading.Condition()

    def put(self, owner: Hashable, item: T, size: float = 0.0) -> None:
        """Add an item; wait while there is too much inside.  An empty queue takes an item of any size."""
        with self.changed:
            self.changed.wait_for(lambda: not self.turns or self.size + size <= self.max_size)
            self.turns.setdefault(owner, deque()).append((item, size))
            self.size += size
            self.changed.notify_all()

    def get(self) -> T | None:
        """Take the item whose turn it is; wait for one.  None: the queue is closed and empty."""
        with self.changed:
            self.changed.wait_for(lambda: self.turns or self.is_closed)
            return self._take(next(iter(self.turns))) if self.turns else None

    def get_up_to(self, max_size: float, until: float) -> T | None:
        """Take the first item in turn that is not larger; None if there is none until a time (of time.monotonic)."""
        with self.changed:
            while True:
                for owner, items in self.turns.items():
                    if items[0][1] <= max_size:
                        return self._take(owner)
                seconds = until - time.monotonic()
                if seconds <= 0 or self.is_closed or not self.changed.wait(seconds):
                    return None

    def close(self) -> None:
        """Wake all threads that wait for an item: no more items will be added."""
        with self.changed:
            self.is_closed = True
            self.changed.notify_all()

    def _take(self, owner: Hashable) -> T:
        items = self.turns.pop(owner)
        item, size = items.popleft()
        if items:
            self.turns[owner] = items  # behind the other owners
        self.size = self.size - size if self.turns else 0.0
        self.changed.notify_all()
        return item
