"""The records of an index, checked when they are read: whoever can write an index can also write its checksums.

A record that no writer stores is damage, which is reported, not used.  Pure functions.
"""

from typing import Any

from cosplace.shapes import (
    is_count,
    is_finite,
    is_flag,
    is_image_size_or_none,
    is_number,
    is_number_or_none,
    is_text,
    is_text_or_none,
    parse,
)

MAX_PARTITIONS = 1 << 24  # of a search index; some thousand for 100 million photos
MAX_CHARACTERS = 1 << 24  # of a record; a calibration has some thousand


def parse_record(key: str, text: str) -> dict[str, Any] | None:
    """The record in a JSON text; None unless it has the values that a writer stores under this key.

    Other keys and values are not checked.
    """
    try:
        return parse(text, RECORDS.get(key, {}), max_length=MAX_CHARACTERS)
    except ValueError:
        return None


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) in (0, 2) and all(is_number(end) for end in value)


MODEL = {
    "model": is_text,
    "checksum": is_text,
    "dimension": is_count,
    "image_size?": is_image_size_or_none,
    "views?": {"query_size?": is_image_size_or_none},
    "engine?": is_text,
    "engine_file?": is_text,
}
ABOUT = {  # a calibration; those of earlier versions lack some
    **dict.fromkeys(("queries?", "unlabeled?", "correction?", "training_photos?"), is_text),
    **dict.fromkeys(
        ("num_photos?", "num_queries?", "num_validation?", "num_training_photos?", "num_unlabeled?"), is_count
    ),
    "days?": is_number,
    "share_revisited?": is_finite,
    "share_like_training?": is_finite,
    "calibration_error_interval?": _is_interval,
    "calibration_error_approximate?": is_flag,
    "overconfidence?": {
        **dict.fromkeys(("value", "low", "high"), is_number_or_none),
        "num_areas": is_count,
        "approximate?": is_flag,
    },
}
RECORDS: dict[str, Any] = {
    "spec": {"model": MODEL, "settings": {"exact_rows?": is_count}},
    "roots": {"folders": [{"path": is_text, "relative?": is_text_or_none}]},
    "checked_from": {"id": is_count},
    "next_id": {"next_id": is_count},
    "search": {
        **dict.fromkeys(("num_partitions", "num_probed"), lambda value: is_count(value) and value <= MAX_PARTITIONS),
        **dict.fromkeys(("count", "num_measured"), is_count),
        "last_id": lambda value: is_finite(value) and isinstance(value, int) and value >= -1,
        **dict.fromkeys(("recall_at_1", "recall_at_20"), lambda value: is_finite(value) and 0 <= value <= 1),
    },
    "calibration": {"about?": ABOUT},
    "calibration_failed": {"num_photos": is_count, "reason": is_text},
    "parts": {"datasets": [{"root": is_count, "folder": is_text, "part": is_text}]},
}
