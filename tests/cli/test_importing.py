"""cosplace import: what it prints, exit codes, and three commands from photos to an answer."""

import json
from pathlib import Path

import pytest
import torch

from cosplace.cli import main
from cosplace.models.network import GeoLocalizationNet
from tests.importing.photo_samples import jpeg_pixels, rows_of, write_photo


@pytest.fixture
def phone(tmp_path: Path) -> Path:
    for number in range(3):
        write_photo(tmp_path / "phone" / f"{number}.jpg", 48 + number / 1000, 11.5, 0)
    write_photo(tmp_path / "phone" / "unplaced.jpg")
    return tmp_path / "phone"


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = main(["import", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_an_import_is_summarized(phone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    city = tmp_path / "city"
    code, out, _ = run(capsys, phone, "--to", city, "--dry_run")
    assert code == 0
    assert f"{city}: 3 photos would be added, 1 file or row left out" in out
    assert "photos/phone/0.jpg: 48.000000, 11.500000" in out
    assert not city.exists()
    code, out, _ = run(capsys, phone, "--to", city)
    assert code == 0
    assert f"{city}: 3 photos added, 1 file or row left out; see {city}/import_report.csv" in out
    assert f"  1 left out: its position is unknown ({phone}/unplaced.jpg)" in out
    assert "Its area: latitude 48.0000 to 48.0020, longitude 11.5000 to 11.5000" in out
    assert "headings of Acme Cam 1 were exactly 0 for all 3 photos: they are unknown" in out
    assert "The dataset has 3 photos: 3 with positions, 0 with headings, 0 with times" in out
    assert len(rows_of(city)) == 3


def test_mistakes_are_one_line_with_exit_code_2(
    phone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photo(tmp_path / "indoors" / "a.jpg")
    table = tmp_path / "table.csv"
    table.write_text("file,x,y\n0.jpg,1,1\n")
    for words, problem in (
        ((tmp_path / "indoors", "--to", tmp_path / "city"), "1 has no position. Add a table or a track"),
        ((tmp_path / "none", "--to", tmp_path / "city"), "does not exist"),
        ((phone,), "--to DATASET"),
        ((phone, "--to", tmp_path / "city", "--format", "photo"), "Did you mean photos?"),
        ((phone, "--to", tmp_path / "city", "--format", "photos", "photos"), "2 names for 1 sources"),
        ((phone, "--to", tmp_path / "city", "--timezone", "Rome"), "--timezone 'Rome' is unknown"),
        ((phone, table, "--to", tmp_path / "city", "--crs", "EPSG:1"), "EPSG:1 is not a known coordinate system"),
        ((phone, table, "--to", tmp_path / "city", "--column", "lat=x"), "--column must be FIELD=NAME"),
        ((table, "--to", tmp_path / "city"), "none of the photos that it names"),
    ):
        code, _, err = run(capsys, *words)
        assert code == 2
        assert problem in err
        assert len(err.splitlines()) == 1
        assert err.startswith("error: ")


@pytest.mark.slow
def test_three_commands_from_photos_to_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["filename,latitude,longitude"]
    for number in range(12):
        name = f"IMG_{number}.jpg"
        if number % 2:
            write_photo(tmp_path / "phone" / name, 48 + number / 100, 11.5)
        else:
            (tmp_path / "phone").mkdir(exist_ok=True)
            (tmp_path / "phone" / name).write_bytes(jpeg_pixels(number, (96, 72)))
            lines.append(f"{name},{48 + number / 100},11.5")
    (tmp_path / "positions.csv").write_text("\n".join(lines))
    torch.manual_seed(0)
    torch.save(GeoLocalizationNet("ResNet18_Small", 16).state_dict(), tmp_path / "model.pth")
    city, index = str(tmp_path / "city"), str(tmp_path / "city.index")
    commands = [
        ["import", str(tmp_path / "phone"), str(tmp_path / "positions.csv"), "--to", city],
        ["index", "build", city, "--to", index, "--model", str(tmp_path / "model.pth"), "--no_calibrate",
         "--image_size", "64", "--device", "cpu"],
    ]  # fmt: skip
    for command in commands:
        assert main(command) == 0
    for number in (4, 7):
        capsys.readouterr()
        photo = str(tmp_path / "phone" / f"IMG_{number}.jpg")
        assert main(["locate", photo, "--index", index, "--uncalibrated", "--json", "--device", "cpu"]) == 0
        best = json.loads(capsys.readouterr().out)["neighbours"][0]
        assert (best["latitude"], best["longitude"]) == pytest.approx((48 + number / 100, 11.5), abs=1e-6)
