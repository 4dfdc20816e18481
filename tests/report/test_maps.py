"""Maps: each class and query has its place, color and shape."""

import base64
import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cosplace.geo import ecef_from_lla
from cosplace.report.colors import GROUP_COLORS, OUTCOME_COLORS
from cosplace.report.data import CORRECT_FIRST, CORRECT_LATER, NOT_FOUND, Report
from cosplace.report.maps import MapImage, canvas_around, common_step, groups_map, on_one_plane, outcome_map
from cosplace.report.page import report_html
from tests.report.report_samples import SQUARE, make_groups


def pixels_of(map_image: MapImage) -> np.ndarray:
    """Return the pixels (H, W, 4) uint8 of a map."""
    kind, data = map_image.source.split(",")
    assert kind == "data:image/png;base64"
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))
    assert pixels.shape == (map_image.height, map_image.width, 4)
    return pixels


def has_color(pixels: np.ndarray, color: str) -> np.ndarray:
    rgb = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
    return (pixels[..., :3] == rgb).all(axis=-1) & (pixels[..., 3] > 0)


def test_map_gives_each_class_its_cell_and_group() -> None:
    pixels = pixels_of(groups_map(make_groups(SQUARE, [60, 30, 10]), 2).whole)
    areas = [has_color(pixels, color).sum() for color in GROUP_COLORS[:3]]
    assert areas[0] == 2 * areas[1] > 0 and areas[2] == 0
    # The cells are listed from west to east: group 0 fills the west, group 1 the middle, gray the east.
    columns = [np.flatnonzero(has_color(pixels, color).any(axis=0)) for color in GROUP_COLORS[:2]]
    assert columns[0].max() + 1 == columns[1].min()
    assert len(columns[0]) == 2 * len(columns[1])
    assert (pixels[0, 0, 3], pixels[-1, -1, 3]) == (0, 0)  # the background is transparent


def test_north_is_up_on_a_map() -> None:
    pixels = pixels_of(groups_map(make_groups([(0, 0, 0), (0, 500, 0)], [1, 1]), 2).whole)
    south, north = (np.flatnonzero(has_color(pixels, color).any(axis=1)).mean() for color in GROUP_COLORS[:2])
    assert north < south


def test_sectors_point_in_the_viewing_direction() -> None:
    cells = [(100, 100, heading) for heading in (0, 90, 180, 270)]
    pixels = pixels_of(groups_map(make_groups(cells, [1, 1, 1, 1]), 4, M=10, alpha=90).whole)
    middles = []
    for color in GROUP_COLORS[:4]:
        rows, columns = np.nonzero(has_color(pixels, color))
        middles.append((rows.mean(), columns.mean()))
    middle = np.mean(middles, axis=0)
    quadrants = [(row < middle[0], column > middle[1]) for row, column in middles]
    # 0–90° is north-east, then clockwise.
    assert quadrants == [(True, True), (False, True), (False, False), (True, False)]


def test_detail_shows_the_densest_part() -> None:
    lonely = [(0, 0, 0), (20_000, 20_000, 30)]
    dense = [(9600 + 10 * x, 4800, heading) for x in range(6) for heading in (0, 180)]
    drawing = groups_map(make_groups(lonely + dense, [2, 12]), 2, M=10, alpha=30)
    assert drawing.detail is not None
    pixels = pixels_of(drawing.detail)
    assert has_color(pixels, GROUP_COLORS[1]).any() and not has_color(pixels, GROUP_COLORS[0]).any()


@pytest.mark.slow
def test_map_of_many_scattered_classes_stays_small() -> None:
    rng = np.random.Generator(np.random.Philox(key=1))
    keys = rng.permutation(np.unique(rng.integers(0, 12 * 1000 * 1000, 320_000)))
    cells = np.stack([keys % 1000 * 10, keys // 1000 % 1000 * 10, keys // 1_000_000 * 30], axis=1)
    assert len(cells) > 300_000
    starts = np.linspace(0, len(cells), 9).astype(np.int64)
    groups = dataclasses.replace(
        make_groups([], []), cells=cells, group_starts=starts, class_starts=np.arange(len(cells) + 1)
    )
    html = report_html(Report(title="t", groups=groups, groups_used=8))
    assert 10_000 < len(html) < 1_000_000


def test_color_and_shape_of_a_query_show_its_result() -> None:
    places = np.array([[0.0, 0.0], [500.0, 0.0], [1000.0, 0.0]])
    pixels = pixels_of(outcome_map(places[:1], places, np.array([NOT_FOUND, CORRECT_LATER, CORRECT_FIRST])))
    columns = [np.flatnonzero(has_color(pixels, color).any(axis=0)).mean() for color in OUTCOME_COLORS]
    assert columns[2] < columns[1] < columns[0]
    stamps = [has_color(pixels, color) for color in OUTCOME_COLORS]  # shapes differ, not only colors
    cropped = [stamp[np.ix_(stamp.any(axis=1), stamp.any(axis=0))] for stamp in stamps]
    middle = [stamp[stamp.shape[0] // 2, stamp.shape[1] // 2] for stamp in cropped]
    corner = [stamp[1, 1] for stamp in cropped]
    assert middle == [True, False, True] and corner == [False, False, True]


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e7, 1e7)), min_size=1, max_size=5),
    st.sampled_from([0.0, 1.0, 10.0, 25.0]),
)
def test_canvas_holds_all_positions(positions: list[tuple[float, float]], cell_m: float) -> None:
    array = np.array(positions)
    canvas = canvas_around(array, cell_m)
    rows, columns = canvas.rows(array[:, 1]), canvas.columns(array[:, 0])
    assert ((rows >= 0) & (rows < canvas.pixels.shape[0])).all()
    assert ((columns >= 0) & (columns < canvas.pixels.shape[1])).all()
    assert max(canvas.pixels.shape) <= 1101


def test_common_step_of_corners() -> None:
    assert common_step(np.array([1000, 1030, 1050])) == 10
    assert common_step(np.array([7, 7])) == 0


def test_places_on_both_sides_of_the_antimeridian_are_next_to_each_other() -> None:
    """pyproj: the second place is 106.49 m east of the first one."""
    (plane,) = on_one_plane(ecef_from_lla(np.array([-17.0, -17.0]), np.array([179.9995, -179.9995])))
    assert plane[1] - plane[0] == pytest.approx([106.49, 0], rel=0.006, abs=0.01)
