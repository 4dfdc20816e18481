"""Convert an upload to a new photo of the index: its position, key and thumbnail."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fastapi import HTTPException
from torch import Tensor

from cosplace.engines.encoder import Encoder
from cosplace.errors import ImageError
from cosplace.index.records import NewPhoto
from cosplace.localization.localizer import Localizer
from cosplace.photos.metadata import former_photo_key, photo_key, read_metadata
from cosplace.photos.opening import decode_upload
from cosplace.photos.resizing import resized_shape
from cosplace.photos.thumbnails import make_thumbnail
from cosplace.server.batching import DecodingMemory, decoding_cost, resize_photo
from cosplace.server.parameters import parse_number
from cosplace.server.settings import ServerSettings
from cosplace.server.uploads import Upload

SOURCE = "upload"
FIELDS: Mapping[str, str] = {
    "latitude": "degrees, for all photos of the form; by default from each photo's EXIF data or '@' name",
    "longitude": "degrees",
    "heading": "degrees clockwise from north, 0 to 360",
}
RANGES = {"latitude": (-90.0, 90.0), "longitude": (-180.0, 180.0), "heading": (0.0, 360.0)}


def read_new_photo(
    upload: Upload,
    fields: Mapping[str, str],
    settings: ServerSettings,
    localizer: Localizer,
    memory: DecodingMemory,
) -> tuple[NewPhoto, Tensor]:
    """Return a new photo, and its pixels (3, H, W) uint8 for the network.

    Raises ImageError for a damaged photo or one without a position, HTTPException 422 for an invalid form field.
    """
    form_values = _parse_fields(fields)
    if "latitude" in form_values:
        form_values["accuracy_m"] = math.nan  # that of the EXIF position
    with memory.reserve(decoding_cost(upload.raw, settings)):
        pixels = decode_upload(upload.raw, upload.name, max_pixels=settings.max_pixels)
        check_shape(pixels, upload.name, localizer.encoder)
        pixels = resize_photo(pixels, upload.name, settings, localizer.encoder.image_size)
        metadata = replace(read_metadata(Path(upload.name), upload.raw), **form_values)
        if not metadata.has_position:
            raise ImageError(f"{upload.name} has no position in its EXIF data. Send latitude and longitude with it.")
        thumbnail = make_thumbnail(upload.raw, localizer.index.settings.thumbnail_size)  # decodes the photo again
    photo = NewPhoto(
        # Phones give many photos the same name, and paths must differ.
        path=f"{SOURCE}:{hashlib.sha256(upload.raw).hexdigest()[:12]}/{upload.name}",
        key=photo_key(upload.raw, metadata),  # the same as for a file in a folder, so no photo is added twice
        former_key=former_photo_key(upload.raw, metadata),
        latitude=metadata.latitude,
        longitude=metadata.longitude,
        heading=metadata.heading,
        time=metadata.time,
        accuracy_m=metadata.accuracy_m,
        source=SOURCE,
        thumbnail=thumbnail,
    )
    return photo, pixels


def check_shape(pixels: Tensor, name: str, encoder: Encoder) -> None:
    """Raise ImageError if all photos of an index must have one size, for central_crop, and this one has another."""
    shape, found = encoder.views.query_shape, tuple(pixels.shape[1:])
    if encoder.image_size is not None:
        found = resized_shape(*found, encoder.image_size, name)
    if shape is not None and found != shape:
        raise ImageError(
            f"{name} has {found[1]} x {found[0]} pixels, but all photos of this index must have {shape[1]} x "
            f"{shape[0]}, for its query policy central_crop. Send a photo of that size."
        )


def _parse_fields(fields: Mapping[str, str]) -> dict[str, float]:
    """Return latitude, longitude and heading where the form has them."""
    values = {name: parse_number(name, fields[name], *RANGES[name]) for name in FIELDS if fields.get(name, "").strip()}
    if ("latitude" in values) != ("longitude" in values):
        raise HTTPException(422, "The form has only one of latitude and longitude. Send both.")
    if values.get("latitude") == values.get("longitude") == 0:
        raise HTTPException(
            422, "Latitude 0 and longitude 0 mean an unknown position. Send those of the photo, or none."
        )
    return values
