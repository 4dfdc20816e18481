"""Indexes of unusual folders, with moved photos and damaged files; answers that a judge can compute by hand."""

import json
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from cosplace import open_index
from cosplace.cli import main
from cosplace.config.index import IndexSettings
from cosplace.errors import CosPlaceError
from cosplace.index.photo_index import create_index
from cosplace.index.reader_copy import remove_reader_copies
from cosplace.index.records import ModelSpec, NewPhoto
from tests.unusual_input.samples import (
    exif_block,
    jpeg_with,
    place_pixels,
    rationals,
    run,
    text,
    utm_name,
    write_model,
    write_photo,
    write_street,
)

pytestmark = pytest.mark.slow  # they run whole commands

CPU = "--device", "cpu"
ENCODING = "--num_workers", 0, *CPU


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.pth")


def build(capsys: pytest.CaptureFixture, folder: Path, model: Path, *words: object) -> tuple[int, str, str]:
    """Build the index `index` next to a folder."""
    to = folder.parent / "index"
    return run(capsys, "index", "build", folder, "--model", model, "--to", to, "--no_calibrate", *ENCODING, *words)


def locate(capsys: pytest.CaptureFixture, index: Path, photos: Sequence[Path], *words: object) -> list[dict]:
    flags = "--uncalibrated", "--min_confidence", 0, "--json"
    code, out, _ = run(capsys, "locate", *photos, "--index", index, *flags, *CPU, *words)
    assert code == 0
    found = json.loads(out)
    return found if isinstance(found, list) else [found]


# --- photos that cannot be read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("has_position", [True, False])
def test_an_index_of_photos_that_cannot_be_read_is_an_error(
    tmp_path: Path, capsys, model: Path, has_position: bool, count: int
) -> None:
    folder = tmp_path / "mine" / "photos"
    folder.mkdir(parents=True)
    (tmp_path / "mine" / "positions.csv").write_text("latitude,longitude\n45.1,7.1\n")  # of other photos
    for number in range(count):
        name = utm_name(45.0, 7.0 + number, zone=32) if has_position else f"{number}.jpg"
        (folder / name).write_bytes(b"not an image" * 9)
    for command in (("index", "build"), ("extract",)):
        code, _, err = run(
            capsys, *command, folder, "--model", model, "--to", tmp_path / command[0], "--image_size", 32, *ENCODING
        )
        assert code == 2 and "positions.csv" not in err and "Traceback" not in err
        last = err.splitlines()[-1]
        assert "is not an image" in last and ("None of the" in last) == (count == 2)


@pytest.mark.parametrize("action", ["add", "sync"])
def test_photos_that_cannot_be_read_are_an_error_for_an_index_too(
    tmp_path: Path, capsys, model: Path, action: str
) -> None:
    write_street(tmp_path / "street", range(3))
    assert build(capsys, tmp_path / "street", model, "--image_size", 32)[0] == 0
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"not an image" * 9)
    words = "--without_positions", *ENCODING
    code, _, err = run(capsys, "index", action, tmp_path / "index", tmp_path / "broken", *words)
    assert code == 2 and "is not an image" in err.splitlines()[-1]


# --- which photos are indexed ----------------------------------------------------------------------------------------


def test_queries_next_to_a_gallery_are_not_indexed(tmp_path: Path, capsys, model: Path) -> None:
    """The layout of SVOX: the photos of the gallery alone are a database."""
    gallery = write_street(tmp_path / "svox" / "images" / "test" / "gallery", range(3))
    write_street(tmp_path / "svox" / "images" / "test" / "queries_night", range(2), variant=1)
    assert build(capsys, tmp_path / "svox", model)[0] == 0
    with open_index(tmp_path / "index") as index:
        assert sorted(Path(path).name for path in index.columns().paths()) == sorted(path.name for path in gallery)


def test_photos_without_any_position_are_refused(tmp_path: Path, capsys, model: Path) -> None:
    """The layout of GSV-Cities: positions are in tables next to the photos."""
    for place in range(3):
        write_photo(tmp_path / "gsv" / "Images", f"London_{place}.jpg", place)
    (tmp_path / "gsv" / "Dataframes").mkdir()
    (tmp_path / "gsv" / "Dataframes" / "London.csv").write_text("lat,lon\n")
    code, _, err = build(capsys, tmp_path / "gsv", model)
    assert code == 2 and "position" in err and "London.csv" in err
    assert not (tmp_path / "index").exists()


@pytest.mark.slow
def test_a_small_index_answers_without_calibration(tmp_path: Path, capsys, model: Path) -> None:
    """The photo itself is in the index: it is its own best match.  Six photos are too few to calibrate."""
    photos = write_street(tmp_path / "street", range(6))
    words = "--model", model, "--to", tmp_path / "index", *ENCODING
    assert run(capsys, "index", "build", tmp_path / "street", *words)[0] == 0
    code, out, _ = run(capsys, "locate", photos[2], "--index", tmp_path / "index", "--json", *CPU)
    assert code == 0
    found = json.loads(out)
    assert Path(found["neighbours"][0]["path"]).name == photos[2].name
    assert found["calibrated"] is False


# --- moved photos ----------------------------------------------------------------------------------------------------


def test_moved_photos_are_found_at_their_new_path(tmp_path: Path, capsys, model: Path) -> None:
    """The file system: the path of each match exists."""
    library = tmp_path / "library"
    write_street(library / "old", range(4))
    assert build(capsys, library, model)[0] == 0
    (library / "old").rename(library / "archive")
    assert run(capsys, "index", "add", tmp_path / "index", library, *ENCODING)[0] == 0
    with open_index(tmp_path / "index") as index:
        columns = index.columns()
        paths = [index.photo(int(photo_id)).path for photo_id in columns.ids]
    assert len(paths) == 4 and all(Path(path).is_file() for path in paths)


@pytest.mark.slow
def test_a_folder_is_synchronized(tmp_path: Path, capsys, model: Path) -> None:
    """The file system: after one photo was added, one moved and one deleted, the index has those of the folder."""
    library = tmp_path / "library"
    photos = write_street(library / "street", range(6))
    assert build(capsys, library, model)[0] == 0
    photos[0].unlink()
    photos[1].rename(library / photos[1].name)
    write_street(library / "new", range(10, 11))
    assert run(capsys, "index", "sync", tmp_path / "index", library, *ENCODING)[0] == 0
    with open_index(tmp_path / "index") as index:
        indexed = sorted(index.columns().paths())
    assert indexed == sorted(str(path) for path in library.rglob("*.jpg"))


@pytest.mark.slow
def test_a_moved_model_is_given_by_its_new_path(tmp_path: Path, capsys, model: Path) -> None:
    """The bytes of the file are the same."""
    own = Path(shutil.copy(model, tmp_path / "own.pth"))
    photos = write_street(tmp_path / "street", range(3))
    assert build(capsys, tmp_path / "street", own)[0] == 0
    own.rename(tmp_path / "moved.pth")
    (found,) = locate(capsys, tmp_path / "index", photos[:1], "--model", tmp_path / "moved.pth")
    assert Path(found["neighbours"][0]["path"]).name == photos[0].name


# --- times and errors of positions -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def street_index(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """An index of photos taken at noon of 1 January 2020, UTC."""
    folder = tmp_path_factory.mktemp("street")
    for place in range(3):
        name = utm_name(37.7, -122.4 - 0.001 * place, zone=10, time="20200101120000")
        write_photo(folder / "street", name, place)
    words = "--model", model, "--to", folder / "index", "--no_calibrate", *ENCODING
    assert main(["index", "build", *map(str, (folder / "street", *words))]) == 0
    return folder / "index"


def test_frames_of_one_second_are_ordered_by_its_fraction(tmp_path: Path, capsys, street_index: Path) -> None:
    """EXIF: the time of a frame is its date plus SubSecTimeOriginal."""
    fractions = {"a.jpg": "90", "b.jpg": "10", "c.jpg": "50"}
    for place, (name, fraction) in enumerate(fractions.items()):
        taken = {0x9003: text("2020:01:02 03:04:05"), 0x9291: text(fraction)}
        (tmp_path / name).write_bytes(jpeg_with(exif=exif_block(taken=taken), pixels=place_pixels(place)))
    found = locate(capsys, street_index, [tmp_path], "--sequence")
    assert [Path(frame["photo"]).name for frame in found] == sorted(fractions, key=lambda name: int(fractions[name]))


@pytest.mark.parametrize(("hours", "is_found"), [(1, True), (-1, False)])
def test_dates_of_a_search_may_have_an_offset(tmp_path, capsys, street_index: Path, hours: int, is_found: bool) -> None:
    """datetime: 12:30 at UTC+1 is before noon at UTC, 12:30 at UTC-1 is after it."""
    zone = f"{hours:+03d}:00"
    moment = datetime(2020, 1, 1, 12, 30, tzinfo=UTC) - timedelta(hours=hours)
    assert (moment <= datetime(2020, 1, 1, 12, tzinfo=UTC)) is is_found
    photo = write_photo(tmp_path, "query.jpg")
    (found,) = locate(capsys, street_index, [photo], "--after", f"2020-01-01T12:30:00{zone}")
    assert bool(found["neighbours"]) is is_found


def test_the_error_of_a_position_is_part_of_the_confidence(tmp_path: Path, capsys, model: Path) -> None:
    """The formula: of a circle of 1,500 m, (25 / 1500)² = 0.03% is within 25 m of its center."""
    gps = {1: text("N"), 2: rationals((37, 1), (42, 1), (0, 1)), 3: text("W"), 4: rationals((122, 1), (24, 1), (0, 1))}
    raw = jpeg_with(exif=exif_block(gps | {31: rationals((1500, 1))}))
    (tmp_path / "street").mkdir()
    (tmp_path / "street" / "photo.jpg").write_bytes(raw)
    assert build(capsys, tmp_path / "street", model)[0] == 0
    (found,) = locate(capsys, tmp_path / "index", [tmp_path / "street" / "photo.jpg"])
    assert found["confidence"] == pytest.approx((25 / 1500) ** 2, abs=3e-4)


# --- damage ----------------------------------------------------------------------------------------------------------

D = 16


def rows(count: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((count, D)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def write_index(address: Path, exact_rows: int) -> Path:
    """Write an index of 300 photos."""
    photos = [
        NewPhoto(path=f"/photos/{n}.jpg", key=f"key-{n}", latitude=10 + n / 1000, longitude=20.0) for n in range(300)
    ]
    spec = ModelSpec(model="model.pth", checksum="c" * 64, dimension=D)
    with create_index(address, spec, IndexSettings(exact_rows=exact_rows)) as index:
        index.add(photos, rows(300, 1))
        index.update_search()
        index.write_record("note", {"text": "stored"})
    return address


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index whose photos are all compared."""
    return write_index(tmp_path_factory.mktemp("intact") / "index", 1000)


@pytest.fixture(scope="module")
def approximate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with an approximate search index."""
    return write_index(tmp_path_factory.mktemp("approximate") / "index", 100)


def flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 4
    path.write_bytes(raw)


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut, Path.unlink, zeros])
def test_a_damaged_search_index_never_answers_wrongly(
    approximate: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    """numpy: the nearest rows by comparing all of them."""
    address = shutil.copytree(approximate, tmp_path / "index")
    files = list((address / "photos.lance" / "_indices").rglob("*.*"))
    assert files
    for path in files:
        damage(path)
    queries = rows(20, 2)
    expected = (queries @ rows(300, 1).T).argmax(axis=1)
    with open_index(address) as index:
        assert index.search(queries, 1).ids[:, 0].tolist() == expected.tolist()


def test_a_flipped_bit_in_a_descriptor_is_not_searched_as_if_right(intact: Path, tmp_path: Path) -> None:
    """The bytes that were written: the sign of one number of a descriptor has changed."""
    address = shutil.copytree(intact, tmp_path / "index")
    remove_reader_copies(str(address))  # otherwise the tables are not read
    stored = rows(300, 1)[250].tobytes()
    changed = [path for path in (address / "photos.lance" / "data").iterdir() if stored in path.read_bytes()]
    assert changed
    for path in changed:
        flip(path, path.read_bytes().index(stored) + 3)
    with open_index(address) as index, pytest.raises(CosPlaceError):
        index.search(rows(300, 1)[250:251], 1, exact=True)


@pytest.mark.parametrize("table", ["photos", "records"])
def test_missing_data_files_are_one_line(intact: Path, tmp_path: Path, capsys, table: str) -> None:
    """The contract of the command line: a damaged index ends with exit code 2 and one line."""
    address = shutil.copytree(intact, tmp_path / "index")
    for path in (address / f"{table}.lance" / "data").iterdir():
        path.unlink()
    code, _, err = run(capsys, "index", "info", address, "--json")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1


def test_a_flipped_bit_in_the_records_is_one_line(intact: Path, tmp_path: Path, capsys) -> None:
    """The contract of the command line, for text that is no longer JSON."""
    address = shutil.copytree(intact, tmp_path / "index")
    files = [path for path in (address / "records.lance" / "data").iterdir() if b'{"' in path.read_bytes()]
    assert files
    for path in files:
        flip(path, path.read_bytes().index(b'{"'))
    code, _, err = run(capsys, "index", "info", address, "--json")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
