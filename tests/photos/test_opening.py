"""Decoding photos from files and uploads: correct pixels, limits, and errors for damaged files."""

import io
import os
import socket
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cosplace.errors import ImageError, PhotoFormatError, PhotoSizeError
from cosplace.photos.blocks import MAX_CHUNKS, MAX_SEGMENTS
from cosplace.photos.headers import JpegHeader, jpeg_header
from cosplace.photos.opening import (
    MAX_PIXELS,
    decode_image,
    decode_upload,
    decoded_bytes,
    open_image,
    upright_shape,
)
from cosplace.photos.thumbnails import decode_thumbnail, make_thumbnail
from tests.server.server_samples import (
    encoded,
    good_photo,
    jpeg_with_many_scans,
    jpeg_with_size,
    png_with_size,
    webp_with_size,
)
from tests.synthetic_dataset import place_image
from tests.unusual_input.samples import within

PIXELS = place_image(3, 0, 64)[:48]


# --- files -----------------------------------------------------------------------------------------------------------


def photo(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGB", ".jpg"), ("L", ".jpg"), ("CMYK", ".jpg"), ("RGB", ".png"), ("RGBA", ".png"), ("P", ".png"), ("1", ".png")],
)
def test_pixels_equal_those_of_pillow(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    photo(mode).save(path)
    found = open_image(path)
    assert found.dtype == torch.uint8
    with Image.open(path) as expected:
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.array(expected.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 10))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_photos_are_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo().save(tmp_path / f"x{suffix}", exif=exif)
    found = open_image(tmp_path / f"x{suffix}")
    assert found.shape == ((3, 40, 30) if 5 <= orientation <= 8 else (3, 30, 40))
    assert upright_shape(tmp_path / f"x{suffix}") == tuple(found.shape[1:])
    with Image.open(tmp_path / f"x{suffix}") as stored:
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.array(ImageOps.exif_transpose(stored)))


def test_a_damaged_exif_block_is_ignored(tmp_path: Path) -> None:
    photo().save(tmp_path / "x.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert open_image(tmp_path / "x.jpg").shape == (3, 30, 40)


def test_files_other_than_photos_are_refused_by_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    photo(size=(300, 200)).save(buffer, "JPEG")
    whole = buffer.getvalue()
    bad = {
        "empty": b"",
        "text": b"hello",
        "truncated": whole[: len(whole) // 2],
        "header": whole[:30],
        "svg": b"<svg/>",
    }
    for name, raw in bad.items():
        (tmp_path / f"{name}.jpg").write_bytes(raw)
        with pytest.raises(ImageError, match=f"{name}.jpg"):
            open_image(tmp_path / f"{name}.jpg")
    with pytest.raises(ImageError, match=r"^Cannot read .*: "):
        open_image(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match=r"^Cannot read .*: "):
        open_image(tmp_path)


def test_a_decompression_bomb_is_refused_before_decoding(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    photo().save(buffer, "JPEG")
    raw = bytearray(buffer.getvalue())
    at = raw.index(b"\xff\xc0")
    raw[at + 5 : at + 9] = (60000).to_bytes(2, "big") * 2
    (tmp_path / "bomb.jpg").write_bytes(raw)
    buffer = io.BytesIO()
    photo().save(buffer, "PNG")
    raw = bytearray(buffer.getvalue())
    raw[16:24] = (60000).to_bytes(4, "big") * 2
    (tmp_path / "bomb.png").write_bytes(raw)
    assert MAX_PIXELS < 60000**2
    for name in ("bomb.jpg", "bomb.png"):
        with pytest.raises(
            ImageError, match=rf"3,600 megapixels; the limit is {200 if name.endswith('jpg') else 178.9}\."
        ):
            open_image(tmp_path / name)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 5}, {"restart_marker_blocks": 1}])
def test_jpeg_sizes_are_read_from_the_header(options: dict) -> None:
    buffer = io.BytesIO()
    photo(size=(123, 77)).save(buffer, "JPEG", comment=b"x" * 60000 if not options else b"", **options)
    progressive = "progressive" in options
    assert jpeg_header(buffer.getvalue()) == JpegHeader(123, 77, 3, exif=None, xmp=None, has_scans=progressive)


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=200))
def test_jpeg_header_accepts_any_bytes(raw: bytes) -> None:
    header = jpeg_header(b"\xff\xd8" + raw)
    assert header is None or (0 <= header[0] < 65536 and 0 <= header[1] < 65536 and 0 <= header[2] < 256)


@settings(max_examples=50, deadline=None)
@given(cut=st.integers(0, 3000), at=st.integers(0, 3000), byte=st.integers(0, 255))
def test_a_damaged_file_is_opened_or_raises_an_image_error(tmp_path_factory, cut: int, at: int, byte: int) -> None:
    buffer = io.BytesIO()
    photo().save(buffer, "JPEG")
    raw = bytearray(buffer.getvalue())
    raw[at % len(raw)] = byte
    path = tmp_path_factory.getbasetemp() / f"damaged{os.getpid()}.jpg"
    path.write_bytes(raw[: max(1, len(raw) - cut)])
    try:
        assert open_image(path).shape[0] == 3
    except ImageError as error:
        assert path.name in str(error)


# --- files that are not photos, or odd ones --------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_pipes_sockets_and_devices_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.jpg"))
        for name in ("pipe.jpg", "device.jpg", "socket.jpg"):
            with within(20), pytest.raises(ImageError, match=rf"^Cannot read .*{name}: "):
                open_image(tmp_path / name)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "x.jpg").open("wb") as file:
        file.truncate(2 << 30)  # takes no space on disk
    with pytest.raises(ImageError, match=r"x\.jpg is larger than 500 MB"):
        open_image(tmp_path / "x.jpg")
    with pytest.raises(ImageError, match="Cannot read"):
        open_image("zero\0byte.jpg")


def png_chunk(kind: bytes, data: bytes, *, bad_checksum: bool = False) -> bytes:
    checksum = zlib.crc32(kind + data) ^ bad_checksum
    return len(data).to_bytes(4, "big") + kind + data + checksum.to_bytes(4, "big")


LONG_TEXT = bytes(range(32, 127)) * 30_000
ODD_CHUNKS = {
    "a color profile of 3 MB": png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(os.urandom(3_000_000), 0)),
    "a text of 3 MB": png_chunk(b"zTXt", b"text\0\0" + zlib.compress(LONG_TEXT)),
    "an international text of 3 MB": png_chunk(b"iTXt", b"text\0\1\0\0\0" + zlib.compress(LONG_TEXT)),
    "100 texts of 1 MB": png_chunk(b"zTXt", b"text\0\0" + zlib.compress(LONG_TEXT[:1_000_000])) * 100,
    "a wrong checksum": png_chunk(b"tEXt", b"text\0hello", bad_checksum=True),
    "a damaged text": png_chunk(b"zTXt", b"text\0\0damaged"),
    "a damaged resolution": png_chunk(b"pHYs", b"123"),
    "a damaged EXIF block": png_chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff", bad_checksum=True),
}


@pytest.mark.parametrize("kind", ODD_CHUNKS)
def test_png_files_with_odd_metadata_are_opened(kind: str) -> None:
    cv2 = pytest.importorskip("cv2")
    plain = encoded(PIXELS, "PNG")
    raw = plain[:33] + ODD_CHUNKS[kind] + plain[33:]  # after IHDR
    expected = cv2.imdecode(np.frombuffer(plain, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(expected, PIXELS)
    assert np.array_equal(decode_image(raw, "x").permute(1, 2, 0).numpy(), expected)
    assert np.array_equal(decode_upload(raw, "x").permute(1, 2, 0).numpy(), expected)


def test_png_files_with_damaged_pixels_are_refused() -> None:
    raw = bytearray(encoded(PIXELS, "PNG"))
    raw[raw.index(b"IDAT") + 10] ^= 1
    with pytest.raises(ImageError, match="x is incomplete or damaged"):
        decode_image(bytes(raw), "x")


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def with_xmp(kind: str, compressed: bool = False) -> bytes:
    raw = encoded(PIXELS, kind) if kind != "WEBP" else encoded(PIXELS, kind, xmp=XMP, lossless=True)
    if kind == "JPEG":
        data = b"http://ns.adobe.com/xap/1.0/\0" + XMP
        raw = raw[:2] + b"\xff\xe1" + (len(data) + 2).to_bytes(2, "big") + data + raw[2:]
    if kind == "PNG":
        text = zlib.compress(XMP) if compressed else XMP
        raw = raw[:33] + png_chunk(b"iTXt", b"XML:com.adobe.xmp\0" + bytes([compressed, 0, 0, 0]) + text) + raw[33:]
    return raw


@pytest.mark.parametrize(("kind", "compressed"), [("JPEG", False), ("PNG", False), ("PNG", True), ("WEBP", False)])
def test_orientation_in_xmp_counts_for_pixels_uploads_and_thumbnails(
    tmp_path: Path, kind: str, compressed: bool
) -> None:
    raw = with_xmp(kind, compressed)
    (tmp_path / "x").write_bytes(raw)
    assert upright_shape(tmp_path / "x") == (64, 48)
    upright = decode_image(raw, "x")
    assert upright.shape == (3, 64, 48)
    expected = np.rot90(PIXELS, -1)
    assert np.abs(upright.permute(1, 2, 0).numpy().astype(int) - expected).mean() < 20
    assert torch.equal(decode_upload(raw, "x"), upright)
    assert decode_thumbnail(make_thumbnail(raw, 64)).shape == (3, 64, 48)


def test_a_chunk_after_the_pixels_of_a_png_counts() -> None:
    raw = encoded(PIXELS, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 3
    late = raw[:-12] + png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + raw[-12:]
    assert np.array_equal(decode_image(late, "x").permute(1, 2, 0).numpy(), np.rot90(PIXELS, 2))


def jpeg_with_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG whose header tells a size, with repeated scans."""
    raw = bytearray(encoded(PIXELS, "JPEG", progressive=True))
    at = raw.index(b"\xff\xc2")
    raw[at + 5 : at + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    last = raw.rindex(b"\xff\xda")
    return bytes(raw[:last] + raw[last:-2] * (scans - raw.count(b"\xff\xda") + 1) + raw[-2:])


def test_scans_times_pixels_of_a_jpeg_are_limited_before_decoding() -> None:
    with pytest.raises(PhotoSizeError, match=r"x has 60 scans of 25 megapixels each; the limit is 400 megapixels"):
        decode_upload(jpeg_with_scans(5_000, 5_000, 60), "x")
    with pytest.raises(PhotoSizeError, match=r"60 scans of 100 megapixels each; the limit is 2,000 megapixels"):
        decode_image(jpeg_with_scans(10_000, 10_000, 60), "x")
    with pytest.raises(ImageError, match="more than 64 scans"):
        decode_image(jpeg_with_scans(64, 48, 65), "x")
    assert decode_image(jpeg_with_scans(64, 48, 20), "x").shape == (3, 48, 64)


@pytest.mark.parametrize("decoder", ["simplejpeg", "Pillow"])
def test_each_decoder_has_a_lower_limit_of_scans_times_pixels_for_uploads(
    decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = encoded(PIXELS, "JPEG", progressive=True)
    monkeypatch.setattr("cosplace.photos.opening.MAX_UPLOAD_SCAN_PIXELS", 2 * PIXELS.shape[0] * PIXELS.shape[1])
    if decoder == "Pillow":
        monkeypatch.setattr("cosplace.photos.opening.simplejpeg_size", lambda _: None)
    assert decode_image(raw, "x").shape == (3, *PIXELS.shape[:2])
    with pytest.raises(PhotoSizeError, match="scans"):
        decode_upload(raw, "x")


def test_a_fake_scan_in_a_comment_does_not_hide_scans() -> None:
    raw = jpeg_with_scans(64, 48, 65)
    at = raw.index(b"\xff\xc4")
    fake = b"\xff\xfe\0\x0c\xff\xda\0\x0c\3\1\0\2\x11\3"
    with pytest.raises(ImageError, match="scans"):
        decode_image(raw[:at] + fake + raw[at:], "x")


TINY_PARTS = {
    "JPEG": b"\xff\xfe\0\2",  # an empty comment
    "JPEG marker": b"\xff\x01",
    "PNG": b"\0\0\0\0teXt\xd8\xb1\x48\xb7",  # an empty chunk that decoders skip
}


@pytest.mark.parametrize("kind", TINY_PARTS)
def test_a_file_of_too_many_parts_is_refused(kind: str, tmp_path: Path) -> None:
    image_format, at = kind.split()[0], 33 if kind == "PNG" else 2
    raw, limit = encoded(PIXELS, image_format), MAX_CHUNKS if kind == "PNG" else MAX_SEGMENTS
    assert decode_image(raw[:at] + TINY_PARTS[kind] * (limit // 2) + raw[at:], "x").shape == (3, 48, 64)
    large = raw[:at] + TINY_PARTS[kind] * limit + raw[at:]
    (tmp_path / "x").write_bytes(large)
    for decode in (
        lambda: decode_image(large, "x"),
        lambda: decode_upload(large, "x"),
        lambda: upright_shape(tmp_path / "x"),
    ):
        with pytest.raises(ImageError, match=r"x is incomplete or damaged \(it has too many parts\)"):
            decode()


def test_fill_bytes_before_a_marker_are_skipped() -> None:
    raw = encoded(PIXELS, "JPEG")
    filled = raw[:2] + b"\xff" * 3_000_000 + raw[2:]
    assert jpeg_header(filled) == jpeg_header(raw)
    assert torch.equal(decode_upload(filled, "x"), decode_image(raw, "x"))
    assert jpeg_header(raw[:2] + b"\xff" * 100) is None


def test_bytes_between_segments_do_not_hide_scans() -> None:
    def with_bytes(scans: int) -> bytes:
        raw = jpeg_with_scans(64, 48, scans)
        at = raw.index(b"\xff\xc2")
        return raw[:at] + b"\0\0" + raw[at:]

    assert jpeg_header(with_bytes(20)) is None  # decoders look for the next segment
    assert decode_image(with_bytes(20), "x").shape == (3, 48, 64)
    for decode in (decode_image, decode_upload):
        with pytest.raises(ImageError, match="more than 64 scans"):
            decode(with_bytes(65), "x")


PEAK = """
import re, sys
from pathlib import Path
import PIL.JpegImagePlugin, PIL.PngImagePlugin, PIL.WebPImagePlugin, simplejpeg, torch
from cosplace.photos.opening import decode_upload, decoded_bytes
raw = sys.stdin.buffer.read()
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before, told = peak(), decoded_bytes(raw)
assert peak() - before < 1 << 20
decode_upload(raw, "photo")
print(peak() - before - len(raw), told)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured as Linux counts it")
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True, "subsampling": 0}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {"compress_level": 1}),
        ("PNG", "RGBA", {"compress_level": 1}),
        ("PNG", "I;16", {"compress_level": 1}),
        ("WEBP", "RGB", {"lossless": True, "method": 0}),
        ("WEBP", "RGBA", {"lossless": True, "method": 0}),
    ],
)
def test_decoding_takes_no_more_memory_than_told(kind: str, mode: str, options: dict) -> None:
    image = Image.fromarray(np.zeros((4_000, 4_000), np.uint16)) if mode == "I;16" else Image.new(mode, (4_000, 4_000))
    file = io.BytesIO()
    image.save(file, kind, **options)
    done = subprocess.run([sys.executable, "-c", PEAK], input=file.getvalue(), capture_output=True, check=True)
    used, told = map(int, done.stdout.split())
    assert told / 4 < used < told + (24 << 20)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_the_memory_for_decoding_is_known_from_the_header(kind: str) -> None:
    assert 6 * 48 * 64 <= decoded_bytes(encoded(PIXELS, kind)) <= 28 * 48 * 64
    assert decoded_bytes(encoded(PIXELS, kind)[:12]) == decoded_bytes(b"") == decoded_bytes(b"hello") == 0
    if kind == "WEBP":
        assert decoded_bytes(webp_with_size(16_383, 16_383)) > 16_383**2 * 20


# --- uploads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_uploads_have_the_same_upright_pixels_as_files(tmp_path, kind, orientation) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(PIXELS, kind, exif=exif)
    (tmp_path / "photo").write_bytes(raw)
    photo = decode_upload(raw, "photo")
    assert photo.shape == ((3, 48, 64) if orientation < 5 else (3, 64, 48))
    np.testing.assert_array_equal(photo.numpy(), open_image(tmp_path / "photo").numpy())


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("RGBA", "WEBP")]
)
def test_uploads_of_every_mode_become_rgb(mode, kind) -> None:
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, kind)
    assert decode_upload(file.getvalue(), "photo").shape == (3, 48, 64)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_decoded(kind) -> None:
    later = [Image.fromarray(255 - PIXELS)]
    raw = encoded(PIXELS, kind, save_all=True, append_images=later, lossless=True)
    np.testing.assert_array_equal(decode_upload(raw, "photo").permute(1, 2, 0).numpy(), PIXELS)


DECODE_WITH_LITTLE_MEMORY = """
import resource, sys
from cosplace.errors import PhotoSizeError
from cosplace.photos.opening import decode_upload
import PIL.Image, simplejpeg, torch
raw = sys.stdin.buffer.read()
def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak_mib()
try:
    decode_upload(raw, "photo")
except PhotoSizeError as error:
    print(error)
print(peak_mib() - before < 100)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("raw", "megapixels", "limit"),
    [
        (png_with_size(60_000, 60_000), "3,600", "178.9"),
        (png_with_size(13_500, 13_300), "179.6", "178.9"),  # Pillow would refuse it
        (jpeg_with_size(65_500, 65_500), "4,290.3", "200"),
        (webp_with_size(16_383, 16_383), "268.5", "178.9"),
    ],
    ids=["PNG", "PNG of 180 megapixels", "JPEG", "WEBP"],
)
def test_too_many_pixels_are_refused_without_allocating_them(raw: bytes, megapixels: str, limit: str) -> None:
    done = subprocess.run([sys.executable, "-c", DECODE_WITH_LITTLE_MEMORY], input=raw, capture_output=True, check=True)
    message = f"photo has {megapixels} megapixels; the limit is {limit}. Resize it first."
    assert done.stdout.decode().splitlines() == [message, "True"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_pixel_limit_is_exact(kind) -> None:
    for options in ({}, {"lossless": True}) if kind == "WEBP" else ({},):
        raw = encoded(PIXELS, kind, **options)
        assert decode_upload(raw, "photo", max_pixels=48 * 64).shape == (3, 48, 64)
        with pytest.raises(PhotoSizeError):
            decode_upload(raw, "photo", max_pixels=48 * 64 - 1)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO", "PDF"])
def test_other_formats_are_refused(kind) -> None:
    with pytest.raises(PhotoFormatError, match=r"^photo is not a JPEG, PNG or WebP image\. Export it as JPEG\.$"):
        decode_upload(encoded(PIXELS, kind), "photo")


def test_a_jpeg_with_too_many_scans_is_refused_but_a_progressive_one_is_decoded() -> None:
    with pytest.raises(ImageError, match="scans"):
        decode_upload(jpeg_with_many_scans(), "photo")
    assert decode_upload(encoded(PIXELS, "JPEG", progressive=True), "photo").shape == (3, 48, 64)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.data())
def test_a_damaged_upload_is_decoded_or_refused_in_one_line(kind, data) -> None:
    raw = bytearray(good_photo(1, kind=kind))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(3, min(len(raw), 400) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata
        try:
            assert decode_upload(raw, "photo", max_pixels=1_000_000).shape[0] == 3
        except ImageError as error:
            assert str(error).startswith("photo ") and len(str(error)) < 300
