"""Groups and classes as place ids, in the files and folders of GSV-Cities, for code that trains on such places.

    <folder>/Dataframes/group000.csv   place_id, year, month, northdeg, city_id, lat, lon, panoid: a row for each photo
    <folder>/Images/group000/          links to the photos, with the names that readers of GSV-Cities compute from a row
    <folder>/photos.csv                city_id, place_id, panoid and the path of each photo in the dataset

A class is a place.  A group is a city of its own, because classes of different groups may show the same scene; place
ids are unique over all groups.  Year and month are 0, and headings are 0, where they are unknown.
Format: Ali-bey et al., GSV-Cities, Neurocomputing 2022.  Side effects: writes files.
"""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import numpy as np

from cosplace.errors import DatasetError, StorageError
from cosplace.photos.metadata import PhotoMetadata, metadata_from_name
from cosplace.photos.paths import csv_line, path_text
from cosplace.progress import Progress, no_progress
from cosplace.storage import storage_errors, write_text
from cosplace.training.groups import Group, Groups

COLUMNS = ("place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid")
PLACES_IN_NAMES = 100_000  # readers of GSV-Cities write the place id modulo this number into the name of a photo
DEGREE_DECIMALS = 7  # 1 cm
Row = tuple[int, int, int, int, str, float, float, str]


def write_place_ids(groups: Groups, folder: Path, progress: Progress = no_progress) -> int:
    """Write all groups; returns the number of places.

    Raises StorageError for a folder that is not empty or cannot be written, DatasetError for a photo without latitude
    and longitude.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"{folder} is not an empty folder. Choose a new folder for the place ids.")
    if not len(groups):
        raise DatasetError("There are no classes to write. Use settings that form classes, see `cosplace groups`.")
    num_images, done, first_place = int(groups.class_starts[-1]), 0, 0
    lines = StringIO()
    lines.write(csv_line(("city_id", "place_id", "panoid", "path")))
    for number in range(len(groups)):
        group, city = groups[number], f"group{number:03d}"
        links = folder / "Images" / city
        with storage_errors(links):
            links.mkdir(parents=True)
        table = StringIO()
        table.write(csv_line(COLUMNS))
        for image, row in enumerate(place_rows(group, city, first_place=first_place, first_photo=done)):
            table.write(csv_line(row))
            lines.write(csv_line((city, row[0], row[-1], path_text(group.image_name(image)))))
            with storage_errors(links):
                (links / photo_name(row)).symlink_to(os.path.realpath(group.image_path(image)))
            progress("writing place ids", done + image + 1, num_images)
        write_text(folder / "Dataframes" / f"{city}.csv", table.getvalue())
        done += group.num_images
        first_place += group.num_classes
    write_text(folder / "photos.csv", lines.getvalue())
    return first_place


def place_rows(group: Group, city: str, *, first_place: int, first_photo: int) -> Iterator[Row]:
    """The rows of the photos of a group, in its order: values of COLUMNS.

    first_place, first_photo: numbers of the first class and photo of the group; each photo gets an id of its own,
    because ids of the source may be any text.
    """
    places = first_place + np.repeat(np.arange(group.num_classes), np.diff(group.class_starts))
    for image, place in enumerate(places.tolist()):
        photo = metadata_from_name(group.image_label(image).rpartition("/")[2])
        if not photo.has_position:
            raise DatasetError(
                f"{group.image_path(image)} has no latitude and longitude, which place ids need. Add them to its name, "
                f"or to the table."
            )
        year, month = _year_and_month(photo)
        latitude, longitude = round(photo.latitude, DEGREE_DECIMALS), round(photo.longitude, DEGREE_DECIMALS)
        yield place, year, month, _whole_degrees(photo), city, latitude, longitude, f"{first_photo + image:08d}"


def photo_name(row: Row) -> str:
    """The file name that readers of GSV-Cities compute from a row."""
    place, year, month, northdeg, city, latitude, longitude, panoid = row
    where = f"{latitude}_{longitude}"
    return f"{city}_{place % PLACES_IN_NAMES:07d}_{year:04d}_{month:02d}_{northdeg:03d}_{where}_{panoid}.jpg"


def _year_and_month(photo: PhotoMetadata) -> tuple[int, int]:
    if np.isnan(photo.time):
        return 0, 0
    date = datetime.fromtimestamp(photo.time, UTC)
    return date.year, date.month


def _whole_degrees(photo: PhotoMetadata) -> int:
    return 0 if np.isnan(photo.heading) else round(photo.heading) % 360
