"""Names, scans and the opening of photos."""

import contextlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cosplace.errors import DatasetError, ImageError
from cosplace.photos.batch_memory import PhotoStacks
from cosplace.photos.image_list import image_list
from cosplace.photos.names import FIELDS, format_image_name, parse_fields, utm_positions
from cosplace.photos.opening import MAX_PIXELS, jpeg_header, open_image
from cosplace.photos.scanning import scan_images


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names_of(folder: Path) -> list[str]:
    images = scan_images(folder)
    return [images.name(i) for i in range(len(images))]


# --- scanning --------------------------------------------------------------------------------------------------------


def test_scan_finds_photos_of_any_case_and_depth_in_the_order_of_whole_paths(tmp_path: Path) -> None:
    wanted = ["a.jpg", "a/b.JPG", "a/c/d.jpeg", "a b/e.Png", "a-b/f.jpg", "ä.jpg", "z@1@2/g.jpg", "b.jpg", "a/b/x.jpg"]
    touch(tmp_path, *wanted, "a/notes.txt", ".hidden.jpg", ".cache/x.jpg", "b.jpg.part")
    assert names_of(tmp_path) == sorted(wanted)


def test_scan_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "real", "x.jpg", "deep/y.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "deep" / "up").symlink_to(tmp_path / "real")
    assert names_of(tmp_path / "link") == ["deep/y.jpg", "x.jpg"]


def test_scan_refuses_what_is_no_folder_of_photos(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        scan_images(tmp_path / "missing")
    with pytest.raises(DatasetError, match="holds no photos"):
        scan_images(tmp_path)
    touch(tmp_path, "file")
    with pytest.raises(DatasetError, match="not a folder"):
        scan_images(tmp_path / "file")
    touch(tmp_path, "two\nlines.jpg")
    with pytest.raises(DatasetError, match="line break"):
        scan_images(tmp_path)


@pytest.mark.parametrize("text", ["b.jpg\na/x.jpg\n", "a/x.jpg\nb.jpg\n", "a/x.jpg\r\nb.jpg\r\n", "a/x.jpg\n\nb.jpg"])
def test_a_list_beside_the_folder_replaces_the_scan(tmp_path: Path, text: str) -> None:
    touch(tmp_path / "train", "a/x.jpg", "b.jpg", "not listed.jpg")
    (tmp_path / "train_images_paths.txt").write_bytes(text.encode())
    assert names_of(tmp_path / "train") == ["a/x.jpg", "b.jpg"]
    assert (scan_images(tmp_path / "train").list_file is not None) == (text == "a/x.jpg\nb.jpg\n")


@pytest.mark.parametrize(
    ("text", "said"), [("gone.jpg\n", "'gone.jpg', which is not in"), ("", "no photos"), ("\n \n", "no photos")]
)
def test_a_list_that_does_not_match_is_refused(tmp_path: Path, text: str, said: str) -> None:
    touch(tmp_path / "train", "x.jpg")
    (tmp_path / "train_images_paths.txt").write_text(text)
    with pytest.raises(DatasetError, match=said):
        scan_images(tmp_path / "train")


# --- names -----------------------------------------------------------------------------------------------------------

number = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(-1e7, 1e7, places=2).map(str),
    st.decimals(0, 1e7, places=2).map(lambda d: f"{d:010.2f}"),
    st.integers(-(10**9), 10**18).map(str),
    st.sampled_from(
        ["0", "-0", "-0.0", "+3.5", ".5", "5.", "1e3", "1_0", "00000000012", "0.123456789012", " 7", "134"]
    ),
)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(number, number, number, st.sampled_from(["", "a/", "x@1@y/", "/".join("@@@")])), min_size=1)
)
def test_numbers_equal_pythons_floats_bit_for_bit(rows: list[tuple[str, str, str, str]]) -> None:
    names = [f"{prefix}{i}/@{e}@{n}@@@@@p.jpg@@{h}@@@.jpg" for i, (e, n, h, prefix) in enumerate(rows)]
    images = image_list(Path("x"), names)
    found = np.concatenate([values for _, values in parse_fields(images, list(FIELDS))], axis=1)
    expected = []
    for i in range(len(images)):
        fields = images.name(i).split("/")[-1].split("@")
        expected.append([float(fields[1]), float(fields[2]), float(fields[9])])
    assert found.T.tobytes() == np.array(expected).tobytes()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("photo.jpg", r"field 1 of the name \(utm_east\): it is missing"),
        ("@1@.jpg", r"field 2 of the name \(utm_north\): it is missing"),
        ("@@5@@.jpg", r"field 1 .* it is missing"),
        ("@1@nan@.jpg", "'nan' is no number"),
        ("@1,5@2@.jpg", "'1,5' is no number"),
        ("@1@2.jpg", "field 2"),
        ("@12:4@2@.jpg", "'12:4' is no number"),
        ("@1.2.3@2@.jpg", "is no number"),
        ("@-@2@.jpg", "'-' is no number"),
    ],
)
def test_a_name_without_position_is_named_with_its_field(name: str, said: str) -> None:
    with pytest.raises(DatasetError, match=said) as caught:
        utm_positions(image_list(Path("there"), ["@1@2@.jpg", name, "@3@4@.jpg"]))
    assert str(Path("there") / name) in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(
    headings=st.lists(st.sampled_from(["", "@", "7", "12", "112", "0", "360", "1@2"]), min_size=1, max_size=8),
    before=st.sampled_from(["", "37.70/", "a@b/", "@/"]),
    tail=st.sampled_from(["@@@@201311@@.jpg", "@.jpg", ".jpg", "@@@@"]),
)
def test_names_alike_but_for_one_field_are_read_as_all_others(headings: list[str], before: str, tail: str) -> None:
    names = [f"{before}@{i}.5@0041@10@S@@@pano{i}@@{heading}{tail}" for i, heading in enumerate(headings)]
    images = image_list(Path(), names)
    fields = [images.name(i).split("/")[-1].split("@") for i in range(len(images))]
    try:
        expected = [[float(name[1]), float(name[2]), float(name[9])] for name in fields if len(name) > 10]
        readable = len(expected) == len(names)
    except ValueError:
        readable = False
    if readable:
        values = np.concatenate([v for _, v in parse_fields(images, ("utm_east", "utm_north", "heading"))], axis=1)
        assert values.T.tolist() == expected
    else:
        with pytest.raises(DatasetError, match="field 9"):
            list(parse_fields(images, ("utm_east", "utm_north", "heading")))


@pytest.mark.parametrize("swapped", [None, 0, 7, 40, 98])
def test_a_long_list_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: int | None) -> None:
    monkeypatch.setattr("cosplace.photos.scanning.BLOCK_BYTES", 64)
    lines = [f"{i:03d}{'x' * (i % 90)}.jpg" for i in range(100)]
    for line in lines:
        touch(tmp_path / "train", line)
    listed = lines.copy()
    if swapped is not None:
        listed[swapped], listed[swapped + 1] = listed[swapped + 1], listed[swapped]
    (tmp_path / "train_images_paths.txt").write_text("".join(line + "\n" for line in listed))
    images = scan_images(tmp_path / "train")
    assert [images.name(i) for i in range(len(images))] == lines
    assert (images.list_file is not None) == (swapped is None)


def test_positions_need_only_two_fields() -> None:
    images = image_list(Path("x"), ["@3@4.5@.jpg", "pre@1@2@.jpg"])
    assert utm_positions(images).tolist() == [[3, 4.5], [1, 2]]


def test_written_names_are_the_fields() -> None:
    name = format_image_name(
        utm_east=543037.377, utm_north=4180974.8, zone=10, letter="S", latitude=37.7751, longitude=-122.5113,
        pano_id="1ooZ", heading=134, timestamp="201311",
    )  # fmt: skip
    assert name == "@0543037.38@4180974.80@10@S@037.77510@-122.51130@1ooZ@@134@@@@201311@@.jpg"


# --- pixels ----------------------------------------------------------------------------------------------------------


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGB", ".jpg"), ("L", ".jpg"), ("CMYK", ".jpg"), ("RGB", ".png"), ("RGBA", ".png"), ("P", ".png"), ("1", ".png")],
)
def test_pixels_are_pillows(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    picture(mode).save(path)
    found = open_image(path)
    assert found.dtype == torch.uint8
    with Image.open(path) as expected:
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.array(expected.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 10))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_photos_are_turned_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture().save(tmp_path / f"x{suffix}", exif=exif)
    found = open_image(tmp_path / f"x{suffix}")
    assert found.shape == ((3, 40, 30) if 5 <= orientation <= 8 else (3, 30, 40))
    with Image.open(tmp_path / f"x{suffix}") as stored:
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.array(ImageOps.exif_transpose(stored)))


def test_a_broken_exif_block_does_no_harm(tmp_path: Path) -> None:
    picture().save(tmp_path / "x.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert open_image(tmp_path / "x.jpg").shape == (3, 30, 40)


@settings(max_examples=30, deadline=None)
@given(
    kinds=st.lists(
        st.tuples(st.sampled_from([(8, 8), (16, 24)]), st.sampled_from([".jpg", ".png"]), st.sampled_from([1, 6])),
        min_size=1,
        max_size=7,
    )
)
def test_photos_are_stacked_by_size_where_they_are_decoded(tmp_path_factory, kinds: list) -> None:
    folder = tmp_path_factory.mktemp("stacked")
    stacks, alone = PhotoStacks(len(kinds) + 1), []
    for i, (size, suffix, orientation) in enumerate(kinds):
        path, exif = folder / f"{i}{suffix}", Image.Exif()
        exif[0x0112] = orientation
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(path, exif=exif)
        alone.append(open_image(path))
        assert stacks.open(path) == alone[-1].shape[1:]
        (folder / "bad.jpg").write_bytes(path.read_bytes()[:-40])  # what fails leaves nothing behind
        with contextlib.suppress(ImageError):
            stacks.open(folder / "bad.jpg")
    found = stacks.stacks()
    assert sorted(place for places, _ in found for place in places) == list(range(len(kinds)))
    for places, photos in found:
        assert len(places) == len(photos)
        assert all(torch.equal(alone[place], photo) for place, photo in zip(places, photos, strict=True))


def test_what_is_no_photo_is_refused_by_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture(size=(300, 200)).save(buffer, "JPEG")
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
    with pytest.raises(ImageError, match="cannot be read"):
        open_image(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match="cannot be read"):
        open_image(tmp_path)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture().save(buffer, "JPEG")
    raw = bytearray(buffer.getvalue())
    at = raw.index(b"\xff\xc0")
    raw[at + 5 : at + 9] = (60000).to_bytes(2, "big") * 2
    (tmp_path / "bomb.jpg").write_bytes(raw)
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    raw = bytearray(buffer.getvalue())
    raw[16:24] = (60000).to_bytes(4, "big") * 2
    (tmp_path / "bomb.png").write_bytes(raw)
    assert MAX_PIXELS < 60000**2
    for name in ("bomb.jpg", "bomb.png"):
        with pytest.raises(ImageError, match="60000 x 60000"):
            open_image(tmp_path / name)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 5}, {"restart_marker_blocks": 1}])
def test_sizes_are_read_from_the_header(options: dict) -> None:
    buffer = io.BytesIO()
    picture(size=(123, 77)).save(buffer, "JPEG", comment=b"x" * 60000 if not options else b"", **options)
    assert jpeg_header(buffer.getvalue()) == (123, 77, 3, None)


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=200))
def test_any_bytes_give_a_size_or_none(raw: bytes) -> None:
    header = jpeg_header(b"\xff\xd8" + raw)
    assert header is None or (0 <= header[0] < 65536 and 0 <= header[1] < 65536 and 0 <= header[2] < 256)


@settings(max_examples=50, deadline=None)
@given(cut=st.integers(0, 3000), at=st.integers(0, 3000), byte=st.integers(0, 255))
def test_a_damaged_file_is_a_picture_or_an_error_of_ours(tmp_path_factory, cut: int, at: int, byte: int) -> None:
    buffer = io.BytesIO()
    picture().save(buffer, "JPEG")
    raw = bytearray(buffer.getvalue())
    raw[at % len(raw)] = byte
    path = tmp_path_factory.getbasetemp() / f"damaged{os.getpid()}.jpg"
    path.write_bytes(raw[: max(1, len(raw) - cut)])
    try:
        assert open_image(path).shape[0] == 3
    except ImageError as error:
        assert path.name in str(error)
