"""JSON values that no writer of the program stores, at every place of a record."""

import copy
from collections.abc import Iterator
from typing import Any

OTHERS: tuple[Any, ...] = (None, True, "x", "a\0b", -1, 1e300, float("inf"), 10**400, [], [1], ["x"], {}, {"a": 1})


def changed(record: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """A record with one value changed or removed, and its place, for each value."""

    def value_at(whole: Any, where: tuple[Any, ...]) -> Any:
        for step in where:
            whole = whole[step]
        return whole

    value = value_at(record, place)
    if place:
        for other in OTHERS:
            new = copy.deepcopy(record)
            value_at(new, place[:-1])[place[-1]] = other
            yield place, new
        new = copy.deepcopy(record)
        del value_at(new, place[:-1])[place[-1]]
        yield place, new
    for step in value if isinstance(value, dict) else range(min(1, len(value))) if isinstance(value, list) else ():
        yield from changed(record, (*place, step))
