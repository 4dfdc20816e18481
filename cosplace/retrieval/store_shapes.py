"""The JSON files of a store, checked when they are read: somebody else may have written it.  Pure functions."""

from typing import Any

from cosplace.photos.image_list import MISSING
from cosplace.shapes import fits, is_count, is_finite, is_image_size_or_none, is_text, is_text_or_none

MAX_NUMBER, MAX_SHARDS = 1 << 40, 1 << 20  # of photos, rows or dimensions; of shards, each a file
MAX_JSON_BYTES = 1 << 27  # of a file; a shard of 65,536 photos that could not be opened needs about 20 MB
MAX_TEXT = 1 << 14  # characters of a name or a message
MAX_FLOAT32, MIN_SCALE = 3.4e38, 1e-30
MAX_PID = 1 << 31


def _is_number(value: Any) -> bool:
    return is_count(value) and 1 <= value <= MAX_NUMBER


def _is_short(value: Any) -> bool:
    return is_text(value) and len(value) <= MAX_TEXT


def _is_short_or_none(value: Any) -> bool:
    return value is None or _is_short(value)


def _is_float32(value: Any) -> bool:
    return is_finite(value) and abs(value) <= MAX_FLOAT32


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_short(text) for text in value.values())


MODEL_RECORD = {  # see `assessment.provenance.describe_model`
    "name": _is_short_or_none,
    **dict.fromkeys(("file?", "sha256?"), _is_short_or_none),
    "backbone?": _is_short,
    **dict.fromkeys(("descriptor_dim?", "reduced_to?"), lambda value: value is None or _is_number(value)),
    **dict.fromkeys(("card?", "licenses?"), _are_texts),
}
CODES: dict[str, Any] = {  # by the type of the rows; others have none
    "int8": {"scale": lambda value: _is_float32(value) and value > MIN_SCALE},
    "binary": {"center": [_is_float32]},
}
META_SHAPE = {
    **dict.fromkeys(("count", "shard_rows", "dimension"), _is_number),
    "file_sizes": [lambda value: value == MISSING or is_count(value)],
    **dict.fromkeys(("photos", "model", "dtype"), _is_short),
    **dict.fromkeys(("views?", "version?", "engine?"), _is_short),
    "image_size": is_image_size_or_none,
    "autocast": is_text_or_none,
    "about?": {
        "model?": _is_short,
        "batch_size?": _is_number,
        "engine?": _is_short,
        "model_record?": lambda value: value is None or fits(value, MODEL_RECORD),
    },
}
UNREADABLE_PHOTOS = [{"index": is_count, "name": _is_short, "message": _is_short}]
TRAILER = {"extraction": _is_short, "unreadable": UNREADABLE_PHOTOS, "photos?": _are_texts}
CLAIM_SHAPE = {
    **dict.fromkeys(("worker", "host"), _is_short),
    "pid": lambda value: is_count(value) and value < MAX_PID,
    **dict.fromkeys(("count", "done"), is_count),
    **dict.fromkeys(("time", "photos_per_s"), lambda value: is_finite(value) and value >= 0),
}


def is_map_center(value: Any) -> bool:
    """Whether this is a latitude and a longitude, in degrees."""
    return fits(value, [is_finite]) and len(value) == 2 and abs(value[0]) <= 90 and abs(value[1]) <= 180


def are_codes(codes: Any, dtype: str, dimension: int) -> bool:
    """Whether this is what codes of a type need for descriptors of this dimension; None for float32 and float16."""
    if dtype not in CODES:
        return codes is None
    return fits(codes, CODES[dtype]) and len(codes.get("center", range(dimension))) == dimension
