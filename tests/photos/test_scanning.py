"""Listing the photos of a folder: by a scan, or from a list file next to the folder."""

import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from cosplace.config.importing import ImportSettings
from cosplace.errors import DatasetError, ImageError
from cosplace.importing import exif_photos
from cosplace.importing.records import Problem
from cosplace.photos.image_list import rows_also_in
from cosplace.photos.scanning import scan_images


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names_of(folder: Path) -> list[str]:
    images = scan_images(folder)
    return [images.name(i) for i in range(len(images))]


def test_photos_of_any_case_and_depth_are_listed_in_the_order_of_whole_paths(tmp_path: Path) -> None:
    expected = [
        "a.jpg",
        "a/b.JPG",
        "a/c/d.jpeg",
        "a b/e.Png",
        "a-b/f.jpg",
        "ä.jpg",
        "z@1@2/g.jpg",
        "b.jpg",
        "a/b/x.jpg",
    ]
    touch(tmp_path, *expected, "a/notes.txt", ".hidden.jpg", ".cache/x.jpg", "b.jpg.part")
    assert names_of(tmp_path) == sorted(expected)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "real", "x.jpg", "deep/y.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "deep" / "up").symlink_to(tmp_path / "real")
    assert names_of(tmp_path / "link") == ["deep/y.jpg", "x.jpg"]


def test_links_to_folders_that_are_listed_anyway_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = [tmp_path / f"{number}" for number in range(9)]
    for folder in folders:
        touch(folder, "a.jpg")
        for other in folders:
            if other != folder:
                (folder / f"to_{other.name}").symlink_to(other)
    (folders[0] / "self").symlink_to(".")
    (folders[0] / "up").symlink_to("..")
    assert names_of(tmp_path) == [f"{number}/a.jpg" for number in range(9)]
    assert "links to folders that are already listed: 74 (0/self, 0/to_1" in caplog.text


def test_linked_folders_are_listed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path / "pool", "a/1.jpg", "b/2.jpg")
    (tmp_path / "pool" / "a" / "b").symlink_to("../b")
    (tmp_path / "pool" / "b" / "a").symlink_to("../a")
    touch(tmp_path / "city", ".store/3.jpg", "4.jpg")
    (tmp_path / "city" / "first").symlink_to("../pool")
    (tmp_path / "city" / "second").symlink_to("../pool")
    (tmp_path / "city" / "stored").symlink_to(".store")
    images = scan_images(tmp_path / "city", dataset=tmp_path)
    names = [images.name(row) for row in range(len(images))]
    assert names == ["4.jpg", "first/a/1.jpg", "first/a/b/2.jpg", "stored/3.jpg"]
    assert "links to folders that are already listed" in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_pipes_and_broken_links_are_called_what_they_are(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DatasetError, match="is a pipe, not a folder"):
        scan_images(tmp_path / "pipe")
    with pytest.raises(DatasetError, match="pipe is a pipe, not a folder"):
        scan_images(tmp_path / "pipe" / "train")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(DatasetError, match="link does not exist"):
        scan_images(tmp_path / "link")


def test_paths_other_than_folders_with_photos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        scan_images(tmp_path / "missing")
    with pytest.raises(DatasetError, match="has no photos"):
        scan_images(tmp_path)
    touch(tmp_path, "file")
    with pytest.raises(DatasetError, match="not a folder"):
        scan_images(tmp_path / "file")
    touch(tmp_path, "two\nlines.jpg")
    with pytest.raises(DatasetError, match="line break"):
        scan_images(tmp_path)
    touch(tmp_path, "x.jpg")
    assert names_of(tmp_path) == ["x.jpg"]


def save(path: Path, kind: str = "JPEG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(path, kind)


def test_photos_of_other_suffixes_are_found_by_their_content(tmp_path: Path) -> None:
    expected = {
        "a.JPE": "JPEG",
        "b.jfif": "JPEG",
        "c.webp": "WEBP",
        "d.TIF": "TIFF",
        "e.tiff": "TIFF",
        "f.bmp": "BMP",
        "g.gif": "GIF",
        "IMG_1.HEIC": "JPEG",  # renamed by a phone
        "no suffix": "PNG",
        "x.jpg.1": "JPEG",
    }
    for name, kind in expected.items():
        save(tmp_path / name, kind)
    (tmp_path / "empty").touch()
    (tmp_path / "notes").write_text("BM, or not")
    save(tmp_path / "x.jpg.part")  # a download that is not finished
    assert names_of(tmp_path) == sorted(expected)


def test_what_is_skipped_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "x.jpg")
    for number in range(5):
        (tmp_path / f"{number}.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    touch(tmp_path, "a/clip.MP4", "a/b.mov", "c.CR2", "table.csv", "two\nlines.jpg")
    (tmp_path / "fo\nlder").mkdir()
    images = scan_images(tmp_path)
    assert [images.name(row) for row in range(len(images))] == ["x.jpg"]
    assert images.skipped.counts == {
        "HEIC files": 5, "videos": 2, "raw images": 1, "other files": 1, "photos with a line break in their name": 1,
        "folders with a line break in their name": 1,
    }  # fmt: skip
    assert "HEIC files: 5 (0.heic, 1.heic, 2.heic, ...); folders with a line break" in images.skipped.summary()
    assert "videos: 2 (a/b.mov, a/clip.MP4)" in caplog.text and "table.csv" not in caplog.text
    assert r"two\nlines.jpg" in caplog.text and len(caplog.records) == 1
    (tmp_path / "x.jpg").unlink()
    with pytest.raises(DatasetError, match=r"has no photos .*HEIC files: 5"):
        scan_images(tmp_path)


def test_images_of_other_formats_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "x.jpg")
    save(tmp_path / "a photo of another name.tga")
    for name in ("1.pgm", "2.PPM"):
        (tmp_path / name).write_bytes(b"P5\n2 2\n255\n1234")
    touch(tmp_path, "a/3.tga", "4.pcx", "5.jp2", "6.exr", "7.hdr", "8.psd", "notes")
    images = scan_images(tmp_path)
    assert len(images) == 2
    assert images.skipped.counts == {
        "Netpbm files": 2, "TGA files": 1, "PCX files": 1, "JPEG 2000 files": 1, "OpenEXR files": 1, "HDR files": 1,
        "PSD files": 1, "other files": 1,
    }  # fmt: skip
    (message,) = caplog.messages
    assert "Netpbm files: 2 (1.pgm, 2.PPM)" in message and "TGA files: 1 (a/3.tga)" in message
    problems = [entry.reason for entry in exif_photos.read(tmp_path, ImportSettings()) if isinstance(entry, Problem)]
    assert len(problems) == 9
    assert "is a TGA file. Export it as JPEG." in problems and "is an HDR file. Export it as JPEG." in problems


def test_folders_of_the_system_are_skipped(tmp_path: Path) -> None:
    system = [
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "__MACOSX",
        "lost+found",
        "System Volume Information",
        ".Trash-1000",
    ]
    touch(tmp_path, "x.jpg", *(f"{name}/y.jpg" for name in system), *(f"a/{name}/b/y.jpg" for name in system))
    assert names_of(tmp_path) == ["x.jpg"]
    assert scan_images(tmp_path).skipped.counts == {"system folders": 12, "hidden folders": 2}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_pipes_sockets_and_links_to_nothing_are_skipped(tmp_path: Path) -> None:
    touch(tmp_path, "x.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.jpg"))
        (tmp_path / "device.jpg").symlink_to("/dev/zero")
        (tmp_path / "loop.jpg").symlink_to("loop.jpg")
        (tmp_path / "gone.jpg").symlink_to("nothing")
        images = scan_images(tmp_path, follow_outside=True)
    assert len(images) == 1
    assert images.skipped.counts == {"pipes, sockets and devices": 4, "broken links": 2}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the system's administrator can read everything")
def test_folders_that_cannot_be_read_are_skipped(tmp_path: Path) -> None:
    touch(tmp_path, "x.jpg", "closed/y.jpg")
    (tmp_path / "closed").chmod(0)
    try:
        images = scan_images(tmp_path)
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert len(images) == 1 and images.skipped.counts == {"folders that cannot be read (Permission denied)": 1}


def test_a_folder_that_cannot_be_read_does_not_end_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "x.jpg", "bad/y.jpg", "z.jpg")
    scandir = os.scandir

    def failing(folder: bytes) -> object:
        if folder.endswith(b"bad"):
            raise OSError(5, "Input/output error", folder)
        return scandir(folder)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", failing)
        images = scan_images(tmp_path)
    assert len(images) == 2 and images.skipped.counts == {"folders that cannot be read (Input/output error)": 1}


def test_links_that_lead_outside_are_followed_only_if_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "other/secret.jpg", "data/set/real/a.jpg", "data/pool/b.jpg")
    folder = tmp_path / "data" / "set"
    (folder / "file.jpg").symlink_to(tmp_path / "other" / "secret.jpg")
    (folder / "folder").symlink_to(tmp_path / "other")
    (folder / "inside.jpg").symlink_to("real/a.jpg")
    (folder / "pool.jpg").symlink_to("../pool/b.jpg")
    (folder / "train").symlink_to(tmp_path / "other")  # a split of the dataset
    (folder / "deeper").mkdir()
    (folder / "deeper" / "train").symlink_to("../../pool")
    (tmp_path / "link").symlink_to(folder)
    for place in (folder, tmp_path / "link"):
        assert names_of(place) == ["inside.jpg", "real/a.jpg", "train/secret.jpg"]
    assert "links that lead outside the folder: 4" in caplog.text and "--follow_outside" in caplog.text
    followed = scan_images(folder, follow_outside=True)
    assert len(followed) == 7 and not followed.skipped.counts
    assert len(scan_images(folder, dataset=tmp_path / "data")) == 5


def test_deep_folders_do_not_end_the_scan(tmp_path: Path) -> None:
    touch(tmp_path, "x.jpg")
    deep = tmp_path
    before = Path.cwd()
    try:
        os.chdir(tmp_path)
        for _ in range(600):
            Path("d").mkdir()
            os.chdir("d")
        Path("y.jpg").touch()
    finally:
        os.chdir(before)
    assert names_of(deep) == ["x.jpg"]


@pytest.mark.parametrize("text", ["b.jpg\na/x.jpg\n", "a/x.jpg\nb.jpg\n", "a/x.jpg\r\nb.jpg\r\n", "a/x.jpg\n\nb.jpg"])
def test_a_list_file_next_to_the_folder_replaces_the_scan(tmp_path: Path, text: str) -> None:
    touch(tmp_path / "train", "a/x.jpg", "b.jpg", "not listed.jpg")
    (tmp_path / "train_images_paths.txt").write_bytes(text.encode())
    assert names_of(tmp_path / "train") == ["a/x.jpg", "b.jpg"]
    assert (scan_images(tmp_path / "train").list_file is not None) == (text == "a/x.jpg\nb.jpg\n")


@pytest.mark.parametrize(
    ("text", "message"), [("gone.jpg\n", "'gone.jpg', which is not in"), ("", "no photos"), ("\n \n", "no photos")]
)
def test_a_list_file_that_does_not_match_is_refused(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path / "train", "x.jpg")
    (tmp_path / "train_images_paths.txt").write_text(text)
    with pytest.raises(DatasetError, match=message):
        scan_images(tmp_path / "train")


@pytest.mark.parametrize("line", ["../secret.jpg", "a/../../secret.jpg", "/secret.jpg"])
@pytest.mark.parametrize("others", [[], ["x.jpg"], ["x.jpg", "0.jpg"]])
def test_a_list_file_does_not_lead_outside(tmp_path: Path, line: str, others: list[str]) -> None:
    touch(tmp_path, "secret.jpg", "train/x.jpg", "train/0.jpg", "train/a/y.jpg")
    line = line if line[0] != "/" else str(tmp_path / "secret.jpg")
    for text in (line, *others), sorted((line, *others)):
        (tmp_path / "train_images_paths.txt").write_text("".join(f"{path}\n" for path in text))
        with pytest.raises(DatasetError, match=r"outside the folder.*--follow_outside"):
            scan_images(tmp_path / "train")
        assert len(scan_images(tmp_path / "train", follow_outside=True)) == len(text)


def test_paths_of_a_long_list_file_do_not_lead_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosplace.photos.scanning.CHECKED_BYTES", 0)
    monkeypatch.setattr("cosplace.photos.scanning.LISTED_FILES_CHECKED", 1)
    touch(tmp_path, "secret.jpg", "train/0.jpg", "train/a/y.jpg")
    (tmp_path / "train" / "b.jpg").symlink_to("../secret.jpg")
    (tmp_path / "train_images_paths.txt").write_text("0.jpg\na/../../secret.jpg\na/y.jpg\nb.jpg\n")
    images = scan_images(tmp_path / "train")
    assert images.list_file is not None
    assert [images.path(row).name for row in (0, 2)] == ["0.jpg", "y.jpg"]
    for row in (1, 3):
        with pytest.raises(ImageError, match="outside"):
            images.path(row)
    (tmp_path / "train_images_paths.txt").write_text("../secret.jpg\n0.jpg\n")
    with pytest.raises(DatasetError, match="outside the folder"):
        scan_images(tmp_path / "train")


@pytest.mark.parametrize("swapped", [None, 0, 7, 40, 98])
def test_a_list_file_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: int | None) -> None:
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


def test_photos_of_another_list_are_found_by_name_and_size(tmp_path: Path) -> None:
    touch(tmp_path / "a", "x/1.jpg", "2.jpg", "3.jpg", "gone.jpg")
    touch(tmp_path / "b", "1.jpg", "y/2.jpg", "4.jpg", "gone.jpg")
    (tmp_path / "b" / "1.jpg").write_bytes((tmp_path / "a" / "x" / "1.jpg").read_bytes() + b"more")
    images, others = scan_images(tmp_path / "a"), scan_images(tmp_path / "b")
    for folder in "ab":
        (tmp_path / folder / "gone.jpg").unlink()
    assert [images.name(row) for row in rows_also_in(images, others)] == ["2.jpg"]
