"""`validate` counts each fault of a dataset that holds some of each kind."""

import json
from pathlib import Path

import pytest

from cosplace.cli import main
from cosplace.retrieval.validation import FolderReport, validate
from tests.synthetic_dataset import write_dataset, write_place

GOOD = "@0543037.38@4180974.80@10@S@037.77510@-122.51130@{}@@90@@@@2020@@.jpg"


def write_photo(folder: Path, name: str, content: bytes | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    photo = write_place(folder, len(list(folder.iterdir())), 0)
    photo.rename(folder / name)
    if content is not None:
        (folder / name).write_bytes(content)


def problems(report: FolderReport) -> dict[str, tuple[int, bool]]:
    return {problem.kind: (problem.count, problem.is_error) for problem in report.problems}


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """A dataset with faults in each folder."""
    train, test = tmp_path / "train", tmp_path / "test"
    for number in range(3):
        write_photo(train / "a", GOOD.format(f"good{number}"))
    write_photo(train / "b", GOOD.format("good0"))  # the name of another photo
    write_photo(train / "b", GOOD.format("no_heading").replace("@@90@", "@@@"))
    write_photo(train / "b", GOOD.format("odd_heading").replace("@@90@", "@@65535@"))
    write_photo(train / "b", GOOD.format("contradiction").replace("037.7", "038.7"))
    write_photo(train / "b", GOOD.format("broken"), b"\xff\xd8\xff not all of it")
    write_photo(train / "b", "@0@0@@@000.00000@0000.00000@null@@90@.jpg")
    write_photo(train / "b", "@9543037@4180974.80@10@S@@@far@@90@.jpg")
    write_photo(train / "b", "photo.jpg")
    (train / "b" / "film.mp4").write_bytes(b"\0\0\0\x18ftypmp42 and more")
    write_photo(test / "database", GOOD.format("database"))
    write_photo(test / "queries", GOOD.format("query"))
    write_photo(test / "queries", GOOD.format("alone").replace("0543037", "0543137").replace("122.51130", "122.51016"))
    content = (test / "database" / GOOD.format("database")).read_bytes()
    write_photo(test / "queries", GOOD.format("database"), content)
    return tmp_path


def test_each_fault_is_counted(faulty: Path) -> None:
    train, database, queries = validate(faulty)
    assert (train.num_photos, train.zones, train.skipped) == (11, [10], {"videos": 1})
    assert problems(train) == {
        "cannot be opened": (1, True),
        "no position (fields 1 and 2 of the file name)": (1, True),
        "position 0, 0, which means unknown; left out": (1, False),
        "impossible position": (1, True),
        "UTM fields more than 50 m from latitude and longitude": (1, True),
        "no heading (field 9 of the file name)": (2, True),
        "impossible heading": (1, True),
        "same file name as a photo in another folder": (1, False),
    }
    assert problems(database) == {}
    assert problems(queries) == {
        "also in database/": (1, True),
        "no database photo within 25 m; counts as a miss": (1, False),
    }
    (example,) = queries.problems[1].examples
    assert "alone" in example
    assert "cannot be opened" not in problems(validate(faulty, quick=True)[0])


def test_the_command(faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(faulty)]) == 2
    out, err = capsys.readouterr()
    assert "train: 11 photos; UTM zones: 10 north" in out
    assert "  error: 1 x UTM fields more than 50 m from latitude and longitude: b/@0543037" in out
    assert "kinds of errors: 7; kinds of warnings: 3" in out
    assert err.splitlines()[-1].startswith(f"error: {faulty} has errors: UTM fields")
    assert main(["validate", str(faulty), "--json", "--quick"]) == 2
    content = json.loads(capsys.readouterr().out)
    assert (content["num_errors"], content["num_warnings"]) == (6, 3)
    assert content["folders"][2]["problems"][0]["count"] == 1
    assert main(["validate", str(tmp_path / "none")]) == 2


def test_a_good_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_dataset(tmp_path / "mine" / "images", num_places=2, images_per_place=2).parent
    for photo in folder.rglob("*.jpg"):  # the latitudes of these synthetic names are not those of the UTM fields
        photo.rename(photo.with_name(photo.name.replace("@037.70000@-122.40000@", "@@@")))
    assert main(["validate", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "images/test/queries_v1: 12 photos" in out
    assert "kinds of errors: 0; kinds of warnings: 0" in out
    assert main(["validate", str(folder / "images" / "train")]) == 0
    assert main(["validate", str(folder / "images" / "val"), "--quick"]) == 0


def test_photos_of_two_zones(tmp_path: Path) -> None:
    for split, zone in (("database", 11), ("queries", 10)):
        write_photo(tmp_path / split, f"@500000.00@4317000.00@{zone}@S@@@p@@90@.jpg")
    _, queries = validate(tmp_path)
    assert problems(queries) == {"no database photo within 25 m; counts as a miss": (1, False)}
    write_photo(tmp_path / "queries", "@500000.00@4317000.00@@@@@p@@90@.jpg")
    _, queries = validate(tmp_path)
    assert problems(queries) == {"no UTM zone, but other photos are in several": (1, True)}


def test_a_folder_without_queries(tmp_path: Path) -> None:
    write_photo(tmp_path / "database", GOOD.format("database"))
    assert problems(validate(tmp_path)[0]) == {"no query folder next to database/": (1, True)}
