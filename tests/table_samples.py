"""Datasets in three forms: '@' names, a table, and EXIF; with equal photos at equal places."""

from pathlib import Path

import numpy as np
from PIL import Image
from pyproj import Geod

from cosplace.geo import compute, utm_to_latlon
from cosplace.photos.metadata import metadata_from_name
from cosplace.photos.names import format_image_name
from cosplace.photos.scanning import scan_images
from cosplace.photos.tables import TABLE_NAME, PhotoRecord, to_table, write_table
from tests.synthetic_dataset import place_image

GEOD = Geod(ellps="WGS84")


def record_of_name(path: str, *, new_path: str = "", split: str = "") -> PhotoRecord:
    """The row of a photo with an '@' name."""
    known = metadata_from_name(path)
    return PhotoRecord(
        path=new_path or path,
        latitude=known.latitude,
        longitude=known.longitude,
        heading=known.heading,
        heading_source="name",
        time=known.time,
        split=split,
    )


def table_of_names(dataset: Path, to: Path) -> Path:
    """A dataset with a table, with the photos of one with '@' names, which are renamed in the same order."""
    (to / "photos").mkdir(parents=True)
    records = []
    for split in ("train", "val/database", "val/queries", "test/database", "test/queries"):
        if not (folder := dataset / split).is_dir():
            continue
        images = scan_images(folder)
        for row in range(len(images)):
            path = f"photos/{split.replace('/', '-')}-{row:05d}.jpg"
            (to / path).hardlink_to(images.path(row))
            records.append(record_of_name(images.name(row), new_path=path, split=split))
    write_table(to / TABLE_NAME, to_table(records))
    return to


def write_records(folder: Path, records: list[PhotoRecord], *, with_files: bool = True) -> Path:
    """A dataset with a table; its photos are small, and differ."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, record in enumerate(records if with_files else ()):
        path = folder / record.path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(place_image(number, 0, side=16)).save(path, "JPEG")
    write_table(folder / TABLE_NAME, to_table(records))
    return folder


def around(latitude: float, longitude: float, num_photos: int, radius_m: float, seed: int = 0) -> list[PhotoRecord]:
    """Photos at random places around a position, with random headings, at times with fractions."""
    rng = np.random.default_rng(seed)
    azimuths, lengths_m = rng.uniform(0, 360, num_photos), radius_m * np.sqrt(rng.uniform(0, 1, num_photos))
    start = np.full(num_photos, longitude), np.full(num_photos, latitude)
    longitudes, latitudes, _ = compute(GEOD.fwd, *start, azimuths, lengths_m)
    return [
        PhotoRecord(
            path=f"photos/{number:04d}.jpg",
            latitude=float(latitudes[number]),
            longitude=float(longitudes[number]),
            heading=float(rng.uniform(0, 360)),
            time=1_600_000_000.25 + number,
        )
        for number in range(num_photos)
    ]


def exif_of(record: PhotoRecord) -> Image.Exif:
    """EXIF with the position and heading of a photo."""

    def angle(value: float) -> tuple[float, float, float]:
        minutes, seconds = divmod(abs(value) * 3600, 60)
        return (float(minutes // 60), float(minutes % 60), round(seconds, 5))

    exif = Image.Exif()
    gps = {
        1: "N" if record.latitude >= 0 else "S",
        2: angle(record.latitude),
        3: "E" if record.longitude >= 0 else "W",
        4: angle(record.longitude),
    }
    if not np.isnan(record.heading):
        gps |= {16: "T", 17: round(record.heading, 2)}
    exif[0x8825] = gps
    return exif


def write_exif_photo(path: Path, record: PhotoRecord, pixels: np.ndarray) -> Path:
    """A JPEG with the position and heading of a photo in EXIF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = exif_of(record) if not np.isnan(record.latitude) else Image.Exif()
    Image.fromarray(pixels).save(path, "JPEG", exif=exif)
    return path


def write_named_dataset(folder: Path, *, num_places: int = 16, per_place: int = 6, side: int = 32) -> Path:
    """A dataset with '@' names whose UTM positions and latitudes agree; headings differ, and splits are far apart."""
    for split, first, step in (("train", 0, 1), ("val", 1000, 3), ("test", 2000, 3)):
        for place in range(num_places if split == "train" else 12):
            for variant in range(per_place if split == "train" else 3):
                part = "" if split == "train" else "queries" if variant == 2 else "database"
                _write_named(folder / split / part, first + step * place, variant, side)
    return folder


def _write_named(folder: Path, place: int, variant: int, side: int) -> None:
    east, north = 550_002.5 + 10 * place, 4_180_000.25 + variant
    latitudes, longitudes = utm_to_latlon(np.array(east), np.array(north), 10, "S")
    name = format_image_name(
        utm_east=east, utm_north=north, zone=10, letter="S", latitude=float(latitudes), longitude=float(longitudes),
        pano_id=f"p{place}v{variant}", heading=(place * 37 + variant) % 360, timestamp="20200102030405",
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(place_image(place, variant, side)).save(folder / name)


def write_table_of_places(folder: Path, num_places: int) -> Path:
    """Places 110 m apart in a square, with four photos each, taken on four days."""
    side = int(np.ceil(np.sqrt(num_places)))
    records = [
        PhotoRecord(
            path=f"{place}-{visit}.jpg", latitude=37 + 0.001 * (place // side), longitude=3 + 0.00125 * (place % side),
            heading=float(37 * place % 360), time=1.7e9 + 86_400 * visit + place,
        )
        for place in range(num_places)
        for visit in range(4)
    ]  # fmt: skip
    folder.mkdir()
    write_table(folder / TABLE_NAME, to_table(records))
    for record in records:
        (folder / record.path).write_bytes(b"")
    return folder
