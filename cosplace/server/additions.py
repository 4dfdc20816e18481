"""An upload becomes a photo of the index: its place, its key, its small picture."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fastapi import HTTPException
from torch import Tensor

from cosplace.errors import ImageError
from cosplace.index.photo_index import PhotoIndex
from cosplace.index.records import NewPhoto
from cosplace.localization.localizer import Localizer
from cosplace.photos.metadata import make_thumbnail, photo_key, read_metadata
from cosplace.photos.opening import open_photo_bytes
from cosplace.server.batching import shrink
from cosplace.server.parameters import parse_number
from cosplace.server.settings import ServerSettings
from cosplace.server.uploads import Upload

SOURCE = "upload"
FIELDS: Mapping[str, str] = {
    "latitude": "degrees, of all photos of the form; without it what each photo's EXIF data or its '@' name say counts",
    "longitude": "degrees",
    "heading": "degrees clockwise from north, 0 to 360",
}
RANGES = {"latitude": (-90.0, 90.0), "longitude": (-180.0, 180.0), "heading": (0.0, 360.0)}


def join_photo(
    upload: Upload, fields: Mapping[str, str], settings: ServerSettings, localizer: Localizer, index: PhotoIndex
) -> tuple[NewPhoto, Tensor]:
    """A new photo, and its pixels (3, H, W) uint8 for the network.

    Raises ImageError for what is no photo or has no position, HTTPException 422 for fields that are no numbers.
    """
    place = _form_place(fields)
    pixels = open_photo_bytes(upload.raw, upload.name, max_pixels=settings.max_pixels)
    facts = replace(read_metadata(Path(upload.name), upload.raw), **place)
    if not facts.has_position:
        raise ImageError(f"{upload.name} has no position in its EXIF data: send latitude and longitude with it.")
    photo = NewPhoto(
        # Different photos must differ by path, and phones call many photos the same.
        path=f"{SOURCE}:{hashlib.sha256(upload.raw).hexdigest()[:12]}/{upload.name}",
        key=photo_key(upload.raw, facts),  # as of a file: the same photo from a folder is the same photo
        latitude=facts.latitude,
        longitude=facts.longitude,
        heading=facts.heading,
        time=facts.time,
        source=SOURCE,
        thumbnail=make_thumbnail(upload.raw, index.settings.thumbnail_size),
    )
    return photo, shrink(pixels, upload.name, settings, localizer.encoder.image_size)


def _form_place(fields: Mapping[str, str]) -> dict[str, float]:
    """Latitude, longitude, heading where the form gives them."""
    place = {name: parse_number(name, fields[name], *RANGES[name]) for name in FIELDS if fields.get(name, "").strip()}
    if ("latitude" in place) != ("longitude" in place):
        raise HTTPException(422, "The form holds only one of latitude and longitude: send both.")
    return place
