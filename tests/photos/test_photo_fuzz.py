"""Any file is opened with the right brightness or refused in one line that names it: never another error."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cosplace.errors import ImageError
from cosplace.photos.modes import to_rgb
from cosplace.photos.opening import decode_image, decode_upload, decoded_bytes
from cosplace.photos.paths import path_from_text, path_text, printable
from cosplace.photos.scanning import scan_images
from cosplace.photos.thumbnails import make_thumbnail

pytestmark = pytest.mark.slow

MODES = {
    "JPEG": ["L", "RGB", "CMYK", "YCbCr"],
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "WEBP": ["RGB", "RGBA", "L"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"],
    "BMP": ["1", "L", "P", "RGB"],
    "GIF": ["1", "L", "P", "RGB"],
}
KINDS = [(kind, mode) for kind, modes in MODES.items() for mode in modes]


def picture(mode: str, width: int, height: int, seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 65_536, (height, width), np.uint16)
    if mode == "I;16":
        return Image.fromarray(values)
    if mode == "I":
        return Image.fromarray(values.astype(np.int32))
    if mode == "F":
        return Image.fromarray(values.astype(np.float32) / 65_535)
    colors = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(colors).convert(mode)


def encoded(kind: str, image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


sides = st.integers(1, 40)
slowly = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@slowly
@given(kind=st.sampled_from(KINDS), width=sides, height=sides, orientation=st.integers(0, 9), seed=st.integers(0, 99))
def test_images_of_all_modes_and_sizes_are_opened(kind, width, height, orientation, seed) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture(kind[1], width, height, seed)
    options = {} if kind[0] in ("BMP", "GIF") else {"exif": exif}
    raw = encoded(kind[0], image, **options)
    found = decode_image(raw, "x")
    is_turned = 5 <= orientation <= 8 and kind[0] not in ("BMP", "GIF")
    assert found.shape == ((3, width, height) if is_turned else (3, height, width))
    assert make_thumbnail(raw, 16)
    assert decoded_bytes(raw) >= 3 * width * height
    if kind[0] not in ("JPEG", "WEBP", "GIF") and orientation < 2:
        assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - to_rgb(image)).max() <= 1


@slowly
@given(
    suffix=st.sampled_from([".png", ".tiff"]),
    channels=st.sampled_from([1, 3, 4]),
    width=sides,
    height=sides,
    largest=st.sampled_from([1, 255, 256, 1_000, 65_535]),
    seed=st.integers(0, 99),
)
def test_16_bits_are_scaled_as_opencv_reads_them(suffix, channels, width, height, largest, seed) -> None:
    cv2 = pytest.importorskip("cv2")
    values = np.random.default_rng(seed).integers(0, largest + 1, (height, width, channels), np.uint16)
    raw = cv2.imencode(suffix, values)[1].tobytes()
    read = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED).reshape(height, width, -1)
    expected = np.repeat(read, 3, axis=2) if read.shape[2] == 1 else read[..., 2::-1]
    found = decode_image(raw, "x").permute(1, 2, 0).numpy()
    assert np.abs(found - np.rint(expected / 257)).max() <= 1


@slowly
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 99),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=8),
    near_start=st.booleans(),
    cut=st.floats(0, 1),
    is_cut=st.booleans(),
    inserted=st.binary(max_size=20),
)
def test_damaged_files_are_opened_or_refused_by_name(kind, seed, flips, near_start, cut, is_cut, inserted) -> None:
    raw = bytearray(encoded(kind[0], picture(kind[1], 24, 20, seed)))
    for place, bits in flips:
        raw[int(place * (min(len(raw), 200 if near_start else len(raw)) - 1))] ^= bits
    raw = raw[: int(cut * len(raw))] if is_cut else raw
    at = int(cut * len(raw))
    raw = bytes(raw[:at] + inserted + raw[at:])
    decoded_bytes(raw)
    make_thumbnail(raw, 16)
    for decode in (decode_image, lambda raw, name: decode_upload(raw, name, max_pixels=1_000_000)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                photo = decode(raw, "photo\nx")
            except ImageError as error:
                assert str(error).startswith(r"photo\nx ") and str(error).isprintable()
            else:
                assert photo.shape[0] == 3 and min(photo.shape) >= 1


names = st.binary(min_size=1, max_size=60).filter(lambda name: b"/" not in name and b"\0" not in name)


@slowly
@given(name=names, is_photo=st.booleans())
def test_files_of_any_name_are_listed_or_reported(tmp_path_factory: pytest.TempPathFactory, name, is_photo) -> None:
    folder = tmp_path_factory.mktemp("names")
    (folder / "a.jpg").write_bytes(encoded("JPEG", picture("RGB", 8, 8, 0)))
    path = folder / os.fsdecode(name)
    if name in (b".", b"..", b"a.jpg"):
        return
    path.write_bytes(encoded("PNG", picture("RGB", 8, 8, 1)) if is_photo else b"hello")
    images = scan_images(folder)
    listed = [images.path(row) for row in range(len(images))]
    assert folder / "a.jpg" in listed and listed == sorted(listed, key=os.fsencode)
    if is_photo and path not in listed:
        assert name.startswith(b".") or sum(images.skipped.counts.values()) == 1
    images.skipped.summary().encode("utf-8")
    assert path_from_text(path_text(path)) == path
    assert not set(printable(path)) & {"\n", "\r", "\t", "\x1b"}


@slowly
@given(width=st.integers(1, 3_000), height=st.integers(1, 3_000), size=st.integers(1, 1_080))
def test_any_size_is_resized_or_refused(width: int, height: int, size: int) -> None:
    from cosplace.photos.resizing import MAX_RESIZED_PIXELS, resized_shape

    try:
        shape = resized_shape(height, width, size, Path("x"))
    except ImageError as error:
        assert str(error).startswith("x is too long and narrow")
    else:
        assert min(shape) == size and shape[0] * shape[1] <= max(MAX_RESIZED_PIXELS, 4 * size * size)
