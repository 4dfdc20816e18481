"""STAC items of Panoramax (GeoVisio): photos as GeoJSON features, in files next to the photos.

Collections are sequences.  Assets at addresses are not downloaded.  Side effects: reads files.
"""

import math
import os
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from cosplace.config.importing import ImportSettings
from cosplace.errors import DatasetError, one_line
from cosplace.geo import wrap_heading
from cosplace.importing.photo_references import (
    NOT_FOUND,
    find_reference,
    json_head,
    number,
    read_json,
    source_folders,
    text,
)
from cosplace.importing.records import Entry, FoundPhoto, Problem
from cosplace.importing.tracks import UNKNOWN
from cosplace.photos.exif import checked_position
from cosplace.photos.formats import SUFFIXES, suffix_of
from cosplace.photos.tables import PhotoRecord, known_time
from cosplace.progress import format_count

JSON_SUFFIXES = (".json", ".geojson")
PREFERRED_ASSETS = ("hd", "visual", "data", "sd")  # large ones first; thumbnails are not used
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
MAX_LISTED = 20  # files of a folder that are opened to find out what it is
HEADING_SOURCE = "table"
Item = dict[str, Any]


def detects(path: Path) -> bool:
    """Whether a path is a STAC item or a page of items, or a folder with some in it."""
    if path.is_dir():
        return any(_is_stac(file) for file in _json_files(path)[:MAX_LISTED])
    return _is_stac(path)


def _is_stac(path: Path) -> bool:
    head = json_head(path)
    return head[:1] == b"{" and b'"Feature' in head and (b'"assets"' in head or b'"stac_version"' in head)


def _json_files(folder: Path) -> list[Path]:
    """JSON files directly in a folder that are not hidden."""
    try:
        with os.scandir(folder) as entries:  # which may be those of a hundred thousand photos
            names = sorted(entry.name for entry in entries if Path(entry.name).suffix.lower() in JSON_SUFFIXES)
    except OSError:
        return []
    return [folder / name for name in names if not name.startswith(".")]


def read(path: Path, settings: ImportSettings) -> Iterator[Entry]:
    """The photos of all items of a file, or of the files of a folder."""
    files = [file for file in _json_files(path) if _is_stac(file)] if path.is_dir() else [path]
    items = [(file, item) for file in files for item in _items(file)]
    azimuths = {_azimuth(item) for _, item in items}
    use_headings = len(items) < 2 or azimuths != {0.0}  # 0 on every photo is a placeholder
    seen: set[Path] = set()
    for file, item in items:
        yield from _photo(item, file, source_folders(file, settings), use_headings, seen)
    if path.is_dir() and (num_unnamed := _num_photos(path) - len(seen)) > 0:
        yield Problem(name=str(path), reason=f"left out {format_count(num_unnamed, 'photo')} that no item names")
    if not use_headings:
        yield Problem(name=str(path), reason="every view:azimuth is 0, so headings count as unknown", is_left_out=False)


def _num_photos(folder: Path) -> int:
    """Number of files below a folder that have the suffix of a photo."""
    return sum(suffix_of(os.fsencode(name)) in SUFFIXES for _, _, names in os.walk(folder) for name in names)


def _items(path: Path) -> list[Item]:
    content = read_json(path)
    if isinstance(content, dict) and content.get("type") == "Feature":
        return [content]
    features = content.get("features") if isinstance(content, dict) else None
    if not isinstance(features, list):
        raise DatasetError(f"{path} is not a STAC item or a collection of items. Download the items as GeoJSON.")
    return [item for item in features if isinstance(item, dict)]


def _photo(item: Item, file: Path, folders: Sequence[Path], use_headings: bool, seen: set[Path]) -> Iterator[Entry]:
    name = f"{file}: {text(item.get('id')) or 'item without id'}"
    hrefs = _hrefs(item)
    local = [href for href in hrefs if not ADDRESS.match(href)]
    if not local:
        reason = f"its photo is at {hrefs[0]}; photos are not downloaded" if hrefs else "has no asset with a photo"
        yield Problem(name=name, reason=reason)
        return
    for href in local:
        photo, relative = find_reference(unquote(href), folders)
        if photo is not None:
            break
    else:
        yield Problem(name=name, reason=f"{local[0]} {NOT_FOUND}")
        return
    if photo in seen:
        yield Problem(name=name, reason=f"{relative} belongs to an earlier item")
        return
    seen.add(photo)
    record = _record(item, f"photos/{relative}", use_headings)
    if math.isnan(record.latitude):
        yield Problem(name=name, reason="its geometry is not a point", is_left_out=False)
    if math.isnan(record.time) and (time := text(_mapping(item.get("properties")).get("datetime"))):
        reason = f"its datetime '{one_line(time)[:60]}' is not a time in the years 1 to 9999, so its time is unknown"
        yield Problem(name=name, reason=reason, is_left_out=False)
    yield FoundPhoto(file=photo, record=record)


def _record(item: Item, path: str, use_headings: bool) -> PhotoRecord:
    properties = _mapping(item.get("properties"))
    camera = _mapping(properties.get("pers:interior_orientation"))
    geometry = _mapping(item.get("geometry"))
    coordinates = geometry.get("coordinates") if geometry.get("type") == "Point" else None
    longitude, latitude, altitude_m = [*map(number, coordinates if isinstance(coordinates, list) else ()),
                                       *[UNKNOWN] * 3][:3]  # fmt: skip
    latitude, longitude = checked_position(latitude, longitude)
    heading = _azimuth(item) if use_headings else UNKNOWN
    accuracy_m = number(properties.get("quality:horizontal_accuracy"))
    field_of_view = number(camera.get("field_of_view"))
    return PhotoRecord(
        path=path,
        latitude=latitude,
        longitude=longitude,
        altitude_m=altitude_m,
        accuracy_m=accuracy_m if accuracy_m > 0 else UNKNOWN,
        heading=heading,
        heading_source="" if math.isnan(heading) else HEADING_SOURCE,
        pitch=number(properties.get("pers:pitch")),
        roll=number(properties.get("pers:roll")),
        field_of_view=field_of_view if 0 < field_of_view <= 360 else UNKNOWN,
        time=_time(text(properties.get("datetime"))),
        sequence=text(item.get("collection")) or text(properties.get("collection")),
        camera=f"{text(camera.get('camera_manufacturer'))} {text(camera.get('camera_model'))}".strip(),
        projection="equirectangular" if field_of_view == 360 else "",
    )


def _azimuth(item: Item) -> float:
    """Degrees clockwise from true north of the center of the image."""
    return wrap_heading(number(_mapping(item.get("properties")).get("view:azimuth")))


def _hrefs(item: Item) -> list[str]:
    """Where the photo of an item is, the best copy first."""
    assets = {key: _mapping(asset) for key, asset in _mapping(item.get("assets")).items()}

    def is_photo(key: str, asset: Item) -> bool:
        roles = asset.get("roles")
        kind = text(asset.get("type"))
        return key != "thumb" and not (isinstance(roles, list) and "thumbnail" in roles) and (
            not kind or kind.startswith("image/"))  # fmt: skip

    keys = [key for key, asset in assets.items() if is_photo(key, asset)]
    keys.sort(key=lambda key: PREFERRED_ASSETS.index(key) if key in PREFERRED_ASSETS else len(PREFERRED_ASSETS))
    return [href for key in keys if (href := text(assets[key].get("href")))]


def _mapping(value: Any) -> Item:
    return value if isinstance(value, dict) else {}


def _time(value: str) -> float:
    """Seconds since 1970 of an RFC 3339 time; nan for anything else, and outside of the years 1 to 9999 (UTC)."""
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return UNKNOWN
    return known_time((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
