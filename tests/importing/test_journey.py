"""From photos of a phone, or photos and a table, to positions of new photos: three commands, and nothing is renamed."""

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from cosplace.cli import main
from cosplace.models.network import GeoLocalizationNet
from tests.synthetic_dataset import place_image

NUM_PHOTOS = 12
LATITUDE, LONGITUDE, STEP = -33.85, 151.21, 0.002  # degrees; photos are 185 m apart


def degrees_minutes_seconds(value: float) -> tuple[IFDRational, ...]:
    minutes = abs(value) * 60 % 60
    return (
        IFDRational(int(abs(value))),
        IFDRational(int(minutes)),
        IFDRational(round(minutes % 1 * 60_000_000), 1_000_000),
    )


def phone_photo(path: Path, number: int, *, with_position: bool) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "Maker", "Phone 1"
    if with_position:
        gps = exif.get_ifd(0x8825)
        gps[1], gps[2] = "S", degrees_minutes_seconds(LATITUDE + number * STEP)
        gps[3], gps[4] = "E", degrees_minutes_seconds(LONGITUDE)
    Image.fromarray(place_image(number, 0, side=64)).save(path, "JPEG", quality=95, exif=exif)


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the photo of a known place and a small model."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(GeoLocalizationNet("ResNet18_Small", 16).state_dict(), "model.pth")
    Path("Camera Roll").mkdir()
    phone_photo(Path("question.jpg"), 5, with_position=False)
    return tmp_path


def locate(capsys: pytest.CaptureFixture) -> tuple[float, float]:
    assert main(["index", "build", "mine", "--model=model.pth", "--image_size=64", "--to=index"]) == 0
    assert "Next: cosplace locate PHOTO --index index" in capsys.readouterr().out
    assert main(["locate", "question.jpg", "--index=index", "--device=cpu", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    best = answer["neighbours"][0]
    return best["latitude"], best["longitude"]


@pytest.mark.slow
def test_from_photos_of_a_phone(at_home: Path, capsys: pytest.CaptureFixture) -> None:
    for number in range(NUM_PHOTOS):
        phone_photo(Path("Camera Roll") / f"IMG {number:04d}.JPG", number, with_position=True)
    assert main(["import", "Camera Roll", "--to=mine"]) == 0
    out = capsys.readouterr().out
    assert f"{NUM_PHOTOS} photos added" in out
    assert "To locate photos: cosplace index build mine --model MODEL --to INDEX" in out
    assert locate(capsys) == pytest.approx((LATITUDE + 5 * STEP, LONGITUDE), abs=1e-6)


@pytest.mark.slow
def test_from_photos_and_a_table(at_home: Path, capsys: pytest.CaptureFixture) -> None:
    with Path("positions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filename", "lat", "lon", "heading"])
        for number in range(NUM_PHOTOS):
            name = f"IMG {number:04d}.JPG"
            phone_photo(Path("Camera Roll") / name, number, with_position=False)
            rows.writerow([name, f"{LATITUDE + number * STEP:.7f}", f"{LONGITUDE:.7f}", number * 30])
    assert main(["import", "Camera Roll", "positions.csv", "--to=mine"]) == 0
    assert f"{NUM_PHOTOS} with positions, {NUM_PHOTOS} with headings" in capsys.readouterr().out
    assert locate(capsys) == pytest.approx((LATITUDE + 5 * STEP, LONGITUDE), abs=1e-6)
