"""The answer for a photo: where it was taken, the confidence, the matches; as text, JSON, GeoJSON and CSV.  Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cosplace.localization.verdicts import headline_of, verdict_of
from cosplace.photos.paths import csv_line, path_from_text, printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A photo of the index that is similar to the query."""

    id: int
    path: str
    latitude: float | None
    longitude: float | None
    heading: float | None  # degrees clockwise from north
    similarity: float  # cosine
    distance_m: float | None  # to the answer or the guess; None without one
    accuracy_m: float | None = None  # error of its position; None if it is unknown
    name: str = ""  # the path relative to the photos' root, for clients of a server


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """Where a photo may have been taken, if the confidence is too low for an answer."""

    latitude: float
    longitude: float
    radius_m: float | None  # as in Location


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """The answer for one photo; position and radius are None if it is unknown."""

    photo: str
    latitude: float | None
    longitude: float | None
    radius_m: float | None  # for 9 of 10 correct answers of this confidence, the true position is within it
    confidence: float  # probability that the position is correct: within 25 m
    unknown: bool
    reason: str  # why the position is unknown, or a note on the answer; "" otherwise
    neighbours: tuple[Match, ...]  # best first
    calibrated: bool = True  # whether the confidence is a probability, not only the share of votes that agree
    guess: Guess | None = None  # of an unknown answer; not an answer

    @property
    def verdict(self) -> str:
        """found, probable, guess or none: see `cosplace.localization.verdicts`."""
        has_position = self.latitude is not None
        return verdict_of(
            self.confidence, calibrated=self.calibrated, has_position=has_position, has_guess=self.guess is not None
        )

    @property
    def headline(self) -> str:
        """The answer in one line."""
        return headline_of(self.verdict, self.confidence, self.radius_m, calibrated=self.calibrated)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """The answer for a photo that cannot be read."""

    photo: str
    error: str


Answer = Location | Unreadable


def as_json(answer: Answer) -> dict[str, Any]:
    """An answer as JSON, with the keys of the command line and the server."""
    if isinstance(answer, Unreadable):
        return {"photo": answer.photo, "error": answer.error}
    return {
        "photo": answer.photo,
        "latitude": _round(answer.latitude, 7),
        "longitude": _round(answer.longitude, 7),
        "radius_m": _round(answer.radius_m, 1),
        "confidence": round(answer.confidence, 4),
        "calibrated": answer.calibrated,
        "unknown": answer.unknown,
        "verdict": answer.verdict,
        "reason": answer.reason,
        "guess": None if answer.guess is None else _guess_as_json(answer.guess),
        "neighbours": [
            {
                "id": match.id,
                "path": match.path,
                "latitude": _round(match.latitude, 7),
                "longitude": _round(match.longitude, 7),
                "heading": _round(match.heading, 1),
                "similarity": round(match.similarity, 4),
                "distance_m": _round(match.distance_m, 1),
            }
            for match in answer.neighbours
        ],
    }


def _guess_as_json(guess: Guess) -> dict[str, float | None]:
    return {
        "latitude": _round(guess.latitude, 7),
        "longitude": _round(guess.longitude, 7),
        "radius_m": _round(guess.radius_m, 1),
    }


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def json_text(rows: Sequence[tuple[Answer, dict[str, Any] | None]], *, is_list: bool) -> str:
    """An object for one photo, or an array of objects; the second item of a row, what EXIF says, is added as `exif`."""
    objects = [as_json(answer) | ({} if exif is None else {"exif": exif}) for answer, exif in rows]
    return json.dumps(objects if is_list else objects[0], indent=2, ensure_ascii=False, allow_nan=False)


def geojson_text(rows: Sequence[tuple[Answer, dict[str, Any] | None]]) -> str:
    """A FeatureCollection (RFC 7946) with one point per photo; the geometry of unknown positions is null."""
    features = []
    for answer, exif in rows:
        properties = as_json(answer) | ({} if exif is None else {"exif": exif})
        position = [properties.pop("longitude", None), properties.pop("latitude", None)]
        geometry = None if position[0] is None else {"type": "Point", "coordinates": position}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return json.dumps({"type": "FeatureCollection", "features": features}, indent=2, ensure_ascii=False)


CSV_COLUMNS = (
    "photo", "latitude", "longitude", "radius_m", "confidence", "unknown", "reason", "nearest", "similarity", "verdict",
)  # fmt: skip


def csv_text(answers: Sequence[Answer]) -> str:
    """A table with one line per photo; `nearest` and `similarity` are of the first match."""
    lines = [csv_line(CSV_COLUMNS)]
    for answer in answers:
        row = as_json(answer)
        if isinstance(answer, Unreadable):
            row |= {"unknown": True, "reason": answer.error}
        elif answer.neighbours:
            first = row["neighbours"][0]
            row |= {"nearest": first["path"], "similarity": first["similarity"]}
        lines.append(csv_line([row.get(column, "") for column in CSV_COLUMNS]))
    return "".join(lines)


def map_url(latitude: float, longitude: float) -> str:
    """URL of a position on OpenStreetMap, for people; nothing is fetched."""
    lat, lon = f"{latitude:.6f}", f"{longitude:.6f}"
    return f"https://www.openstreetmap.org/?mlat={lat}&mlon={lon}#map=18/{lat}/{lon}"


def plain_text(answer: Answer, num_matches: int = 3) -> str:
    """The answer as a few lines of text, which say if the file of a match is missing."""
    if isinstance(answer, Unreadable):
        return f"{printable(answer.photo)}\n  error: {answer.error}"
    lines = [printable(answer.photo), f"  {answer.headline}"]
    place = answer if answer.guess is None else answer.guess
    if place.latitude is not None and place.longitude is not None:
        radius = "" if place is answer or place.radius_m is None else f", if right within {place.radius_m:.0f} m"
        lines.append(f"  {place.latitude:.6f}, {place.longitude:.6f}{radius}")
        lines.append(f"  {map_url(place.latitude, place.longitude)}")
    lines += [f"  {'unknown: ' if answer.unknown else ''}{answer.reason}"] if answer.reason else []
    matches = answer.neighbours[:num_matches]
    lines += ["  matches, with their similarity:"] if matches else []
    for match in matches:
        missing = "  (missing)" if _is_missing(match.path) else ""
        lines.append(f"    {match.similarity:.3f}  {_where(match)}  {printable(match.path)}{missing}")
    return "\n".join(lines)


def _is_missing(path: str) -> bool:
    """Whether there is no file at a stored path."""
    try:
        return "://" not in path and not path_from_text(path).exists()
    except OSError:  # a folder that may not be read
        return False


def _where(match: Match) -> str:
    """Where a match was taken: its distance from the answer or the guess, else its position."""
    if match.latitude is None or match.longitude is None:
        return "no position"
    if match.distance_m is None:
        return f"{match.latitude:.6f}, {match.longitude:.6f}"
    return f"{match.distance_m:7.1f} m away"
