"""Compare an answer with the position that the camera stored in the photo (EXIF).  Pure."""

import math
from typing import Any

from cosplace.localization.answers import Location
from cosplace.localization.localizer import distance_to_m
from cosplace.photos.metadata import PhotoMetadata

AGREEMENT_M = 25.0  # an answer agrees with EXIF within this distance, its own radius, or the EXIF position error


def compare_with_exif(answer: Location, exif: PhotoMetadata) -> dict[str, Any] | None:
    """Return the EXIF position of a photo and its distance from the answer; None without a position."""
    if not exif.has_position:
        return None
    found: dict[str, Any] = {"latitude": round(exif.latitude, 7), "longitude": round(exif.longitude, 7)}
    if not math.isnan(exif.accuracy_m):
        found["accuracy_m"] = round(exif.accuracy_m, 1)
    distance_m = distance_to_m(answer, exif.latitude, exif.longitude)
    if distance_m is not None:
        agrees = distance_m <= max(AGREEMENT_M, answer.radius_m or 0.0, found.get("accuracy_m", 0.0))
        found |= {"distance_m": round(distance_m, 1), "agrees": agrees}
    return found
