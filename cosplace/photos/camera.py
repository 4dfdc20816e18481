"""What EXIF and XMP say about a camera: altitude, pitch, roll, field of view, projection, make and model.

Pure functions.  A value that is missing or impossible is unknown (nan).
GPano: https://developers.google.com/streetview/spherical-metadata.  35 mm equivalents are those of the diagonal (CIPA
DCG-001): a film image is 36 x 24 mm.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cosplace.geo import wrap_heading
from cosplace.photos.exif import UNKNOWN, PhotoTags, number_of, text_of
from cosplace.photos.panoramas import coverage_of, is_of_another_image, pose_heading
from cosplace.photos.xmp import CAMERA_NAMESPACE, DJI_NAMESPACE, EXIF_NAMESPACE, GPANO_NAMESPACE, contains, read_xmp

ALTITUDE_REF, ALTITUDE, MAKE, MODEL, FOCAL_LENGTH_35MM = 5, 6, 0x010F, 0x0110, 0xA405
FILM_DIAGONAL_MM = math.hypot(36, 24)
MAX_ALTITUDE_M = 100_000.0
MAX_FOCAL_LENGTH_MM = 10_000.0
MAX_SHIFT_DEGREES = 1.0  # of the center of a part of a panorama from the center of the whole
EQUIRECTANGULAR = "equirectangular"


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraFacts:
    """What is known of a camera and its pose, without position and compass; nan and "" where unknown."""

    altitude_m: float = UNKNOWN  # above sea level, as the camera estimates it
    pitch: float = UNKNOWN  # degrees, up is positive
    roll: float = UNKNOWN  # degrees, clockwise is positive
    field_of_view: float = UNKNOWN  # horizontal, degrees, of the upright photo
    camera: str = ""  # make and model
    projection: str = ""  # equirectangular, or ""
    heading: float = UNKNOWN  # degrees clockwise from true north of a panorama's center, or of a drone's camera
    states_heading: bool = False  # whether a panorama has a heading of its own, which counts more than that of EXIF


def camera_facts(tags: PhotoTags, width: int, height: int) -> CameraFacts:
    """Facts about the camera.  width, height: pixels of the upright photo."""
    facts: dict[str, Any] = {}
    for exif in reversed(tags.exif):  # the first block decides
        values: dict[str, Any] = {
            "altitude_m": _altitude_m(number_of(exif.gps.get(ALTITUDE)), _code(exif.gps.get(ALTITUDE_REF))),
            "field_of_view": _field_of_view(number_of(exif.taken.get(FOCAL_LENGTH_35MM)), width, height),
            "camera": _camera(text_of(exif.image.get(MAKE)), text_of(exif.image.get(MODEL))),
        }
        facts |= {name: value for name, value in values.items() if _is_known(value)}
    for packet in tags.packets:
        if any(contains(packet, word) for word in (GPANO_NAMESPACE, DJI_NAMESPACE, CAMERA_NAMESPACE, "GPSAltitude")):
            found = {
                name: value for name, value in _xmp_facts(read_xmp(packet), width, height).items() if _is_known(value)
            }
            if "projection" in found:
                facts.pop("field_of_view", None)  # that of the lens, not of the panorama
            facts = found | facts
    return CameraFacts(**facts)


def _is_known(value: float | str | bool) -> bool:
    return bool(value) if isinstance(value, str | bool) else not math.isnan(value)


def _altitude_m(altitude_m: float, reference: float) -> float:
    """Meters above sea level.  reference: 1 and 3 are below."""
    if not abs(altitude_m) <= MAX_ALTITUDE_M:
        return UNKNOWN
    return -abs(altitude_m) if reference in (1, 3) else altitude_m


def _code(value: Any) -> float:
    """A number that may be written as a byte or as text."""
    return (
        float(value[0])
        if isinstance(value, bytes) and len(value) == 1 and value < b" "
        else number_of(text_of(value) or value)
    )


def _field_of_view(focal_length_35mm: float, width: int, height: int) -> float:
    if not (0 < focal_length_35mm <= MAX_FOCAL_LENGTH_MM and width and height):
        return UNKNOWN
    width_mm = FILM_DIAGONAL_MM * width / math.hypot(width, height)
    return math.degrees(2 * math.atan(width_mm / (2 * focal_length_35mm)))


def _camera(make: str, model: str) -> str:
    return model if model.lower().startswith(make.lower()) else f"{make} {model}".strip()


# --- XMP -------------------------------------------------------------------------------------------------------------


def _xmp_facts(properties: Mapping[str, str], width: int, height: int) -> dict[str, Any]:
    """Facts of one packet, also unknown ones.  Those of a panorama that the photo was cut from later are not used."""

    def number(namespace: str, name: str) -> float:
        return number_of(properties.get(f"{{{namespace}}}{name}", ""))

    def angle(*values: float, limit: float = 180.0) -> float:
        return next((value for value in values if abs(value) <= limit), UNKNOWN)

    states_heading = not math.isnan(pose_heading(properties))
    is_panorama = _is_panorama(properties, width, height, states_heading=states_heading)
    altitude_m = _altitude_m(number(EXIF_NAMESPACE, "GPSAltitude"), number(EXIF_NAMESPACE, "GPSAltitudeRef"))
    if math.isnan(altitude_m):
        altitude_m = _altitude_m(number(DJI_NAMESPACE, "AbsoluteAltitude"), UNKNOWN)
    if is_panorama:
        pitch, roll = number(GPANO_NAMESPACE, "PosePitchDegrees"), number(GPANO_NAMESPACE, "PoseRollDegrees")
        heading = _panorama_heading(properties)
    else:
        pitch = angle(number(CAMERA_NAMESPACE, "Pitch"), number(DJI_NAMESPACE, "GimbalPitchDegree"))
        roll = angle(number(CAMERA_NAMESPACE, "Roll"), number(DJI_NAMESPACE, "GimbalRollDegree"))
        heading = angle(number(DJI_NAMESPACE, "GimbalYawDegree"), limit=360.0)
    return {
        "altitude_m": altitude_m,
        "pitch": angle(pitch),
        "roll": angle(roll),
        "field_of_view": _panorama_width(properties) if is_panorama else UNKNOWN,
        "projection": EQUIRECTANGULAR if is_panorama else "",
        "heading": wrap_heading(heading),
        "states_heading": is_panorama and states_heading,
    }


def _is_panorama(properties: Mapping[str, str], width: int, height: int, *, states_heading: bool) -> bool:
    """Whether a photo is an equirectangular panorama; without a stated projection, its shape decides."""
    if is_of_another_image(width, height, properties):
        return False
    if projection := properties.get(f"{{{GPANO_NAMESPACE}}}ProjectionType", "").lower():
        return projection == EQUIRECTANGULAR
    return states_heading and coverage_of(width, height, properties) is not None


def _panorama_heading(properties: Mapping[str, str]) -> float:
    """Heading of the center of a panorama; unknown if the photo is a part of it with another center."""
    left, width, full = _crop(properties)
    shift = ((left + width / 2) / full - 0.5) * 360
    return pose_heading(properties) if abs(shift) <= MAX_SHIFT_DEGREES else UNKNOWN


def _panorama_width(properties: Mapping[str, str]) -> float:
    """Degrees that an equirectangular photo covers horizontally; 360 unless it is a part of the panorama."""
    _, width, full = _crop(properties)
    return 360 * width / full


def _crop(properties: Mapping[str, str]) -> tuple[float, float, float]:
    """Left edge and width of the part that the photo shows, and width of the whole panorama, all in one unit."""
    left, width, full = (
        number_of(properties.get(f"{{{GPANO_NAMESPACE}}}{name}", ""))
        for name in ("CroppedAreaLeftPixels", "CroppedAreaImageWidthPixels", "FullPanoWidthPixels")
    )
    return (left, width, full) if 0 < width <= full and left >= 0 else (0.0, 1.0, 1.0)
