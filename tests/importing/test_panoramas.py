"""`cosplace panoramas`: folders and datasets of panoramas become datasets of crops."""

import csv
import hashlib
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cosplace.cli import main
from cosplace.config.panoramas import CropSettings
from cosplace.errors import StorageError
from cosplace.importing import cropping
from cosplace.photos.compiled_panoramas import fast_crop
from cosplace.photos.names import FIELDS, split_name
from cosplace.photos.panoramas import Coverage, CropView
from cosplace.photos.scanning import scan_images
from cosplace.photos.tables import PhotoRecord, from_table, read_table, to_table, write_table
from tests.photos.exif_blocks import (
    RATIONAL,
    Tag,
    ascii_tag,
    degrees,
    exif_block,
    exif_segment,
    xmp_packet,
    xmp_segment,
)
from tests.server.server_samples import jpeg_with_size

AT_NAME = "@0549850.07@4178400.12@10@S@037.75150@-122.43400@pano{}@@{}@@@@201911@@.jpg"
SMALL = ("--size=48", "--num_workers=2")


def smooth(width: int = 256, height: int = 128, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 16, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def jpeg(pixels: np.ndarray, *segments: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=98)
    return buffer.getvalue()[:2] + b"".join(segments) + buffer.getvalue()[2:]


def gps(latitude: float, longitude: float, heading: float | None = None) -> bytes:
    tags = {
        1: ascii_tag("N" if latitude >= 0 else "S"),
        2: degrees(latitude),
        3: ascii_tag("E" if longitude >= 0 else "W"),
        4: degrees(longitude),
    }
    if heading is not None:
        tags |= {16: ascii_tag("T"), 17: Tag(RATIONAL, [(round(heading * 100), 100)])}
    return exif_segment(exif_block(gps=tags))


def gpano(**values: object) -> bytes:
    properties = {f"GPano:{name}": str(value) for name, value in values.items()}
    return xmp_segment(xmp_packet({"GPano:ProjectionType": "equirectangular"} | properties))


def write_panoramas(folder: Path, headings: tuple[object, ...] = (10, 350)) -> Path:
    folder.mkdir(parents=True)
    for number, heading in enumerate(headings):
        (folder / AT_NAME.format(number, heading)).write_bytes(jpeg(smooth(seed=number)))
    return folder


def run(*arguments: object) -> int:
    return main(["panoramas", *map(str, arguments), *SMALL])


def rows(dataset: Path) -> list[PhotoRecord]:
    return from_table(read_table(dataset / "photos.parquet"))


def report(dataset: Path) -> list[tuple[str, str, str]]:
    with (dataset / "import_report.csv").open(newline="") as file:
        return [(Path(name).name, outcome, reason) for name, outcome, reason in list(csv.reader(file))[1:]]


def open_crop(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


# --- crops -----------------------------------------------------------------------------------------------------------


def test_each_crop_shows_its_direction_and_has_its_heading(tmp_path: Path, capsys) -> None:
    source = write_panoramas(tmp_path / "panos")
    assert run(source, "--to", tmp_path / "city", "--crops=4", "--field_of_view=70", "--pitch=8") == 0
    found = rows(tmp_path / "city")
    assert len(found) == 8
    for record in found:
        path = tmp_path / "city" / record.path
        number, base = (0, 10) if "pano0" in record.path else (1, 350)
        fields = split_name(record.path)
        yaw = (record.heading - base) % 360
        assert yaw in (0, 90, 180, 270)
        assert (float(fields["tile"]), float(fields["heading"]), float(fields["pitch"])) == (yaw, record.heading, 8)
        assert fields["pano_id"] == f"pano{number}" and fields["timestamp"] == "201911"
        view = CropView(width=48, height=48, field_of_view=70, pitch=8)
        coverage = Coverage(width=256, height=128, full_width=256, full_height=128)
        panorama = open_crop(source / AT_NAME.format(number, base))
        assert np.abs(open_crop(path).astype(int) - fast_crop(panorama, coverage, view, yaw)).mean() < 2
        assert (record.latitude, record.longitude) == pytest.approx((37.7515, -122.434), abs=1e-4)
        assert (record.pitch, record.field_of_view, record.width, record.height) == (8, 70, 48, 48)
        assert (record.heading_source, record.projection) == ("panorama", "perspective")
        assert record.checksum == hashlib.sha256(path.read_bytes()).hexdigest()
        assert record.source == str(source / AT_NAME.format(number, base))
    assert "8 crops written, of 2 panoramas" in capsys.readouterr().out


def test_crops_computed_by_torch_are_the_same(tmp_path: Path) -> None:
    source, settings = write_panoramas(tmp_path / "panos"), CropSettings(size=(48,), crops=3)
    cropping.run_panoramas(source, tmp_path / "compiled", settings)
    cropping.run_panoramas(source, tmp_path / "torch", settings, device=torch.device("cpu"))
    for record in rows(tmp_path / "compiled"):
        one, other = (open_crop(tmp_path / name / record.path).astype(int) for name in ("compiled", "torch"))
        assert np.abs(one - other).mean() < 0.5


def test_headings_are_modulo_360_and_yaws_may_be_listed(tmp_path: Path) -> None:
    source = write_panoramas(tmp_path / "panos", headings=(350,))
    assert run(source, "--to", tmp_path / "city", "--yaws", "-90", "20.5") == 0
    assert sorted(record.heading for record in rows(tmp_path / "city")) == [10.5, 260]
    assert sorted(split_name(record.path)["tile"] for record in rows(tmp_path / "city")) == ["020.5", "270"]


def test_train_and_others_find_the_crops_and_their_fields(tmp_path: Path) -> None:
    source = write_panoramas(tmp_path / "panos")
    assert run(source, "--to", tmp_path / "city") == 0
    images = scan_images(tmp_path / "city")
    assert len(images) == 24
    headings = {float(images.label(row).split("@")[FIELDS["heading"]]) for row in range(24)}
    assert headings == {(base + 30 * step) % 360 for base in (10, 350) for step in range(12)}


COLORS = {0: (220, 30, 30), 90: (30, 200, 30), 180: (40, 40, 230), 270: (230, 220, 40)}
"""Of what lies north, east, south and west."""


def compass(center: float, width: int = 256) -> np.ndarray:
    """A panorama in the colors of the directions, by the heading of its center."""
    headings = (center + (np.arange(width) + 0.5) / width * 360 - 180) % 360
    nearest = np.round(headings / 90).astype(int) % 4 * 90
    return np.repeat(np.array([COLORS[int(one)] for one in nearest], np.uint8)[None], width // 2, 0)


@pytest.mark.parametrize("rule", ["name", "exif", "gpano", "part", "table"])
def test_a_crop_shows_what_lies_in_its_heading(rule: str, tmp_path: Path) -> None:
    folder = tmp_path / "panos"
    folder.mkdir()
    place, file = gps(10.0, 20.0), folder / "1.jpg"
    if rule == "name":
        (folder / AT_NAME.format(0, 90)).write_bytes(jpeg(compass(90)))
    elif rule == "exif":
        file.write_bytes(jpeg(compass(270), gps(10.0, 20.0, 270)))
    elif rule == "gpano":
        file.write_bytes(jpeg(compass(180), place, gpano(PoseHeadingDegrees=180)))
    elif rule == "part":  # the right half of a panorama whose center looks north
        half = gpano(
            FullPanoWidthPixels=256, FullPanoHeightPixels=128, CroppedAreaImageWidthPixels=128,
            CroppedAreaImageHeightPixels=128, CroppedAreaLeftPixels=128, CroppedAreaTopPixels=0, PoseHeadingDegrees=0,
        )  # fmt: skip
        file.write_bytes(jpeg(np.ascontiguousarray(compass(0)[:, 128:]), place, half))
    else:
        file.write_bytes(jpeg(compass(90), gps(10.0, 20.0, 0)))
        record = PhotoRecord(path="1.jpg", latitude=10.0, longitude=20.0, heading=90.0, projection="equirectangular")
        write_table(folder / "photos.parquet", to_table([record]))
    assert run(folder, "--to", tmp_path / "city", "--crops=4", "--field_of_view=50") == 0
    found = rows(tmp_path / "city")
    assert {record.heading for record in found} == ({90} if rule == "part" else {0, 90, 180, 270})
    for record in found:
        middle = open_crop(tmp_path / "city" / record.path)[24, 24].astype(int)
        assert np.abs(middle - COLORS[int(record.heading)]).max() < 12


# --- sources ---------------------------------------------------------------------------------------------------------


def test_exif_and_gpano_give_position_and_heading(tmp_path: Path) -> None:
    folder = tmp_path / "panos"
    folder.mkdir()
    (folder / "exif.jpg").write_bytes(jpeg(smooth(), gps(45.5, 7.25, 200)))
    (folder / "gpano.jpg").write_bytes(jpeg(smooth(), gps(45.5, 7.25), gpano(PoseHeadingDegrees=77)))
    part = gpano(
        FullPanoWidthPixels=512, FullPanoHeightPixels=256, CroppedAreaImageWidthPixels=256,
        CroppedAreaImageHeightPixels=128, CroppedAreaLeftPixels=0, CroppedAreaTopPixels=64, PoseHeadingDegrees=77,
    )  # fmt: skip
    (folder / "part.jpg").write_bytes(jpeg(smooth(), gps(45.5, 7.25), part))
    assert run(folder, "--to", tmp_path / "city", "--crops=4", "--field_of_view=40") == 0
    found = {Path(record.path).name: record for record in rows(tmp_path / "city")}
    assert sorted(found) == sorted(
        [f"{name}_{yaw}.jpg" for name in ("exif", "gpano") for yaw in ("000", "090", "180", "270")] + ["part_000.jpg"]
    )
    assert (found["exif_000.jpg"].heading, found["exif_270.jpg"].heading) == (200, 110)
    assert (found["gpano_000.jpg"].heading, found["gpano_270.jpg"].heading) == (77, 347)
    assert found["part_000.jpg"].heading == 347  # its center is 90 degrees left of that of the whole panorama
    assert found["exif_000.jpg"].latitude == pytest.approx(45.5)


WHOLE = {"FullPanoWidthPixels": 256, "FullPanoHeightPixels": 128, "CroppedAreaImageWidthPixels": 256,
         "CroppedAreaImageHeightPixels": 128, "CroppedAreaLeftPixels": 0, "CroppedAreaTopPixels": 0}  # fmt: skip


@pytest.mark.parametrize(
    ("properties", "in_table", "of_crop"),
    [
        ({"PoseHeadingDegrees": 123.4}, 123.4, 123.4),
        ({"PoseHeadingDegrees": 123.4, "ProjectionType": ""}, 123.4, 123.4),  # 2:1, with a property of panoramas
        ({"PoseHeadingDegrees": 123.4} | WHOLE, 123.4, 123.4),
        ({"PoseHeadingDegrees": 123.4} | WHOLE | {"FullPanoWidthPixels": 512, "FullPanoHeightPixels": 256},
         math.nan, 33.4),  # the left half, as in the documentation
        ({"PoseHeadingDegrees": 123.4} | WHOLE | {"CroppedAreaImageWidthPixels": 128}, 50, 50),  # of another image
        ({}, 50, 50),
        ({"PoseHeadingDegrees": 999}, 50, 50),
    ],
)  # fmt: skip
def test_gpano_counts_more_than_exif_also_after_an_import(
    properties: dict[str, object], in_table: float, of_crop: float, tmp_path: Path
) -> None:
    source, city = tmp_path / "panos", tmp_path / "city"
    source.mkdir()
    (source / "a.jpg").write_bytes(jpeg(smooth(), gps(45.5, 7.25, 50), gpano(**properties)))
    assert main(["import", str(source), "--to", str(city)]) == 0
    (imported,) = rows(city)
    assert imported.heading == pytest.approx(in_table, nan_ok=True)
    assert imported.heading_source == ("" if math.isnan(in_table) else "exif" if in_table == 50 else "xmp")
    for number, folder in enumerate((source, city)):
        crops = tmp_path / f"crops{number}"
        assert run(folder, "--to", crops, "--crops=1", "--field_of_view=40") == 0
        assert [record.heading for record in rows(crops)] == [pytest.approx(of_crop)]


def test_strips_of_sf_xl_are_cropped_where_they_have_pixels(tmp_path: Path) -> None:
    folder = tmp_path / "panos"
    folder.mkdir()
    (folder / AT_NAME.format(0, 134)).write_bytes(jpeg(smooth(3328, 512)))
    assert run(folder, "--to", tmp_path / "city", "--crops=2") == 0
    assert [(record.heading, record.pitch) for record in rows(tmp_path / "city")] == [(134, 6.7), (314, 6.7)]


def test_a_dataset_of_panoramas_is_a_source(tmp_path: Path) -> None:
    dataset = tmp_path / "imported"
    (dataset / "photos" / "a").mkdir(parents=True)
    records = []
    for name, projection in (
        ("a/1.jpg", "equirectangular"),
        ("a/2.jpg", ""),
        ("a/3.jpg", "perspective"),
        ("gone.jpg", ""),
    ):
        if name != "gone.jpg":
            (dataset / "photos" / name).write_bytes(jpeg(smooth(), gps(1, 2, 3)))
        records.append(
            PhotoRecord(
                path=f"photos/{name}",
                latitude=-33.5,
                longitude=151.25,
                heading=40.0,
                heading_source="track",
                time=1e9,
                sequence="drive",
                split="train",
                projection=projection,
            )
        )
    records.append(PhotoRecord(path="../outside.jpg", latitude=0.5, longitude=0.5))
    (tmp_path / "outside.jpg").write_bytes(jpeg(smooth()))
    write_table(dataset / "photos.parquet", to_table(records))
    assert run(dataset, "--to", tmp_path / "city", "--crops=2") == 0
    found = rows(tmp_path / "city")
    assert [record.path for record in found] == [
        f"photos/a/{name}_{yaw}.jpg" for name in (1, 2) for yaw in ("000", "180")
    ]
    assert [record.heading for record in found] == [40, 220, 40, 220]  # those of the table, not of EXIF
    assert {(record.latitude, record.time, record.sequence, record.split) for record in found} == {
        (-33.5, 1e9, "drive", "train")
    }
    assert {name: outcome for name, outcome, _ in report(tmp_path / "city")} == {
        "3.jpg": "left out", "gone.jpg": "left out", "outside.jpg": "left out",
    }  # fmt: skip


def test_a_dataset_of_crops_is_not_cropped_again(tmp_path: Path, capsys) -> None:
    source = write_panoramas(tmp_path / "panos", headings=(10,))
    assert run(source, "--to", tmp_path / "city", "--crops=2") == 0
    assert run(tmp_path / "city", "--to", tmp_path / "again") == 2
    assert "has no panoramas" in capsys.readouterr().err


# --- what is wrong with sources --------------------------------------------------------------------------------------


def test_what_is_left_out_is_listed_with_reasons(tmp_path: Path, capsys) -> None:
    folder = write_panoramas(tmp_path / "panos")
    (folder / "photo.jpg").write_bytes(jpeg(smooth(160, 120), gps(1, 2)))
    (folder / "wide.jpg").write_bytes(jpeg(smooth(300, 100), gps(1, 2)))
    (folder / "nowhere.jpg").write_bytes(jpeg(smooth()))
    (folder / "turned.jpg").write_bytes(jpeg(smooth(), gps(1, 2), gpano(PosePitchDegrees=-12)))
    (folder / "broken.jpg").write_bytes(jpeg(smooth(), gps(1, 2))[:700])
    (folder / "notes.txt").write_text("tram line 4")
    assert run(folder, "--to", tmp_path / "city", "--crops=2") == 0
    found = {(name, outcome): reason for name, outcome, reason in report(tmp_path / "city")}
    assert found["photo.jpg", "left out"].startswith("it is not a panorama: 160 x 120")
    assert "--horizon_row" in found["wide.jpg", "left out"]
    assert found["nowhere.jpg", "left out"] == "its position is unknown"
    assert "damaged" in found["broken.jpg", "left out"]
    assert ("notes.txt", "left out") in found
    assert {reason.partition(",")[0] for name, _, reason in report(tmp_path / "city") if name == "turned.jpg"} == {
        "its camera was tilted by 12 degrees", "its heading is unknown",
    }  # fmt: skip
    crops = rows(tmp_path / "city")
    assert len(crops) == 6
    assert [math.isnan(record.heading) for record in crops if "turned" in record.path] == [True, True]
    output = capsys.readouterr().out
    assert "5 files or rows left out, 2 uncertain values" in output


def test_panoramas_that_are_too_large_are_not_decoded(tmp_path: Path) -> None:
    folder = write_panoramas(tmp_path / "panos", headings=(10,))
    (folder / "huge.jpg").write_bytes(jpeg_with_size(40_000, 20_000))
    assert run(folder, "--to", tmp_path / "city", "--crops=1") == 0
    ((name, outcome, reason),) = report(tmp_path / "city")
    assert (name, outcome) == ("huge.jpg", "left out")
    assert "40000 x 20000" in reason or "800 megapixels" in reason


def test_other_strips_need_the_row_of_the_horizon(tmp_path: Path) -> None:
    folder = tmp_path / "panos"
    folder.mkdir()
    (folder / AT_NAME.format(0, 0)).write_bytes(jpeg(smooth(400, 120)))
    assert run(folder, "--to", tmp_path / "city") == 2
    assert run(folder, "--to", tmp_path / "city", "--horizon_row=40", "--crops=1", "--field_of_view=40") == 0
    (crop,) = rows(tmp_path / "city")
    assert crop.pitch == 0


def test_a_pitch_that_a_strip_does_not_show_is_explained(tmp_path: Path) -> None:
    folder = tmp_path / "panos"
    folder.mkdir()
    (folder / AT_NAME.format(0, 134)).write_bytes(jpeg(smooth(3328, 512)))
    assert run(folder, "--to", tmp_path / "city", "--pitch=0") == 2
    ((_, _, reason),) = report(tmp_path / "city")
    assert reason.startswith(
        "crops with this --pitch are partly outside the image: it shows elevations from -20.8 to 34.6"
    )


def test_headings_of_zero_on_all_panoramas_are_unknown(tmp_path: Path, capsys) -> None:
    source = write_panoramas(tmp_path / "panos", headings=(0, 0, 0))
    assert run(source, "--to", tmp_path / "city", "--crops=2") == 0
    assert all(math.isnan(record.heading) and not record.heading_source for record in rows(tmp_path / "city"))
    assert "exactly 0" in capsys.readouterr().out
    mixed = write_panoramas(tmp_path / "mixed", headings=(0, 0, 90))
    assert run(mixed, "--to", tmp_path / "town", "--crops=2") == 0
    assert sorted(record.heading for record in rows(tmp_path / "town")) == [0, 0, 90, 180, 180, 270]


def test_headings_of_zero_are_judged_with_those_of_earlier_runs(tmp_path: Path, capsys) -> None:
    """First one panorama, which may face north; then more in the same folder or in another."""

    def headings_after(folder: str, **added: int) -> list[float]:
        (tmp_path / folder).mkdir(exist_ok=True)
        for name, heading in added.items():
            (tmp_path / folder / f"{name}.jpg").write_bytes(jpeg(smooth(seed=heading), gps(45, 7, heading)))
        assert run(tmp_path / folder, "--to", tmp_path / "city", "--yaws", 0, 51.4286) == 0
        return [record.heading for record in rows(tmp_path / "city")]

    north = [0, 51.4286]
    assert headings_after("a", one=0) == north
    assert "exactly 0" not in capsys.readouterr().out
    assert np.isnan(headings_after("b", two=0)).all()
    assert np.isnan(headings_after("c", three=0)).all()
    assert "exactly 0" in capsys.readouterr().out
    earlier, (four, _, *three) = np.split(headings_after("c", four=90), [4])
    assert np.isnan(earlier).all() and four == 90 and three == north
    assert headings_after("b")[2:4] == headings_after("a")[:2] == north


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing", "--to", "city"), "does not exist"),
        (("panos", "--to", "panos/city"), "is inside panos"),
        (("panos", "--to", "city", "--size", "10", "20", "30"), "between 16 and"),
        (("panos", "--to", "city", "--size", "20", "20", "30"), "one or two numbers"),
        (("panos", "--to", "city", "--yaws", "0", "360"), "twice"),
        (("panos", "--to", "city", "--timezone", "Mars/Base"), "Mars/Base"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch, capsys) -> None:
    write_panoramas(tmp_path / "panos")
    monkeypatch.chdir(tmp_path)
    assert main(["panoramas", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "city").exists()


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_was_stopped_continues(tmp_path: Path, monkeypatch, capsys) -> None:
    source = write_panoramas(tmp_path / "panos", headings=(10, 20, 30))
    write, count = cropping.write_atomically, 0

    def full_disk(path: Path, function) -> None:
        nonlocal count
        count += 1
        if count == 8:
            raise StorageError(f"No space left while writing {path}.")
        write(path, function)

    monkeypatch.setattr(cropping, "write_atomically", full_disk)
    assert (
        main(["panoramas", str(source), "--to", str(tmp_path / "city"), "--crops=3", "--size=48", "--num_workers=1"])
        == 2
    )
    assert "6 photos so far" in capsys.readouterr().err
    assert len(rows(tmp_path / "city")) == 6  # valid, and its crops exist
    monkeypatch.undo()
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "city").rglob("*.jpg")}
    assert len(finished) == 7
    unfinished = next(iter(finished)).parent / ".killed.jpg.1.part"
    unfinished.write_bytes(b"half")
    assert run(source, "--to", tmp_path / "city", "--crops=3") == 0
    assert "2 crops written, 7 existed before" in capsys.readouterr().out
    assert len(rows(tmp_path / "city")) == 9
    assert not unfinished.exists()
    assert all(path.stat().st_mtime_ns == before for path, before in finished.items())
    assert run(source, "--to", tmp_path / "whole", "--crops=3") == 0
    assert rows(tmp_path / "whole") == rows(tmp_path / "city")


def test_other_settings_are_not_mixed_with_finished_crops(tmp_path: Path, capsys) -> None:
    source = write_panoramas(tmp_path / "panos")
    assert run(source, "--to", tmp_path / "city", "--crops=2") == 0
    assert run(source, "--to", tmp_path / "city", "--crops=2", "--field_of_view=80") == 2
    assert "--field_of_view 55.0, not --field_of_view 80.0" in capsys.readouterr().err
    assert main(["panoramas", str(source), "--to", str(tmp_path / "city"), "--size", "64", "32"]) == 2
    assert "--size 48 48, not --size 64 32" in capsys.readouterr().err
    assert run(source, "--to", tmp_path / "city", "--pitch=5") == 2
    assert "no --pitch, not --pitch 5.0" in capsys.readouterr().err
    assert run(source, "--to", tmp_path / "city", "--crops=4") == 0
    assert len(rows(tmp_path / "city")) == 8


def test_another_folder_extends_the_dataset_and_the_same_names_are_refused(tmp_path: Path) -> None:
    first, second = write_panoramas(tmp_path / "a" / "panos"), write_panoramas(tmp_path / "b" / "panos")
    third = write_panoramas(tmp_path / "others", headings=(77,))
    assert run(first, "--to", tmp_path / "city", "--crops=2") == 0
    assert run(second, "--to", tmp_path / "city", "--crops=2") == 2
    assert {reason.partition(":")[0] for _, _, reason in report(tmp_path / "city")} == {
        "another panorama with the same name is already in the dataset"
    }
    assert run(third, "--to", tmp_path / "city", "--crops=2") == 0
    assert len(rows(tmp_path / "city")) == 6


def test_panoramas_whose_crops_would_have_the_same_name_are_listed(tmp_path: Path) -> None:
    folder = tmp_path / "panos"
    folder.mkdir()
    for name in ("a.jpg", "a.JPG", "a.png"):
        (folder / name).write_bytes(jpeg(smooth(), gps(1, 2, 30)))
    assert run(folder, "--to", tmp_path / "city", "--crops=1") == 0
    assert [Path(record.path).name for record in rows(tmp_path / "city")] == ["a.png_000.jpg", "a_000.jpg"]
    ((name, outcome, reason),) = report(tmp_path / "city")
    assert name.lower() == "a.jpg" and outcome == "left out"
    assert reason.startswith("another panorama with the same name is already in the dataset")


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys) -> None:
    source = write_panoramas(tmp_path / "panos")
    assert run(source, "--to", tmp_path / "city", "--dry_run") == 0
    assert not (tmp_path / "city").exists()
    assert "24 crops would be written, of 2 panoramas" in capsys.readouterr().out
