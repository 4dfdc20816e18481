"""Photos into an index: what their files say, what is added once, what survives a kill, the commands."""

import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cosplace.cli import main
from cosplace.config.index import IndexSettings
from cosplace.engines.encoder import Encoder
from cosplace.errors import DatasetError, PhotoIndexError
from cosplace.index import building
from cosplace.index.building import add_photos, build_index, find_ids, find_photos
from cosplace.index.photo_index import open_index
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.views import PhotoViews
from cosplace.photos.names import utm_fields
from cosplace.photos.opening import read_file
from cosplace.photos.scanning import scan_images
from cosplace.retrieval.extraction import extract
from cosplace.retrieval.search import nearest
from tests.photos.test_metadata import gps_exif, jpeg
from tests.synthetic_dataset import place_image, write_dataset, write_place

pytestmark = pytest.mark.slow  # make check has a minute; make test runs all


class Stripes(nn.Module):
    """A network that takes milliseconds: 24 mean colors, of unit length."""

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        colors = nn.functional.adaptive_avg_pool2d(photos, (1, 8)).flatten(1)
        return nn.functional.normalize(colors)


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(Stripes(), name="stripes", image_size=32, device="cpu")


def test_build_finds_what_evaluation_finds(tmp_path: Path, encoder: Encoder) -> None:
    dataset_folder = write_dataset(tmp_path / "dataset", num_places=4)
    growth = build_index(dataset_folder, encoder, tmp_path / "index")
    database, queries = (scan_images(dataset_folder / "test" / name) for name in ("database", "queries_v1"))
    assert growth.num_added == len(database) == growth.num_given and not growth.unreadable
    described = [extract(Stripes(), images, image_size=32).descriptors for images in (database, queries)]
    rows, _ = nearest(described[1], described[0], 3)
    with open_index(tmp_path / "index") as index:
        found = index.search(encoder.encode([queries.path(row) for row in range(len(queries))]), 3, exact=True)
        assert found.paths == tuple(tuple(str(database.path(row)) for row in line) for line in rows.tolist())
        position = utm_fields(database).east_north[rows[0, 0]]
        assert found.latitudes[0, 0] == pytest.approx(37.76, abs=0.1) and position[0] > 550_000
        assert index.photo(0).source == str(dataset_folder / "test" / "database")
        with Image.open(io.BytesIO(index.thumbnail(0))) as small:
            assert small.format == "JPEG"


class OneColor(nn.Module):
    """A network that has lost all knowledge."""

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(torch.ones(len(photos), 24))


def test_equal_descriptors_are_a_warning(tmp_path: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_dataset(tmp_path / "dataset", num_places=4)
    build_index(folder, encoder, tmp_path / "index")
    assert "are equal" not in caplog.text
    build_index(folder, Encoder(OneColor(), name="one color", image_size=32, device="cpu"), tmp_path / "other")
    assert "photos are equal: the model does not distinguish them" in caplog.text


def test_an_index_may_be_in_the_folder_of_its_photos(tmp_path: Path, encoder: Encoder) -> None:
    """Its own files are no photos, and those of the user are neither counted nor removed."""
    write_place(tmp_path, 0, 0)
    write_place(tmp_path / "search", 1, 0)
    names = {path for path in tmp_path.rglob("*") if path.is_file()}
    settings = IndexSettings(exact_rows=1)  # with a search index
    assert build_index(tmp_path, encoder, tmp_path, settings=settings).num_added == len(names)
    with open_index(tmp_path, write=True) as index:
        index.compact()
    again = build_index(tmp_path, encoder, tmp_path, settings=settings)
    assert (again.num_added, again.num_known) == (0, len(names))
    with open_index(tmp_path) as index:
        files = {path for path in tmp_path.rglob("*") if path.is_file()} - {tmp_path / ".writer.lock"}
        assert names < files
        assert index.info()["num_bytes"] == sum(path.stat().st_size for path in files - names)


def test_a_copy_in_a_later_commit_does_not_move_the_photo(tmp_path: Path, encoder: Encoder) -> None:
    first = write_place(tmp_path / "photos" / "a", 0, 0)
    for place in range(1, 4):
        write_place(tmp_path / "photos" / "b", place, 0)
    (tmp_path / "photos" / "c").mkdir()
    shutil.copy(first, tmp_path / "photos" / "c" / first.name)
    build_index(write_dataset(tmp_path / "dataset", num_places=1), encoder, tmp_path / "index")
    with open_index(tmp_path / "index", write=True) as index:
        growth = add_photos(index, encoder, scan_images(tmp_path / "photos"), photos_per_commit=2)
        assert (growth.num_added, growth.num_moved) == (4, 0)
        assert index.columns().paths()[-4] == str(first)


def test_building_again_goes_on(tmp_path: Path, encoder: Encoder) -> None:
    folder = tmp_path / "photos"
    for place in range(5):
        write_place(folder, place, 0)
    assert build_index(folder, encoder, tmp_path / "index").num_added == 5
    for place in range(5, 8):
        write_place(folder, place, 0)
    growth = build_index(folder, encoder, tmp_path / "index")
    assert (growth.num_added, growth.num_known) == (3, 5)
    with pytest.raises(PhotoIndexError, match="other settings"):
        build_index(folder, encoder, tmp_path / "index", settings=IndexSettings(thumbnail_size=7))
    other = Encoder(Stripes(), name="stripes", image_size=48, device="cpu")
    with pytest.raises(PhotoIndexError, match="32 pixels, not at 48"):
        build_index(folder, other, tmp_path / "index")


def test_the_next_commit_is_read_while_one_is_described() -> None:
    commits, begun = list(building._commits(range(300), 128)), []
    assert [len(rows) for rows in commits] == [64, 128, 108] and [row for rows in commits for row in rows] == [
        *range(300)
    ]
    assert [len(rows) for rows in building._commits(range(9), 4)] == [4, 4, 1] and not list(building._commits([], 4))

    def read(row: int) -> str:
        begun.append(row)
        return f"photo {row}"

    with ThreadPoolExecutor(1) as readers:
        for number, (rows, reading) in enumerate(building._read_ahead(readers, read, commits)):
            assert [one.result() for one in reading] == [f"photo {row}" for row in rows]
            if number + 1 < len(commits):  # also the next one is read, without anyone asking for it
                readers.submit(int).result()
                assert begun == [*range(commits[number + 1][-1] + 1)]


def test_where_the_time_went(tmp_path: Path, encoder: Encoder) -> None:
    dataset_folder = write_dataset(tmp_path / "dataset", num_places=4)
    result = build_index(dataset_folder, encoder, tmp_path / "index")
    assert set(result.spent) == {"decoding", "network", "writing"} and min(result.spent.values()) > 0
    assert sum(result.spent.values()) <= result.seconds


def test_an_index_keeps_its_size_of_thumbnails(tmp_path: Path, encoder: Encoder) -> None:
    pixels = Image.fromarray(place_image(1, 0))
    for side, settings in ((192, None), (640, IndexSettings(thumbnail_size=640))):
        folder = tmp_path / f"photos-{side}"
        folder.mkdir()
        pixels.resize((800, 600)).save(folder / "a.jpg")
        build_index(folder, encoder, tmp_path / str(side), settings=settings)
        pixels.resize((1200, 900)).save(folder / "b.jpg")
        build_index(folder, encoder, tmp_path / str(side))  # adds the new photo
        with open_index(tmp_path / str(side)) as index:
            sizes = [Image.open(io.BytesIO(index.thumbnail(number))).size for number in range(2)]
        assert sizes == [(side, side * 3 // 4)] * 2


def test_photos_are_added_once_by_path_and_by_content(tmp_path: Path, encoder: Encoder) -> None:
    folder = tmp_path / "photos"
    paths = [write_place(folder, place, 0) for place in range(4)]
    build_index(folder, encoder, tmp_path / "index")
    shutil.copytree(folder, tmp_path / "copy")
    os.utime(paths[0], (1, 1))  # touched, not changed
    with open_index(tmp_path / "index", write=True) as index:
        assert add_photos(index, encoder, scan_images(tmp_path / "copy")).num_known == 4
        assert add_photos(index, encoder, find_photos(folder)).num_known == 4
        assert len(index) == 4
        Image.fromarray(place_image(77, 0)).save(paths[1])
        growth = add_photos(index, encoder, find_photos(folder))
        assert (growth.num_added, growth.num_replaced, growth.num_known) == (1, 1, 3)
        assert sorted(index.columns().paths()) == sorted(map(str, paths))
        assert index.search(encoder.encode(paths[1]), 1).paths == ((str(paths[1]),),)


def test_a_photo_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    first, *_ = [write_place(folder, place, 0) for place in range(3)]

    def read_before_a_change(path: Path) -> bytes:
        raw = read_file(path)
        if path == first:
            Image.fromarray(place_image(77, 0)).save(first)
        return raw

    with monkeypatch.context() as patched:
        patched.setattr("cosplace.index.indexing.read_file", read_before_a_change)
        assert build_index(folder, encoder, tmp_path / "index").num_added == 3
    growth = build_index(folder, encoder, tmp_path / "index")
    assert (growth.num_added, growth.num_replaced, growth.num_known) == (1, 1, 2)


def test_names_that_contradict_themselves_are_one_warning(tmp_path: Path, encoder: Encoder, caplog) -> None:
    names = [f"@0551000.00@4180000.00@10@S@{latitude}@-122.42095@p{latitude}@@90@@@@2020@@.jpg"
             for latitude in (37.76602, 38.5, 39.5)]  # fmt: skip
    (tmp_path / "photos").mkdir()
    for place, name in enumerate(names):
        shutil.copy(write_place(tmp_path / "places", place, 0), tmp_path / "photos" / name)
    build_index(tmp_path / "photos", encoder, tmp_path / "index")
    (warning,) = [record.getMessage() for record in caplog.records if "apart" in record.getMessage()]
    assert "In 2 file names" in warning and names[1] in warning and "50 m" in warning
    with open_index(tmp_path / "index") as index:  # latitude and longitude decide
        assert sorted(index.columns().latitudes) == pytest.approx([37.76602, 38.5, 39.5], abs=1e-4)


def test_headings_that_are_all_zero_are_unknown(tmp_path: Path, encoder: Encoder, caplog) -> None:
    """As in tables.  Of EXIF, which is read photo by photo, it is only said."""
    (tmp_path / "exif").mkdir()
    for place in range(3):
        write_place(tmp_path / "names", place, 0)
        exif = gps_exif(gps={2: (33.0, 51.0, float(place)), 17: 0.0})
        (tmp_path / "exif" / f"{place}.jpg").write_bytes(jpeg(exif, shade=80 * place))
    build_index(tmp_path / "names", encoder, tmp_path / "index")
    with open_index(tmp_path / "index") as index:
        assert np.isnan(index.columns().headings).all()
    assert caplog.messages[0] == f"{tmp_path / 'names'}: all headings are exactly 0, which means unknown."
    caplog.clear()
    build_index(tmp_path / "exif", encoder, tmp_path / "other")
    with open_index(tmp_path / "other") as index:
        assert index.columns().headings.tolist() == [0, 0, 0]
    assert any(message.startswith("All 3 headings are exactly 0") for message in caplog.messages)


def test_the_error_of_a_position_is_kept(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(jpeg(gps_exif(gps={31: 1500.0}), size=(64, 64)))
    (tmp_path / "photos" / "b.jpg").write_bytes(jpeg(gps_exif(), size=(64, 64), shade=250))
    build_index(tmp_path / "photos", encoder, tmp_path / "index")
    with open_index(tmp_path / "index") as index:
        assert index.columns().accuracies_m.tolist() == pytest.approx([1500.0, np.nan], nan_ok=True)


def test_equal_photos_within_one_folder_are_kept_once(tmp_path: Path, encoder: Encoder) -> None:
    first = write_place(tmp_path / "photos" / "a", 1, 0)
    (tmp_path / "photos" / "b").mkdir()
    shutil.copy(first, tmp_path / "photos" / "b" / first.name)
    growth = build_index(tmp_path / "photos", encoder, tmp_path / "index")
    assert (growth.num_added, growth.num_known, growth.num_copies) == (1, 0, 1)


def test_unreadable_photos_are_told_and_left_out(tmp_path: Path, encoder: Encoder) -> None:
    folder = tmp_path / "photos"
    for place in range(3):
        write_place(folder, place, 0)
    (folder / "empty.jpg").touch()
    (folder / "broken.png").write_bytes(b"no picture")
    growth = build_index(folder, encoder, tmp_path / "index")
    assert growth.num_added == 3 and len(growth.unreadable) == 2
    assert any("broken.png" in line for line in growth.unreadable)
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(folder / "broken.png", only)
    with open_index(tmp_path / "index", write=True) as index:
        growth = add_photos(index, encoder, find_photos(only))
        assert growth.num_added == 0 and len(growth.unreadable) == 1 and len(index) == 3


def test_photos_without_position_are_kept(tmp_path: Path, encoder: Encoder) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "here.jpg").write_bytes(jpeg(gps_exif()))
    (folder / "somewhere.jpg").write_bytes(jpeg(shade=10))
    growth = build_index(folder, encoder, tmp_path / "index")
    assert (growth.num_added, growth.num_without_position) == (2, 1)
    with open_index(tmp_path / "index") as index:
        assert index.photo(0).latitude == pytest.approx(-33.8569) and index.photo(1).latitude is None
        assert index.info()["with_position"] == 1


def test_photos_are_named_by_id_path_or_folder(tmp_path: Path, encoder: Encoder) -> None:
    folder = tmp_path / "photos"
    inside = [write_place(folder / "a", place, 0) for place in range(3)]
    write_place(folder / "b", 7, 0)
    build_index(folder, encoder, tmp_path / "index")
    with open_index(tmp_path / "index") as index:
        assert find_ids(index, ["3", str(inside[1])]).tolist() == [1, 3]
        assert find_ids(index, [str(folder / "a")]).tolist() == [0, 1, 2]
        with pytest.raises(DatasetError, match="no photo 'c'"):
            find_ids(index, ["c"])


# --- kill -9 ---------------------------------------------------------------------------------------------------------

ADDING = """
import sys
from cosplace.engines.encoder import Encoder
from cosplace.models.views import PhotoViews
from cosplace.index import building
from cosplace.index.building import add_photos, find_photos
from cosplace.index.photo_index import open_index
from tests.index.test_building import Stripes

encoder = Encoder(Stripes(), name="stripes", image_size=32, device="cpu")
with open_index(sys.argv[1], write=True) as index:
    print("began", flush=True)
    add_photos(index, encoder, find_photos(sys.argv[2]), photos_per_commit=4,
               stored=lambda paths, ids: print("\\n".join(paths), flush=True))
print("ended", flush=True)
"""


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.long)])
def test_what_was_acknowledged_survives_kills(tmp_path: Path, encoder: Encoder, kills: int) -> None:
    folder, rng = tmp_path / "photos", random.Random(4)
    for place in range(400):
        write_place(folder, place, 0, side=32)
    first = tmp_path / "first"
    write_place(first, 1000, 0)
    build_index(first, encoder, tmp_path / "index")
    acknowledged: set[str] = set()
    num_kills, num_cut_short = 0, 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    while num_kills < kills:
        process = subprocess.Popen(
            [sys.executable, "-c", ADDING, str(tmp_path / "index"), str(folder)],
            stdout=subprocess.PIPE, text=True, env=environment, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "began\n"
        time.sleep(rng.uniform(0, 0.25))
        process.kill()
        told = process.stdout.read().splitlines()
        process.stdout.close()
        process.wait()
        num_kills += 1
        num_cut_short += "ended" not in told
        acknowledged |= set(told) - {"ended"}
        with open_index(tmp_path / "index") as index:
            paths = index.columns().paths()
            assert len(paths) == len(set(paths)) == len(set(index.columns().ids.tolist())) == len(index)
            assert acknowledged <= set(paths)
            index.search(encoder.encode(place_image(3, 0)), 1)
    assert num_cut_short >= kills // 6
    with open_index(tmp_path / "index", write=True) as index:
        add_photos(index, encoder, find_photos(folder))
        paths = index.columns().paths()
        assert len(paths) == len(set(paths)) == 401
        assert np.allclose(index.descriptors([index.columns().ids[-1]]), encoder.encode(paths[-1]), atol=1e-6)


# --- commands --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    network = GeoLocalizationNet("ResNet18_Small", 16, generator=torch.Generator().manual_seed(0))
    torch.save(network.state_dict(), path)
    return path


def test_the_commands_from_build_to_compact(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture) -> None:
    dataset_folder = write_dataset(tmp_path / "dataset", num_places=2)
    address = str(tmp_path / "index")
    build = ["index", "build", str(dataset_folder), "--model", str(weights), "--to", address, "--image_size", "32"]
    device = ["--device", "cpu", "--num_workers", "0"]
    assert main([*build, *device, "--no_calibrate"]) == 0
    assert "24 photos added" in (out := capsys.readouterr().out)
    assert re.search(r"\ntime: loading the model .* s, decoding .* s, network .* s\nNext: ", out)
    queries = str(dataset_folder / "test" / "queries_v1")
    assert main(["index", "add", address, queries, *device]) == 0
    assert "12 photos added" in capsys.readouterr().out
    assert main(["index", "add", address, queries, *device]) == 0
    assert "0 photos added" in (out := capsys.readouterr().out) and "12 were already in the index" in out
    assert main(["index", "remove", address, queries, "0"]) == 0
    assert "13 photos removed, 23 remain" in capsys.readouterr().out
    assert main(["index", "compact", address]) == 0
    assert "23 photos" in capsys.readouterr().out
    assert main(["index", "info", address, "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["count"] == 23 and info["model"]["model"] == str(weights) and info["search"] == {"kind": "exact"}


def test_info_of_an_approximate_index(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture) -> None:
    dataset_folder = write_dataset(tmp_path / "dataset", num_places=2)
    build = ["index", "build", str(dataset_folder / "test"), "--model", str(weights), "--to", str(tmp_path / "index")]
    options = ["--image_size", "32", "--device", "cpu", "--num_workers", "0", "--no_calibrate", "--exact_rows", "10"]
    assert main([*build, *options]) == 0
    assert "partitions; measured on 24 photos: recall@1" in capsys.readouterr().out


def test_the_commands_refuse_in_one_line(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture) -> None:
    folder, address = tmp_path / "photos", str(tmp_path / "index")
    write_place(folder, 0, 0)
    build = ["index", "build", str(folder), "--to", address, "--image_size", "32", "--device", "cpu", "--no_calibrate"]
    assert main([*build, "--model", str(weights)]) == 0
    other = tmp_path / "other.pth"
    torch.save(GeoLocalizationNet("ResNet18_Small", 16, generator=torch.Generator().manual_seed(1)).state_dict(), other)
    capsys.readouterr()

    def refused(*arguments: str) -> str:
        assert main(arguments) == 2
        err = capsys.readouterr().err.strip()
        assert err.startswith("error: ") and "\n" not in err
        return err

    assert "was built with the model" in refused(*build, "--model", str(other))
    assert "does not exist" in refused("index", "info", str(tmp_path / "nothing"))
    assert "is not a photo index" in refused("index", "compact", str(folder))
    assert "no photo 'nobody'" in refused("index", "remove", address, "nobody")
    too_small = refused(*build, "--model", str(weights), "--thumbnail_size", "-1")
    assert "--thumbnail_size must be 0 or more, got -1" in too_small
    with open_index(address, write=True):
        assert "in use by another writer" in refused("index", "add", address, str(folder))
    assert "Unknown action 'frobnicate'. Choose from build, add" in refused("index", "frobnicate")


def test_views_are_stored_with_the_index(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for place in range(4):
        write_place(folder, place, 0)
    views = PhotoViews(scales=(0.5, 1.0), flip=True, query_policy="square", query_size=24)
    encoder = Encoder(Stripes(), name="stripes", image_size=32, device="cpu", views=views)
    build_index(folder, encoder, tmp_path / "index")
    with open_index(tmp_path / "index") as index:
        assert index.spec.views == views
        rows = index.descriptors(index.columns().ids)
        paths = index.columns().paths()
    np.testing.assert_allclose(rows, encoder.encode(paths, database=True), atol=1e-6)
    with pytest.raises(PhotoIndexError, match="--scales"):
        build_index(folder, Encoder(Stripes(), name="stripes", image_size=32, device="cpu"), tmp_path / "index")
