"""The import: what is in the dataset afterwards, and that nothing is lost or twice."""

import csv
import errno
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from cosplace.config.importing import ImportSettings
from cosplace.errors import ConfigError, DatasetError, StorageError
from cosplace.importing import dataset_table, exif_photos, import_run, stac, videos
from cosplace.importing.report import REPORT_NAME
from cosplace.photos.scanning import scan_images
from cosplace.photos.tables import TABLE_NAME, read_table
from tests.importing.photo_samples import import_all, jpeg_pixels, rows_of, write_photo
from tests.photos.exif_blocks import ascii_tag

COPY, LINK, TABLE = (ImportSettings(mode=mode) for mode in ("copy", "link", "table"))


@pytest.fixture
def phone(tmp_path: Path) -> Path:
    """Three photos with positions, one in a subfolder."""
    folder = tmp_path / "phone"
    write_photo(folder / "a.jpg", 48.1, 11.5, 10)
    write_photo(folder / "b.jpg", 48.2, -11.5, 20)
    write_photo(folder / "sub" / "c.jpg", -48.3, 11.5, 30)
    return folder


def report(dataset: Path) -> list[tuple[str, str, str]]:
    with (dataset / REPORT_NAME).open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["name", "outcome", "reason"]
    return [(name, outcome, reason) for name, outcome, reason in rows[1:]]


@pytest.mark.parametrize("settings", [COPY, LINK], ids=lambda one: one.mode)
def test_photos_and_their_table_are_in_the_dataset(phone: Path, tmp_path: Path, settings: ImportSettings) -> None:
    result = import_all(phone, to=tmp_path / "city", settings=settings)
    rows = rows_of(tmp_path / "city")
    assert list(rows) == ["photos/phone/a.jpg", "photos/phone/b.jpg", "photos/phone/sub/c.jpg"]
    row = rows["photos/phone/sub/c.jpg"]
    assert (row.latitude, row.longitude, row.heading) == pytest.approx((-48.3, 11.5, 30), abs=1e-7)
    assert (row.heading_source, row.camera, row.width, row.height) == ("exif", "Acme Cam 1", 16, 12)
    assert row.source == str(phone / "sub" / "c.jpg")
    for path in rows:
        copy, original = tmp_path / "city" / path, phone / path.removeprefix("photos/phone/")
        assert copy.read_bytes() == original.read_bytes()
        assert copy.samefile(original) == (settings.mode == "link")
    assert result.num_added == result.num_photos == 3
    assert {path.name for path in (tmp_path / "city").iterdir()} - {".import.lock"} == {
        "photos", TABLE_NAME, REPORT_NAME,
    }  # fmt: skip


def test_with_mode_table_photos_stay_where_they_are(phone: Path, tmp_path: Path) -> None:
    import_all(phone, to=None, settings=TABLE)
    assert list(rows_of(phone)) == ["a.jpg", "b.jpg", "sub/c.jpg"]
    write_photo(phone / "d.jpg", 1, 1)
    result = import_all(phone, to=None, settings=TABLE)
    assert (result.num_added, result.num_unchanged) == (1, 3)
    with pytest.raises(DatasetError, match="is outside"):
        import_all(phone, to=tmp_path / "elsewhere", settings=TABLE)
    with pytest.raises(ConfigError, match="--to DATASET"):
        import_all(phone, to=None)


def test_photos_of_another_disk_become_symbolic_links(
    phone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: str, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    result = import_all(phone, to=tmp_path / "city", settings=LINK)
    assert result.num_symbolic_links == 3
    assert (tmp_path / "city/photos/phone/a.jpg").samefile(phone / "a.jpg")
    (tmp_path / "city/photos/phone/a.jpg").unlink()
    (tmp_path / "city/photos/phone/a.jpg").symlink_to("removed")
    assert import_all(phone, to=tmp_path / "city", settings=LINK).num_unchanged == 3
    assert (tmp_path / "city/photos/phone/a.jpg").samefile(phone / "a.jpg")
    images = scan_images(tmp_path / "city", follow_outside=True)
    assert images.path(0).read_bytes() == (phone / "a.jpg").read_bytes()


def test_a_photo_is_not_added_twice(phone: Path, tmp_path: Path) -> None:
    city = tmp_path / "city"
    import_all(phone, to=city)
    before = read_table(city / TABLE_NAME)
    shutil.copytree(phone, tmp_path / "backup")
    result = import_all(phone, tmp_path / "backup", phone, to=city)
    assert (result.num_added, result.num_unchanged, result.num_photos) == (0, 6, 3)
    assert [reason for _, _, reason in report(city)] == [
        f"the same photo at the same position is already in the dataset: photos/phone/{name}"
        for name in ("a.jpg", "b.jpg", "sub/c.jpg")
    ]
    assert read_table(city / TABLE_NAME).equals(before)


def test_further_sources_are_added_and_duplicate_names_get_a_number(phone: Path, tmp_path: Path) -> None:
    city = tmp_path / "city"
    import_all(phone, to=city)
    other = write_photo(tmp_path / "other" / "phone" / "a.jpg", 1, 1, seed=99)
    for _ in range(2):
        import_all(tmp_path / "other" / "phone", to=city)
    assert len(rows_of(city)) == 4
    assert (city / "photos/phone/a_2.jpg").read_bytes() == other.read_bytes()
    assert rows_of(city)["photos/phone/a_2.jpg"].latitude == 1


def test_a_file_of_somebody_else_is_not_replaced(phone: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "city" / "photos" / "phone" / "a.jpg"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    import_all(phone, to=tmp_path / "city")
    assert theirs.read_bytes() == b"theirs"
    assert "photos/phone/a_2.jpg" in rows_of(tmp_path / "city")


def test_known_values_of_a_second_import_replace_those_of_the_first(phone: Path, tmp_path: Path) -> None:
    city = tmp_path / "city"
    import_all(phone, to=city)
    table = tmp_path / "better.csv"
    table.write_text("filename,latitude,longitude,sequence\na.jpg,5,6,drive\n")
    result = import_all(phone, table, to=city)
    row = rows_of(city)["photos/phone/a.jpg"]
    assert (row.latitude, row.longitude, row.sequence, row.heading) == (5, 6, "drive", 10)
    assert (result.num_updated, result.num_unchanged, result.num_photos) == (1, 2, 3)


def test_everything_that_is_left_out_is_listed_with_its_reason(phone: Path, tmp_path: Path) -> None:
    (phone / "broken.jpg").write_bytes(jpeg_pixels()[:200])
    (phone / "empty.jpg").touch()
    (phone / "notes.txt").write_text("x")
    (phone / "clip.mp4").touch()
    (phone / "raw.dng").touch()
    write_photo(phone / 'no,"position.jpg')
    write_photo(phone / "null.jpg", 0, 0)
    (phone / "outside.jpg").symlink_to(write_photo(tmp_path / "private.jpg", 1, 1))
    result = import_all(phone, to=tmp_path / "city")
    reasons = {Path(name).name: reason for name, outcome, reason in report(tmp_path / "city")}
    assert set(reasons) == {
        "broken.jpg", "empty.jpg", "notes.txt", "clip.mp4", "raw.dng", 'no,"position.jpg', "null.jpg", "outside.jpg",
    }  # fmt: skip
    assert reasons["null.jpg"] == reasons['no,"position.jpg'] == import_run.UNPLACED
    assert "empty" in reasons["empty.jpg"]
    assert "damaged" in reasons["broken.jpg"]
    assert "video" in reasons["clip.mp4"]
    assert "outside" in reasons["outside.jpg"]
    assert sum(result.report.left_out.values()) == 8
    assert result.num_photos == 3


def test_photos_without_position_are_kept_if_asked_for(phone: Path, tmp_path: Path) -> None:
    write_photo(phone / "z.jpg")
    import_all(phone, to=tmp_path / "city", keep_unplaced=True)
    assert math.isnan(rows_of(tmp_path / "city")["photos/phone/z.jpg"].latitude)
    assert len(rows_of(tmp_path / "city")) == 4
    assert report(tmp_path / "city") == [(str(phone / "z.jpg"), "uncertain", import_run.UNPLACED)]


def test_a_failed_import_leaves_no_empty_folders(phone: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()  # a folder of the user stays
    for folder in (tmp_path / "new" / "city", tmp_path / "mine"):
        with pytest.raises(DatasetError, match="is outside"):
            import_all(phone, to=folder, settings=TABLE)
    assert not (tmp_path / "new").exists() and (tmp_path / "mine").is_dir()


def test_a_dry_run_writes_nothing(phone: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = import_all(phone, to=tmp_path / "city", dry_run=True)
    assert (result.num_added, result.first[0].path) == (3, "photos/phone/a.jpg")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("headings", "kept"), [((0, 0, 0), 0), ((0, 0, 5), 3), ((0,), 1)])
def test_a_heading_of_0_on_each_photo_of_a_camera_is_unknown(
    headings: tuple[float, ...], kept: int, tmp_path: Path
) -> None:
    for number, heading in enumerate(headings):
        write_photo(tmp_path / "bike" / f"{number}.jpg", 48 + number, 11, heading)
    for number in range(2):
        write_photo(tmp_path / "car" / f"{number}.jpg", 58 + number, 11, 90, image={0x0110: ascii_tag("Other")})
    result = import_all(tmp_path / "bike", tmp_path / "car", to=tmp_path / "city")
    rows = rows_of(tmp_path / "city").values()
    found = [row for row in rows if row.camera == "Acme Cam 1" and row.heading == row.heading]
    assert len(found) == kept
    assert all(bool(row.heading_source) == (row.heading == row.heading) for row in rows)
    assert [row.heading for row in rows if row.camera == "Other"] == [90, 90]
    assert result.zero_headings == ({} if kept else {"Acme Cam 1": 3})
    again = import_all(tmp_path / "bike", tmp_path / "car", to=tmp_path / "city")
    assert again.num_updated == 0


def test_headings_of_0_are_unknown_in_photos_that_come_one_after_the_other(tmp_path: Path) -> None:
    for number in range(4):
        write_photo(tmp_path / "bike" / f"{number}.jpg", 48 + number, 11, 0)
        result = import_all(tmp_path / "bike", to=tmp_path / "city")
        num_known = sum(row.heading == row.heading for row in rows_of(tmp_path / "city").values())
        assert num_known == (not number)  # one photo alone may face north
        assert result.zero_headings == ({}, {"Acme Cam 1": 2}, *[{"Acme Cam 1": 1}] * 2)[number]
    other = write_photo(tmp_path / "car" / "0.jpg", 58, 11, 0, image={0x0110: ascii_tag("Other")})
    import_all(other, to=tmp_path / "city")
    assert rows_of(tmp_path / "city")["photos/0.jpg"].heading == 0  # of another camera


def test_a_source_may_contain_the_dataset(phone: Path) -> None:
    for _ in range(2):
        result = import_all(phone, to=phone / "city")
    assert result.num_photos == result.num_unchanged == 3


def test_a_dataset_is_a_source_of_another_one(phone: Path, tmp_path: Path) -> None:
    table = tmp_path / "positions.csv"
    table.write_text("filename,latitude,longitude,split\na.jpg,5,6,test/queries\n")
    import_all(phone, table, to=tmp_path / "one")
    import_all(tmp_path / "one", to=tmp_path / "two")
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    assert list(one) == list(two)
    assert two["photos/phone/a.jpg"].latitude == 5
    assert two["photos/phone/a.jpg"].split == "test/queries"


@pytest.mark.parametrize("name", ["line\nbreak.jpg", "@eaDir.jpg", "x" * 251 + ".jpg", "caf\udce9.jpg", " .jpg"])
def test_any_file_name(name: str, tmp_path: Path) -> None:
    try:
        file = write_photo(tmp_path / "in" / name, 1, 1, seed=1)
    except OSError:
        pytest.skip("this file system does not accept the name")
    write_photo(tmp_path / "other" / "in" / name, 2, 2, seed=2)
    import_all(tmp_path / "in", tmp_path / "other" / "in", to=tmp_path / "city")
    rows = rows_of(tmp_path / "city")
    assert len(rows) == 2
    contents = {(tmp_path / "city" / path).read_bytes() for path in rows}
    assert file.read_bytes() in contents
    assert len(contents) == 2
    assert not any("\n" in path for path in rows)


def test_sources_that_cannot_be_used(tmp_path: Path) -> None:
    for source, problem in (("missing", "does not exist"), ("empty", "no photos"), ("text.xyz", "neither photos")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "text.xyz").write_text("x")
        with pytest.raises(DatasetError, match=problem):
            import_all(tmp_path / source, to=tmp_path / "city")
    assert not (tmp_path / "city").exists()


def test_a_folder_of_many_photos_needs_little_memory(tmp_path: Path) -> None:
    """Their names alone, not the entries of the folder, which have some hundred bytes each."""
    for number in range(2000):
        (tmp_path / f"{number:06d}.jpg").touch()
    for detects in (stac.detects, videos.detects, exif_photos.detects):
        assert detects(tmp_path) == (detects is exif_photos.detects)  # loads what is loaded once
    tracemalloc.start()
    try:
        assert not stac.detects(tmp_path)
        assert not videos.detects(tmp_path)
        names = [next(files).name for files in [exif_photos.list_files(tmp_path)]]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert names == ["000000.jpg"] and peak / 2000 < 150  # bytes


def test_files_that_give_no_positions_are_refused_with_a_reason(tmp_path: Path) -> None:
    write_photo(tmp_path / "in" / "a.jpg", 45, 7)
    for content, problem in (("", "is empty. Copy or export it again"), ("no track", "although its suffix is .gpx")):
        (tmp_path / "walk.gpx").write_text(content)
        with pytest.raises(DatasetError, match=problem):
            import_run.run_import([tmp_path / "in", tmp_path / "walk.gpx"], tmp_path / "city", ImportSettings())


def test_rows_of_deleted_photos_are_removed_and_listed(phone: Path, tmp_path: Path) -> None:
    def paths(folder: Path) -> list[str]:
        images = scan_images(folder)
        return [images.name(row) for row in range(len(images))]

    table = phone / "t.csv"
    table.write_text("file,lat,lon\na.jpg,1,2\nb.jpg,3,4\nc.jpg,5,6\n")
    import_all(phone, table, to=None, settings=TABLE)
    (phone / "b.jpg").unlink()
    with pytest.raises(DatasetError, match=r"same `cosplace import` again, which removes its row"):
        scan_images(phone)
    assert import_all(phone, table, to=None, settings=TABLE, dry_run=True).num_photos == 2
    assert list(rows_of(phone)) == ["a.jpg", "b.jpg", "sub/c.jpg"]
    result = import_all(phone, table, to=None, settings=TABLE)
    assert (result.num_unchanged, result.num_photos) == (2, 2)
    assert paths(phone) == ["a.jpg", "sub/c.jpg"]
    assert ("b.jpg", "left out", "no longer exists, so that its row was removed") in report(phone)
    assert rows_of(phone)["sub/c.jpg"].longitude == 6

    (phone / "a.jpg").rename(phone / "sub" / "moved.jpg")  # the same photo with another name is not lost
    import_all(phone, table, to=None, settings=TABLE)
    assert paths(phone) == ["sub/c.jpg", "sub/moved.jpg"]
    import_all(phone, to=tmp_path / "city")
    (tmp_path / "city" / "sub" / "c.jpg").unlink()
    import_all(phone, to=tmp_path / "city")  # restored from its source
    assert len(paths(tmp_path / "city")) == 2
    assert not any("no longer exists" in reason for *_, reason in report(tmp_path / "city"))


def test_rows_of_a_disk_that_is_not_there_stay(phone: Path, tmp_path: Path) -> None:
    photos = phone / "disk"
    (phone / "sub").rename(photos)
    for name in ("a.jpg", "b.jpg"):
        (phone / name).rename(photos / name)
    write_photo(phone / "d.jpg", 3, 4)
    import_all(phone, to=None, settings=TABLE)
    photos.rename(tmp_path / "away")
    write_photo(phone / "e.jpg", 5, 6)
    write_photo(phone / "f.jpg", 7, 8)
    import_all(phone, to=None, settings=TABLE)
    assert list(rows_of(phone)) == ["d.jpg", "disk/a.jpg", "disk/b.jpg", "disk/c.jpg", "e.jpg", "f.jpg"]
    ((name, outcome, reason),) = report(phone)
    assert (name, outcome) == (str(phone / TABLE_NAME), "uncertain") and "lists 3 files" in reason
    (tmp_path / "away").rename(phone / "moved")  # not away, but in another folder
    import_all(phone, to=None, settings=TABLE)
    assert list(rows_of(phone)) == ["d.jpg", "e.jpg", "f.jpg", "moved/a.jpg", "moved/b.jpg", "moved/c.jpg"]


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are UTF-8")
def test_rows_of_photos_with_any_name_stay(phone: Path) -> None:
    (phone / "a.jpg").rename(phone / os.fsdecode(b"\xff.jpg"))
    for _ in range(2):
        import_all(phone, to=None, settings=TABLE)
        assert list(rows_of(phone)) == ["\udcff.jpg", "b.jpg", "sub/c.jpg"] and not report(phone)


def test_rows_of_links_stay(phone: Path) -> None:
    """The disk of their target may be missing for a while only."""
    (phone / "b.jpg").rename(phone.parent / "b.jpg")
    (phone / "b.jpg").symlink_to(phone / "sub" / "b.jpg")
    (phone.parent / "b.jpg").rename(phone / "sub" / "b.jpg")
    import_all(phone, to=None, settings=TABLE)
    (phone / "sub" / "b.jpg").unlink()
    import_all(phone, to=None, settings=TABLE)
    assert list(rows_of(phone)) == ["a.jpg", "b.jpg", "sub/c.jpg"]
    with pytest.raises(DatasetError, match="remove the link"):
        scan_images(phone)


# --- interrupted imports ---------------------------------------------------------------------------------------------


def test_without_space_the_dataset_has_the_photos_so_far(
    phone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfile

    def copy_two(source: Path, target: Path) -> None:
        if source.name == "c.jpg":
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", copy_two)
        with pytest.raises(StorageError, match=r"No space left .* has 2 photos so far") as raised:
            import_all(phone, to=tmp_path / "city")
    assert "\n" not in str(raised.value)
    assert list(rows_of(tmp_path / "city")) == ["photos/phone/a.jpg", "photos/phone/b.jpg"]
    assert not (tmp_path / "city" / import_run.TEMPORARY).exists()
    assert import_all(phone, to=tmp_path / "city").num_photos == 3


def _full_disk(monkeypatch: pytest.MonkeyPatch, folder: Path, *, is_small: bool) -> None:
    """From the third photo on, the disk is full, until space is freed; also after that if it is small."""
    copy, write, is_full = shutil.copyfile, dataset_table.write_sorted, []

    def copy_two(source: Path, target: Path) -> None:
        if source.name == "c.jpg":
            target.write_bytes(b"the first half")
            is_full.append(True)
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, target)

    def write_if_there_is_space(path: Path, *table: object) -> None:
        others = {one.name for one in (folder / import_run.TEMPORARY).iterdir()} - {REPORT_NAME}
        if is_full and (is_small or others):
            raise StorageError(f"No space left while writing {path}.")
        write(path, *table)  # type: ignore[arg-type]

    monkeypatch.setattr(shutil, "copyfile", copy_two)
    monkeypatch.setattr(dataset_table, "write_sorted", write_if_there_is_space)


@pytest.mark.parametrize("is_small", [False, True])
def test_a_full_disk_has_space_for_the_table(
    phone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_small: bool
) -> None:
    with monkeypatch.context() as patch:
        _full_disk(patch, tmp_path / "city", is_small=is_small)
        with pytest.raises(StorageError) as raised:
            import_all(phone, to=tmp_path / "city")
    assert f"has {0 if is_small else 2} photos so far" in str(raised.value)
    assert ("there was no space for a table of the last ones" in str(raised.value)) == is_small
    assert (tmp_path / "city" / TABLE_NAME).exists() != is_small
    assert report(tmp_path / "city") == []
    assert not (tmp_path / "city" / import_run.TEMPORARY).exists()
    assert import_all(phone, to=tmp_path / "city").num_photos == 3


def test_two_imports_at_a_time_are_refused(phone: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cosplace.storage import lock_file\n"
        f"with lock_file(Path({str(tmp_path / 'city' / dataset_table.LOCK)!r}), ValueError()):\n"
        "    print(flush=True); sys.stdin.read()"
    )
    (tmp_path / "city").mkdir()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(StorageError, match="another command"):
            import_all(phone, to=tmp_path / "city")
        assert other.stdin is not None
        other.stdin.close()
    assert not (tmp_path / "city" / TABLE_NAME).exists()


@pytest.mark.slow
@pytest.mark.parametrize("mode", [pytest.param("copy", marks=pytest.mark.long), "link"])
def test_a_killed_import_continues(mode: str, tmp_path: Path) -> None:
    """Killed at any time, and started again, an import gives what one without interruption gives."""
    for number in range(3000):
        folder = tmp_path / "drive" / f"{number % 7}" / "in"
        write_photo(folder / f"{number // 10}.jpg", 48 + number * 1e-4, 11, number % 360, seed=number % 2900)
    sources = [tmp_path / "drive" / f"{number}" / "in" for number in range(7)]
    import_all(*sources, to=tmp_path / "whole", settings=ImportSettings(mode=mode))
    code = (
        "import sys\nfrom pathlib import Path\nfrom cosplace.config.importing import ImportSettings\n"
        "from cosplace.importing import import_run\nimport_run.WRITE_SECONDS = 0.0\nimport_run.WRITE_SHARE = 1.0\n"
        "import_run.run_import([Path(one) for one in sys.argv[2:]], Path(sys.argv[1]), "
        f"ImportSettings(mode={mode!r}))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "city"), *map(str, sources)]
    num_killed, previous = 0, 0
    for delay_s in (0.3, 0.6, 0.9, 1.2, 0.8, 1.0):
        process = subprocess.Popen(command)
        while process.poll() is None and not (tmp_path / "city" / import_run.TEMPORARY).exists():
            time.sleep(0.01)
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        num_killed += process.wait() == -signal.SIGKILL
        if (tmp_path / "city" / TABLE_NAME).exists():
            rows = rows_of(tmp_path / "city")
            assert all((tmp_path / "city" / path).is_file() for path in rows)
            assert len(rows) >= previous
            previous = len(rows)
    assert num_killed >= 2
    subprocess.run(command, check=True)
    assert read_table(tmp_path / "city" / TABLE_NAME).equals(read_table(tmp_path / "whole" / TABLE_NAME))
    files = [
        sorted(os.path.relpath(file, folder) for file in folder.rglob("*") if file.suffix == ".jpg")
        for folder in (tmp_path / "city", tmp_path / "whole")
    ]
    assert files[0] == files[1]
