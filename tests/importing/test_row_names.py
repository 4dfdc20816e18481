"""Rows and photos of the same name: which belong together, and when neither is used."""

from pathlib import Path

import pytest

from cosplace.importing.row_names import RowNames

FOLDER = Path("/data/tables")


def joined(names: list[str], *files: str) -> dict[str, int | None]:
    """The row of each file."""
    rows = RowNames(names, FOLDER)
    paths = [Path("/data/photos") / file for file in files]
    rows.compare(paths)
    return {file: rows.find(path)[0] for file, path in zip(files, paths, strict=True)}


@pytest.mark.parametrize(
    "name",
    ["a/b.jpg", "b.jpg", "b", "./a/b.jpg", "/data/photos/a/b.jpg", "../photos/a/b.jpg", "C:\\x\\a\\b.jpg", "B.JPG",
     "file:///elsewhere/a/b.jpg", "other/b.jpg"],
)  # fmt: skip
def test_a_name_that_only_one_photo_has(name: str) -> None:
    assert joined(["c.jpg", name], "a/b.jpg", "a/d.jpg") == {"a/b.jpg": 1, "a/d.jpg": None}


def test_folders_decide_between_photos_of_one_name() -> None:
    assert joined(["x/1.jpg", "y/1.jpg"], "y/1.jpg", "x/1.jpg") == {"y/1.jpg": 1, "x/1.jpg": 0}
    assert joined(["x/1.jpg"], "y/1.jpg", "x/1.jpg") == {"y/1.jpg": None, "x/1.jpg": 0}
    assert joined(["trip/x/1.jpg", "x/1.jpg"], "trip/x/1.jpg", "home/x/1.jpg") == {"trip/x/1.jpg": 0, "home/x/1.jpg": 1}


def test_names_that_may_mean_several_photos_or_rows_are_not_used() -> None:
    assert joined(["1.jpg"], "x/1.jpg", "y/1.jpg") == {"x/1.jpg": None, "y/1.jpg": None}
    assert joined(["1.jpg", "1.jpg"], "x/1.jpg") == {"x/1.jpg": None}
    rows = RowNames(["1.jpg", "1.jpg", ""], FOLDER)
    rows.compare([Path("/p/1.jpg")])
    assert rows.find(Path("/p/1.jpg"))[1] == "2 rows name this photo: rows 1, 2"
    assert rows.unused() == [0, 1, 2]
