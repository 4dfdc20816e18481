"""`validate` counts each fault of a dataset that holds some of each kind."""

import json
import shutil
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosplace.cli import main
from cosplace.photos.tables import TABLE_NAME, PhotoRecord, to_table, write_table
from cosplace.retrieval.validation import FolderReport, validate
from tests.synthetic_dataset import landscape, place_image, write_dataset, write_place
from tests.table_samples import around, write_exif_photo

GOOD = "@0543037.38@4180974.80@10@S@037.77510@-122.51130@{}@@90@@@@2020@@.jpg"
PLACES = count()  # each photo shows another place


def write_photo(folder: Path, name: str, content: bytes | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    photo = write_place(folder, next(PLACES), 0)
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
    train, database, queries = validate(faulty).folders
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
        "leak: within 25 m of a photo of test/queries": (8, False),
    }
    assert problems(database) == {}
    assert problems(queries) == {
        "also in database/": (1, True),
        "no database photo within 25 m; counts as a miss": (1, False),
    }
    (example,) = queries.problems[1].examples
    assert "alone" in example
    assert "cannot be opened" not in problems(validate(faulty, quick=True).folders[0])


def test_the_command(faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(faulty)]) == 2
    out, err = capsys.readouterr()
    assert "train: 11 photos; UTM zones: 10 north" in out
    assert "  error: 1 x UTM fields more than 50 m from latitude and longitude: b/@0543037" in out
    assert "7 kinds of errors, 4 kinds of warnings" in out
    assert err.splitlines()[-1].startswith(f"error: {faulty} has errors: UTM fields")
    assert main(["validate", str(faulty), "--json", "--quick"]) == 2
    content = json.loads(capsys.readouterr().out)
    assert (content["num_errors"], content["num_warnings"]) == (6, 4)
    assert content["folders"][2]["problems"][0]["count"] == 1
    assert main(["validate", str(tmp_path / "none")]) == 2


def test_a_good_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_dataset(tmp_path / "mine" / "images", num_places=2, images_per_place=2).parent
    for photo in folder.rglob("*.jpg"):  # the latitudes of these synthetic names are not those of the UTM fields
        name = photo.name.replace("@037.70000@-122.40000@", "@@@").replace("@@0@@@@", f"@@{next(PLACES) % 360}@@@@")
        photo.rename(photo.with_name(name))
    assert main(["validate", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "images/test/queries_v1: 12 photos" in out
    assert "no errors, " in out
    # The photos of one place differ only in light and noise.
    assert all("near-duplicate of" in line for line in out.splitlines() if "warning: " in line)
    assert main(["validate", str(folder / "images" / "train")]) == 0
    assert main(["validate", str(folder / "images" / "val"), "--quick"]) == 0


def test_a_name_that_only_starts_with_an_at_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = around(45.0, 7.0, 8, 500)
    for number, record in enumerate(records):
        name = f"{number}.jpg" if number else "@anna_2020.jpg"
        write_exif_photo(tmp_path / "exif" / name, record, place_image(number, 0, side=16))
    (report,) = validate(tmp_path / "exif", quick=True).folders
    assert not any("position" in problem.kind for problem in report.problems)
    words = ["--alpha=360", "--N=1", "--L=1", "--groups_num=1", "--min_images_per_class=1"]
    assert main(["groups", str(tmp_path / "exif"), *words]) == 0
    for number in range(3):  # wrong '@' names, whose EXIF is not read
        shutil.copy(tmp_path / "exif" / "@anna_2020.jpg", tmp_path / f"@x@4978{number},5@32@T@45,0@.jpg")
    shutil.rmtree(tmp_path / "exif")
    (report,) = validate(tmp_path, quick=True).folders
    assert problems(report)["no position (fields 1 and 2 of the file name)"] == (3, True)


def test_photos_of_two_zones(tmp_path: Path) -> None:
    for split, zone in (("database", 11), ("queries", 10)):
        write_photo(tmp_path / split, f"@500000.00@4317000.00@{zone}@S@@@p@@90@.jpg")
    _, queries = validate(tmp_path).folders
    assert problems(queries) == {"no database photo within 25 m; counts as a miss": (1, False)}
    write_photo(tmp_path / "queries", "@500000.00@4317000.00@@@@@p@@90@.jpg")
    _, queries = validate(tmp_path).folders
    assert problems(queries) == {"no UTM zone, but other photos are in several": (1, True)}


def test_photos_without_a_zone_among_others(tmp_path: Path) -> None:
    def write(part: str, number: int, zone: str, note: str = "") -> None:
        name = f"@{500000 + number}.00@4317000.00@{zone}@S@@@p{number}@@90@@@@20200102030405@{note}@.jpg"
        write_photo(tmp_path / part, name)

    for number in range(12):
        write("train", number, "" if number == 3 else "10", "local_time" if number in (5, 7) else "")
    (train,) = validate(tmp_path, quick=True).folders
    found = {problem.kind: problem for problem in train.problems}
    zone = found["no UTM zone, but other photos have one; taken as in the same zone"]
    assert (zone.count, zone.is_error, [name[:10] for name in zone.examples]) == (1, False, ["@500003.00"])
    (kind,) = [kind for kind in found if kind.startswith("time without a time zone, taken as UTC, but other")]
    assert (found[kind].count, found[kind].is_error) == (2, False)
    assert [name[:10] for name in found[kind].examples] == ["@500005.00", "@500007.00"]
    write("train", 12, "11")
    (train,) = validate(tmp_path, quick=True).folders
    assert problems(train)["no UTM zone, but other photos are in several"] == (1, True)


def test_photos_that_all_lack_a_zone_are_not_reported(tmp_path: Path) -> None:
    for part in ("database", "queries"):
        for number in range(2):
            name = f"@500000.00@4317000.00@@@@@{part}{number}@@90@@@@20200102030405@local_time@.jpg"
            write_photo(tmp_path / part, name)
    assert not any("zone" in problem.kind for report in validate(tmp_path).folders for problem in report.problems)


@pytest.mark.parametrize("parts", [("",), ("database", "queries")])
def test_missing_headings_are_reported_where_nothing_is_named_train(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        write_photo(tmp_path / part, GOOD.format(part or "all").replace("@@90@", "@@@"))
    reports = validate(tmp_path).folders
    assert problems(reports[0])["no heading, as all photos"] == (1, False)
    assert all("no heading, as all photos" not in problems(report) for report in reports[1:])


def test_a_folder_without_queries(tmp_path: Path) -> None:
    write_photo(tmp_path / "database", GOOD.format("database"))
    assert problems(validate(tmp_path).folders[0]) == {"no query folder next to database/": (1, True)}


# --- tables, clocks, leaks -------------------------------------------------------------------------------------------

NOON = 1_600_000_000.0
DEGREE_M = 111_194.9  # of latitude, on a sphere


def record(path: str, meters: float, **values: object) -> PhotoRecord:
    """A photo of a street that leads north."""
    known = {"latitude": 40 + meters / DEGREE_M, "longitude": -3.7, "heading": meters % 360, "time": NOON + meters}
    return PhotoRecord(path=path, **(known | values))  # type: ignore[arg-type]


def write_city(folder: Path, records: list[PhotoRecord], images: dict[str, np.ndarray] | None = None) -> Path:
    """A table and its photos: of a place of its own each, unless given."""
    folder.mkdir(exist_ok=True)
    for row in records:
        (folder / row.path).parent.mkdir(exist_ok=True)
        pixels = (images or {}).get(row.path)
        Image.fromarray(place_image(next(PLACES), 0) if pixels is None else pixels).save(folder / row.path)
    write_table(folder / TABLE_NAME, to_table(records))
    return folder


def found(folder: Path) -> dict[str, dict[str, int]]:
    """Number of photos by folder and kind of problem."""
    return {
        part.name: {problem.kind: problem.count for problem in part.report.problems} for part in validate(folder).parts
    }


def test_planted_leaks_are_found(tmp_path: Path) -> None:
    shown, other = landscape(next(PLACES)), landscape(next(PLACES))
    half = np.asarray(Image.fromarray(other).resize((160, 120)))
    records = [record(f"{number}.png", 100 * number, split="train") for number in range(20)]
    records += [record(f"d{number}.png", 3000 + 100 * number, split="test/database") for number in range(5)]
    records += [record(f"q{number}.png", 3000 + 100 * number + 5, split="test/queries") for number in range(5)]
    records += [record("near.png", 3020, split="train"), record("far.png", 3026, split="train")]
    records += [record("unused.png", 5000)]
    images = {"0.png": shown, "q1.png": shown, "3.png": other, "d2.png": half}
    city = write_city(tmp_path / "city", records, images)
    result = found(city)
    assert result["train"] == {"leak: within 25 m of a photo of test/queries": 2}  # near and far: 15 and 21 m
    assert result["test/database"] == {"leak: near-duplicate of a photo of train": 1}
    assert result["test/queries"] == {"leak: also a photo of train": 1}
    assert validate(city, quick=True).num_unused == 1


def test_queries_that_are_training_photos_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_dataset(tmp_path, num_places=2)
    photos = sorted((folder / "train").rglob("*.jpg"))
    queries = folder / "test" / "queries_v1"
    (queries / photos[0].name).write_bytes(next(queries.iterdir()).read_bytes())  # equal '@' names, other content
    kind = "leak: also a photo of train"

    def of_queries(*, quick: bool) -> tuple[int, bool]:
        return problems(validate(folder, quick=quick).folders[-1])[kind]

    assert of_queries(quick=True) == of_queries(quick=False) == (1, True)
    shutil.copy(photos[1], queries / photos[1].name)
    shutil.copy(photos[2], queries / photos[2].name.replace("@@0@@", "@@1@@"))
    shutil.copy(photos[2], folder / "test" / "database")  # accepted by train
    assert (of_queries(quick=True), of_queries(quick=False)) == ((2, True), (3, True))
    report = validate(folder)
    assert not any("same bytes as a photo of train" in one for one in problems(report.folders[-1]))
    assert problems(report.folders[-2])["leak: same bytes as a photo of train"] == (1, False)
    assert main(["validate", str(folder), "--quick"]) == 2
    assert f"error: 2 x {kind}: {photos[0].name} ~ " in capsys.readouterr().out


def test_duplicates_in_one_folder(tmp_path: Path) -> None:
    shown, other = (landscape(next(PLACES)) for _ in range(2))
    small = np.asarray(Image.fromarray(other).resize((160, 120)))
    records = [record(f"{name}.png", 10 * number) for number, name in enumerate("abcdef")]
    records.append(record("g.png", 900))
    images = {"a.png": shown, "b.png": shown, "c.png": other, "d.png": small, "g.png": shown}
    assert found(write_city(tmp_path / "city", records, images)) == {
        ".": {
            "same bytes as another photo of this folder": 1,
            "same bytes as a photo more than 25 m away: one of the positions is wrong": 1,
            "near-duplicate of another photo of this folder": 1,
        }
    }


def test_clocks(tmp_path: Path) -> None:
    records = [record(f"a{number}.png", 20 * number, sequence="a") for number in range(12)]
    records += [record(f"b{number:02d}.png", 20 * number, sequence="b", time=NOON) for number in range(12)]
    records.append(record("a6.x.png", 130, sequence="a", time=NOON - 50))
    records.append(record("c.png", 300, time=1e6))
    records.append(record("d.png", 320, time=1e10))
    records.append(record("e.png", 340, time=float("nan")))
    assert found(write_city(tmp_path / "city", records)) == {
        ".": {
            "date before 1990: the clock of the camera was not set": 1,
            "date in the future: the clock of the camera is wrong": 1,
            "same second as 10 or more photos at other positions": 13,  # those of b, and a0
            "earlier than the photo before it in its sequence": 1,
        }
    }


@pytest.mark.parametrize(("heading", "kind"), [(0.0, "no heading, as all photos"), (77.0, "heading 77, as all photos")])
def test_headings_that_are_all_the_same(tmp_path: Path, heading: float, kind: str) -> None:
    records = [record(f"{number}.png", 20 * number, heading=heading, split="train") for number in range(12)]
    city = write_city(tmp_path / "city", records)
    (problem,) = found(city)["train"]
    assert problem.startswith(kind)


def test_missing_positions_and_changed_files(tmp_path: Path) -> None:
    records = [record(f"{number}.png", 20 * number, checksum="00" * 32 if number == 3 else "") for number in range(5)]
    records += [PhotoRecord(path="x.png"), record("y.png", 0, latitude=0.0, longitude=0.0, heading=float("nan"))]
    report = validate(write_city(tmp_path / "city", records))
    assert problems(report.folders[0]) == {
        "no position in the table, so train, eval and index leave it out; add it with `cosplace import PHOTOS TABLE "
        "--to DATASET`": (2, False),
        "no heading": (2, False),
        "changed since the import: import the photos again": (1, False),
    }
    facts = report.folders[0].facts
    assert facts["num_located"] == 5 and facts["sizes"] == [{"width": 64, "height": 64, "count": 7}]
    assert facts["extent"]["height_m"] == pytest.approx(80, abs=0.5) and facts["extent"]["width_m"] == 0


def test_a_query_without_a_position_is_left_out_and_no_miss(tmp_path: Path) -> None:
    records = [record(f"{number}.png", 20 * number, split="test/database") for number in range(5)]
    records += [record(f"q{number}.png", 20 * number + 5, split="test/queries") for number in range(3)]
    records += [record("far.png", 2000, split="test/queries"), PhotoRecord(path="x.png", split="test/queries")]
    queries = validate(write_city(tmp_path / "city", records)).folders[1]
    left_out, alone = queries.problems[0], queries.problems[-1]
    assert left_out.kind.startswith("no position in the table") and left_out.examples == ["x.png"]
    assert alone.kind.endswith("counts as a miss") and alone.examples == ["far.png"]
    assert queries.facts["share_without_positives"] == 0.25


def test_photos_without_names_and_exif(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    for number in range(3):
        Image.fromarray(place_image(number, 0)).save(tmp_path / "plain" / f"{number}.jpg")
    (folder,) = validate(tmp_path / "plain").folders
    (problem,) = folder.problems
    assert problem.is_error and problem.count == 3 and "cosplace import" in problem.kind


def test_a_letter_s_that_may_mean_two_places_is_reported(tmp_path: Path) -> None:
    for number in range(2):  # in Sydney, which is in band H; the other name has a latitude
        write_photo(tmp_path / "one", f"@334900.57@625228{number}.75@56@S@@@{number}@@90@.jpg")
    write_photo(tmp_path / "one", "@334900.57@6252288.75@56@S@-033.85680@0151.21530@2@@90@.jpg")
    (folder,) = validate(tmp_path / "one").folders
    (kind,) = [problem for problem in folder.problems if "letter S" in problem.kind]
    assert kind.count == 2 and "add latitude and longitude" in kind.kind


def test_a_good_dataset_across_the_antimeridian(tmp_path: Path) -> None:
    records = [
        record(f"{number}.png", number, longitude=(180 + (number - 10) / 1000 + 180) % 360 - 180)
        for number in range(20)
    ]
    (part,) = validate(write_city(tmp_path / "city", records)).parts
    assert part.report.zones == [1, 60] and part.report.problems == []
    assert part.report.facts["extent"]["width_m"] == pytest.approx(0.019 * DEGREE_M * np.cos(np.radians(40)), rel=0.01)
