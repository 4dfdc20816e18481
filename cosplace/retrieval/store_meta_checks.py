"""Whether meta.json of a store has numbers and names that an extraction writes.  Pure functions."""

from collections.abc import Mapping
from typing import Any

MAX_NUMBER, MAX_SHARDS = 1 << 40, 1 << 20  # of photos, rows or dimensions; of shards, each a file


def is_possible(meta: Any) -> bool:
    """Whether an extraction can have these numbers and names.  meta: a `shards.StoreMeta`."""
    extraction = meta.extraction
    return (
        all(_is_count(number) for number in (extraction.count, extraction.shard_rows, meta.dimension))
        and extraction.num_shards <= MAX_SHARDS
        and all(isinstance(size, int) for size in extraction.file_sizes)
        and all(isinstance(text, str) for text in (extraction.photos, extraction.model, extraction.views))
        and _are_names(meta.about)
    )


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= MAX_NUMBER


def _are_names(about: Any) -> bool:
    """Whether the names for people have the types that they are written with."""
    if not isinstance(about, Mapping) or not isinstance(about.get("batch_size", 1), int):
        return False
    record = about.get("model_record") or {"name": ""}
    return isinstance(about.get("model", ""), str) and isinstance(record, Mapping) and isinstance(record["name"], str)
