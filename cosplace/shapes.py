"""Shapes of JSON values from files that anybody can have written.  Pure functions.

A shape is a test of one value, a dict with the shapes of entries (`name?` may be missing), or a list with the shape of
its items:

    >>> fits({"name": "a", "sizes": [1, 2]}, {"name": is_text, "sizes": [is_count], "note?": is_text})
    True
"""

import json
import math
from typing import Any

from cosplace.config.defaults import MAX_IMAGE_SIZE

MAX_COUNT = 1 << 62  # of an id or a number of photos


def parse(text: str | bytes, shape: Any, *, max_length: int) -> Any:
    """The value in a JSON text of at most `max_length` characters or bytes.

    Raises ValueError if it is longer, is not JSON, or has another shape.
    """
    if len(text) > max_length:
        raise ValueError(f"{len(text)} characters")
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("too deep") from error
    if not fits(value, shape):
        raise ValueError("unexpected values")
    return value


def fits(value: Any, shape: Any) -> bool:
    """Whether a value has a shape: a test, the shapes of entries of a dict (`name?` may be missing), or of a list."""
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(
            fits(value[name.removesuffix("?")], part) if name.removesuffix("?") in value else name.endswith("?")
            for name, part in shape.items()
        )
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(one, shape[0]) for one in value)
    return bool(shape(value))


def is_text(value: Any) -> bool:
    """A text that can be a path: no zero, no half of a character."""
    if not isinstance(value, str) or "\0" in value:  # no path has a zero
        return False
    try:
        return bool(value.encode("utf-8", "surrogateescape")) or not value
    except UnicodeEncodeError:  # half a character
        return False


def is_text_or_none(value: Any) -> bool:
    """See `is_text`."""
    return value is None or is_text(value)


def is_number(value: Any) -> bool:
    """A number that is not far too large; also nan."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > MAX_COUNT


def is_count(value: Any) -> bool:
    """A whole number, 0 or more."""
    return is_number(value) and isinstance(value, int) and value >= 0


def is_finite(value: Any) -> bool:
    """A finite number."""
    return is_number(value) and math.isfinite(value)


def is_number_or_none(value: Any) -> bool:
    """See `is_finite`."""
    return value is None or is_finite(value)


def is_flag(value: Any) -> bool:
    """True or False."""
    return isinstance(value, bool)


def is_image_size_or_none(value: Any) -> bool:
    """A number of pixels that `--image_size` can have, or none."""
    return value is None or (is_count(value) and 0 < value <= MAX_IMAGE_SIZE)
