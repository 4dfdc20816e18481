"""The '@' file names of photos: the numbers of a whole list at once, or the fields of one name.

A name reads `@utm_east@utm_north@zone@letter@lat@lon@pano_id@tile@heading@pitch@roll@height@timestamp@note@.jpg`, as in
SF-XL and the other datasets of the field.  Fields are counted by splitting the *file name*, not the path, on '@'.

East and north of 0, 0 mean that the position is unknown, unless the name has a latitude and longitude.  The letter is
that of a UTM latitude band (C to M are south of the equator), so the sign of the latitude, where the name has one,
decides the hemisphere.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cosplace.errors import DatasetError, one_line
from cosplace.photos.image_list import ImageList, evenly_spaced
from cosplace.photos.name_bytes import (
    FIELDS,
    is_position,
    name_chunks,
    optional_numbers,
    parse_number,
    parse_numbers,
    zones_in_names,
)

EAST_NORTH = ("utm_east", "utm_north")
MAX_CONTRADICTION_M = 50.0  # between the UTM fields of a name and its latitude and longitude
MIN_IN_A_METER = 5  # different positions per meter, on average, from which on they are probably degrees
BAND_S = (31.5, 40.5)  # degrees north: 32 to 40, and half a degree for positions at its border
NO_ZONE = "it has no UTM zone, but the other photos are in several"
NAMES_COMPARED = 10_000  # at most, when a list is checked for contradictions
NUMBER_FIELD = re.compile(r"[-+]?[.,]?\d[\d.,]*(?:e[-+]?\d+)?", re.IGNORECASE)
_HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def format_image_name(
    *,
    utm_east: float,
    utm_north: float,
    zone: int,
    letter: str,
    latitude: float,
    longitude: float,
    pano_id: str = "",
    heading: int | str = "",
    timestamp: str = "",
    note: str = "",
    suffix: str = ".jpg",
) -> str:
    """The '@' name of a photo, with the widths of SF-XL (heading unpadded)."""
    return (
        f"@{utm_east:010.2f}@{utm_north:010.2f}@{zone:02d}@{letter}@{latitude:09.5f}@{longitude:010.5f}"
        f"@{pano_id}@@{heading}@@@@{timestamp}@{note}@{suffix}"
    )


def split_name(path: str) -> dict[str, str]:
    """Text of each field in the '@' name of one photo, by the keys of FIELDS, without fields that the name lacks.

    The last field of a short name contains the suffix: "@1@2.jpg" gives {"utm_east": "1", "utm_north": "2.jpg"}.
    """
    texts = path.rpartition("/")[2].split("@")[1:]
    return dict(zip(FIELDS, texts, strict=False))


def is_at_name(path: str) -> bool:
    """Whether a photo has an '@' name: at least two fields are numbers, also wrong ones such as 0549850,07.

    A name that only starts with an '@', such as @anna_2020.jpg, is not one.
    """
    texts = os.path.splitext(path.rpartition("/")[2])[0].split("@")[1:]  # noqa: PTH122 - much faster than pathlib
    return sum(NUMBER_FIELD.fullmatch(text.strip()) is not None for text in texts) >= 2


# --- numbers of whole lists ------------------------------------------------------------------------------------------


def parse_fields(
    images: ImageList, fields: Sequence[str], *, with_zone: bool = False
) -> Iterator[tuple[slice, np.ndarray]]:
    """Parse numbers in the names of a list; yield (rows, values (len(fields), rows) float64), chunk by chunk.

    fields: keys of FIELDS.  Values equal Python's float() of the text, bit for bit.
    with_zone: add one row, the zone as in `UtmPositions.zones`.  If east and north are the first two fields, those that
    are 0, 0 are then replaced by the position of the latitude and longitude (`fill_from_degrees`).
    Raises DatasetError that names the first photo and field without a number.
    """
    last_field = max([FIELDS[field] for field in fields] + [FIELDS["longitude"]] * with_zone)
    for chunk in name_chunks(images, last_field):
        values = np.empty((len(fields) + with_zone, len(chunk.rows)))
        for index, field in enumerate(fields):
            begin, end, in_name = chunk.field(field)
            numbers = parse_numbers(chunk.text, begin, end) if in_name.all() else None
            # Python accepts some numbers that Arrow does not (1_0), and finds the name that is wrong.
            values[index] = [_number_in_name(images, row, field) for row in chunk.rows] if numbers is None else numbers
        if with_zone:
            values[-1] = 0 if images.map_center else zones_in_names(chunk)
            if tuple(fields[:2]) == EAST_NORTH and images.labels is None and _are_zero(values).any():
                begin, end, in_name = chunk.field("zone")
                zones = np.where(in_name & (end > begin), values[-1], 0)
                degrees = (optional_numbers(chunk, field) for field in ("latitude", "longitude"))
                fill_from_degrees(values[:2], zones, *degrees)
        yield slice(chunk.rows.start, chunk.rows.stop), values


def _are_zero(east_north: np.ndarray) -> np.ndarray:
    """Which positions (2, n) are 0, 0."""
    return (east_north[0] == 0) & (east_north[1] == 0)


def fill_from_degrees(east_north: np.ndarray, zones: np.ndarray, latitudes: np.ndarray, longitudes: np.ndarray) -> None:
    """Replace positions (2, n) that are 0, 0 by those of latitude and longitude, where these are known.

    zones: (n,), the zone field of each name; 0 if it has none, as on a local map.  Positions are computed in that zone,
    and stay unknown if they are farther from it than the next one.
    """
    from cosplace.geo import utm_from_latlon, utm_zones  # imports pyproj

    lost = _are_zero(east_north) & (zones != 0) & is_position(latitudes, longitudes)
    own = np.abs(utm_zones(latitudes, longitudes).astype(np.int64))
    lost &= np.abs((np.abs(zones) - own + 30) % 60 - 30) <= 1
    for zone in np.unique(zones[lost]).astype(np.int64).tolist():
        rows = np.flatnonzero(lost & (zones == zone))
        east_north[:, rows] = utm_from_latlon(latitudes[rows], longitudes[rows], abs(zone), south=zone < 0).T


def optional_fields(images: ImageList, fields: Sequence[str]) -> np.ndarray:
    """Numbers in the names of a list, (len(fields), I) float64; nan where a name has no such number."""
    values = np.full((len(fields), len(images)), np.nan)
    for chunk in name_chunks(images, max(FIELDS[field] for field in fields)):
        for index, field in enumerate(fields):
            values[index, chunk.rows.start : chunk.rows.stop] = optional_numbers(chunk, field)
    return values


def text_keys(images: ImageList, field: str) -> np.ndarray:
    """A number for the text of one field of each name, (I,) uint64: equal texts have equal numbers.

    Different texts have different numbers, except with a probability of about 1 in 2**64.
    """
    keys = [np.zeros(0, np.uint64)]
    for chunk in name_chunks(images, FIELDS[field]):
        begin, end, in_name = chunk.field(field)
        width = np.where(in_name, end - begin, 0)
        found = np.zeros(len(chunk.rows), np.uint64)
        for place in range(int(width.max(initial=0))):
            inside = np.flatnonzero(width > place)
            found[inside] = (found[inside] + chunk.text[begin[inside] + place] + np.uint64(1)) * _HASH_FACTOR
            found[inside] ^= found[inside] >> np.uint64(32)
        keys.append(found)
    return np.concatenate(keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class UtmPositions:
    """The UTM fields of the names of a list."""

    east_north: np.ndarray  # (I, 2) float64, meters
    # (I,) int8: 1 … 60 north of the equator, -1 … -60 south of it; 0 for a name without zone and longitude, and for a
    # position on a local map
    zones: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """Which positions are known, (I,) bool: not 0, 0."""
        return (self.east_north[:, 0] != 0) | (self.east_north[:, 1] != 0)


def utm_fields(images: ImageList) -> UtmPositions:
    """UTM positions and zones of a list.  Raises DatasetError for a name without east and north."""
    east_north, zones = np.empty((len(images), 2)), np.empty(len(images), np.int8)
    for rows, values in parse_fields(images, EAST_NORTH, with_zone=True):
        east_north[rows], zones[rows] = values[:2].T, values[2]
    return UtmPositions(east_north=east_north, zones=zones)


def zones_of(images: ImageList) -> np.ndarray:
    """Zones of a list, (I,) int8, as in `UtmPositions.zones`."""
    if images.map_center:
        return np.zeros(len(images), np.int8)
    zones = [zones_in_names(chunk) for chunk in name_chunks(images, FIELDS["longitude"])]
    return np.concatenate([np.zeros(0, np.int8), *zones])


def has_zone(images: ImageList) -> np.ndarray:
    """Which names have a zone field, (I,) bool."""
    found = [np.zeros(0, bool)]
    for chunk in name_chunks(images, FIELDS["zone"]):
        begin, end, in_name = chunk.field("zone")
        found.append(in_name & (end > begin))
    return np.concatenate(found)


def may_be_south(images: ImageList, own_zones: np.ndarray, zones: Sequence[int]) -> np.ndarray:
    """Photos taken as north of the equator only because their name has neither letter nor latitude, (I,) bool.

    Only where others are south of it in the same zone.  own_zones (I,): of these photos, as in `UtmPositions.zones`;
    zones: of all photos that are compared.
    """
    found = np.isin(own_zones, [zone for zone in zones if zone > 0 and -zone in zones])
    return found & lack_hemisphere(images) if found.any() else found


def lack_hemisphere(images: ImageList) -> np.ndarray:
    """Names without latitude, and without zone or letter: an index takes their position as unknown; (I,) bool."""
    found = np.empty(len(images), bool)
    for chunk in name_chunks(images, FIELDS["latitude"]):
        has_zone, has_letter, has_latitude = (
            in_name & (end > begin) for begin, end, in_name in map(chunk.field, ("zone", "letter", "latitude"))
        )
        found[chunk.rows.start : chunk.rows.stop] = ~(has_latitude | (has_zone & has_letter))
    return found


def check_hemispheres(images: ImageList, own_zones: np.ndarray, zones: Sequence[int]) -> None:
    """Raise DatasetError for a photo that may be on either side of the equator; see `may_be_south`."""
    if (unclear := may_be_south(images, own_zones, zones)).any():
        problem = "its zone has no letter, and other photos in that zone are south of the equator"
        raise zone_error(images, int(unclear.argmax()), problem)


def look_like_degrees(utm: UtmPositions) -> bool:
    """Whether east and north are probably degrees: without a zone, small, and many of them within each meter."""
    positions = utm.east_north[~np.isnan(utm.east_north[:, 0])]
    if utm.zones.any() or not len(positions) or (np.abs(positions) > (180, 180)).any():
        return False
    num_different, num_rounded = (len(np.unique(each, axis=0)) for each in (positions, np.round(positions)))
    return num_different >= MIN_IN_A_METER * num_rounded


def different_zones(*zones: np.ndarray) -> list[int]:
    """The zones of lists of photos, sorted; names without a zone are assumed to be in the zone of the others."""
    return sorted(set().union(*(np.unique(part).tolist() for part in zones)) - {0})


# --- positions on Earth ----------------------------------------------------------------------------------------------


def earth_positions(images: ImageList, utm: UtmPositions) -> np.ndarray:
    """Earth-centered points of the photos of a list, (I, 3) float64 in meters, to compare photos of different zones.

    They are computed from the UTM fields, which are written to the centimeter; but from latitude and longitude where
    the two differ by more than MAX_CONTRADICTION_M, and where the name has no zone.
    Raises DatasetError for a photo that has neither a zone nor a latitude and longitude.
    """
    from_utm, from_latlon = utm_points(utm), _latlon_points(images)
    ambiguous = hemisphere_is_ambiguous(images, from_utm)
    from_utm[ambiguous] = np.nan
    differ = np.linalg.norm(from_utm - from_latlon, axis=1) > MAX_CONTRADICTION_M  # false for nan
    points = np.where((differ | np.isnan(from_utm[:, 0]))[:, None], from_latlon, from_utm)
    if (lost := np.isnan(points[:, 0])).any():
        row = int(lost.argmax())
        problem = (
            "its letter S may be the band of 32° to 40° north or mean the southern hemisphere"
            if ambiguous[row]
            else "its coordinates are not on Earth"
            if utm.zones[row]
            else NO_ZONE
        )
        raise zone_error(images, row, problem)
    return points


def zone_error(images: ImageList, row: int, problem: str = NO_ZONE) -> DatasetError:
    """The error of a photo whose zone or hemisphere is unknown."""
    return DatasetError(
        f"{images.path(row)}: {problem}. Correct fields {FIELDS['zone']} and {FIELDS['letter']} of the file name "
        f"(zone, letter), or add latitude and longitude as fields {FIELDS['latitude']} and {FIELDS['longitude']}."
    )


def hemisphere_is_ambiguous(images: ImageList, from_utm: np.ndarray) -> np.ndarray:
    """Names with the letter S whose position, taken as north of the equator, is not in band S; (I,) bool.

    Some people write S for the southern hemisphere.  In a name with a latitude, the letter is not used.
    """
    from cosplace.geo import lla_from_ecef

    found = np.zeros(len(images), bool)
    for chunk in name_chunks(images, FIELDS["latitude"]):
        text, last = chunk.text, len(chunk.text) - 1
        begin, end, in_name = chunk.field("letter")
        is_s = in_name & (end > begin) & np.isin(text[np.minimum(begin, last)], (ord("S"), ord("s")))
        begin, end, in_name = chunk.field("latitude")
        found[chunk.rows.start : chunk.rows.stop] = is_s & ~(in_name & (end > begin))
    rows = np.flatnonzero(found & ~np.isnan(from_utm[:, 0]))
    latitudes, _ = lla_from_ecef(from_utm[rows])
    found[:] = False
    found[rows[(latitudes < BAND_S[0]) | (latitudes > BAND_S[1])]] = True
    return found


def contradictions_m(images: ImageList, utm: UtmPositions) -> np.ndarray:
    """Distances between the UTM fields of names and their latitude and longitude, (I,) float64 in meters.

    nan where a name lacks one of them, or the zone: its east and north may then be those of a local map.
    """
    meters = np.linalg.norm(utm_points(utm) - _latlon_points(images), axis=1)
    return np.where(has_zone(images), meters, np.nan)


def contradiction_warning(images: ImageList) -> str:
    """Describe in a sentence how many names contradict themselves, with the first example; empty if none does.

    A long list is checked by an even sample of NAMES_COMPARED names.  Labels never contradict themselves.
    Raises DatasetError for a name without east and north.
    """
    if images.labels is not None:
        return ""
    sample = images if len(images) <= NAMES_COMPARED else images.subset(evenly_spaced(images, NAMES_COMPARED))
    if np.isnan(optional_fields(sample, ("latitude", "longitude"))).any(axis=0).all():
        return ""
    meters = contradictions_m(sample, utm_fields(sample))
    wrong = np.flatnonzero(meters > MAX_CONTRADICTION_M)
    if not len(wrong):
        return ""
    row = int(wrong[0])
    return one_line(
        f"{images.folder}: in {len(wrong):,} of {len(sample):,} file names{'' if sample is images else ' compared'}, "
        f"the UTM fields and the latitude and longitude are more than {MAX_CONTRADICTION_M:g} m apart, for example "
        f"{np.ceil(meters[row]):,.0f} m in {sample.name(row)}. Correct the names: `cosplace validate` lists them."
    )


def unknown_positions_warning(images: ImageList, rows: np.ndarray) -> str:
    """Say that the photos of some rows are left out because their position is unknown."""
    return one_line(
        f"{images.folder}: {len(rows):,} of {len(images):,} photos are left out, for example "
        f"{images.name(int(rows[0]))}: their {unknown_position(images)}."
    )


def unknown_position(images: ImageList) -> str:
    """How a list says that the position of a photo is unknown."""
    return "position is 0, 0, which means unknown" if images.labels is None else "position is unknown"


def all_positions_unknown(images: ImageList) -> str:
    """Say that no position of a list is known, and what to do."""
    if images.labels is None:
        return "all positions are 0, 0, which means unknown. Correct the file names."
    return "all positions are unknown. Add them with `cosplace import PHOTOS TABLE --to DATASET`."


def without_rows(images: ImageList, rows: np.ndarray) -> ImageList:
    """A list without the photos of some rows."""
    keep = np.ones(len(images.names), bool)
    for row in rows.tolist():
        keep[images.starts[row] : images.starts[row + 1]] = False
    lengths = np.delete(np.diff(images.starts), rows)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    labels = None if images.labels is None else without_rows(images.labels, rows)
    return replace(images, names=images.text(0, len(images.names))[keep], starts=starts, list_file=None, labels=labels)


def utm_points(utm: UtmPositions) -> np.ndarray:
    """Earth-centered points of UTM positions, (I, 3) float64 in meters; nan without zone or position."""
    from cosplace.geo import ecef_from_lla, utm_to_latlon  # imports pyproj, which most commands do not need

    points = np.full((len(utm.zones), 3), np.nan)
    for zone in different_zones(utm.zones):
        rows = np.flatnonzero((utm.zones == zone) & utm.known)
        east, north = utm.east_north[rows].T
        points[rows] = ecef_from_lla(*utm_to_latlon(east, north, abs(zone), "N" if zone > 0 else "M"))
    return points


def _latlon_points(images: ImageList) -> np.ndarray:
    from cosplace.geo import ecef_from_lla  # imports pyproj

    latitudes, longitudes = optional_fields(images, ("latitude", "longitude"))
    valid = is_position(latitudes, longitudes)
    points = np.full((len(images), 3), np.nan)
    points[valid] = ecef_from_lla(latitudes[valid], longitudes[valid])
    return points


def _number_in_name(images: ImageList, row: int, field: str) -> float:
    """One number by Python's float().  Raises DatasetError."""
    name = images.label(row)
    ends_in_name = name.rpartition("/")[2].count("@") > FIELDS[field]
    text = split_name(name)[field] if ends_in_name else ""
    if np.isfinite(value := parse_number(os.fsencode(text))):
        return value
    if images.labels is not None:
        what = "heading" if field == "heading" else "position" if field in ("utm_east", "utm_north") else field
        advice = " Use --alpha 360 to train without headings." if field == "heading" else ""
        raise DatasetError(f"{images.path(row)}: its {what} is unknown.{advice}")
    problem = f"is '{text}', not a number" if text else "is missing"
    num = int(np.isnan(optional_fields(images, (field,))).sum())
    problem += f", as in {num:,} of {len(images):,} photos" if num > 1 else ""
    use = " CosPlace classes need it." if field == "heading" else ""
    advice = "Rename the photo: @utm_east@utm_north@zone@letter@lat@lon@pano_id@tile@heading@...@.jpg"
    if field == "heading":
        advice += ", or use --alpha 360 to train without headings."
    has_degrees = np.isfinite(optional_fields(images, ("latitude", "longitude"))[:, row]).all()
    if field in ("utm_east", "utm_north") and has_degrees:
        advice = "Use `cosplace import`, which computes it from the latitude and longitude in the name."
    raise DatasetError(f"{images.path(row)}: field {FIELDS[field]} of the file name ({field}) {problem}.{use} {advice}")
