"""Parse parameters of a request: `near`, `bbox`, and numbers of a form.  Invalid values raise HTTPException 422."""

from collections.abc import Callable
from typing import TypeVar

from fastapi import HTTPException

from cosplace.errors import ConfigError
from cosplace.geo import Box
from cosplace.index.filters import BBOX_FORMAT, NEAR_FORMAT, SearchFilter, parse_bbox, parse_near

NEAR_HELP = f"{NEAR_FORMAT}: search only photos within this distance in meters"
BBOX_HELP = f"{BBOX_FORMAT} in degrees; west is larger than east across the antimeridian"
T = TypeVar("T")


def parse_filter(near: str | None, bbox: str | None) -> SearchFilter | None:
    """Return the search filter of a request, None without one."""
    if near is None and bbox is None:
        return None
    return SearchFilter(
        near=None if near is None else _parse(parse_near, near), bbox=None if bbox is None else parse_box(bbox)
    )


def parse_box(bbox: str) -> Box:
    """Return west, south, east, north in degrees."""
    return _parse(parse_bbox, bbox)


def parse_number(name: str, text: str, minimum: float, maximum: float) -> float:
    """Return a number of a form."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not minimum <= value <= maximum:
        raise HTTPException(422, f"{name} must be between {minimum:g} and {maximum:g}, got '{text[:40]}'.")
    return value


def _parse(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ConfigError as error:
        raise HTTPException(422, str(error)) from error
