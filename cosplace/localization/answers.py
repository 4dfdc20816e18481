"""Where a photo was taken, how sure that is, and why: one record for Python, the command line and the server.  Pure."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One neighbour: a photo of the index that looks alike."""

    id: int
    path: str
    latitude: float | None
    longitude: float | None
    heading: float | None  # degrees clockwise from north
    similarity: float  # cosine
    distance_m: float | None  # from the position found, also where that is too doubtful to be told


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """The answer for one photo; position and radius are None where it is unknown."""

    photo: str
    latitude: float | None
    longitude: float | None
    radius_m: float | None  # 9 in 10 right answers of this confidence lie within it from the truth
    confidence: float  # probability that the position is right within 25 m
    unknown: bool
    reason: str  # why it is unknown, or a caveat; "" otherwise
    neighbours: tuple[Match, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A photo that could not be opened, in the place of its answer."""

    photo: str
    error: str


Answer = Location | Unreadable


def as_json(location: Location) -> dict[str, Any]:
    """The answer as JSON holds it, with the keys of the command line and the server."""
    return {
        "photo": location.photo,
        "latitude": _rounded(location.latitude, 7),
        "longitude": _rounded(location.longitude, 7),
        "radius_m": _rounded(location.radius_m, 1),
        "confidence": round(location.confidence, 4),
        "unknown": location.unknown,
        "reason": location.reason,
        "neighbours": [
            {
                "id": neighbour.id,
                "path": neighbour.path,
                "latitude": _rounded(neighbour.latitude, 7),
                "longitude": _rounded(neighbour.longitude, 7),
                "heading": _rounded(neighbour.heading, 1),
                "similarity": round(neighbour.similarity, 4),
                "distance_m": _rounded(neighbour.distance_m, 1),
            }
            for neighbour in location.neighbours
        ],
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def answer_json(answer: Answer) -> dict[str, Any]:
    """As `as_json`; a photo that could not be opened has the keys photo and error."""
    return as_json(answer) if isinstance(answer, Location) else {"photo": answer.photo, "error": answer.error}


def json_text(rows: Sequence[tuple[Answer, dict[str, Any] | None]], *, is_list: bool) -> str:
    """An object for one photo, or an array of objects; a row is an answer and what EXIF says, which joins as `exif`."""
    found = [answer_json(answer) | ({} if exif is None else {"exif": exif}) for answer, exif in rows]
    return json.dumps(found if is_list else found[0], indent=2, ensure_ascii=False, allow_nan=False)


def geojson_text(rows: Sequence[tuple[Answer, dict[str, Any] | None]]) -> str:
    """A FeatureCollection (RFC 7946): a point for each photo; its geometry is null where the answer is unknown."""
    features = []
    for answer, exif in rows:
        properties = answer_json(answer) | ({} if exif is None else {"exif": exif})
        at = [properties.pop("longitude", None), properties.pop("latitude", None)]
        geometry = None if at[0] is None else {"type": "Point", "coordinates": at}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return json.dumps({"type": "FeatureCollection", "features": features}, indent=2, ensure_ascii=False)


CSV_COLUMNS = ("photo", "latitude", "longitude", "radius_m", "confidence", "unknown", "reason", "nearest", "similarity")


def csv_text(answers: Sequence[Answer]) -> str:
    """A table with one line for each photo; `nearest` and `similarity` are of the first neighbour."""
    text = io.StringIO()
    table = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for answer in answers:
        row = answer_json(answer)
        if isinstance(answer, Unreadable):
            row |= {"unknown": True, "reason": answer.error}
        for first in row.get("neighbours", [])[:1]:
            row |= {"nearest": first["path"], "similarity": first["similarity"]}
        table.writerow(row)
    return text.getvalue()


def map_address(latitude: float, longitude: float) -> str:
    """The address of the place on OpenStreetMap, for people; nothing is fetched."""
    at = f"{latitude:.6f}", f"{longitude:.6f}"
    return f"https://www.openstreetmap.org/?mlat={at[0]}&mlon={at[1]}#map=18/{at[0]}/{at[1]}"


def plain_text(answer: Answer, num_neighbours: int = 3) -> str:
    """The answer for people, some lines."""
    if isinstance(answer, Unreadable):
        return f"{answer.photo}\n  not readable: {answer.error}"
    lines = [answer.photo]
    if answer.latitude is None or answer.longitude is None:
        lines.append(f"  unknown: {answer.reason}")
    else:
        within = "" if answer.radius_m is None else f" ± {answer.radius_m:.0f} m"
        lines.append(f"  {answer.latitude:.6f}, {answer.longitude:.6f}{within}, confidence {answer.confidence:.0%}")
        lines.append(f"  {map_address(answer.latitude, answer.longitude)}")
        lines += [f"  {answer.reason}"] if answer.reason else []
    for neighbour in answer.neighbours[:num_neighbours]:
        away = "no position" if neighbour.distance_m is None else f"{neighbour.distance_m:7.1f} m away"
        lines.append(f"    {neighbour.similarity:.3f}  {away}  {neighbour.path}")
    return "\n".join(lines)
