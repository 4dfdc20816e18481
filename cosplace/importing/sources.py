"""The kinds of sources, and which of them a path is.

A source is a module of this package, imported when it is first needed.  Both kinds have

    detects(path: Path) -> bool       whether a file or a folder is of this kind: by its content, reading little of it

A source of photos also has

    read(path: Path, settings: ImportSettings) -> Iterator[FoundPhoto | Problem]

which yields photos in a fixed order, and does not read them (the import reads them, in parallel).  One of positions has

    read(paths: Sequence[Path], settings: ImportSettings) -> Annotations

which reads all its files at once.  Both raise DatasetError for what makes the whole source useless.
"""

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from cosplace.config.names import similar_names
from cosplace.errors import DatasetError
from cosplace.importing.exif_photos import ARCHIVE, ARCHIVE_SUFFIXES, POSITION_SUFFIXES
from cosplace.photos.formats import suffix_of
from cosplace.storage import problem_with_kind


@dataclass(frozen=True, slots=True)
class Source:
    """One kind of source."""

    name: str  # as --format names it
    module: str  # file of cosplace/importing that reads it
    has_photos: bool  # else it has positions of photos
    summary: str  # for help and documentation
    makes_photos: bool = False  # photos are made while they are listed, as frames of a video: they are listed only once

    def load(self) -> ModuleType:
        """The module, imported."""
        return import_module(f"cosplace.importing.{self.module}")


SOURCES = (
    # The first that detects a path reads it: special ones come first.
    Source(
        "st-lucia",
        "layout_st_lucia",
        True,
        "the videos of St Lucia, with a position for each frame",
        makes_photos=True,
    ),
    Source(
        "dataset",
        "dataset_layouts",
        True,
        "GSV-Cities, MSLS, Pitts30k, Pitts250k, Tokyo 24/7, St Lucia, Nordland, "
        "AmsterTime, SVOX and SF-XL, as downloaded or prepared",
    ),
    Source("track", "track_positions", False, "GPX files and NMEA logs: positions and headings by time"),
    Source(
        "mapillary",
        "mapillary_json",
        True,
        "mapillary_image_description.json of mapillary_tools",
        makes_photos=True,
    ),
    Source("stac", "stac", True, "STAC items of Panoramax, with the photos next to them"),
    Source("colmap", "colmap", False, "COLMAP models (binary or text), projects, and databases with pose priors"),
    Source("opensfm", "opensfm", False, "reconstruction.json of OpenSfM, with reference_lla.json"),
    Source("nerfstudio", "nerfstudio", False, "transforms.json of Nerfstudio, with --similarity or GPS positions"),
    Source(
        "video",
        "videos",
        True,
        "videos, or folders of videos: frames along the track of GPX, GoPro, CAMM or BlackVue",
        makes_photos=True,
    ),
    Source("imported", "imported_datasets", True, "datasets that were imported before, with their table"),
    Source("photos", "exif_photos", True, "photos, or folders of photos, with EXIF, XMP or '@' names"),
    Source("table", "position_tables", False, "CSV, TSV, JSON, Parquet, GeoJSON or GeoPackage with positions"),
)


def find_source(path: Path, name: str = "") -> Source:
    """The source that a path is.  name: the one to use, instead of the first that detects it.

    Raises DatasetError for a path that does not exist or is of no kind, and for an unknown name.
    """
    if not path.exists():
        raise DatasetError(f"{path} does not exist. Check the path.")
    if name:
        for source in SOURCES:
            if source.name == name:
                return source
        names = [source.name for source in SOURCES]
        similar = similar_names(name, names, count=1)
        hint = f"Did you mean {similar[0]}?" if similar else f"Use one of {', '.join(names)}."
        raise DatasetError(f"Unknown --format '{name}'. {hint}")
    for source in SOURCES:
        if source.load().detects(path):
            return source
    suffix = suffix_of(os.fsencode(path.name))
    if suffix in ARCHIVE_SUFFIXES:
        raise DatasetError(f"{path} {ARCHIVE}")
    if path.is_file() and not path.stat().st_size:
        raise DatasetError(f"{path} is empty. Copy or export it again.")
    if suffix in POSITION_SUFFIXES:
        raise DatasetError(
            f"{path} has no positions that can be read, although its suffix is {suffix.decode()}. Export it again; or "
            "name its kind with --format."
        )
    if not (path.is_file() or path.is_dir()):
        raise DatasetError(f"{path} {problem_with_kind(path, 'folder or file')}. Use a folder of photos or a table.")
    raise DatasetError(
        f"{path} is neither photos nor positions that can be imported. "
        f"See docs/import.md for the supported sources, or name its kind: --format {'|'.join(s.name for s in SOURCES)}."
    )
