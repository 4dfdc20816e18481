"""Datasets that are divided into folders already, for `cosplace import`: as VPR-datasets-downloader prepares them,
SVOX, and SF-XL (raw, processed, small).

Photos of train are one set.  In val and test, gallery or database is the database, and other folders are sets of
queries.  The strips of 3328 x 512 pixels in train/panoramas of SF-XL raw are panoramas.  Photos in other places have no
split.  Side effects: reads folders.
"""

from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from cosplace.importing.exif_photos import left_out, list_files
from cosplace.importing.layout_parts import DATABASE, Layout, LayoutPart, folder_names
from cosplace.importing.records import Problem
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
            return Layout(
                name="prepared", folder=root, splits=tuple(has_database), read_parts=partial(read_parts, given=folder)
            )
    return None


def _has_list(root: Path, split: str) -> bool:
    return (root / split).is_dir() and (root / f"{split}{LIST_SUFFIX}").is_file()


def read_parts(folder: Path, split: str, given: Path) -> Iterator[LayoutPart]:
    """All parts of a dataset, then its photos without a split; or the parts of one split.

    given: the folder that the user named, which is the one of the dataset or contains it.
    """
    covered = set[Path]()
    for one in SPLITS:
        place = folder / one
        if (split and one != split) or not place.is_dir():
            continue
        if one == "test" and place.resolve() == (folder / "val").resolve():
            problem = Problem(
                name=str(place), reason="is a link to val, whose photos are imported only once", is_left_out=False
            )
            yield LayoutPart(split="", paths=(), problems=(problem,))
            covered.add(place)
        elif one == "train" and not split:
            yield from _train_parts(folder)
            covered |= {place / name for name in folder_names(place)} if _has_parts(place) else {place}
        else:
            for name in folder_names(place):
                part = f"{one}/{DATABASE if name in DATABASES else name}"
                yield _part(folder, f"{one}/{name}", part)
                covered.add(place / name)
    if not split:
        yield _other_photos(folder, covered)
        yield LayoutPart(split="", paths=(), problems=tuple(_outside(folder, given)))


def _other_photos(folder: Path, covered: Collection[Path]) -> LayoutPart:
    """The photos that are in no part: loose in the folder of the dataset or of a split, or in other folders."""
    paths, problems = [], []
    for file in list_files(folder, without=covered):
        if isinstance(file, Problem):
            problems.append(file)
        elif problem := left_out(file):
            if not file.name.endswith(LIST_SUFFIX):
                problems.append(Problem(name=str(file), reason=problem))
        else:
            paths.append(file.relative_to(folder).as_posix())
    return LayoutPart(split="", paths=paths, has_names=True, problems=tuple(problems))


def _outside(folder: Path, given: Path) -> Iterator[Problem]:
    """Photos next to the folder of a dataset, which are not imported with it."""
    if folder == given:
        return
    for path in sorted(given.iterdir()):
        if path != folder and path.name[0] != "." and _has_photo(path):
            reason = f"is outside the dataset in {folder.name}. Import it separately."
            yield Problem(name=str(path), reason=reason)


def _has_photo(path: Path) -> bool:
    files = list_files(path) if path.is_dir() else [path]
    return any(isinstance(file, Path) and not left_out(file) for file in files)


def _train_parts(folder: Path) -> Iterator[LayoutPart]:
    names = folder_names(folder / "train")
    if not _has_parts(folder / "train"):
        yield _part(folder, "train", "train")
        return
    for name in names:
        yield _part(folder, f"train/{name}", "train", "equirectangular" if name == PANORAMAS else "")


def _has_parts(train: Path) -> bool:
    """Whether the photos of train are in folders of its own, such as database."""
    return bool({*DATABASES, PANORAMAS} & set(folder_names(train)))


def _part(folder: Path, name: str, split: str, projection: str = "") -> LayoutPart:
    images = scan_images(folder / name, dataset=folder)
    paths = [f"{name}/{images.name(row)}" for row in range(len(images))]
    skipped = images.skipped.summary()
    return LayoutPart(
        split=split,
        paths=paths,
        projection=projection,
        has_names=True,
        places=_places(images),
        problems=(Problem(name=str(folder / name), reason=skipped),) if skipped else (),
    )


def _places(images: ImageList) -> list[str]:
    """The places of photos whose names have a number on a line instead of a position; none for others."""
    east, zones = optional_fields(images, ("utm_east", "zone"))
    if not (len(east) > 1 and (east == east[0]).all() and np.isnan(zones).all()):
        return []
    return [split_name(images.name(row)).get("pano_id", "") or str(row) for row in range(len(images))]
