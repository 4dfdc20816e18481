"""Paths of photos relative to their roots: moved indexes, moved photos, odd names, earlier versions."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cosplace.cli import main
from cosplace.errors import ConfigError, DatasetError
from cosplace.index.photo_index import PhotoIndex, create_index, open_index
from cosplace.index.records import NewPhoto
from cosplace.index.roots import given_folders
from cosplace.index.verification import verify_index
from cosplace.photos.paths import path_text
from tests.index.index_samples import SPEC, unit_rows, write_index

FORMER = Path(__file__).parents[1] / "data" / "former" / "index.tar.xz"


def files(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"photo")
    return folder


def index_of(address: Path, *folders: Path) -> PhotoIndex:
    """An index of the files below some folders."""
    index = create_index(address, SPEC)
    for folder in folders:
        index.add_root(folder)
    paths = [path for folder in folders for path in sorted(folder.resolve().rglob("*.jpg"))]
    photos = [NewPhoto(path=path_text(path), key=path_text(path)) for path in paths]
    index.add(photos, unit_rows(len(photos), 1))
    return index


def test_a_copied_index_finds_the_photos_beside_it(tmp_path: Path) -> None:
    photos = files(tmp_path / "city" / "photos", "a/1.jpg", "2.jpg")
    with index_of(tmp_path / "city" / "index", photos) as index:
        assert index.columns().names() == ["2.jpg", "a/1.jpg"]
        assert index.columns().paths() == [str(photos / "2.jpg"), str(photos / "a/1.jpg")]
    (tmp_path / "city").rename(tmp_path / "moved")
    with open_index(tmp_path / "moved" / "index") as index:
        assert index.columns().paths() == [str(tmp_path / "moved/photos/2.jpg"), str(tmp_path / "moved/photos/a/1.jpg")]
        assert index.search(unit_rows(2, 1), 1).names == (("2.jpg",), ("a/1.jpg",))
        assert (index.photo(1).name, index.photo(1).path) == ("a/1.jpg", str(tmp_path / "moved/photos/a/1.jpg"))


def test_a_new_place_of_the_photos_is_given_and_recorded_by_a_writer(tmp_path: Path) -> None:
    photos = files(tmp_path / "photos", "1.jpg")
    index_of(tmp_path / "index", photos).close()
    photos.rename(tmp_path / "other")
    assert open_index(tmp_path / "index").columns().paths() == [str(photos / "1.jpg")]
    new = str(tmp_path / "other")
    assert open_index(tmp_path / "index", roots=[new]).columns().paths() == [f"{new}/1.jpg"]
    assert open_index(tmp_path / "index", roots=[f"{photos}={new}"]).columns().paths() == [f"{new}/1.jpg"]
    open_index(tmp_path / "index", write=True, roots=[new]).close()
    assert open_index(tmp_path / "index").columns().paths() == [f"{new}/1.jpg"]
    with pytest.raises(DatasetError, match="does not exist"):
        open_index(tmp_path / "index", roots=[str(tmp_path / "nothing")])


def test_a_server_uses_the_new_place_of_the_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    photos = files(tmp_path / "photos", "1.jpg")
    index_of(tmp_path / "index", photos).close()
    photos.rename(tmp_path / "other")
    served: list[list[str]] = []
    monkeypatch.setattr(
        "cosplace.server.serve", lambda localizer, *_, **__: served.append(localizer.index.columns().paths())
    )
    words = ["serve", "--index", str(tmp_path / "index"), "--uncalibrated"]
    assert main(words) == main([*words, "--root", str(tmp_path / "other")]) == 0
    assert served == [[str(photos / "1.jpg")], [str(tmp_path / "other" / "1.jpg")]]


def test_each_folder_that_is_not_below_another_is_a_root(tmp_path: Path) -> None:
    first, second = files(tmp_path / "a", "x/1.jpg"), files(tmp_path / "b", "2.jpg")
    with index_of(tmp_path / "index", first, second, first / "x") as index:
        assert index.roots == (str(first), str(second))
        assert index.columns().names()[:2] == ["x/1.jpg", "2.jpg"]
    with pytest.raises(ConfigError, match="OLD=NEW"):
        open_index(tmp_path / "index", roots=[str(first)])
    (tmp_path / "a=b").mkdir()
    assert given_folders(["/x"], [str(tmp_path / "a=b")]) == [str(tmp_path / "a=b")]
    assert given_folders(["/x/a", "/x/b", "/xy"], [f"/x={tmp_path}"]) == [f"{tmp_path}/a", f"{tmp_path}/b", "/xy"]


def test_a_folder_whose_photos_all_moved_is_no_root_anymore(tmp_path: Path) -> None:
    old, new = files(tmp_path / "old", "1.jpg", "2.jpg"), files(tmp_path / "new", "1.jpg", "2.jpg")
    with index_of(tmp_path / "index", old) as index:
        index.add_root(new)
        assert [root["path"] for root in index.info()["roots"]] == [str(old)]
        index.move([0], [NewPhoto(path=str(new / "1.jpg"), key="")])
        assert [root["path"] for root in index.info()["roots"]] == [str(old), str(new)]
        index.move([1], [NewPhoto(path=str(new / "2.jpg"), key="")])
        assert [root["path"] for root in index.info()["roots"]] == [str(new)]


def test_links_and_dots_are_resolved(tmp_path: Path) -> None:
    photos = files(tmp_path / "photos", "1.jpg")
    (tmp_path / "link").symlink_to(photos)
    with index_of(tmp_path / "index", tmp_path / "photos" / ".." / "link") as index:
        assert index.roots == (str(photos),) and index.columns().names() == ["1.jpg"]


def test_any_name_comes_back(tmp_path: Path) -> None:
    names = [b"caf\xe9.jpg", b"a\nb.jpg", b"back\\xe9slash.jpg", b'comma, quote".jpg', b"#$%.jpg"]
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"photo")
    with index_of(tmp_path / "index", folder) as index:
        texts = index.columns().names()
        assert {os.fsencode(path.name) for path in folder.iterdir()} == set(names)
        assert sorted(texts) == sorted(path_text(os.fsdecode(name)) for name in names)
        assert all(text.encode() for text in texts)


def test_position_errors_are_kept_and_unknown_ones_are_nan(tmp_path: Path) -> None:
    with write_index(tmp_path / "index", root="/data/photos") as index:
        index.add([NewPhoto(path="/data/photos/new.jpg", key="new")], unit_rows(301, 3)[-1:])
        found = index.search(unit_rows(300, 1)[[7, 250]], 1)
        assert found.accuracies_m.tolist() == [[7.0], [250.0]] and found.names == (("7.jpg",), ("250.jpg",))
        assert np.isnan(index.columns().accuracies_m[-1]) and index.photo(300).accuracy_m is None
        assert index.info()["with_accuracy"] == 290


def test_a_moved_photo_keeps_its_id_and_all_but_its_path(tmp_path: Path) -> None:
    with write_index(tmp_path / "index", root="/data/photos") as index:
        before = index.photo(250)
        index.move([250, 3], [NewPhoto(path=f"/data/photos/new/{name}", key="") for name in ("b.jpg", "a.jpg")])
        found = index.search(unit_rows(300, 1)[[250, 3]], 1)
        assert found.ids.tolist() == [[250], [3]] and found.names == (("new/b.jpg",), ("new/a.jpg",))
        assert index.photo(250).latitude == before.latitude and index.thumbnail(250) == b"jpeg-250" * 20
    assert not verify_index(tmp_path / "index").problems


def test_an_index_of_an_earlier_version_opens_and_is_upgraded_by_a_writer(tmp_path: Path) -> None:
    with tarfile.open(FORMER) as archive:
        archive.extractall(tmp_path, filter="data")
    address = tmp_path / "index"
    with open_index(address) as index:
        before, rows = index.columns(), index.descriptors(index.columns().ids)
        assert np.isnan(before.accuracies_m).all() and "/" in before.paths()[0]
        assert before.paths()[0].endswith(before.names()[0]) and not before.names()[0].startswith("/")
        assert index.info()["without_checksums"] == len(before)
    with open_index(address, write=True) as index:
        after = index.columns()
        assert (after.names(), after.paths()) == (before.names(), before.paths())
        assert np.array_equal(after.latitudes, before.latitudes) and np.array_equal(index.descriptors(after.ids), rows)
        new = NewPhoto(path="/new/1.jpg", key="new", accuracy_m=4.0)
        one = np.zeros((1, index.spec.dimension), np.float32)
        one[0, 0] = 1
        (new_id,) = index.add([new], one).ids
        assert index.photo(int(new_id)).accuracy_m == 4.0
        assert index.info()["without_checksums"] == len(before)
        index.compact()
        assert index.info()["without_checksums"] == 0
        assert np.array_equal(index.descriptors(before.ids), rows) and index.columns().paths()[:-1] == before.paths()
    found = verify_index(address)
    assert not found.problems and found.num_unchecked == 0 and found.num_photos == len(before) + 1


def test_photos_without_a_file_keep_their_name(tmp_path: Path) -> None:
    with write_index(tmp_path / "index") as index:
        index.add([NewPhoto(path="upload:abc/me.jpg", key="upload")], unit_rows(400, 5)[-1:])
        assert index.columns().names()[-1] == "upload:abc/me.jpg" == index.columns().paths()[-1]
        assert index.columns().names()[0] == "0.jpg" and index.columns().paths()[0] == "/photos/0.jpg"
