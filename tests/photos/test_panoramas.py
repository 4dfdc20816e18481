"""Crops of panoramas: where a mark lands, seam and poles, partial panoramas, equality of all implementations."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cosplace.photos.compiled_panoramas import fast_crop
from cosplace.photos.panoramas import (
    Coverage,
    CropView,
    coverage_of,
    crop_directions,
    crop_elevations,
    crop_map,
    crops_on_device,
    fitted_pitch,
    gpano_heading,
    plain_crop,
    reduced,
    reduction,
    shows,
)

GPANO = "{http://ns.google.com/photos/1.0/panorama/}"


def whole(width: int, height: int) -> Coverage:
    return Coverage(width=width, height=height, full_width=width, full_height=height)


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def gpano(**values: float) -> dict[str, str]:
    return {f"{GPANO}ProjectionType": "equirectangular"} | {
        f"{GPANO}{name}": str(value) for name, value in values.items()
    }


def direction(azimuth: float, elevation: float) -> np.ndarray:
    """Unit vector: right, up, forward."""
    a, e = math.radians(azimuth), math.radians(elevation)
    return np.array([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)])


@cache
def directions_of(width: int, height: int) -> np.ndarray:
    """Unit vectors of the pixels of a whole panorama, (H, W, 3)."""
    columns = (np.arange(width) + 0.5) / width * 360 - 180
    a, e = np.meshgrid(np.radians(columns), np.radians(90 - (np.arange(height) + 0.5) / height * 180))
    return np.stack([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)], -1)


def predicted_pixel(azimuth: float, elevation: float, view: CropView, yaw: float) -> tuple[float, float] | None:
    """Column and row where a pinhole camera sees a direction, by the axes of the camera; None behind it."""
    forward = direction(yaw, view.pitch)
    right = direction(yaw + 90, 0)
    up = np.cross(forward, right)
    seen = direction(azimuth, elevation)
    depth = seen @ forward
    if depth <= 0:
        return None
    focal = view.width / 2 / math.tan(math.radians(view.field_of_view) / 2)
    return (
        view.width / 2 + focal * (seen @ right) / depth - 0.5,
        view.height / 2 - focal * (seen @ up) / depth - 0.5,
    )


# --- where things are ------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    right=st.floats(-18, 18),
    up=st.floats(-12, 12),
    yaw=st.floats(-360, 360),
    pitch=st.floats(-60, 60),
    field_of_view=st.floats(40, 100),
)
def test_a_mark_lands_where_a_pinhole_camera_sees_it(
    right: float, up: float, yaw: float, pitch: float, field_of_view: float
) -> None:
    azimuth, elevation = yaw + right, pitch + up
    view = CropView(width=80, height=60, field_of_view=field_of_view, pitch=pitch)
    expected = predicted_pixel(azimuth, elevation, view, yaw)
    assume(expected is not None and 4 < expected[0] < 75 and 4 < expected[1] < 55)
    width, height = 720, 360  # half a degree per pixel
    closeness = directions_of(width, height) @ direction(azimuth, elevation)
    spot = 255 * np.exp((closeness - 1) / (1 - math.cos(math.radians(1.5))))  # about 1.5 degrees wide
    panorama = np.repeat(spot[..., None], 3, 2).astype(np.uint8)
    crop = fast_crop(panorama, whole(width, height), view, yaw)[..., 0].astype(float)
    found = [(np.indices(crop.shape)[axis] * crop).sum() / crop.sum() for axis in (1, 0)]
    assert found == pytest.approx(expected, abs=0.35)


def test_the_center_of_a_crop_looks_at_its_yaw_and_pitch() -> None:
    coverage = whole(3600, 1800)
    columns, rows = crop_map(coverage, CropView(width=3, height=3, field_of_view=50, pitch=12))
    assert columns[1, 1] == pytest.approx(1800 - 0.5)
    assert rows[1, 1] == pytest.approx((90 - 12) * 10 - 0.5)


def test_the_field_of_view_is_from_edge_to_edge() -> None:
    columns, _ = crop_map(whole(3600, 1800), CropView(width=2000, height=1, field_of_view=80))
    steps = np.diff(columns[0])
    assert columns[0, 0] - steps[0] / 2 == pytest.approx(1800 - 0.5 - 400, abs=1e-3)
    assert columns[0, -1] + steps[-1] / 2 == pytest.approx(1800 - 0.5 + 400, abs=1e-3)


def test_the_seam_is_like_any_other_place() -> None:
    panorama, coverage = noise(512, 256), whole(512, 256)
    view = CropView(width=64, height=48, field_of_view=70, pitch=5)
    at_seam = fast_crop(panorama, coverage, view, 180)
    assert np.array_equal(at_seam, fast_crop(np.roll(panorama, 256, 1), coverage, view, 0))
    assert np.array_equal(at_seam, fast_crop(panorama, coverage, view, -180))
    assert np.array_equal(at_seam, fast_crop(panorama, coverage, view, 540))


def test_a_crop_that_contains_the_zenith_is_continuous_there() -> None:
    """Gray values that depend only on the direction, smoothly: also where the crop crosses the pole."""
    width, height = 256, 128
    panorama = np.repeat(127 + 120 * directions_of(width, height)[..., :1], 3, 2).astype(np.uint8)
    view = CropView(width=65, height=65, field_of_view=60, pitch=90)
    crop = fast_crop(panorama, whole(width, height), view, 0)[..., 0].astype(float)
    x = (np.arange(65) - 32) / view.focal_length
    x, y = np.meshgrid(x, x)
    assert np.abs(crop - (127 + 120 * x / np.sqrt(1 + x**2 + y**2))).max() < 2


# --- implementations -------------------------------------------------------------------------------------------------

SHAPES = [
    Coverage(width=90, height=45, full_width=90, full_height=45),
    Coverage(width=91, height=46, full_width=91, full_height=46),
    Coverage(width=96, height=20, full_width=96, full_height=48, top=15),
    Coverage(width=70, height=30, full_width=120, full_height=60, top=10, shift=25),
]


@pytest.mark.parametrize("coverage", SHAPES, ids=str)
@pytest.mark.parametrize(("pitch", "yaw"), [(0, 0), (30, 77.7), (-90, 181), (85, -135), (10, 359.9)])
def test_all_implementations_give_the_same_pixels(coverage: Coverage, pitch: float, yaw: float) -> None:
    panorama = noise(coverage.width, coverage.height)
    view = CropView(width=33, height=24, field_of_view=75, pitch=pitch)
    plain = plain_crop(panorama, coverage, view, yaw)
    assert np.array_equal(fast_crop(panorama, coverage, view, yaw), plain)
    on_device = crops_on_device(panorama, coverage, view, [yaw, yaw + 120], torch.device("cpu"))
    assert on_device.shape == (2, 24, 33, 3)
    assert np.abs(on_device[0].astype(int) - plain).max() <= 1
    assert np.abs(on_device[1].astype(int) - plain_crop(panorama, coverage, view, yaw + 120)).max() <= 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("size", [(4096, 2048), (3328, 512), (8192, 4096)], ids=str)
def test_a_gpu_gives_the_same_pixels(size: tuple[int, int]) -> None:
    panorama = noise(*size)
    coverage = coverage_of(*size, {})
    assert coverage is not None
    view = CropView(width=512, height=512, field_of_view=50)
    yaws = [30.0 * index for index in range(12)]
    plain = np.stack([fast_crop(panorama, coverage, view, yaw) for yaw in yaws]).astype(int)
    differences = np.abs(crops_on_device(panorama, coverage, view, yaws, torch.device("cuda")) - plain)
    assert differences.max() <= 1
    assert (differences > 0).mean() < 0.02


@pytest.mark.parametrize(("yaw", "pitch"), [(0, 0), (95, 20), (180, 0), (-170, -35), (0, 90), (180, -80)])
@pytest.mark.parametrize("exact", [True, False], ids=["scipy", "opencv"])
def test_pixels_equal_those_of_py360convert(yaw: float, pitch: float, exact: bool, monkeypatch) -> None:
    """On noise, the hardest case.  With OpenCV, py360convert rounds positions to 1/32 pixel."""
    py360convert = pytest.importorskip("py360convert")
    from py360convert import utils

    if exact:
        monkeypatch.setattr(utils, "cv2", None)
    elif utils.cv2 is None:
        pytest.skip("OpenCV is not installed")
    utils.EquirecSampler.from_perspective.cache_clear()
    size, field_of_view = 96, 90.0
    panorama = noise(400, 200)
    expected = py360convert.e2p(panorama, field_of_view, yaw, pitch, (size, size))
    utils.EquirecSampler.from_perspective.cache_clear()
    # There, the field of view extends between the centers of the first and the last pixel.
    from_edges = math.degrees(2 * math.atan(math.tan(math.radians(field_of_view) / 2) * size / (size - 1)))
    view = CropView(width=size, height=size, field_of_view=from_edges, pitch=pitch)
    found = fast_crop(panorama, whole(400, 200), view, yaw)
    differences = np.abs(found.astype(int) - expected)
    assert differences.max() <= (1 if exact else 10)
    assert (differences > 1).mean() <= (0 if exact else 0.35)
    assert (differences > 0).mean() <= (0.005 if exact else 0.75)


# --- what an image shows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "properties", "expected"),
    [
        ((4096, 2048), {}, whole(4096, 2048)),
        ((4001, 2000), {}, whole(4001, 2000)),
        ((4000, 3000), {}, None),
        ((6000, 1000), {}, None),
        ((4096, 2048), {f"{GPANO}ProjectionType": "cylindrical"}, None),
        ((0, 0), {}, None),
    ],
)
def test_which_images_are_panoramas(
    size: tuple[int, int], properties: dict[str, str], expected: Coverage | None
) -> None:
    found = coverage_of(*size, properties)
    assert found == (None if expected is None else replace(expected, full_height=size[1]))


def test_the_strips_of_sf_xl_have_their_horizon_in_row_320() -> None:
    strip = coverage_of(3328, 512, {})
    assert strip == Coverage(width=3328, height=512, full_width=3328, full_height=1664, top=512)
    assert strip.elevations == pytest.approx((90 - 180 * 1024 / 1664, 90 - 180 * 512 / 1664))
    _, rows = crop_map(strip, CropView(width=1, height=1, field_of_view=10))
    assert rows[0, 0] == 320 - 0.5  # the upper border of row 320 is the horizon
    assert coverage_of(1664, 256, {}, horizon_row=160) == Coverage(
        width=1664, height=256, full_width=1664, full_height=832, top=256
    )


def test_a_crop_of_an_sf_xl_strip_is_that_of_the_whole_panorama() -> None:
    panorama = noise(3328, 1664)
    strip = coverage_of(3328, 512, {})
    assert strip is not None
    view = CropView(width=128, height=128, field_of_view=55)
    pitch = fitted_pitch(strip, view)
    assert pitch == 6.7  # the strip shows 20.8 degrees below the horizon, and a level crop needs 27.5
    fitted = replace(view, pitch=pitch)
    for yaw in (0, 30, 180):
        assert not shows(strip, view, yaw)
        assert shows(strip, fitted, yaw)
        expected = fast_crop(panorama, whole(3328, 1664), fitted, yaw)
        assert np.array_equal(fast_crop(panorama[512:1024], strip, fitted, yaw), expected)
    assert fitted_pitch(strip, replace(view, field_of_view=512 / 3328 * 360)) == 6.9  # as high as the strip
    assert fitted_pitch(strip, replace(view, field_of_view=60)) is None
    assert fitted_pitch(whole(3328, 1664), view) == 0


@settings(max_examples=60, deadline=None)
@given(pitch=st.floats(-80, 80), field_of_view=st.floats(20, 120), height=st.integers(20, 90))
def test_the_elevations_of_a_crop_are_those_of_its_pixels(pitch: float, field_of_view: float, height: int) -> None:
    view = CropView(width=61, height=height, field_of_view=field_of_view, pitch=pitch)
    elevations = np.degrees(crop_directions(view)[1])
    low, high = crop_elevations(view)
    pixel = math.degrees(1 / view.focal_length)
    assert low <= elevations.min() <= low + pixel
    assert high - pixel <= elevations.max() <= high


def test_a_part_of_a_panorama_gives_the_crops_of_the_whole_one() -> None:
    panorama, full = noise(720, 360), whole(720, 360)
    left, top, width, height = 300, 80, 330, 180
    properties = gpano(
        FullPanoWidthPixels=720, FullPanoHeightPixels=360, CroppedAreaImageWidthPixels=width,
        CroppedAreaImageHeightPixels=height, CroppedAreaLeftPixels=left, CroppedAreaTopPixels=top,
        PoseHeadingDegrees=350,
    )  # fmt: skip
    part = coverage_of(width, height, properties)
    assert part is not None
    shift = (left + width / 2) / 2 - 180
    assert part.shift == shift
    assert gpano_heading(properties, part) == (350 + shift) % 360
    assert math.isnan(gpano_heading({}, part))
    view = CropView(width=40, height=30, field_of_view=50, pitch=10)
    image = np.ascontiguousarray(panorama[top : top + height, left : left + width])
    for yaw in (0, -40, 50):
        assert shows(part, view, yaw)
        expected = fast_crop(panorama, full, view, yaw + shift)
        assert np.abs(fast_crop(image, part, view, yaw).astype(int) - expected).max() <= 1
    assert [shows(part, view, yaw) for yaw in (-90, 90, 180)] == [False, False, False]


def test_properties_of_an_image_that_was_resized_later_are_scaled() -> None:
    properties = gpano(
        FullPanoWidthPixels=8000, FullPanoHeightPixels=4000, CroppedAreaImageWidthPixels=8000,
        CroppedAreaImageHeightPixels=2000, CroppedAreaLeftPixels=0, CroppedAreaTopPixels=1000,
    )  # fmt: skip
    assert coverage_of(800, 200, properties) == Coverage(
        width=800, height=200, full_width=800, full_height=400, top=100
    )


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.one_of(st.floats(), st.text(max_size=4), st.integers()), min_size=7, max_size=7),
    size=st.tuples(st.integers(0, 5000), st.integers(0, 5000)),
)
def test_wild_properties_never_break_the_geometry(values: list[object], size: tuple[int, int]) -> None:
    names = (
        "FullPanoWidthPixels", "FullPanoHeightPixels", "CroppedAreaImageWidthPixels", "CroppedAreaImageHeightPixels",
        "CroppedAreaLeftPixels", "CroppedAreaTopPixels", "PoseHeadingDegrees",
    )  # fmt: skip
    properties = {f"{GPANO}{name}": str(value) for name, value in zip(names, values, strict=True)}
    coverage = coverage_of(*size, properties)
    if coverage is not None:
        assert (coverage.width, coverage.height) == size
        assert coverage.full_width >= coverage.width - 1
        assert all(map(math.isfinite, (coverage.full_width, coverage.full_height, coverage.top, coverage.shift)))
        heading = gpano_heading(properties, coverage)
        assert math.isnan(heading) or 0 <= heading < 360


# --- fewer pixels ----------------------------------------------------------------------------------------------------


def test_detailed_panoramas_are_averaged_before_they_are_sampled() -> None:
    """Fine stripes: their mean is the only right answer, and bilinear sampling alone gives moiré."""
    panorama = np.zeros((1000, 2000, 3), np.uint8)
    panorama[:, ::2] = 200
    coverage, view = whole(2000, 1000), CropView(width=64, height=64, field_of_view=60)
    factor = reduction(coverage, view)
    assert factor == math.floor(2000 / (2 * math.pi) / (32 / math.tan(math.radians(30))))
    small, smaller = reduced(panorama, coverage, factor)
    assert smaller == whole(*small.shape[1::-1])
    smooth = fast_crop(small, smaller, view, 33).astype(float)
    rough = fast_crop(panorama, coverage, view, 33).astype(float)
    assert np.abs(smooth - 100).max() <= 50 < np.abs(rough - 100).max()
    assert reduced(panorama, coverage, 1)[0] is panorama


def test_a_reduced_panorama_shows_the_same_directions() -> None:
    columns, rows = np.meshgrid(np.arange(1201), np.arange(602))
    panorama = np.stack([columns * 255 / 1200, rows * 255 / 601, columns * 0], -1).astype(np.uint8)
    coverage = replace(whole(1201, 602), full_height=602)
    view = CropView(width=40, height=40, field_of_view=40, pitch=-20)
    small, smaller = reduced(panorama, coverage, 3)
    found, expected = (fast_crop(*one, view, 20).astype(int) for one in ((small, smaller), (panorama, coverage)))
    assert np.abs(found - expected).max() <= 2
