"""Positions in coordinate systems and UTM zones, as latitudes and longitudes.  Pure."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.errors import ConfigError, DatasetError
from cosplace.geo import compute, utm_to_latlon
from cosplace.importing.columns import texts
from cosplace.importing.records import Problem
from cosplace.photos.tables import UNKNOWN

BANDS = "CDEFGHJKLMNPQRSTUVWX"  # latitude bands of UTM, 8 degrees each, from 80 degrees south
MARGIN_DEG = 1.0  # surveys extend beyond the area of a coordinate system


def parse_crs(crs: Any) -> tuple[Any, Any]:
    """A coordinate system, and the transformer from it to WGS 84, with x first (pyproj).

    Raises ConfigError for what is not a coordinate system.
    """
    from pyproj import CRS, Transformer
    from pyproj.exceptions import CRSError, ProjError

    try:
        system = CRS.from_user_input(crs)
        return system, Transformer.from_crs(system, 4326, always_xy=True)
    except (CRSError, ProjError, TypeError, ValueError, AttributeError, KeyError) as error:  # odd metadata of a file
        raise ConfigError(
            f"--crs: {short_name(crs)} is not a known coordinate system. Use a code such as EPSG:25832."
        ) from error


def to_degrees(x: np.ndarray, y: np.ndarray, crs: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latitudes, longitudes (WGS 84), and whether they are in the area of use, of positions in a coordinate system.

    x: eastings or longitudes, y: northings or latitudes, whatever the order of the axes.  nan where undefined.
    Raises ConfigError for what is not a coordinate system of positions on the ground.
    """
    system, transformer = parse_crs(crs)
    if not (system.is_projected or system.is_geographic):
        raise ConfigError(f"--crs: {short_name(crs)} ({system.name}) has no positions on the ground. Use another code.")
    longitudes, latitudes = compute(transformer.transform, x, y)
    longitudes = (longitudes + 180) % 360 - 180 if system.is_geographic and np.nanmax(np.abs(x)) > 180 else longitudes
    is_finite = np.isfinite(longitudes) & np.isfinite(latitudes)
    latitudes, longitudes = np.where(is_finite, latitudes, UNKNOWN), np.where(is_finite, longitudes, UNKNOWN)
    return latitudes, longitudes, is_finite & is_inside(system, latitudes, longitudes)


def is_inside(system: Any, latitudes: np.ndarray, longitudes: np.ndarray) -> np.ndarray:
    """Which positions (N,), in degrees, are in the area of use of a coordinate system (pyproj); all without an area."""
    if (area := system.area_of_use) is None:
        return np.ones(len(latitudes), bool)
    width = ((area.east - area.west) % 360 or 360.0) + 2 * MARGIN_DEG
    fits = (latitudes >= area.south - MARGIN_DEG) & (latitudes <= area.north + MARGIN_DEG)
    return fits & (((longitudes - area.west + MARGIN_DEG) % 360 <= width) | (width >= 360))


def short_name(crs: Any) -> str:
    """A coordinate system in a few words."""
    text = str(crs.get("name", "the file's")) if isinstance(crs, dict) else str(crs)
    return text if len(text) <= 60 else f"{text[:60]}…"


def from_zones(
    path: Path, x: np.ndarray, y: np.ndarray, raw: dict[str, list[Any]]
) -> tuple[np.ndarray, np.ndarray, list[Problem]]:
    """Latitudes and longitudes of eastings and northings with a column of UTM zones; and rows that are unclear.

    Letters are latitude bands: S is 32 to 40 degrees north.  Where the position is elsewhere, S may mean south, so that
    it is unknown, as in '@' names.
    """
    if "zone_letter" not in raw and not any(re.search("[A-Za-z]", str(zone)) for zone in raw["zone"]):
        raise DatasetError(
            f"{path} has UTM zones without letters, so north and south of the equator cannot be distinguished. Add a "
            f"column 'letter' with latitude bands (N to X are north). If all rows are in one zone, use --crs, for "
            f"example EPSG:32610 for 10 north or EPSG:32710 for 10 south."
        )
    letters = raw.get("zone_letter") or [""] * len(x)
    latitudes, longitudes, problems = np.full(len(x), UNKNOWN), np.full(len(x), UNKNOWN), []
    for row, (zone, letter) in enumerate(zip(texts(raw["zone"]), texts(letters), strict=True)):
        match = re.fullmatch(r"(\d{1,2})([C-X]?)", f"{zone}{letter}".upper().replace(" ", ""))
        if math.isnan(x[row]) or math.isnan(y[row]):
            continue
        if match and match[2] in BANDS and match[2] and 1 <= int(match[1]) <= 60:
            found = utm_to_latlon(x[row : row + 1], y[row : row + 1], int(match[1]), match[2])
            latitude, south = float(found[0][0]), 8 * BANDS.index(match[2]) - 80
            is_north = match[2] == "N" and latitude >= 0  # N for north is right in any band
            if is_north or south - 1 <= latitude <= south + (13 if match[2] == "X" else 9):
                latitudes[row], longitudes[row] = latitude, found[1][0]
                continue
        reason = f"its UTM zone '{zone}{letter}' does not fit its position, which is unknown"
        problems.append(Problem(name=f"{path} row {row + 1}", reason=reason, is_left_out=False))
    return latitudes, longitudes, problems


def refuse_other_zones(path: Path, zones: Sequence[Any], system: Any) -> None:
    """Raise DatasetError for rows of another UTM zone than that of a coordinate system."""
    from pyproj import CRS

    own = re.match(r"\d+", CRS.from_user_input(system).utm_zone or "")
    if not own:  # zones of another system
        return
    found = {match[0].lstrip("0") for zone in texts(zones) if (match := re.match(r"\d+", zone))}
    if others := found - {own[0].lstrip("0")}:
        raise DatasetError(
            f"{path} has rows in UTM zone {', '.join(sorted(others)[:5])}, but {short_name(system)} is another system. "
            f"Omit --crs, so that the zone of each row is used; this needs a column 'letter'."
        )
