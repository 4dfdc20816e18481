"""cosplace locate on generated photos: every output format, filters, sequences, mistakes in one line."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from cosplace.cli import main
from cosplace.localization.localizer import Localizer
from cosplace.models.weight_files import read_state_dict, write_weights
from cosplace.photos import opening
from tests.indexed_city import queries, write_indexed_city

pytestmark = pytest.mark.slow  # make check has a minute; make test runs all


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_indexed_city(tmp_path_factory.mktemp("locate"))


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = main(["locate", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_one_photo_as_text_and_as_an_object(city: Path, capsys) -> None:
    photo = queries(city)[0]
    code, out, _ = run(capsys, photo, "--index", city / "index", "--min_confidence", "0", "--device", "cpu")
    assert code == 0 and re.search(r"(sure|guess, \d+%).*\n  37\.7\d+, -12[12]\.\d+\n", out)
    assert "https://www.openstreetmap.org/?mlat=37.7" in out and "m away" in out
    code, out, _ = run(
        capsys, photo, "--index", city / "index", "--min_confidence", "0", "--json", "--neighbours", "2", "--exact"
    )
    found = json.loads(out)
    assert code == 0 and found["photo"] == str(photo) and len(found["neighbours"]) == 2
    assert found["neighbours"][0]["similarity"] >= found["neighbours"][1]["similarity"]


def test_a_folder_and_an_unreadable_photo_in_its_place(city: Path, capsys, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no more")
    photos = queries(city)[:9]
    code, out, _ = run(
        capsys, photos[0], broken, *photos[1:], tmp_path / "gone.jpg", "--index", city / "index", "--json"
    )
    found = json.loads(out)
    assert code == 0
    assert [entry["photo"] for entry in found] == [
        str(p) for p in (photos[0], broken, *photos[1:], tmp_path / "gone.jpg")
    ]
    assert ["error" in entry for entry in found] == [False, True, *[False] * 8, True]
    code, out, _ = run(capsys, city / "city" / "test" / "queries_v1", "--index", city / "index", "--csv")
    assert code == 0 and len(out.splitlines()) == 1 + len(queries(city))
    code, out, _ = run(capsys, photos[0], "--index", city / "index", "--geojson")
    assert json.loads(out)["type"] == "FeatureCollection"


def test_each_photo_is_read_once(city: Path, capsys, monkeypatch) -> None:
    pytest.importorskip("cv2")
    read = []
    read_file = opening.read_file
    monkeypatch.setattr(opening, "read_file", lambda path: read.append(path) or read_file(path))
    photos = queries(city)[:3]
    assert run(capsys, *photos, "--index", city / "index", "--device", "cpu", "--rerank")[0] == 0
    assert [path for path in read if path in photos] == photos


def test_nothing_readable_ends_with_2_and_still_prints_each(city: Path, capsys, tmp_path: Path) -> None:
    code, out, err = run(capsys, tmp_path / "a.jpg", tmp_path / "b.jpg", "--index", city / "index", "--json")
    assert code == 2 and [sorted(entry) for entry in json.loads(out)] == [["error", "photo"]] * 2
    assert err.count("\n") == 1 and "None of the 2 photos can be read" in err
    code, _, err = run(capsys, tmp_path / "a.jpg", "--index", city / "index")
    assert code == 2 and err.startswith(f"error: Cannot read {tmp_path / 'a.jpg'}: ") and err.count("\n") == 1


def test_fail_unknown_ends_with_3_after_all_answers(city: Path, capsys, tmp_path: Path) -> None:
    known, flags = queries(city)[0], ("--index", city / "index", "--json", "--device", "cpu", "--fail_unknown")
    code, out, err = run(capsys, known, *flags, "--min_confidence", "0")
    assert (code, err) == (0, "") and json.loads(out)["unknown"] is False
    for photos, more, count in (
        ((known,), ("--near", "-33.8,151.2,500"), "1 of 1"),  # no photo of the index is there
        ((known, tmp_path / "gone.jpg"), ("--min_confidence", "0"), "1 of 2"),
    ):
        code, out, err = run(capsys, *photos, *flags, *more)
        assert code == 3 and len(json.loads(out)) >= len(photos)
        assert err.count("\n") == 1 and f"{count} photos have no answer" in err
    assert run(capsys, tmp_path / "gone.jpg", *flags)[0] == 2  # no photo can be read
    assert run(capsys, known, *flags[:-1], "--near", "-33.8,151.2,500")[0] == 0


def test_exif_agrees_or_not(city: Path, capsys, tmp_path: Path) -> None:
    found = Localizer(city / "index", device="cpu", min_confidence=0).locate(queries(city)[0])
    for away, error_m, agrees in ((0.0, None, True), (0.01, None, False), (0.01, 1500.0, True)):
        exif = Image.Exif()
        degrees = found.latitude + away
        gps = {1: "N", 2: (degrees, 0.0, 0.0), 3: "W", 4: (-found.longitude, 0.0, 0.0)}
        exif[0x8825] = gps if error_m is None else gps | {31: error_m}
        path = tmp_path / "photo.png"
        with Image.open(queries(city)[0]) as picture:
            picture.save(path, exif=exif)
        _, out, _ = run(capsys, path, "--index", city / "index", "--min_confidence", "0", "--json", "--device", "cpu")
        check = json.loads(out)["exif"]
        assert check["agrees"] is agrees and check["distance_m"] == pytest.approx(1.11e5 * away, abs=25)
        assert check.get("accuracy_m") == error_m
        _, out, _ = run(capsys, path, "--index", city / "index", "--min_confidence", "0", "--device", "cpu")
        assert (": agrees, " if agrees else ": DISAGREES, ") in out


def test_priors(city: Path, capsys) -> None:
    photo, index = queries(city)[0], city / "index"
    for flags, nothing in (
        (("--near", "37.7,-122.4,100000"), False), (("--near", "-33.8,151.2,500"), True),
        (("--bbox", "-123,37,-121,38"), False), (("--bbox", "170,-10,-170,10"), True),
        (("--after", "2001-09-09", "--before", "2001-09-10"), False), (("--after", "2015"), True),
        (("--before", "2001-09-09T01:46:40"), True),
    ):  # fmt: skip
        code, out, err = run(capsys, photo, "--index", index, "--json", *flags)
        assert (code, err) == (0, ""), flags
        assert (json.loads(out)["reason"] == "no photo of the index matches the filter") is nothing, flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--near", "37.7"], "near must be LATITUDE,LONGITUDE,RADIUS_M, got '37.7'"),
        (["--near", "a,b,c"], "near must be LATITUDE,LONGITUDE,RADIUS_M, got 'a,b,c'"),
        (["--near", "99,0,5"], "latitude"),
        (["--bbox", "1,2,3"], "bbox must be WEST,SOUTH,EAST,NORTH, got '1,2,3'"),
        (["--bbox", "1,5,3,2"], "south must not be above north"),
        (["--after", "yesterday"], "--after must be a date, got 'yesterday'. Use for example 2019"),
        (["--after", "2020", "--before", "2019"], "must be earlier than"),
        (["--precision", "0.9999"], "does not reach --precision 0.9999"),
        (["--precision", "0.9", "--min_confidence", "0.9"], "contradict"),
        (["--neighbors", "0"], "--neighbors must be 1 or more, got 0"),
        (["--fps", "3"], "--fps has an effect only with --sequence"),
        (["--sequence", "--fps", "0"], "--fps must be above 0, got 0. Use for example 30."),
        (["--sequence", "--max_speed", "nan"], "--max_speed must be above 0, got nan"),
        (["--rerank", "--sequence"], "cannot be used together"),
        (["--json", "--csv"], "--json and --csv contradict each other"),
    ],
)
def test_mistakes_are_one_line(city: Path, capsys, flags: list[str], message: str) -> None:
    code, out, err = run(capsys, queries(city)[0], "--index", city / "index", *flags)
    assert (code, out) == (2, "") and err.count("\n") == 1 and message in err


def test_mistakes_about_the_index_and_the_photos(city: Path, capsys, tmp_path: Path) -> None:
    photo = queries(city)[0]
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([photo, "--index", tmp_path / "none"], "none"),
        ([tmp_path / "empty", "--index", city / "index"], "empty"),
        ([tmp_path / "a.mp4", "--index", city / "index"], "is a video"),
        ([tmp_path / "none", "--index", city / "index", "--sequence"], "does not exist"),
        (
            ["https://example.org/a.jpg", "--index", city / "index"],
            "https://example.org/a.jpg is a web address. Download",
        ),
    ):
        code, _, err = run(capsys, *words)
        assert code == 2 and err.count("\n") == 1 and message in err, err
    code, out, _ = run(capsys, photo, "--index", city / "bare", "--uncalibrated", "--json")
    assert code == 0 and json.loads(out)["reason"].startswith(("uncalibrated", "confidence"))


@pytest.mark.parametrize("flags", [[], ["--sequence", "--fps", "1"], ["--sequence"]])
def test_photos_that_cannot_be_read_do_not_stop_the_others(city: Path, capsys, tmp_path: Path, flags) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "text.jpg").write_text("hello")
    Image.new("RGB", (60_000, 2)).save(tmp_path / "thin.png")
    bad = [tmp_path / name for name in ("pipe.jpg", "none.jpg", "text.jpg", "thin.png")]
    good = queries(city)[:3]
    words = [good[0], *bad, *good[1:], "--index", city / "index", "--json", *flags]
    code, out, err = run(capsys, *words)
    found = {answer["photo"]: answer for answer in json.loads(out)}
    assert code == 0 and "Traceback" not in err and len(found) == 7
    for path in good:
        assert found[str(path)]["neighbours"] and "error" not in found[str(path)]
    for path, reason in zip(bad, ("a pipe", "No such file", "not an image", "thin.png"), strict=True):
        assert reason in found[str(path)]["error"] and path.name in found[str(path)]["error"]


def test_a_small_index_answers_by_default(city: Path, capsys, tmp_path: Path) -> None:
    photos = sorted((city / "city" / "test" / "database").glob("*.jpg"))[:12]
    (tmp_path / "photos").mkdir()
    for number, photo in enumerate(photos):
        name = f"@{550_000 + 300 * number}@4180000@10@S@@@{number}@@0@@@@2020@@.jpg"
        (tmp_path / "photos" / name).write_bytes(photo.read_bytes())
    build = ["index", "build", tmp_path / "photos", "--model", city / "model.pth", "--to", tmp_path / "index",
             "--image_size", "48", "--device", "cpu"]  # fmt: skip
    assert main(list(map(str, build))) == 0
    out, err = capsys.readouterr()
    assert "its confidence is not calibrated. Calibration needs 100 photos" in err
    assert "  confidence not calibrated\n" in out  # the reason is said once
    assert main(["index", "info", str(tmp_path / "index")]) == 0
    assert "confidence not calibrated. Calibration needs 100 photos" in capsys.readouterr().out
    code, out, _ = run(capsys, photos[0], "--index", tmp_path / "index", "--json", "--min_confidence", "0")
    found = json.loads(out)
    assert code == 0 and found["calibrated"] is False and not found["unknown"] and found["radius_m"] is None
    code, out, _ = run(capsys, photos[0], "--index", tmp_path / "index", "--min_confidence", "0")
    assert code == 0 and "Best guess, not calibrated" in out
    assert re.search(r"uncalibrated: \d+% of the votes agree", out)


@pytest.mark.parametrize(("size", "flags"), [("32", []), ("32", ["--image_size", "48"]), ("48", []), ("?", [])])
def test_photos_of_another_size_than_in_training_are_named(
    city: Path, capsys, tmp_path: Path, size: str, flags: list[str]
) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "photos" / "@550000@4180000@10@S@.jpg")
    weights = read_state_dict(city / "model.pth")
    torch.save(weights, tmp_path / "model.pth")
    write_weights(tmp_path / "model.safetensors", weights, {"image_size": size})
    words = ["index", "build", tmp_path / "photos", "--model", tmp_path / "model.pth", "--to", tmp_path / "index",
             "--device", "cpu", *flags]  # fmt: skip
    assert main(list(map(str, words))) == 0
    note = "trained with photos of 32 pixels. Yours have 48 and keep their size; --image_size 32 resizes them"
    assert (note in capsys.readouterr().err) is (size == "32" and not flags)


def test_a_sequence_of_frames_writes_a_track(city: Path, capsys, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, photo in enumerate(queries(city)):
        (folder / f"{number}.jpg").write_bytes(photo.read_bytes())
    (folder / "3.jpg").write_bytes(b"")
    code, out, _ = run(
        capsys, folder, "--index", city / "index", "--sequence", "--fps", "0.2", "--max_speed", "10", "--json",
        "--min_confidence", "0", "--gpx", tmp_path / "track.gpx",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0 and len(found) == 12 and "error" in found[3]
    assert (tmp_path / "track.gpx").read_text().count("<trkpt") == sum(
        "latitude" in e and e["latitude"] is not None for e in found
    )


def test_rerank_without_opencv_says_what_to_install(city: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    code, _, err = run(capsys, queries(city)[0], "--index", city / "index", "--rerank")
    assert code == 2 and "pip install 'cosplace[rerank]'" in err and err.count("\n") == 1


def test_an_empty_path_is_not_the_current_folder(capsys: pytest.CaptureFixture) -> None:
    assert main(["locate", "", "--index", "x"]) == 2
    assert "must be a path, got ''" in capsys.readouterr().err
