"""Which formats are opened: by content, each by its own decoder."""

import ast
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, features

import cosplace
from cosplace.errors import PhotoFormatError
from cosplace.photos.formats import FORMAT_BYTES, FORMATS, detect_format, other_format, refused_format
from cosplace.photos.opening import open_image

ROOT = Path(cosplace.__file__).parent.parent
COLORS = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)


def encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(COLORS).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_photos_are_opened_whatever_their_suffix(tmp_path: Path, kind: str) -> None:
    raw = encoded(kind)
    assert detect_format(raw[:32]) == kind
    for suffix in (".jpg", ".HEIC", ""):
        (tmp_path / f"x{suffix}").write_bytes(raw)
        assert open_image(tmp_path / f"x{suffix}").shape == (3, 48, 64)


@pytest.mark.parametrize("kind", ["PPM", "ICO", "PDF", "TGA", "PCX", "SGI", "JPEG2000", "DDS"])
def test_other_formats_are_refused_even_if_pillow_knows_them(tmp_path: Path, kind: str) -> None:
    if kind == "JPEG2000" and not features.check("jpg_2000"):
        pytest.skip("this Pillow has no JPEG 2000")
    (tmp_path / "x.jpg").write_bytes(encoded(kind))
    with pytest.raises(PhotoFormatError, match=r"x\.jpg is .*Export it as JPEG"):
        open_image(tmp_path / "x.jpg")


@pytest.mark.parametrize(
    "start", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xc5\xd0\xd3\xc6\x1e\0\0\0\xff\xff\0\0" + b"\0" * 18]
)
def test_postscript_never_starts_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: started.append(args))
    lines = (
        "%!PS-Adobe-3.0 EPSF-3.0",
        "%%BoundingBox: 0 0 50 50",
        "%%EndComments",
        "%%BeginProlog",
        "%%EndProlog",
        "%%EOF",
    )
    text = "\n".join(lines).encode()
    (tmp_path / "x.jpg").write_bytes(text if start.startswith(b"%") else start + text)
    with pytest.raises(PhotoFormatError, match="is a PostScript file"):
        open_image(tmp_path / "x.jpg")
    assert not started


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "video"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0", "video"),
        (b"II*\0\x10\0\0\0CR\2\0", "raw"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "raw"),
        (b"\x1aE\xdf\xa3", "video"),
        (b"hello", ""),
        (b"BM, a note that starts like a bitmap", ""),
    ],
)
def test_files_that_are_not_opened_are_recognized(start: bytes, name: str) -> None:
    assert detect_format(start) is None and other_format(start) == name


@pytest.mark.parametrize(
    ("kind", "suffix", "name"),
    [
        ("PPM", ".ppm", "Netpbm"),
        ("PCX", ".pcx", "PCX"),
        ("TGA", ".tga", "TGA"),  # by its name only: TGA files begin with any bytes
        ("SGI", ".sgi", "SGI"),
        ("DDS", ".dds", "DDS"),
        ("JPEG2000", ".jp2", "JPEG 2000"),
    ],
)
def test_images_that_are_not_opened_are_recognized_by_content_and_suffix(kind: str, suffix: str, name: str) -> None:
    if kind == "JPEG2000" and not features.check("jpg_2000"):
        pytest.skip("this Pillow has no JPEG 2000")
    start = encoded(kind)[:FORMAT_BYTES]
    assert other_format(start) == ("" if kind == "TGA" else name)
    assert other_format(start, b"x" + suffix.upper().encode()) == name
    assert f" {name} file" in refused_format(start, b"x" + suffix.encode())


@pytest.mark.parametrize(
    ("start", "suffix", "name"),
    [
        (b"P5\n# a comment\n640 480\n255\n", "", "Netpbm"),
        (b"P7\nWIDTH 640\n", "", "Netpbm"),
        (b"Pf\n640 480\n-1.0\n", "", "Netpbm"),
        (b"P5 is the fifth place", "", ""),
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe", "", "HDR"),
        (b"8BPS\0\1", "", "PSD"),
        (b"v/1\x01\2\0\0\0", "", "OpenEXR"),
        (b"", ".exr", "OpenEXR"),
        (b"", ".psd", "PSD"),
        (b"", ".heic", "HEIC"),
        (b"", ".hdr", "HDR"),
        (b"8BPS\0\1", ".tga", "PSD"),  # the content counts more
    ],
)
def test_formats_without_an_encoder_are_recognized(start: bytes, suffix: str, name: str) -> None:
    assert other_format(start, f"x{suffix}".encode()) == name


def test_a_raw_image_is_not_opened_as_its_small_preview(tmp_path: Path) -> None:
    preview = Image.fromarray(COLORS)
    for number, tags in enumerate(({50706: b"\1\4\0\0"}, {254: 1, 330: 8})):  # DNGVersion; a preview with SubIFDs
        preview.save(tmp_path / f"{number}.tif", "TIFF", tiffinfo=tags)
        with pytest.raises(PhotoFormatError, match="raw image"):
            open_image(tmp_path / f"{number}.tif")
    preview.save(tmp_path / "plain.tif")
    assert open_image(tmp_path / "plain.tif").shape == (3, 48, 64)


@pytest.mark.slow
def test_every_image_is_opened_with_a_list_of_formats() -> None:
    calls = []
    for path in [*(ROOT / "cosplace").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open"):
                calls.append((path.name, node.lineno, "formats" in {keyword.arg for keyword in node.keywords}))
    assert calls and all(has_formats for _, _, has_formats in calls), calls
