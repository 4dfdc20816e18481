"""What tells an index from another one: two that were at one address, one after the other, are never mixed."""

import json
from typing import Any

from cosplace.errors import ReplacedIndexError
from cosplace.index.lance import record_text
from cosplace.index.record_checks import parse_record

SPEC = "spec"  # the key of the record that describes the index


def check_identity(address: str, former: dict[str, Any], found: dict[str, Any] | None) -> None:
    """Raise ReplacedIndexError unless two records of SPEC are of one index.  former: of the index that is open."""
    if found is None or _identity(found) != _identity(former):
        raise replaced(address)


def replaced(address: str) -> ReplacedIndexError:
    """The error for another index at an address."""
    return ReplacedIndexError(
        f"Another index is now at {address}. Restart the server or the program that reads it, or restore the former "
        "index."
    )


def check_tables(address: str, database: Any, former: str) -> None:
    """Raise ReplacedIndexError unless the tables are of the open index.  former: its record of SPEC, as JSON."""
    found = record_text(database.open_table("records"), SPEC)
    check_identity(address, json.loads(former), None if found is None else parse_record(SPEC, found))


def _identity(spec: dict[str, Any]) -> tuple[Any, ...]:
    model = spec.get("model")
    return spec.get("index"), spec.get("created"), model.get("checksum") if isinstance(model, dict) else None
