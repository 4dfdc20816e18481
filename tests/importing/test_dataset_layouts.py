"""The field's datasets in their real folders and tables: evaluation where they are, import, and what is missing."""

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cosplace.config.importing import ImportSettings
from cosplace.errors import DatasetError
from cosplace.importing.dataset_layouts import detect_layout, read
from cosplace.importing.import_run import run_import
from cosplace.importing.layout_parts import LayoutPart
from cosplace.importing.matlab_structs import read_struct
from cosplace.importing.records import FoundPhoto, Problem
from cosplace.importing.sources import find_source
from cosplace.photos.names import optional_fields
from cosplace.photos.scanning import scan_images
from cosplace.photos.tables import TABLE_NAME, PhotoRecord, from_table, read_table
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.recall import find_positives
from tests.importing import layout_samples as samples

pytestmark = pytest.mark.slow  # too many files for make check; make test runs all

SVOX_QUERIES = ("queries", "queries_night", "queries_rain")


def matches(dataset: RetrievalDataset) -> dict[str, list[str]]:
    """The positives of each query, both by their names."""
    positives = find_positives(dataset.database_positions, dataset.query_positions)
    return {
        dataset.queries.name(query): sorted(dataset.database.name(row) for row in positives.of(query))
        for query in range(len(positives))
    }


def counts(dataset: RetrievalDataset) -> tuple[int, int, list[int]]:
    """Photos of the database, queries, and how many positives each query has."""
    found = matches(dataset)
    return len(dataset.database), len(dataset.queries), [len(found[name]) for name in sorted(found)]


def imported(folder: Path, dataset: Path, mode: str = "link") -> list[PhotoRecord]:
    run_import([folder], dataset, ImportSettings(mode=mode))
    return from_table(read_table(dataset / "photos.parquet"))


# --- evaluation where they are ---------------------------------------------------------------------------------------

Layout = tuple[Callable[[Path], Path], int, list[int]]
LAYOUTS: dict[str, Layout] = {
    # How to write it, photos of the database, positives of each query
    "gsv_cities": (samples.gsv_cities, 18, [3] * 6),
    "msls": (samples.msls, 8, [1] * 8),
    "pitts30k": (samples.pittsburgh, 6, [2] * 3),
    "pitts250k": (lambda folder: samples.pittsburgh(folder, "pitts250k"), 6, [2] * 3),
    "tokyo247": (samples.tokyo, 4, [1] * 2),
    "tokyo247_v3": (lambda folder: samples.tokyo(folder, "247query_v3"), 4, [1] * 2),
    "nordland": (samples.nordland, 15, [min(row, 10) + min(14 - row, 10) + 1 for row in range(15)]),
    "amstertime": (samples.amstertime, 4, [1] * 4),
    # Drives of 60 m with a photo every 6 m; the last drive is 6 m east of the first one
    "st_lucia": (samples.st_lucia, 10, [min(row, 4) + min(9 - row, 4) + 1 for row in range(10)]),
    "svox": (lambda folder: samples.prepared(folder / "images", "gallery", SVOX_QUERIES).parent, 4, [1] * 4),
    "sf_xl_processed": (lambda folder: samples.sf_xl(folder, "processed"), 4, [1] * 4),
    "sf_xl_small": (lambda folder: samples.sf_xl(folder, "small"), 4, [1] * 4),
    "sf_xl_raw": (lambda folder: samples.sf_xl(folder, "raw"), 4, [1] * 4),
    "prepared": (lambda folder: samples.prepared(folder / "images").parent, 4, [1] * 4),
    "prepared_nordland": (
        lambda folder: samples.prepared_line(folder, 25 / 10.5), 20,
        [min(row, 10) + min(19 - row, 10) + 1 for row in range(20)],
    ),
    "prepared_amstertime": (lambda folder: samples.prepared_line(folder, 1000.0), 20, [1] * 20),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_dataset_opens_from_its_folder_alone(tmp_path: Path, name: str) -> None:
    write, num_database, positives = LAYOUTS[name]
    dataset = open_retrieval_dataset(write(tmp_path / name))
    assert counts(dataset)[:2] == (num_database, len(positives))
    assert sorted(counts(dataset)[2]) == sorted(positives)
    for images in (dataset.database, dataset.queries):
        assert all(images.path(row).is_file() for row in range(len(images)))
    assert bool(dataset.note) == name.endswith(("nordland", "amstertime"))


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_imported_dataset_has_the_same_positives(tmp_path: Path, name: str) -> None:
    write, num_database, positives = LAYOUTS[name]
    folder = write(tmp_path / name)
    assert find_source(folder).name == "dataset"
    records = imported(folder, tmp_path / "dataset")
    assert all(record.place or not np.isnan(record.latitude) for record in records)
    assert all((tmp_path / "dataset" / record.path).is_file() for record in records)
    splits = {record.split for record in records}
    if name == "gsv_cities":
        assert splits == {"train"} and len(records) == 24
        return
    assert {split for split in splits if split.endswith("/database")}
    split = "val" if name == "msls" else "test"
    dataset = open_retrieval_dataset(tmp_path / "dataset" / split)
    assert counts(dataset)[:2] == (num_database, len(positives))
    assert sorted(counts(dataset)[2]) == sorted(positives)
    assert bool(dataset.note) == name.endswith(("nordland", "amstertime"))


def test_the_frames_of_st_lucia_are_taken_from_its_videos(tmp_path: Path) -> None:
    pytest.importorskip("av")
    folder = samples.st_lucia(tmp_path / "raw", video=True)
    with pytest.raises(DatasetError, match="cosplace import"):
        open_retrieval_dataset(folder)
    assert find_source(folder).name == "st-lucia"
    records = imported(folder, tmp_path / "dataset", "copy")
    splits = [record.split for record in records]
    assert set(splits) == {"test/database", "test/queries", "test/queries_180809_1545"}
    first = [record for record in records if record.split == "test/database"]
    assert len(first) == 10 and all(record.latitude < 0 for record in first)
    headings = np.array([record.heading for record in first])
    assert np.allclose((headings + 90) % 360, 90, atol=2)  # it drives north
    assert len(open_retrieval_dataset(tmp_path / "dataset").queries) == 10


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_command_needs_no_flag_but_the_folder(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cosplace.cli import main

    monkeypatch.chdir(tmp_path)
    folder = LAYOUTS[name][0](tmp_path / name)
    network = ["--backbone", "ResNet18_Small", "--fc_output_dim", "8", "--device", "cpu"]
    for flag in ("--test_set_folder", "--dataset_folder"):
        assert main(["eval", flag, str(folder), *network]) == 0
        assert "R@1:" in capsys.readouterr().out
    (report, _) = (tmp_path / "logs").rglob("report.html")
    assert (
        "not places on Earth" in report.read_text() or "instead of positions" in report.read_text()
    ) == name.endswith(("nordland", "amstertime"))


def test_names_of_imported_photos_lead_back_to_their_files(tmp_path: Path) -> None:
    folder = samples.msls(tmp_path / "msls")
    records = imported(folder, tmp_path / "dataset")
    for record in records:
        assert record.path.startswith("train_val/")
        assert (folder / record.path).read_bytes() == (tmp_path / "dataset" / record.path).read_bytes()


# --- what their tables say -------------------------------------------------------------------------------------------


def found(folder: Path) -> list[PhotoRecord]:
    return [entry.record for entry in read(folder, ImportSettings()) if isinstance(entry, FoundPhoto)]


def test_gsv_cities(tmp_path: Path) -> None:
    records = found(samples.gsv_cities(tmp_path))
    paris = [record for record in records if "/Paris/PRS_0000002_2013" in record.path]
    (record,) = paris
    latitude, longitude = samples.away(48.85, 2.35, 402, 0)
    assert (record.latitude, record.longitude, record.heading) == (latitude, longitude, (300 + 120 + 1) % 360)
    assert (record.place, record.split, record.heading_source) == ("Paris 0000002", "train", "table")
    assert record.time == np.datetime64("2013-02-01T00:00:00").astype(np.int64)
    assert len({record.place for record in records}) == 6  # numbers of places are not shared by cities
    queries = open_retrieval_dataset(tmp_path).queries
    assert all("_2015_" in queries.name(row) for row in range(len(queries)))  # the latest photo of each place


def test_missing_photos_of_gsv_cities_are_counted(tmp_path: Path) -> None:
    samples.gsv_cities(tmp_path)
    first = min((tmp_path / "Images" / "London").iterdir())
    first.unlink()
    (tmp_path / "Images" / "London" / "odd.jpg").write_bytes(b"")
    problems = [entry for entry in read(tmp_path, ImportSettings()) if not isinstance(entry, FoundPhoto)]
    assert [problem.reason for problem in problems] == [
        "is not a name of GSV-Cities", "photos that it lists are missing",
    ]  # fmt: skip


def test_msls(tmp_path: Path) -> None:
    records = {record.path.rpartition("/")[2]: record for record in found(samples.msls(tmp_path))}
    record = records["cphq_1-k.jpg"]
    assert (record.latitude, record.longitude) == samples.away(*samples.CITIES["cph"], 105, 0)
    assert (record.heading, record.sequence, record.place) == (81.5, "seq0", "cph 1")
    assert record.time == np.datetime64("2018-05-21T00:00:00").astype(np.int64)
    by_split: dict[str, int] = {}
    for record in records.values():
        by_split[record.split] = by_split.get(record.split, 0) + 1
    # Without the panorama; the queries that are far away or not in the task are set aside.
    assert by_split == {"val/database": 8, "val/queries": 8, "val/queries_other": 4, "train": 10}
    problems = [entry.reason for entry in read(tmp_path, ImportSettings()) if not isinstance(entry, FoundPhoto)]
    assert problems.count("panoramas are left out") == 6
    assert "is a test city, without positions" in problems
    assert len(open_retrieval_dataset(tmp_path, "queries_all").queries) == 12
    assert len(open_retrieval_dataset(tmp_path / "test").queries) == 8  # the test cities have no positions
    with pytest.raises(DatasetError, match="--queries_folder: queries, queries_all, queries_other"):
        open_retrieval_dataset(tmp_path, "queries_night")
    cities = {"sf": 10, "cph": 33}
    zones = optional_fields(open_retrieval_dataset(tmp_path).queries, ("zone",))[0]
    assert sorted(zones) == sorted(list(cities.values()) * 4)


def test_pittsburgh(tmp_path: Path) -> None:
    from pyproj import Proj

    samples.pittsburgh(tmp_path / "raw")
    records = {record.path: record for record in found(tmp_path / "raw")}
    record = records["queries_real/002/002001_pitch2_yaw7.jpg"]
    longitude, latitude = Proj(proj="utm", zone=17, ellps="WGS84")(588_100, 4_477_010, inverse=True)
    assert (record.latitude, record.longitude) == pytest.approx((latitude, longitude), abs=1e-9)
    assert record.split == "test/queries" and np.isnan(record.heading)
    assert records["000/000000_pitch1_yaw1.jpg"].split == "train"
    val = open_retrieval_dataset(tmp_path / "raw" / "val")  # not a folder
    assert val.queries.name(0) == "queries_real/001/001000_pitch2_yaw7.jpg"


@pytest.mark.parametrize(
    ("name", "expected"), [("pitts250k", "Pitts250k"), ("PITTS30K_raw", "Pitts30k"), ("x", "Pitts30k")]
)
def test_one_folder_may_have_both_tables_of_pittsburgh(tmp_path: Path, name: str, expected: str) -> None:
    samples.pittsburgh(tmp_path / name)
    samples.pittsburgh(tmp_path / name, "pitts250k")
    layout = detect_layout(tmp_path / name)
    assert layout is not None and layout.name == expected
    if name == "x":
        (tmp_path / name / "010").mkdir()
        layout = detect_layout(tmp_path / name)
        assert layout is not None and layout.name == "Pitts250k"


def test_queries_of_tokyo(tmp_path: Path) -> None:
    samples.tokyo(tmp_path / "raw_data", "247query_v3")
    dataset = open_retrieval_dataset(tmp_path)
    assert [dataset.queries.name(row) for row in range(2)] == ["247query_v3/00002.jpg", "247query_v3/00005.jpg"]
    assert len(open_retrieval_dataset(tmp_path, "queries_all").queries) == 3
    # Without its CSV file, a query has the position of the struct.
    (tmp_path / "raw_data" / "247query_v3" / "00002.csv").unlink()
    again = open_retrieval_dataset(tmp_path)
    assert np.allclose(again.query_positions, dataset.query_positions, atol=0.02)
    assert np.allclose(again.query_positions[0], (381_405, 3_946_405), atol=0.01)


def test_frames_of_nordland(tmp_path: Path) -> None:
    dataset = open_retrieval_dataset(samples.nordland(tmp_path / "a", with_list=False))
    assert len(dataset.database) == 30
    steps = np.diff(np.sort(dataset.database_positions[:, 1]))
    assert np.allclose(steps, 25 / 10.5, atol=0.002)
    assert matches(dataset)["winter/images-00001.png"] == [f"summer/images-{row:05d}.png" for row in range(1, 12)]
    assert "up to ten frames apart are within 25 units" in dataset.note
    spring = open_retrieval_dataset(tmp_path / "a", "queries_spring")
    assert spring.queries.name(0) == "spring/images-00001.png"
    with pytest.raises(DatasetError, match="--queries_folder: queries, queries_fall, queries_spring"):
        open_retrieval_dataset(tmp_path / "a", "queries_autumn")


def test_listed_frames_of_nordland_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Also without zeros in front of them: images-10 is not the frame after images-1."""
    for season in ("summer", "winter"):
        for frame in range(1, 26):
            samples.photo(tmp_path / season / f"images-{frame}.png")
    samples.write_lines(tmp_path / "cleanImageNames.txt", [f"images-{frame}.png" for frame in range(1, 26)])
    found = matches(open_retrieval_dataset(tmp_path))["winter/images-1.png"]
    assert found == sorted(f"summer/images-{frame}.png" for frame in range(1, 12))


def test_impossible_positions_are_unknown(tmp_path: Path) -> None:
    """999 degrees in a table; the rows are listed, and the other photos are used."""
    folder = samples.msls(tmp_path / "msls")
    for table in folder.glob("train_val/*/*/raw.csv"):
        lines = table.read_text().splitlines()
        fields = lines[1].split(",")
        fields[3] = "999"
        table.write_text("\n".join([lines[0], ",".join(fields), *lines[2:]]))
    result = run_import([folder], tmp_path / "dataset", ImportSettings())
    records = from_table(read_table(tmp_path / "dataset" / TABLE_NAME))
    latitudes = np.array([record.latitude for record in records])
    assert np.isnan(latitudes).sum() == 6 and np.nanmax(np.abs(latitudes)) < 90  # they have a place without one
    assert result.counts is not None and len(records) - 6 in result.counts.values()
    part = LayoutPart(split="", paths=["a", "b", "c"], latitudes=np.array([1, np.inf, -91.0]), longitudes=np.zeros(3))
    assert part.latitudes is not None and np.isnan(part.latitudes).tolist() == [False, True, True]


def test_photos_of_a_season_are_not_nordland(tmp_path: Path) -> None:
    for name in ("summer/1.jpg", "winter/1.jpg", "new/a.png", "old/a.jpg"):
        samples.photo(tmp_path / name)
    assert detect_layout(tmp_path) is None


def test_places_with_numbers_in_a_table(tmp_path: Path) -> None:
    records = imported(samples.amstertime(tmp_path / "amstertime"), tmp_path / "dataset", "copy")
    assert {record.place for record in records} == {"0000", "0001", "0017", "1230"}
    assert all(np.isnan(record.latitude) for record in records)  # they are not on Earth
    names = [record.path.rpartition("/")[2].removesuffix(Path(record.path).suffix) for record in records]
    assert len(set(names)) == len(names)  # a photo and the other one of its pair have different names
    assert "AmsterTime has pairs" in (tmp_path / "dataset" / "import_report.csv").read_text()


def test_sets_of_queries(tmp_path: Path) -> None:
    samples.prepared(tmp_path / "images", "gallery", SVOX_QUERIES)
    night = open_retrieval_dataset(tmp_path, "queries_night")
    assert "queries_night" in night.queries.name(0)
    splits = {record.split for record in imported(tmp_path, tmp_path.parent / "svox_dataset")}
    assert splits == {"test/database", *(f"test/{name}" for name in SVOX_QUERIES)}


def test_panoramas_of_sf_xl(tmp_path: Path) -> None:
    records = found(samples.sf_xl(tmp_path, "raw"))
    panoramas = [record for record in records if record.projection]
    assert {record.split for record in panoramas} == {"train"} and len(panoramas) == 4
    assert {record.projection for record in panoramas} == {"equirectangular"}


def test_photos_outside_the_splits_are_imported_without_a_split(tmp_path: Path) -> None:
    folder = samples.sf_xl(tmp_path, "processed") / "processed"
    others = {"loose.jpg", "extra/deep/a.jpg", "val/b.png"}
    for name in others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(next((folder / "test" / "database").iterdir()), folder / name)
    (folder / "extra" / "clip.mp4").write_bytes(b"clip")
    (folder / "test" / "database" / "clip.mp4").write_bytes(b"clip")
    (folder / "train_images_paths.txt").write_text("\n".join(sorted(
        path.relative_to(folder / "train").as_posix() for path in (folder / "train").rglob("*.jpg"))))  # fmt: skip
    shutil.copytree(folder / "test", tmp_path / "raw" / "test")
    entries = list(read(tmp_path, ImportSettings()))
    photos = [entry for entry in entries if isinstance(entry, FoundPhoto)]
    assert {entry.record.path for entry in photos if not entry.record.split} == others
    assert len({entry.file for entry in photos}) == len(photos) == len([
        path for path in folder.rglob("*") if path.suffix in (".jpg", ".png")
    ])  # fmt: skip
    problems = {entry.name: entry.reason for entry in entries if isinstance(entry, Problem)}
    assert problems.keys() == {
        str(folder / "extra" / "clip.mp4"), str(folder / "test" / "database"), str(tmp_path / "raw"),
    }  # fmt: skip
    assert problems[str(tmp_path / "raw")] == "is outside the dataset in processed. Import it separately."


def test_a_test_set_that_is_a_link_to_val_is_imported_once(tmp_path: Path) -> None:
    samples.prepared(tmp_path / "msls")
    (tmp_path / "msls" / "test").rename(tmp_path / "msls" / "val")
    (tmp_path / "msls" / "test").symlink_to(tmp_path / "msls" / "val")
    assert len(open_retrieval_dataset(tmp_path / "msls").queries) == 4
    assert len(found(tmp_path / "msls")) == 8


def test_val_is_never_read_from_a_test_set(tmp_path: Path) -> None:
    samples.tokyo(tmp_path / "tokyo")
    with pytest.raises(DatasetError, match="has no val set, only test"):
        open_retrieval_dataset(tmp_path / "tokyo" / "val", split="val")
    with pytest.raises(DatasetError, match="has no val set, only test"):
        open_retrieval_dataset(tmp_path / "tokyo", split="val")


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [samples.gsv_cities, samples.msls], ids=lambda write: write.__name__)
def test_classes_of_an_imported_dataset(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    from cosplace.training.groups import partition, training_photos
    from tests.synthetic_dataset import settings

    imported(write(tmp_path / "raw"), tmp_path / "dataset")
    grouping = settings(tmp_path, M=100, N=1, L=1, alpha=60, min_images_per_class=2).grouping
    photos = training_photos(tmp_path / "dataset" / "train", grouping)
    assert len(photos) == len(scan_images(tmp_path / "dataset" / "train")) > 0
    groups = partition(photos, grouping)
    assert sum(num_images for _, num_images in groups.counts()) > 0


@pytest.mark.parametrize("write", [samples.gsv_cities, samples.msls, samples.pittsburgh], ids=lambda one: one.__name__)
def test_training_asks_for_an_import(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    from cosplace.training.groups import training_photos
    from tests.synthetic_dataset import settings

    folder = write(tmp_path / "raw")
    for place in (folder, folder / "train"):
        with pytest.raises(DatasetError, match=r"as it is downloaded\. Import it with `cosplace import .*raw --to"):
            training_photos(place, settings(tmp_path).grouping)


# --- missing and damaged files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "lost", "message"),
    [
        (samples.gsv_cities, "Images", r"no Images/"),
        (samples.msls, "train_val/cph/query/raw.csv", r"cph/query/raw\.csv is missing"),
        (samples.msls, "train_val/sf/database/images", r"sf/database/images is missing"),
        (samples.msls, "train_val/sf/database/images/sfd_2-k.jpg", r"lacks '.*sfd_2-k\.jpg'"),
        (samples.pittsburgh, "datasets", r"not pitts30k_test\.mat"),
        (samples.pittsburgh, "002", r"lacks '002/002000_pitch1_yaw1\.jpg'"),
        (samples.tokyo, "datasets", r"not tokyo247\.mat"),
        (samples.tokyo, "247query_subset_v2", r"no queries\. Unpack 247query_subset_v2\.zip"),
        (samples.st_lucia, "180809_1545/frames", r"180809_1545 has a video instead of frames|lacks|no frames"),
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, write: Callable[[Path], Path], lost: str, message: str) -> None:
    folder = write(tmp_path / "raw")
    path = folder / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DatasetError, match=message):
        open_retrieval_dataset(folder)


def test_links_to_other_disks(tmp_path: Path) -> None:
    folder = samples.pittsburgh(tmp_path / "raw")
    (folder / "002").rename(tmp_path / "disk")
    (folder / "002").symlink_to(tmp_path / "disk")
    dataset = open_retrieval_dataset(folder)
    assert dataset.database.path(0).is_file()


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/passwd", "000/../../x.jpg", "a\nb.jpg"])
def test_a_struct_cannot_name_files_outside(tmp_path: Path, name: str) -> None:
    samples.write_struct(tmp_path / "x.mat", [name], np.ones((1, 2)), ["q.jpg"], np.ones((1, 2)))
    with pytest.raises(DatasetError, match="not a path inside the dataset"):
        read_struct(tmp_path / "x.mat")


def test_damaged_structs(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    samples.write_struct(path, ["a.jpg"], np.ones((1, 2)), ["b.jpg"], np.ones((1, 2)))
    raw = path.read_bytes()
    for content in (b"", b"\x89HDF\r\n", raw[: len(raw) // 2], raw[:128] + bytes(len(raw) - 128)):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=r"x\.mat"):
            read_struct(path)
    samples.write_struct(path, ["a.jpg", "c.jpg"], np.ones((1, 2)), ["b.jpg"], np.ones((1, 2)))
    with pytest.raises(DatasetError, match=r"utmDb has the shape \(2, 1\), not \(2, 2\)"):
        read_struct(path)


@pytest.mark.slow
def test_a_struct_that_expands_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    samples.write_struct(path, ["a.jpg"], np.ones((1, 2)), ["b.jpg"], np.ones((1, 2)))
    compressor = zlib.compressobj(9)
    block = bytes(1 << 20)
    content = b"".join(compressor.compress(block) for _ in range(1025)) + compressor.flush()
    path.write_bytes(path.read_bytes()[:128] + struct.pack("<II", 15, len(content)) + content)
    with pytest.raises(DatasetError, match="bytes of content"):
        read_struct(path)
