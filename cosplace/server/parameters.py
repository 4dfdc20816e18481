"""Parse parameters of a request: `near`, `bbox`, dates, numbers of a form.  Invalid values raise HTTPException 422."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Annotated, TypeVar

from fastapi import HTTPException, Query, Request

from cosplace.config.locate import DATE_EXAMPLES, parse_date
from cosplace.errors import ConfigError, one_line
from cosplace.geo import Box
from cosplace.index.filters import BBOX_FORMAT, NEAR_FORMAT, SearchFilter, parse_bbox, parse_near

NEAR_HELP = f"{NEAR_FORMAT}: search only photos within this distance in meters"
BBOX_HELP = f"{BBOX_FORMAT} in degrees; west is larger than east across the antimeridian"
AFTER_HELP = f"only photos taken on or after this date, in UTC unless it has an offset: {DATE_EXAMPLES}"
BEFORE_HELP = "only photos taken before this date"
SEQUENCE_HELP = "only the photos of the sequence that the photo with this id is in"
MAX_PHOTO_ID = 2**63 - 1
SequenceOf = Annotated[int | None, Query(ge=0, le=MAX_PHOTO_ID, description=SEQUENCE_HELP)]
T = TypeVar("T")


async def check_names(request: Request) -> None:  # async: FastAPI would run it in another thread
    """Refuse parameters of a query that the route does not have, or that occur twice."""
    names = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in names:
            raise HTTPException(422, f"There is no parameter '{one_line(name[:40])}'. Use {', '.join(names)}.")
        if given.count(name) > 1:
            raise HTTPException(
                422, f"{name} is given {given.count(name)} times. Give each of {', '.join(names)} once."
            )


def check_once(names: Sequence[str]) -> None:
    """Refuse form fields that occur twice.  names: of all fields that were sent."""
    for name in names:
        if names.count(name) > 1:
            raise HTTPException(
                422, f"The form field '{one_line(name[:40])}' is given {names.count(name)} times. Send it once."
            )


def check_fields(request: Request, given: Iterable[str], names: Collection[str]) -> None:
    """Refuse form fields that the route does not have.  names: those that it has, next to the photos."""
    in_query = [parameter.alias for parameter in request.scope["route"].dependant.query_params]
    for name in given:
        if name in in_query:
            raise HTTPException(422, f"{name} is a URL parameter, not a form field. Use ?{name}=VALUE.")
        if name not in names:
            message = f"There is no form field '{one_line(name[:40])}'. Form fields: {', '.join(['files', *names])}"
            raise HTTPException(
                422, f"{message}; URL parameters: {', '.join(in_query)}." if in_query else f"{message}."
            )


def parse_filter(
    near: str | None,
    bbox: str | None,
    after: str | None = None,
    before: str | None = None,
    ids: Iterable[int] | None = None,
) -> SearchFilter | None:
    """Return the search filter of a request, None without one.  ids: the photos of a sequence."""
    first, last = parse_times(after, before)
    where = SearchFilter(
        near=None if near is None else _parse(parse_near, near),
        bbox=None if bbox is None else parse_box(bbox),
        after=first,
        before=last,
        ids=None if ids is None else tuple(ids),
    )
    return None if where.is_everywhere else where


def parse_times(after: str | None, before: str | None) -> tuple[float | None, float | None]:
    """Return the first and the last time of a request, both inclusive, in seconds since 1970."""
    first = None if after is None else _parse_time("after", after)
    end = None if before is None else _parse_time("before", before)
    if first is not None and end is not None and first >= end:
        raise HTTPException(422, f"after must be earlier than before, got {after} and {before}.")
    return first, None if end is None else math.nextafter(end, -math.inf)  # times have fractions


def _parse_time(name: str, text: str) -> float:
    try:
        return parse_date(text)
    except (ValueError, OverflowError):
        raise HTTPException(
            422, f"{name} must be a date, got '{text[:40]}'. Use for example {DATE_EXAMPLES}."
        ) from None


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
