"""Under which conditions queries were taken: time of day, season, years, heading, camera, sequence.

Conditions come from the table of a dataset, or from the '@' names and labels of its photos.  Times are UTC; of a clock
without a time zone, which was taken as UTC, the time of day is unknown.
Side effects: `find_conditions` reads the table.  Legend: I photos, Q queries, R database images.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from cosplace.assessment.intervals import clustered_quantile, clustered_share, effective_clusters
from cosplace.assessment.measures import ConditionRow
from cosplace.photos.headings import known_headings
from cosplace.photos.image_list import ImageList
from cosplace.photos.names import optional_fields, utm_fields, utm_points
from cosplace.photos.table_lists import find_part
from cosplace.photos.tables import read_table
from cosplace.progress import format_count
from cosplace.retrieval.capture_times import capture_times, read_columns, table_rows
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.recall import QUERY_CHUNK, Positives

MIN_QUERIES = 10  # of a value that has a row of its own
MAX_VALUES = 50  # rows of a condition
OTHER = "other or unknown"
TIME_OF_DAY, SEASON, YEARS, HEADING = "time of day", "season", "years between", "heading difference"
CAMERA, SEQUENCE = "camera", "sequence"
SEASONS = ("winter", "spring", "summer", "autumn")  # from December, March, June, September; the reverse in the south
TWILIGHT_DEG = -6.0  # elevation of the sun at the end of civil twilight
YEAR_S = 365.2425 * 86_400
YEAR_LIMITS, YEAR_NAMES = (1.0, 3.0, 6.0), ("less than 1", "1–3", "3–6", "6 or more")
log = logging.getLogger("cosplace")
HEADING_LIMITS, HEADING_NAMES = (30.0, 60.0, 90.0), ("0–30°", "30–60°", "60–90°", "90–180°")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What is known about the queries of a dataset."""

    values: Mapping[str, np.ndarray]  # name -> (Q,) str objects, "" where unknown; without names that no query knows
    sequences: np.ndarray  # (Q,) int64, -1 where unknown
    seconds: np.ndarray  # (Q,) float64 since 1970 (UTC), nan where unknown


def unknown_conditions(num_queries: int) -> Conditions:
    """The conditions of queries of which nothing is known."""
    return Conditions(
        values=MappingProxyType({}), sequences=np.full(num_queries, -1), seconds=np.full(num_queries, np.nan)
    )


def find_conditions(dataset: RetrievalDataset, positives: Positives) -> Conditions:
    """The conditions of each query."""
    part = find_part(dataset.folder)
    columns = None if part is None else read_columns(part.table)
    num_queries = len(dataset.queries)
    times = capture_times(dataset.queries, columns)
    if num_local := int((times.are_local & times.is_exact).sum()):
        log.info(
            "%s: the time of day is unknown, because the clock had no time zone. To use it, import the photos with "
            "--timezone.", format_count(num_local, "query", "queries"),
        )  # fmt: skip
    first, count = nearest_positives(dataset, positives)
    has_positive = np.flatnonzero(count)
    texts: dict[str, np.ndarray] = {
        TIME_OF_DAY: _times_of_day(dataset.queries, times.seconds, times.is_exact & ~times.are_local),
        SEASON: _seasons(dataset.queries, np.where(times.has_month, times.seconds, np.nan)),
        HEADING: _between(_heading_differences(dataset, first, count), HEADING_LIMITS, HEADING_NAMES),
    }
    images, rows = np.unique(first[has_positive], return_inverse=True)
    nearest = capture_times(dataset.database.subset(images.tolist()), columns)
    years = np.full(num_queries, np.nan)
    years[has_positive] = np.abs(nearest.seconds[rows.reshape(-1)] - times.seconds[has_positive]) / YEAR_S
    texts[YEARS] = _between(years, YEAR_LIMITS, YEAR_NAMES)
    if part is not None and columns is not None:
        table, in_table = read_table(part.table, ("camera", "sequence")), table_rows(dataset.queries, columns)
        for name in (CAMERA, SEQUENCE):
            column = table[name].take(np.maximum(in_table, 0)).to_pylist()
            texts[name] = np.where(in_table >= 0, np.array([text or "" for text in column], object), "")
    values = {name: column for name, column in texts.items() if (column != "").any()}
    return Conditions(values=MappingProxyType(values), sequences=times.sequences, seconds=times.seconds)


def condition_rows(
    conditions: Conditions, right: np.ndarray, errors_m: np.ndarray, clusters: np.ndarray
) -> tuple[ConditionRow, ...]:
    """Recall@1 and median error of each value of each condition that divides the queries.

    Values of fewer than MIN_QUERIES queries share one row with unknown ones; a condition needs two other values.
    right: (Q,) bool.  errors_m: (Q,) float64.
    """
    rows = []
    for condition, column in conditions.values.items():
        names, counts = np.unique(column[column != ""], return_counts=True)
        order = np.argsort(-counts, kind="stable")[:MAX_VALUES]
        kept = sorted(names[order][counts[order] >= MIN_QUERIES].tolist(), key=_rank)
        if len(kept) < 2:
            continue
        groups = [(name, column == name) for name in kept]
        rest = ~np.isin(column.astype(str), kept)
        for name, which in [*groups, *([(OTHER, rest)] if rest.any() else [])]:
            rows.append(
                ConditionRow(
                    condition=condition,
                    value=name,
                    num_queries=int(which.sum()),
                    num_clusters=len(np.unique(clusters[which])),
                    effective_clusters=effective_clusters(clusters[which]),
                    recall1=clustered_share(right[which], clusters[which]),
                    median_error_m=clustered_quantile(errors_m[which], clusters[which], 0.5),
                )
            )
    return tuple(rows)


def _rank(name: str) -> tuple[int, str]:
    """Values with a natural order come in that order."""
    ordered = ("day", "twilight", "night", *SEASONS, *YEAR_NAMES, *HEADING_NAMES)
    return (ordered.index(name) if name in ordered else len(ordered), name)


# --- nearest positives -----------------------------------------------------------------------------------------------


def nearest_positives(dataset: RetrievalDataset, positives: Positives) -> tuple[np.ndarray, np.ndarray]:
    """First database image at the nearest position with positives of each query, and how many are there, (Q,) int64.

    0, 0 for queries without positives.
    """
    starts, num_queries = positives.starts, len(positives)
    first, count = np.zeros(num_queries, np.int64), np.zeros(num_queries, np.int64)
    for chunk in range(0, num_queries, QUERY_CHUNK):
        queries = np.arange(chunk, min(chunk + QUERY_CHUNK, num_queries))
        near = positives.positions[starts[queries[0]] : starts[queries[-1] + 1]]
        owners = np.repeat(queries, np.diff(starts[queries[0] : queries[-1] + 2]))
        offsets = dataset.database_positions[positives.image_starts[near]] - dataset.query_positions[owners]
        order = np.lexsort(((offsets**2).sum(axis=1), owners))
        found, best = np.unique(owners[order], return_index=True)
        place = near[order][best]
        first[found], count[found] = positives.image_starts[place], np.diff(positives.image_starts)[place]
    return first, count


def _heading_differences(dataset: RetrievalDataset, first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Smallest difference in degrees between a query and the images at its nearest positive position, (Q,), or nan."""
    owners = np.repeat(np.arange(len(first)), count)
    images = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(len(owners))
    kept, rows = np.unique(images, return_inverse=True)
    headings = known_headings(dataset.queries)
    found = known_headings(dataset.database.subset(kept.tolist()))[rows.reshape(-1)]
    turns = np.abs((found - headings[owners] + 180) % 360 - 180)
    smallest = np.full(len(first), np.inf)
    np.minimum.at(smallest, owners, np.where(np.isnan(turns), np.inf, turns))
    return np.where(np.isfinite(smallest), smallest, np.nan)


def _between(values: np.ndarray, limits: tuple[float, ...], names: tuple[str, ...]) -> np.ndarray:
    """The name of the range of each value, (Q,) str objects; "" for nan."""
    return np.where(np.isnan(values), "", np.array(names, object)[np.searchsorted(limits, values, side="right")])


# --- sun and seasons -------------------------------------------------------------------------------------------------


def sun_elevations(seconds: np.ndarray, latitudes: np.ndarray, longitudes: np.ndarray) -> np.ndarray:
    """Elevation of the sun in degrees, within about half a degree, (I,) float64; without refraction.

    Declination and equation of time are the Fourier series of Spencer ("Fourier series representation of the position
    of the sun", Search 2, 1971).  seconds: since 1970 (UTC); nan gives nan.
    """
    known = np.isfinite(seconds)
    days = np.where(known, seconds, 0.0) / 86_400
    start_of_year = np.floor(days).astype("datetime64[D]").astype("datetime64[Y]").astype("datetime64[D]")
    year_angle = 2 * np.pi * (days - start_of_year.astype(np.int64)) / 365
    one, two, three = (np.stack([np.cos(n * year_angle), np.sin(n * year_angle)]) for n in (1, 2, 3))
    declination = 0.006918 + np.tensordot([-0.399912, 0.070257], one, 1) + np.tensordot([-0.006758, 0.000907], two, 1)
    declination += np.tensordot([-0.002697, 0.00148], three, 1)
    minutes = 229.18 * (
        0.000075 + np.tensordot([0.001868, -0.032077], one, 1) + np.tensordot([-0.014615, -0.040849], two, 1)
    )
    solar_hours = 24 * (days % 1) + longitudes / 15 + minutes / 60
    hour_angle = np.radians(15 * (solar_hours - 12))
    latitude = np.radians(latitudes)
    sine = np.sin(latitude) * np.sin(declination) + np.cos(latitude) * np.cos(declination) * np.cos(hour_angle)
    return np.where(known, np.degrees(np.arcsin(np.clip(sine, -1, 1))), np.nan)


def _times_of_day(images: ImageList, seconds: np.ndarray, is_exact: np.ndarray) -> np.ndarray:
    """day, twilight or night, (I,) str objects; "" without a position on Earth, or with a date only."""
    seconds = np.where(is_exact, seconds, np.nan)
    if not np.isfinite(seconds).any():
        return np.full(len(images), "", object)
    elevations = sun_elevations(seconds, *latitudes_longitudes(images))
    names = np.array(["night", "twilight", "day"], object)[np.searchsorted([TWILIGHT_DEG, 0.0], elevations)]
    return np.where(np.isnan(elevations), "", names)


def _seasons(images: ImageList, seconds: np.ndarray) -> np.ndarray:
    """Meteorological seasons, (I,) str objects; "" where the position or the time is unknown."""
    known = np.flatnonzero(np.isfinite(seconds))
    texts = np.full(len(images), "", object)
    if not len(known):
        return texts
    times = np.floor(seconds[known]).astype(np.int64).astype("datetime64[s]")
    months, latitudes = times.astype("datetime64[M]"), latitudes_longitudes(images)[0][known]
    quarters = ((months.astype(np.int64) + 1) % 12 // 3 + np.where(latitudes < 0, 2, 0)) % 4  # December is 11
    texts[known] = np.where(np.isnan(latitudes), "", np.array(SEASONS, object)[quarters])
    return texts


def latitudes_longitudes(images: ImageList) -> np.ndarray:
    """Latitudes and longitudes in degrees, (2, I) float64; nan where unknown."""
    degrees = optional_fields(images, ("latitude", "longitude"))
    unknown = np.isnan(degrees).any(axis=0) | (degrees == 0).all(axis=0)
    degrees[:, unknown] = np.nan
    utm = utm_fields(images)
    if images.map_center is None and (rows := np.flatnonzero(unknown & (utm.zones != 0))).size:
        from cosplace.geo import lla_from_ecef

        degrees[:, rows] = np.stack(lla_from_ecef(utm_points(utm)[rows])[:2])
    return degrees
