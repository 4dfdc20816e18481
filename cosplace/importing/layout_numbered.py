"""Datasets whose places have numbers instead of positions: Nordland (frames of a train ride) and AmsterTime (pairs).

Their places lie on a line, as VPR-datasets-downloader does it: frames of Nordland 25 / 10.5 m apart, so that photos up
to 10 frames apart are within 25 m; pairs of AmsterTime 1000 m apart, so that only the photos of a pair are.  Such
positions are not on Earth: no table or map shows them.

Nordland: summer/ is the database, winter/ the queries; queries_spring and queries_fall are further sets.  Names are
as images-00001.png.  If there is cleanImageNames.txt, only the photos that it lists are used, and their order by name
is the frame number.  AmsterTime: new/ is the database, old/ the queries; the photos of a pair have the same name.
Suenderhauf et al., 2013; Yildiz et al., 2022.  Side effects: reads folders.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from cosplace.errors import DatasetError
from cosplace.importing.layout_parts import (
    DATABASE,
    QUERIES,
    Layout,
    LayoutPart,
    folder_names,
    photo_names,
    raw_folders,
)
from cosplace.photos.formats import VIDEO_SUFFIXES

FRAME_M = 25 / 10.5
PAIR_M = 1000.0
SEASONS = ("summer", "winter", "spring", "fall")
FRAME_NAME = re.compile(r"(images?-|frame[-_]?)?0*(\d{1,9})\.\w+", re.IGNORECASE)
PAIR_NAME = re.compile(r"\d{1,9}\.\w+")
LIST = "cleanImageNames.txt"
MAX_LIST_BYTES = 1 << 24
NEW, OLD = "new", "old"
FRAMES_NOTE = (
    "positions are frame numbers of Nordland, not places on Earth; photos up to ten frames apart are within 25 units."
)
PAIRS_NOTE = "AmsterTime has pairs of photos instead of positions. Only the other photo of a pair is a positive."


# --- Nordland --------------------------------------------------------------------------------------------------------


def find_nordland(folder: Path) -> Layout | None:
    """The seasons in a folder; None without summer and winter.  Raises DatasetError if they are still videos."""
    for root in raw_folders(folder):
        seasons = _seasons(root)
        if not {"summer", "winter"} <= seasons.keys():
            if _has_videos(root):
                raise DatasetError(
                    f"{root} has videos of Nordland. Extract one frame per second into folders summer/ and winter/, as "
                    f"images-00001.png and so on."
                )
            continue
        names = photo_names(root / seasons["summer"])[:5]
        is_named = any(name.lower().startswith("images-") for name in names)
        is_nordland = is_named or _list_file(root) or "nordland" in str(root.resolve()).lower()
        if names and is_nordland and all(FRAME_NAME.fullmatch(name) for name in names):
            return Layout(name="Nordland", folder=root, splits=("test",), read_parts=_frames, note=FRAMES_NOTE)
    return None


def _seasons(root: Path) -> dict[str, str]:
    """The folder of each season, such as summer or nordland_summer_images."""
    found: dict[str, str] = {}
    for name in folder_names(root):
        for season in SEASONS:
            if re.search(rf"(^|[^a-z]){season}([^a-z]|$)", name.lower()):
                found.setdefault(season, name)
    return found


def _has_videos(root: Path) -> bool:
    if "nordland" not in str(root.resolve()).lower():
        return False
    suffixes = {suffix.decode() for suffix in VIDEO_SUFFIXES}
    names = [path.stem.lower() for path in root.iterdir() if path.suffix.lower() in suffixes]
    return all(any(season in name for name in names) for season in ("summer", "winter"))


def _list_file(root: Path) -> Path | None:
    return root / LIST if (root / LIST).is_file() else None


def _frames(folder: Path, split: str) -> Iterator[LayoutPart]:
    listed = _listed(folder)
    for season, name in _seasons(folder).items():
        part = {"summer": DATABASE, "winter": QUERIES}.get(season, f"{QUERIES}_{season}")
        found = [(photo, match) for photo in photo_names(folder / name) if (match := FRAME_NAME.fullmatch(photo))]
        if listed is None:
            frames = {photo: int(match[2]) for photo, match in found}
        else:
            by_stem = {PurePosixPath(photo).stem: photo for photo, _ in found}
            frames = {by_stem[stem]: frame for stem, frame in listed.items() if stem in by_stem}
        yield _numbered(
            f"test/{part}",
            [f"{name}/{photo}" for photo in frames],
            np.array(list(frames.values()), np.float64) * FRAME_M,
            [str(frame) for frame in frames.values()],
        )


def _listed(folder: Path) -> dict[str, int] | None:
    """Frame number of each photo, by its name without suffix, in the list of selected photos; None without a list."""
    path = _list_file(folder)
    if path is None:
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(MAX_LIST_BYTES)
    names = {PurePosixPath(line.strip()).name for line in text.splitlines() if line.strip()}
    return {PurePosixPath(name).stem: frame for frame, name in enumerate(sorted(names, key=_number_and_name))}


def _number_and_name(name: str) -> tuple[int, str]:
    match = FRAME_NAME.fullmatch(name)
    return (-1 if match is None else int(match[2])), name


# --- AmsterTime ------------------------------------------------------------------------------------------------------


def find_amstertime(folder: Path) -> Layout | None:
    """The pairs in a folder; None if new/ and old/ do not have photos of the same names, which are numbers."""
    for root in raw_folders(folder):
        if not ((root / NEW).is_dir() and (root / OLD).is_dir()):
            continue
        names = [photo_names(root / name) for name in (NEW, OLD)]
        if not all(names) or not all(PAIR_NAME.fullmatch(photo) for photo in names[0] + names[1]):
            continue
        if {PurePosixPath(photo).stem for photo in names[0]} & {PurePosixPath(photo).stem for photo in names[1]}:
            return Layout(name="AmsterTime", folder=root, splits=("test",), read_parts=_pairs, note=PAIRS_NOTE)
    return None


def _pairs(folder: Path, split: str) -> Iterator[LayoutPart]:
    photos = {name: photo_names(folder / name) for name in (NEW, OLD)}
    stems = sorted({PurePosixPath(photo).stem for names in photos.values() for photo in names})
    number = {stem: row for row, stem in enumerate(stems)}
    for name, part in ((NEW, DATABASE), (OLD, QUERIES)):
        pairs = [PurePosixPath(photo).stem for photo in photos[name]]
        positions = np.array([number[pair] for pair in pairs], np.float64) * PAIR_M
        yield _numbered(f"test/{part}", [f"{name}/{photo}" for photo in photos[name]], positions, pairs)


def _numbered(split: str, paths: Sequence[str], line_m: np.ndarray, places: Sequence[str]) -> LayoutPart:
    return LayoutPart(split=split, paths=paths, line_m=line_m, places=places)
