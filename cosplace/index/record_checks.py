"""The records of an index, checked when they are read: whoever can write an index can also write its checksums.

A record that no writer stores is damage, which is reported, not used.  Pure functions.
"""

import json
import math
from typing import Any

from cosplace.config.defaults import MAX_IMAGE_SIZE

MAX_COUNT = 1 << 62  # of an id or a number of photos
MAX_PARTITIONS = 1 << 24  # of a search index; some thousand for 100 million photos
MAX_CHARACTERS = 1 << 24  # of a record; a calibration has some thousand


def parse_record(key: str, text: str) -> dict[str, Any] | None:
    """The record in a JSON text; None unless it has the values that a writer stores under this key.

    Other keys and values are not checked.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and _fits(record, RECORDS.get(key, {})) else None


def _fits(value: Any, shape: Any) -> bool:
    """Whether a value has a shape: a test, the shapes of entries of a dict (`name?` may be missing), or of a list."""
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(
            _fits(value[name.removesuffix("?")], part) if name.removesuffix("?") in value else name.endswith("?")
            for name, part in shape.items()
        )
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(one, shape[0]) for one in value)
    return bool(shape(value))


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or "\0" in value:  # no path has a zero
        return False
    try:
        return bool(value.encode("utf-8", "surrogateescape")) or not value
    except UnicodeEncodeError:  # half a character
        return False


def _is_text_or_none(value: Any) -> bool:
    return value is None or _is_text(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > MAX_COUNT


def _is_count(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int) and value >= 0


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_finite(value)


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) in (0, 2) and all(_is_number(end) for end in value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_size_or_none(value: Any) -> bool:
    return value is None or (_is_count(value) and 0 < value <= MAX_IMAGE_SIZE)


MODEL = {
    "model": _is_text,
    "checksum": _is_text,
    "dimension": _is_count,
    "image_size?": _is_size_or_none,
    "views?": {"query_size?": _is_size_or_none},
    "engine?": _is_text,
    "engine_file?": _is_text,
}
ABOUT = {  # a calibration; those of earlier versions lack some
    **dict.fromkeys(("queries?", "unlabeled?", "correction?", "training_photos?"), _is_text),
    **dict.fromkeys(
        ("num_photos?", "num_queries?", "num_validation?", "num_training_photos?", "num_unlabeled?"), _is_count
    ),
    "days?": _is_number,
    "share_revisited?": _is_finite,
    "share_like_training?": _is_finite,
    "calibration_error_interval?": _is_interval,
    "calibration_error_approximate?": _is_flag,
    "overconfidence?": {
        **dict.fromkeys(("value", "low", "high"), _is_number_or_none),
        "num_areas": _is_count,
        "approximate?": _is_flag,
    },
}
RECORDS: dict[str, Any] = {
    "spec": {"model": MODEL, "settings": {"exact_rows?": _is_count}},
    "roots": {"folders": [{"path": _is_text, "relative?": _is_text_or_none}]},
    "checked_from": {"id": _is_count},
    "next_id": {"next_id": _is_count},
    "search": {
        **dict.fromkeys(("num_partitions", "num_probed"), lambda value: _is_count(value) and value <= MAX_PARTITIONS),
        **dict.fromkeys(("count", "num_measured"), _is_count),
        "last_id": lambda value: _is_finite(value) and isinstance(value, int) and value >= -1,
        **dict.fromkeys(("recall_at_1", "recall_at_20"), lambda value: _is_finite(value) and 0 <= value <= 1),
    },
    "calibration": {"about?": ABOUT},
    "calibration_failed": {"num_photos": _is_count, "reason": _is_text},
    "parts": {"datasets": [{"root": _is_count, "folder": _is_text, "part": _is_text}]},
}
