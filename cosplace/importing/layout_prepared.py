"""Datasets that are divided into folders already, for `cosplace import`: as VPR-datasets-downloader prepares them,
SVOX, and SF-XL (raw, processed, small).

Photos of train are one set.  In val and test, gallery or database is the database, and other folders are sets of
queries.  The strips of 3328 x 512 pixels in train/panoramas of SF-XL raw are panoramas.  Side effects: reads folders.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from cosplace.errors import DatasetError
from cosplace.importing.layout_parts import DATABASE, Layout, LayoutPart, folder_names
from cosplace.importing.records import Problem
from cosplace.photos.formats import SUFFIXES, suffix_of
from cosplace.photos.image_list import ImageList
from cosplace.photos.names import optional_fields, split_name
from cosplace.photos.scanning import LIST_SUFFIX, scan_images
from cosplace.photos.tables import TABLE_NAME

LEVELS = ("", "images", "processed", "small", "raw")
SPLITS = ("train", "val", "test")
DATABASES = (DATABASE, "gallery")
PANORAMAS = "panoramas"


def find(folder: Path) -> Layout | None:
    """The dataset in a folder; None without val or test with a database."""
    for level in LEVELS:
        root = folder / level
        if not root.is_dir() or (root / TABLE_NAME).exists():
            continue
        has_database = [
            split for split in ("test", "val", "train") if any((root / split / name).is_dir() for name in DATABASES)
        ]
        if has_database or _has_list(root, "train") or (root / "train" / PANORAMAS).is_dir():
            return Layout(name="prepared", folder=root, splits=tuple(has_database), read_parts=read_parts)
    return None


def _has_list(root: Path, split: str) -> bool:
    return (root / split).is_dir() and (root / f"{split}{LIST_SUFFIX}").is_file()


def read_parts(folder: Path, split: str) -> Iterator[LayoutPart]:
    """All parts of a dataset, or those of one split."""
    for one in SPLITS:
        place = folder / one
        if (split and one != split) or not place.is_dir():
            continue
        if one == "test" and place.resolve() == (folder / "val").resolve():
            problem = Problem(
                name=str(place), reason="is a link to val, whose photos are imported only once", is_left_out=False
            )
            yield LayoutPart(split="", paths=(), problems=(problem,))
        elif one == "train" and not split:
            yield from _train_parts(folder)
        else:
            for name in folder_names(place):
                part = f"{one}/{DATABASE if name in DATABASES else name}"
                yield _part(folder, f"{one}/{name}", part)
    if not split:
        yield from _other_parts(folder)


def _other_parts(folder: Path) -> Iterator[LayoutPart]:
    """Photos that belong to no split: in other folders, or next to the folders of the splits."""
    for name in folder_names(folder):
        if name not in SPLITS:
            with suppress(DatasetError):  # no photos
                yield _part(folder, name, "")
    places = ("", "val", "test", *(("train",) if {*DATABASES, PANORAMAS} & set(folder_names(folder / "train")) else ()))
    loose = []
    for place in places:
        if (folder / place).is_dir():
            with os.scandir(folder / place) as entries:
                names = sorted(one.name for one in entries if one.is_file() and _is_photo(one.name))
            loose += [f"{place}/{name}" if place else name for name in names]
    yield LayoutPart(split="", paths=loose, has_names=True)


def _is_photo(name: str) -> bool:
    return suffix_of(os.fsencode(name)) in SUFFIXES


def _train_parts(folder: Path) -> Iterator[LayoutPart]:
    names = folder_names(folder / "train")
    if not {*DATABASES, PANORAMAS} & set(names):
        yield _part(folder, "train", "train")
        return
    for name in names:
        yield _part(folder, f"train/{name}", "train", "equirectangular" if name == PANORAMAS else "")


def _part(folder: Path, name: str, split: str, projection: str = "") -> LayoutPart:
    images = scan_images(folder / name, dataset=folder)
    paths = [f"{name}/{images.name(row)}" for row in range(len(images))]
    return LayoutPart(split=split, paths=paths, projection=projection, has_names=True, places=_places(images))


def _places(images: ImageList) -> list[str]:
    """The places of photos whose names have a number on a line instead of a position; none for others."""
    east, zones = optional_fields(images, ("utm_east", "zone"))
    if not (len(east) > 1 and (east == east[0]).all() and np.isnan(zones).all()):
        return []
    return [split_name(images.name(row)).get("pano_id", "") or str(row) for row in range(len(images))]
