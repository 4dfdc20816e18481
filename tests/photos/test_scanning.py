"""Listing the photos of a folder: by a scan, or from a list file next to the folder."""

from pathlib import Path

import pytest

from cosplace.errors import DatasetError
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
