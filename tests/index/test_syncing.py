"""An index that agrees with a folder: new, moved, changed and vanished photos; folders that are left out."""

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cosplace.cli import main
from cosplace.engines.encoder import Encoder
from cosplace.errors import DatasetError
from cosplace.index.building import add_photos, build_index, find_ids
from cosplace.index.photo_index import PhotoIndex, open_index
from cosplace.index.sources import find_photos, require_positions
from cosplace.index.syncing import sync_folder
from cosplace.index.verification import verify_index
from cosplace.models.network import GeoLocalizationNet
from tests.synthetic_dataset import place_image
from tests.table_samples import around, write_exif_photo


class Colors(nn.Module):
    """A network that takes milliseconds."""

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(nn.functional.adaptive_avg_pool2d(photos, (2, 4)).flatten(1))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(Colors(), name="colors", image_size=16, device="cpu")


def photo(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 4, 3), np.uint8)
    Image.fromarray(np.repeat(np.repeat(pixels, 8, 0), 8, 1)).save(path, "PNG")
    return path


def name(number: int) -> str:
    return f"@0550{number:03d}.00@4180000.00@10@S@@@p{number}@@0@@@@2020@@.png"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """12 photos in two folders."""
    for number in range(12):
        photo(tmp_path / "library" / ("old" if number < 6 else "new") / name(number), number)
    return tmp_path / "library"


@pytest.fixture
def index(library: Path, tmp_path: Path, encoder: Encoder) -> Iterator[PhotoIndex]:
    build_index(library, encoder, tmp_path / "index")
    with open_index(tmp_path / "index", write=True) as opened:
        yield opened


def paths_of(index: PhotoIndex) -> list[str]:
    return sorted(index.columns().paths())


def files_of(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*.png"))


def test_moved_photos_get_their_new_path_and_keep_their_id(index: PhotoIndex, library: Path, encoder: Encoder) -> None:
    before = index.columns()
    ids = {Path(path).name: photo_id for photo_id, path in zip(before.ids.tolist(), before.paths(), strict=True)}
    (library / "old").rename(library / "archive")
    result = add_photos(index, encoder, find_photos(library))
    assert (result.num_added, result.num_moved, result.num_known, result.num_replaced) == (0, 6, 12, 0)
    assert paths_of(index) == files_of(library)
    after = index.columns()
    assert {Path(path).name: photo_id for photo_id, path in zip(after.ids.tolist(), after.paths(), strict=True)} == ids
    assert add_photos(index, encoder, find_photos(library)).num_moved == 0
    assert not verify_index(index.address).problems


def test_photos_that_swap_their_names_are_both_kept(index: PhotoIndex, library: Path, encoder: Encoder) -> None:
    first, second = sorted((library / "old").iterdir())[:2]
    third = first.with_name("third")
    first.rename(third), second.rename(first), third.rename(second)
    os.utime(first, (5, 5)), os.utime(second, (6, 6))
    add_photos(index, encoder, find_photos(library))
    assert len(index) == 12 and paths_of(index) == files_of(library)


def test_a_copy_does_not_move_a_photo(index: PhotoIndex, library: Path, tmp_path: Path, encoder: Encoder) -> None:
    before = paths_of(index)
    os.utime(library / "old" / name(0), (1, 1))  # touched, not changed
    shutil.copytree(library, tmp_path / "copy")
    assert add_photos(index, encoder, find_photos(tmp_path / "copy")).num_moved == 0
    assert paths_of(index) == before


def test_sync_adds_moves_replaces_and_removes(index: PhotoIndex, library: Path, encoder: Encoder) -> None:
    outside = photo(library.parent / "outside" / name(500), 500)
    add_photos(index, encoder, find_photos(outside.parent))
    outside.unlink()  # below another folder: not the business of this sync
    (library / "old" / name(0)).rename(library / "new" / name(0))
    (library / "old" / name(1)).unlink()
    photo(library / "old" / name(2), 200)
    photo(library / "old" / name(100), 100)
    planned = sync_folder(index, None, library, dry_run=True)
    assert len(index) == 13
    done = sync_folder(index, encoder, library)
    for result in (planned, done):
        assert result.indexing is not None
        counts = result.indexing
        assert (counts.num_added, counts.num_moved, counts.num_replaced, result.num_removed) == (2, 1, 1, 1)
    assert paths_of(index) == sorted([*files_of(library), str(outside)])
    again = sync_folder(index, encoder, library)
    assert again.indexing is not None and (again.indexing.num_added, again.num_removed) == (0, 0)


def test_a_change_that_keeps_size_and_time_is_found_by_the_content(tmp_path: Path, encoder: Encoder) -> None:
    """As `exiftool -P` does when it corrects a position; the other photos are read, but not encoded again."""
    folder = tmp_path / "photos"
    records = around(45.0, 7.0, 4, 200)
    paths = [write_exif_photo(folder / one.path, one, place_image(n, 0, side=16)) for n, one in enumerate(records)]
    status = paths[0].stat()
    build_index(folder, encoder, tmp_path / "index")
    write_exif_photo(paths[0], replace(records[0], latitude=45.5), place_image(0, 0, side=16))
    assert paths[0].stat().st_size == status.st_size
    os.utime(paths[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    with open_index(tmp_path / "index", write=True) as index:
        before = index.columns().ids
        unnoticed = sync_folder(index, encoder, folder).indexing
        assert unnoticed is not None and unnoticed.num_known == 4
        planned = sync_folder(index, None, folder, dry_run=True, check_content=True)
        done = sync_folder(index, encoder, folder, check_content=True)
        for result in (planned, done):
            counts = result.indexing
            assert counts is not None and result.num_removed == 0
            assert (counts.num_added, counts.num_known, counts.num_replaced, counts.num_copies) == (1, 3, 1, 0)
        columns = index.columns()
        assert set(before[1:]) < set(columns.ids) and len(index) == 4
        assert columns.latitudes[columns.names().index(records[0].path)] == pytest.approx(45.5, abs=1e-6)


def test_a_dry_run_counts_what_the_real_run_counts(index: PhotoIndex, library: Path, encoder: Encoder) -> None:
    """Copies, photos that cannot be decoded, and a changed file that cannot be decoded anymore."""
    first = photo(library / "old" / name(100), 100)
    (library / "new" / "again").mkdir()
    shutil.copy(first, library / "new" / "again" / first.name)  # a new photo, twice
    shutil.copy(library / "old" / name(0), library / "new" / "again" / name(0))  # known, twice
    for path in (library / "old" / name(101), library / "old" / name(3)):
        path.write_bytes(photo(library.parent / "whole.png", 7).read_bytes()[:60])  # it ends within its pixels
    (library / "old" / name(102)).touch()
    planned = sync_folder(index, None, library, dry_run=True)
    done = sync_folder(index, encoder, library)
    assert planned.indexing is not None and done.indexing is not None
    assert planned.num_removed == done.num_removed == 0
    assert sorted(planned.indexing.unreadable) == sorted(done.indexing.unreadable)
    without_time = [replace(one.indexing, seconds=0, spent={}, unreadable=()) for one in (planned, done)]
    assert without_time[0] == without_time[1]
    counts = done.indexing
    assert (counts.num_added, counts.num_known, counts.num_copies, len(counts.unreadable)) == (1, 12, 1, 3)
    assert counts.num_given == 17 == 1 + 12 + 1 + 3


@pytest.mark.parametrize("kind", ["missing", "empty", "half of it missing"])
def test_a_drive_that_is_not_mounted_does_not_empty_an_index(
    index: PhotoIndex, library: Path, encoder: Encoder, kind: str
) -> None:
    if kind == "half of it missing":
        shutil.rmtree(library / "old")
        (library / "new" / name(6)).unlink()
    else:
        shutil.rmtree(library)
    if kind == "empty":
        library.mkdir()
    if kind == "half of it missing":
        for number in range(100, 105):  # they must not lower the share when the command is repeated
            photo(library / "new" / name(number), number)
    for _ in range(2):
        with pytest.raises(DatasetError, match=r"(Nothing was changed|Nothing was removed).*--yes"):
            sync_folder(index, encoder, library)
        assert len(index) == 12
    sync_folder(index, encoder, library, allow_many=True)
    assert len(index) == (5 + 5 if kind == "half of it missing" else 0)


def test_a_photo_whose_file_cannot_be_checked_is_kept(
    index: PhotoIndex, library: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lstat = os.lstat

    def refuse(path: str | bytes | Path, **options: int) -> os.stat_result:
        if os.fsdecode(path).endswith(name(3)):
            raise PermissionError(errno.EACCES, "Permission denied")
        return lstat(path, **options)

    monkeypatch.setattr(os, "lstat", refuse)
    assert sync_folder(index, encoder, library).num_removed == 0
    assert len(index) == 12


def test_a_missing_folder_of_which_the_index_has_no_photo_is_an_error(
    index: PhotoIndex, library: Path, encoder: Encoder
) -> None:
    with pytest.raises(DatasetError, match=r"mistyped does not exist\..*Nothing was removed"):
        sync_folder(index, encoder, library.with_name("mistyped"))
    assert len(index) == 12


def test_photos_are_removed_by_any_spelling_of_their_folder(
    index: PhotoIndex, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (library.parent / "link").symlink_to(library)
    monkeypatch.chdir(library / "new")
    for folder in ("../old", str(library / "new" / ".." / "old"), str(library.parent / "link" / "old"), "../old/"):
        assert len(find_ids(index, [folder])) == 6
    assert len(find_ids(index, [str(library.parent / "link" / "old" / name(3))])) == 1
    with pytest.raises(DatasetError, match="no photo"):
        find_ids(index, ["../ol"])


@pytest.mark.slow
def test_odd_files_do_not_stop_an_index(library: Path, tmp_path: Path, encoder: Encoder) -> None:
    os.mkfifo(library / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(library / "s.jpg"))
        (library / "empty.jpg").touch()
        result = build_index(library, encoder, tmp_path / "index")
    assert result.num_added == 12 and len(result.unreadable) == 1 and "empty.jpg" in result.unreadable[0]


# --- which photos ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["database/1.jpg", "queries/2.jpg"], ["1.jpg"]),
        (["gallery/1.jpg", "queries_night/2.jpg", "queries_snow/3.jpg"], ["1.jpg"]),
        (["images/test/gallery/1.jpg", "images/test/queries_rain/2.jpg", "images/train/gallery/3.jpg"], ["1.jpg"]),
        (["cph/database/images/1.jpg", "cph/query/images/2.jpg", "sf/database/images/3.jpg"],
         ["cph/database/images/1.jpg", "sf/database/images/3.jpg"]),
        (["03814/1.jpg", "247query_v3/2.jpg", "247query_subset_v2/3.jpg"], ["03814/1.jpg"]),
        (["000/1.jpg", "queries_real/000/2.jpg", "night_queries/3.jpg"], ["000/1.jpg"]),
        (["a/1.jpg", "QUERY IMAGES/2.jpg", "query.images/3.jpg", "query+1/4.jpg", "(queries)/5.jpg"], ["a/1.jpg"]),
        (["a/1.jpg", "my queries/2.jpg", "night.queries/3.jpg", "query (2)/4.jpg", "@queries/5.jpg"], ["a/1.jpg"]),
        (["querying/1.jpg", "queryable/2.jpg", "query.jpg", "a/query_1.jpg"],
         ["a/query_1.jpg", "query.jpg", "queryable/2.jpg", "querying/1.jpg"]),
    ],
)  # fmt: skip
def test_queries_are_left_out(
    tmp_path: Path, files: list[str], expected: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for number, file in enumerate(files):
        photo(tmp_path / "dataset" / file, number)
    found = find_photos(tmp_path / "dataset")
    assert [found.name(row) for row in range(len(found))] == expected
    has_scanned_queries = len(expected[0].split("/")) > 1 and len(expected) < len(files)
    assert ("folders of queries" in caplog.text) == has_scanned_queries


def test_folders_next_to_a_database_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, file in enumerate(["database/1.jpg", "queries/2.jpg", "train/3.jpg", ".cache/4.jpg"]):
        photo(tmp_path / file, number)
    find_photos(tmp_path)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    for number, file in enumerate(["holiday/1.jpg", "my photos/2.jpg"], 5):
        photo(tmp_path / file, number)
    find_photos(tmp_path)
    assert "Left out next to it: holiday, my photos." in caplog.text


@pytest.mark.parametrize(
    ("dataset", "others"),
    [
        ("svox", "images/train, images/test/queries_night"),
        ("svox/images", "train, test/queries_night"),
        ("svox/images/test", "queries_night"),
    ],
)
def test_parts_that_are_not_indexed_are_reported(
    tmp_path: Path, dataset: str, others: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cosplace")
    for number, file in enumerate(["test/gallery/1.jpg", "test/queries_night/2.jpg", "train/3.jpg"]):
        photo(tmp_path / "svox" / "images" / file, number)
    assert len(find_photos(tmp_path / dataset)) == 1
    assert f"not those next to it ({others}); `--part all` indexes them too" in caplog.text


def test_only_queries_are_refused_unless_that_folder_is_given(tmp_path: Path) -> None:
    photo(tmp_path / "dataset" / "queries_v1" / "1.jpg", 1)
    with pytest.raises(DatasetError, match="only in folders of queries"):
        find_photos(tmp_path / "dataset")
    assert len(find_photos(tmp_path / "dataset" / "queries_v1")) == 1


def test_photos_without_any_position_are_refused_and_their_table_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    for number in range(5):
        photo(folder / "Images" / f"{number}.jpg", number)
    (folder / "Dataframes").mkdir()
    (folder / "Dataframes" / "London.csv").write_text("lat,lon\n")
    (folder / "readme.txt").write_text("hello\n")
    with pytest.raises(DatasetError, match=r"^The only photo of \S+ has no position"):
        require_positions(find_photos(folder).subset([0]), folder)
    with pytest.raises(DatasetError, match=r"None of the 5 photos.*London\.csv.*--without_positions") as caught:
        require_positions(find_photos(folder), folder)
    assert "readme" not in str(caught.value)
    photo(folder / "Images" / name(1), 7)
    require_positions(find_photos(folder), folder)


@pytest.mark.slow
def test_the_commands(tmp_path: Path, library: Path, capsys: pytest.CaptureFixture) -> None:
    weights, address = tmp_path / "model.pth", str(tmp_path / "index")
    network = GeoLocalizationNet("ResNet18_Small", 16, generator=torch.Generator().manual_seed(0))
    torch.save(network.state_dict(), weights)
    options = ["--device", "cpu", "--num_workers", "0"]
    plain = photo(tmp_path / "plain" / "1.png", 1).parent
    build = [
        "index",
        "build",
        "--to",
        address,
        "--model",
        str(weights),
        "--image_size",
        "32",
        "--no_calibrate",
        *options,
    ]
    assert main([*build, str(plain)]) == 2 and not Path(address).exists()
    assert "--without_positions" in capsys.readouterr().err
    assert main([*build, str(library)]) == 0
    weights.rename(tmp_path / "moved.pth")
    (library / "old" / name(0)).unlink()
    sync = ["index", "sync", address, str(library), *options]
    capsys.readouterr()
    assert main(sync) == 2
    assert "--model" in capsys.readouterr().err
    assert main([*sync, "--dry_run"]) == 0
    assert "1 photo removed" in (out := capsys.readouterr().out) and "Nothing was changed" in out
    assert "per second" not in out
    assert main([*sync, "--model", str(tmp_path / "moved.pth")]) == 0
    assert main(sync) == 0  # the new place of the model is recorded
    library.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert main(["index", "info", address]) == 0
    assert "not found" in capsys.readouterr().out
    query = next((tmp_path / "elsewhere").rglob("*.png"))
    locate = ["locate", str(query), "--index", address, "--device", "cpu", "--json", "--uncalibrated"]
    assert main([*locate, "--root", str(tmp_path / "elsewhere")]) == 0
    assert str(query.parent) in capsys.readouterr().out
