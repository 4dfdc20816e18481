"""Photos without positions: `build`, `add` and `sync` refuse a folder without any, and name only likely tables."""

from pathlib import Path

import pytest
import torch

from cosplace.cli import main
from cosplace.errors import DatasetError
from cosplace.index.photo_index import open_index
from cosplace.index.sources import find_photos, require_positions
from cosplace.models.network import GeoLocalizationNet
from cosplace.photos.labels import tables_hint
from tests.synthetic_dataset import place_image
from tests.table_samples import around, write_exif_photo, write_records


def photo(path: Path, number: int) -> Path:
    record = around(45.0, 7.0, 10, 200)[number]
    return write_exif_photo(path, record, place_image(number, 0, side=32))


def plain(path: Path, number: int) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(place_image(number, 1, side=32)).save(path)
    return path


@pytest.mark.slow
def test_add_and_sync_refuse_what_build_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = GeoLocalizationNet("ResNet18_Small", 16, generator=torch.Generator().manual_seed(0))
    torch.save(network.state_dict(), tmp_path / "model.pth")
    known, unknown = photo(tmp_path / "known" / "1.jpg", 1).parent, plain(tmp_path / "unknown" / "2.png", 2).parent
    address, options = str(tmp_path / "index"), ["--device", "cpu", "--num_workers", "0"]
    build = ["index", "build", "--to", address, "--model", str(tmp_path / "model.pth"), "--no_calibrate", *options]
    assert main([*build, str(known)]) == 0
    refused = []
    for command in ("build", "add", "sync"):
        capsys.readouterr()
        arguments = (
            [*build, str(unknown)] if command == "build" else ["index", command, address, str(unknown), *options]
        )
        assert main(arguments) == 2
        refused.append(capsys.readouterr().err)
    assert refused[0] == refused[1] == refused[2] and "--without_positions" in refused[0]
    with open_index(address) as index:
        assert len(index) == 1
    assert main(["index", "add", address, str(unknown), "--without_positions", *options]) == 0
    assert "1 of those added has no position" in capsys.readouterr().out
    assert main(["index", "sync", address, str(unknown), "--without_positions", *options]) == 0


def test_photos_without_positions_are_refused_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = plain(tmp_path / "unknown" / "1.png", 1).parent
    words = ["index", "build", str(folder), "--to", str(tmp_path / "index"), "--model", str(tmp_path / "missing.pth")]
    assert main(words) == 2
    assert "has no position" in capsys.readouterr().err and not (tmp_path / "index").exists()
    assert main([*words, "--without_positions"]) == 2
    assert "missing.pth" in capsys.readouterr().err


def test_only_files_that_may_have_positions_are_named(tmp_path: Path) -> None:
    for number in range(3):
        plain(tmp_path / "city" / "photos" / f"{number}.png", number)
    write_records(tmp_path / "other", around(45.0, 7.0, 1, 10))  # the table of another dataset
    texts = {
        "results.json": '{"R@1": 91.5, "latitude": 1}', "notes.txt": "a long text about a plate\n",
        "loss.csv": "epoch,loss\n1,0.5\n", "names.csv": "file,label\n0.png,church\n",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / "city" / name).write_text(text)
    with pytest.raises(DatasetError) as caught:
        require_positions(find_photos(tmp_path / "city"), tmp_path / "city")
    assert "Positions may be in" not in str(caught.value)
    for name, text in {
        "a.csv": "name;Lat;Lng\n", "b.txt": "0.png 45.123456 7.654321\n", "c.json": '[{"GPSLatitude": 45.1}]',
        "d.gpx": "<gpx/>",
    }.items():  # fmt: skip
        (tmp_path / "city" / name).write_text(text)
        with pytest.raises(DatasetError, match=rf"Positions may be in \S+/{name}\."):
            require_positions(find_photos(tmp_path / "city"), tmp_path / "city")
        (tmp_path / "city" / name).unlink()


def test_tables_of_other_datasets_are_not_named(tmp_path: Path) -> None:
    plain(tmp_path / "city" / "photos" / "1.png", 1)
    for file in ("other/positions.csv", "positions.csv", "city/tables/positions.csv"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("name,latitude,longitude\n")
    with pytest.raises(DatasetError) as caught:
        require_positions(find_photos(tmp_path / "city"), tmp_path / "city")
    tables = [tmp_path / "city" / "tables" / "positions.csv", tmp_path / "positions.csv"]
    assert f"Positions may be in {tables[0]}, {tables[1]}." in str(caught.value)


@pytest.mark.parametrize("folder", [".", "Images", "Images/London"])
def test_the_tables_of_gsv_cities_are_named(tmp_path: Path, folder: str) -> None:
    plain(tmp_path / "Images" / "London" / "1.png", 1)
    (tmp_path / "Dataframes").mkdir()
    (table := tmp_path / "Dataframes" / "London.csv").write_text("place_id,lat,lon\n")
    photos = find_photos(tmp_path / folder)
    assert f"Positions may be in {table}." in tables_hint(tmp_path / folder, photos)
