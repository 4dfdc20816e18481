"""Places as a request writes them: `near` and `bbox`, and the numbers of a form."""

from math import isfinite

from fastapi import HTTPException

NEAR_TEXT = "LATITUDE,LONGITUDE,RADIUS_M: only photos of the index within that many meters are looked at"
BBOX_TEXT = "WEST,SOUTH,EAST,NORTH in degrees; west is larger than east across the date line"


def parse_near(text: str) -> tuple[float, float, float]:
    """Latitude, longitude, radius in meters.  Raises HTTPException 422."""
    numbers = _numbers("near", text, 3, "LATITUDE,LONGITUDE,RADIUS_M such as 37.77,-122.42,500")
    latitude, longitude, radius_m = numbers
    _check_position("near", latitude, longitude)
    if not radius_m > 0:
        raise HTTPException(422, f"near: the radius is {radius_m:g} m: give more than 0.")
    return latitude, longitude, radius_m


def parse_bbox(text: str) -> tuple[float, float, float, float]:
    """West, south, east, north; a map that shows the world more than once asks for more than the world.

    Raises HTTPException 422.
    """
    numbers = _numbers("bbox", text, 4, "WEST,SOUTH,EAST,NORTH such as -122.52,37.70,-122.35,37.83")
    west, south, east, north = numbers
    if south > north:
        raise HTTPException(422, f"bbox: south ({south:g}) is above north ({north:g}): give WEST,SOUTH,EAST,NORTH.")
    if east - west >= 360:
        west, east = -180.0, 180.0
    else:
        west, east = _wrap(west), _wrap(east)
    return west, max(south, -90.0), east, min(north, 90.0)


def parse_number(name: str, text: str, least: float, most: float) -> float:
    """A number of a form.  Raises HTTPException 422."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise HTTPException(422, f"{name} is '{text[:40]}': give a number from {least:g} to {most:g}.")
    return value


def _numbers(name: str, text: str, count: int, wanted: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(map(isfinite, numbers)):
        raise HTTPException(422, f"{name} is '{text[:80]}': give {wanted}.")
    return numbers


def _check_position(name: str, latitude: float, longitude: float) -> None:
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):
        raise HTTPException(422, f"{name}: no place on earth is at {latitude:g}, {longitude:g}.")


def _wrap(longitude: float) -> float:
    """A longitude between -180 and 180; 180 itself stays, as the eastern side of a box does."""
    return longitude if -180 <= longitude <= 180 else (longitude + 180) % 360 - 180
