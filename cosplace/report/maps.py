"""Maps as small PNG images: the classes of each group, and query locations by result.

Images rather than vector shapes, so that the page stays below a megabyte with ten classes or a million.
Image rows run from north to south.  Pure: arrays in, images out.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cosplace.geo import EARTH_RADIUS_M, lla_from_ecef
from cosplace.photos.names import UtmPositions, split_name, utm_points
from cosplace.report.charts import round_step
from cosplace.report.colors import GROUP_COLORS, OTHER_COLOR, OUTCOME_COLORS, QUERY_COLOR
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.training.groups import Groups

MAX_SIDE = 1100  # pixels of the longer side: even noise in ten colors then stays below a megabyte
MIN_ASPECT = 0.35  # smallest ratio of the shorter side to the longer side
SECTOR_PIXELS = 24  # cells of at least this size show the viewing direction of each class
MAX_CELL_PIXELS = 48
DETAIL_CELLS, DETAIL_SIDE = 12, 480  # the enlarged part: cells and pixels along each side
GRAY_ALPHA = 110  # opacity of gray on a map of groups, of 255
OTHER, FIRST_COLOR = 1, 2  # values of pixels: 0 is the background, 1 gray, then colors
DOT = FIRST_COLOR + len(GROUP_COLORS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """A raster image that covers a rectangle on the ground."""

    west: float  # meters, UTM, of the left edge
    south: float  # meters, UTM, of the lower edge
    pixels_per_m: float
    pixels: np.ndarray  # (H, W) uint8

    def columns(self, east: np.ndarray) -> np.ndarray:
        """Return the column of each position."""
        return np.floor((east - self.west) * self.pixels_per_m + 1e-6).astype(np.int64)

    def rows(self, north: np.ndarray) -> np.ndarray:
        """Return the row of each position, counted from the top."""
        return len(self.pixels) - 1 - np.floor((north - self.south) * self.pixels_per_m + 1e-6).astype(np.int64)

    def paint(self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray | int) -> None:
        """Set pixels; the last value wins.  Pixels outside the image are ignored."""
        height, width = self.pixels.shape
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        self.pixels[rows[inside], columns[inside]] = values[inside] if isinstance(values, np.ndarray) else values


def canvas_around(positions: np.ndarray, cell_m: float = 0.0) -> Canvas:
    """Return an empty image around positions (n, 2) in meters.  A cell of `cell_m` is whole pixels wide if possible."""
    low, high = positions.min(axis=0), positions.max(axis=0) + cell_m
    margin = max(0.03 * float((high - low).max()), cell_m, 5.0)
    low, high = low - margin, high + margin
    longer = float((high - low).max())
    padding = np.maximum(longer * MIN_ASPECT - (high - low), 0) / 2
    low, high = low - padding, high + padding
    pixels_per_m = MAX_SIDE / longer
    if cell_m * pixels_per_m >= 1:
        pixels_per_m = min(math.floor(cell_m * pixels_per_m), MAX_CELL_PIXELS) / cell_m
        low = np.floor(low / cell_m) * cell_m
    width, height = (int(side) for side in np.maximum(np.ceil((high - low) * pixels_per_m - 1e-6), 1))
    pixels = np.zeros((min(height, MAX_SIDE + 1), min(width, MAX_SIDE + 1)), np.uint8)
    return Canvas(west=float(low[0]), south=float(low[1]), pixels_per_m=pixels_per_m, pixels=pixels)


@dataclass(frozen=True, slots=True, kw_only=True)
class MapImage:
    """A map with its scale bar."""

    source: str  # a PNG as a data URI, transparent where nothing is drawn, so it suits light and dark pages
    width: int  # pixels
    height: int
    description: str  # for screen readers
    bar_percent: float  # length of the scale bar, in percent of the width
    bar_text: str  # 500 m
    is_on_earth: bool  # so that it has a north

    @property
    def pixelated(self) -> bool:
        """Whether the page should enlarge it without smoothing."""
        return self.width < 600


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupsMap:
    """A map of all classes, and of its densest part, enlarged, if that shows more."""

    whole: MapImage
    detail: MapImage | None


def groups_map(
    groups: Groups,
    num_used: int,
    *,
    M: float | None = None,
    alpha: float | None = None,
    others: np.ndarray | None = None,
) -> GroupsMap:
    """Draw the cells of each class in the color of its group; groups from `num_used` on are gray.

    M, alpha: side of a cell in meters and width of a sector in degrees; None: derived from the classes.
    others: (n, 2) positions of other photos, drawn as gray dots below the cells; see `fits_one_map`.
    """
    cells = np.asarray(groups.cells)
    M = float(M or common_step(cells[:, :2]) or 10)
    alpha = float(alpha or common_step(np.append(cells[:, 2], 360)) or 360)
    numbers = np.repeat(np.arange(len(groups)), np.diff(groups.group_starts))  # (C,) group of each class
    if groups.zones is not None:
        located = np.flatnonzero(groups.zones)
        cells, numbers = _cells_on_one_plane(cells[located], groups.zones[located]), numbers[located]
    # No class should always cover the others that share its pixels, so used classes are painted in one shuffled,
    # fixed order, after the unused ones.
    shuffled = np.random.Generator(np.random.Philox(key=0)).permutation(np.flatnonzero(numbers < num_used))
    order = np.concatenate([np.flatnonzero(numbers >= num_used), shuffled])
    cells, numbers = cells[order], numbers[order]
    colors = np.where(numbers < num_used, FIRST_COLOR + numbers % len(GROUP_COLORS), OTHER).astype(np.uint8)

    corners = cells[:, :2].astype(np.float64)
    canvas = canvas_around(corners if others is None else np.concatenate([corners, others]), M)
    if others is not None:
        _paint_dots(canvas, others, DOT, 4 if len(others) < 20_000 else 1)
    _paint_cells(canvas, cells, colors, M=M, alpha=alpha)
    palette = (OTHER_COLOR, *GROUP_COLORS, OTHER_COLOR)
    whole = _image(canvas, palette, f"Map of {len(cells)} classes in the colors of their groups", GRAY_ALPHA)
    if M * canvas.pixels_per_m >= SECTOR_PIXELS or len(np.unique(cells[:, 2])) < 2:
        return GroupsMap(whole=whole, detail=None)
    canvas = _densest_part(corners, M)
    southwest = np.array([canvas.west, canvas.south])
    inside = ((corners >= southwest) & (corners < southwest + M * DETAIL_CELLS)).all(axis=1)
    _paint_cells(canvas, cells[inside], colors[inside], M=M, alpha=alpha)
    detail = _image(canvas, palette, f"Detail of the map, {DETAIL_CELLS} cells wide", GRAY_ALPHA)
    return GroupsMap(whole=whole, detail=detail)


def _densest_part(corners: np.ndarray, M: float) -> Canvas:
    """Return an empty image of the square of DETAIL_CELLS x DETAIL_CELLS cells with the most classes."""
    squares = np.floor(corners / (M * DETAIL_CELLS)).astype(np.int64)
    _, first, counts = np.unique(squares[:, 0] * (1 << 32) + squares[:, 1], return_index=True, return_counts=True)
    west, south = squares[first[counts.argmax()]] * M * DETAIL_CELLS
    pixels = np.zeros((DETAIL_SIDE, DETAIL_SIDE), np.uint8)
    return Canvas(west=float(west), south=float(south), pixels_per_m=DETAIL_SIDE / (M * DETAIL_CELLS), pixels=pixels)


def outcome_map(
    database: np.ndarray, queries: np.ndarray, outcome: np.ndarray | None, *, are_meters: bool = True
) -> MapImage:
    """Draw the database as gray dots and each query as a disc, a ring or a cross, by its outcome.

    database, queries: (R, 2) and (Q, 2) positions in meters.  outcome: (Q,) CORRECT_FIRST, CORRECT_LATER or NOT_FOUND;
    None draws all queries as discs of one color.  are_meters: False if positions are not on Earth.
    """
    canvas = canvas_around(np.concatenate([database, queries]))
    _paint_dots(canvas, database, OTHER, 3 if len(database) < 20_000 else 1)
    size = 15 if len(queries) < 500 else 11 if len(queries) < 3000 else 7
    if outcome is None:
        _paint_stamp(canvas, queries, _disc(size), FIRST_COLOR)
        text = f"Map of {len(queries)} queries"
        return _image(canvas, (OTHER_COLOR, QUERY_COLOR), text, are_meters=are_meters)
    for kind, stamp in enumerate((_disc(size), _ring(size), _cross(size))):  # failures on top
        _paint_stamp(canvas, queries[outcome == kind], stamp, FIRST_COLOR + kind)
    text = f"Map of {len(queries)} queries by result"
    return _image(canvas, (OTHER_COLOR, *OUTCOME_COLORS), text, are_meters=are_meters)


def parts_map(parts: Sequence[np.ndarray], colors: Sequence[str], are_small: Sequence[bool]) -> MapImage:
    """Draw the photos of each part, (n, 2) positions in meters, as dots of one color; later parts are on top.

    are_small: which parts have smaller dots, so that they do not hide those below.
    """
    everything = np.concatenate(list(parts))
    canvas = canvas_around(everything)
    size = 9 if len(everything) < 5_000 else 7 if len(everything) < 30_000 else 5
    for number, (positions, is_small) in enumerate(zip(parts, are_small, strict=True)):
        _paint_stamp(canvas, positions, _disc(size - 2 * is_small), OTHER + number)
    return _image(canvas, colors, f"Map of {len(everything)} photos")


def fits_one_map(groups: Groups, dataset: RetrievalDataset) -> bool:
    """Whether the database is near enough to the classes for one map to show both clearly."""
    positions = dataset.database_positions
    if groups.zones is not None or len(dataset.zones) > 1 or not len(groups.image_starts):
        return False  # their coordinates have different origins
    if positions.shape[1] == 3 or groups.map_center != dataset.database.map_center:
        return False
    zone = split_name(groups[0].image_label(0)).get("zone", "")
    if dataset.zones and zone.isdecimal() and int(zone) != abs(dataset.zones[0]):
        return False
    corners = np.asarray(groups.cells[:, :2], np.float64)
    extent = float(np.ptp(corners, axis=0).max())
    return float(np.ptp(np.concatenate([corners, positions]), axis=0).max()) <= 4 * max(extent, 250.0)


def on_one_plane(*positions: np.ndarray) -> list[np.ndarray]:
    """Positions of photos as (n, 2) meters east and north, for one map.  UTM positions stay as they are.

    Earth-centered points (n, 3) become meters from their center; over hundreds of kilometers, scales differ.
    """
    if positions[0].shape[1] == 2:
        return list(positions)
    middle_latitude, middle_longitude = lla_from_ecef(np.nanmean(np.concatenate(positions), axis=0))
    meters_per_degree = np.radians(EARTH_RADIUS_M)
    planes = []
    for points in positions:
        latitudes, longitudes = lla_from_ecef(points)
        east = (longitudes - middle_longitude + 180) % 360 - 180  # also across the antimeridian
        planes.append(
            np.stack([east * np.cos(np.radians(middle_latitude)), latitudes - middle_latitude], 1) * meters_per_degree
        )
    return planes


def _cells_on_one_plane(cells: np.ndarray, zones: np.ndarray) -> np.ndarray:
    """Cells (C, 3) of several UTM zones with east and north on one plane, in whole meters."""
    points = utm_points(UtmPositions(east_north=cells[:, :2].astype(np.float64), zones=zones))
    plane = np.nan_to_num(on_one_plane(points)[0])
    return np.column_stack([np.round(plane).astype(np.int64), cells[:, 2]])


def common_step(values: np.ndarray) -> int:
    """Return the greatest common divisor of all differences between values; 0 if all are the same."""
    values = np.unique(values.astype(np.int64))
    return int(np.gcd.reduce(np.diff(values))) if len(values) > 1 else 0


# --- painting --------------------------------------------------------------------------------------------------------


def _paint_cells(canvas: Canvas, cells: np.ndarray, colors: np.ndarray, *, M: float, alpha: float) -> None:
    corners, headings = cells[:, :2].astype(np.float64), cells[:, 2]
    exact = M * canvas.pixels_per_m
    smallest = 4 if len(corners) < 5_000 else 2 if len(corners) < 50_000 else 1  # a single class must be visible
    side = max(round(exact), smallest)
    lower, left = canvas.rows(corners[:, 1]), canvas.columns(corners[:, 0])
    sectors = side >= SECTOR_PIXELS and len(np.unique(headings)) > 1
    for up in range(side):
        for right in range(side):
            chosen = slice(None)
            if sectors:
                # Direction of this pixel from the middle of its cell, in degrees clockwise from north.
                direction = math.degrees(math.atan2(right + 0.5 - side / 2, up + 0.5 - side / 2)) % 360
                chosen = np.flatnonzero((direction - headings) % 360 < alpha)
            canvas.paint(lower[chosen] - up, left[chosen] + right, colors[chosen])


def _paint_dots(canvas: Canvas, positions: np.ndarray, value: int, size: int) -> None:
    _paint_stamp(canvas, positions, np.ones((size, size), bool), value)


def _paint_stamp(canvas: Canvas, positions: np.ndarray, stamp: np.ndarray, value: int) -> None:
    rows, columns = canvas.rows(positions[:, 1]), canvas.columns(positions[:, 0])
    middle = len(stamp) // 2
    for down, right in np.argwhere(stamp):
        canvas.paint(rows + (down - middle), columns + (right - middle), value)


def _radii(size: int) -> np.ndarray:
    places = np.arange(size) - size // 2
    return np.hypot(places[:, None], places[None, :])


def _disc(size: int) -> np.ndarray:
    return _radii(size) <= size * 0.42


def _ring(size: int) -> np.ndarray:
    radii = _radii(size)
    return (radii <= size / 2) & (radii > size * 0.26)


def _cross(size: int) -> np.ndarray:
    places = np.arange(size) - size // 2
    down, right = np.abs(places[:, None]), np.abs(places[None, :])
    return np.abs(down - right) <= size // 7


# --- images ----------------------------------------------------------------------------------------------------------


def _image(
    canvas: Canvas, colors: Sequence[str], description: str, gray_alpha: int = 255, *, are_meters: bool = True
) -> MapImage:
    """Return the image with a scale bar of round length.  colors: of the pixel values from 1 on."""
    height, width = canvas.pixels.shape
    width_m = width / canvas.pixels_per_m
    bar_m = round_step(width_m / 8)
    return MapImage(
        source=_png(canvas, colors, gray_alpha),
        width=width,
        height=height,
        description=description,
        bar_percent=100 * bar_m / width_m,
        bar_text=_bar_text(bar_m) if are_meters else f"{bar_m:,.0f} units",
        is_on_earth=are_meters,
    )


def _bar_text(meters: float) -> str:
    return f"{meters:g} m" if meters < 1000 else f"{meters / 1000:g} km"


def _png(canvas: Canvas, colors: Sequence[str], gray_alpha: int) -> str:
    """Encode the image as a PNG data URI with a transparent background."""
    image = Image.frombytes("P", canvas.pixels.shape[::-1], canvas.pixels.tobytes())
    palette = [0, 0, 0]
    for color in colors:
        palette += [int(color[at : at + 2], 16) for at in (1, 3, 5)]
    image.putpalette(palette)
    encoded = io.BytesIO()
    image.save(encoded, "PNG", optimize=True, transparency=bytes([0, gray_alpha, *[255] * (len(colors) - 1)]))
    return "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode("ascii")
