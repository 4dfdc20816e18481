"""Names -> groups: this package beside one Python tuple per image, as the field writes it.

Each side runs in a fresh interpreter, whose whole memory counts; CPU time begins after the imports.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from benchmarks.records import Side, Stage, Work

if TYPE_CHECKING:
    from cosplace.training.groups import Groups

M, ALPHA, N, L, LEAST = 10, 30, 5, 2, 10  # the paper's, which are the package's defaults
HEADINGS = 12  # of a panorama
PANORAMAS_AT_ONCE = 20_000
STREET_M = 103  # between streets: no multiple of N cells, so that all groups are inhabited
PANORAMAS_PER_BLOCK = 400  # on the two streets of a block: some 20 images a class, as in SF-XL
FAR_PART = 50  # one panorama in so many stands in another city
CITIES = ((540_000, 4_170_000), (310_000, 5_810_000))  # UTM east, north: keys of classes must not overflow
LINE = b"37.00/@0000000.00@0000000.00@10@S@037.77510@-122.42940@0000000000000000000000@@000@@@@201311@@.jpg\n"
FOLDER_AT, EAST_AT, NORTH_AT, ID_AT, HEADING_AT = 3, 7, 18, 55, 79
SAMPLED = 2_000  # images whose class is looked at where there is no other side


# --- the names -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """A list of photos on the disk, of which only those exist that the package looks at."""

    folder: Path
    list_file: Path
    num_images: int


def write_names(folder: Path, num_images: int) -> Names:
    """SF-XL names, sorted, all different: panoramas of several years along two cities' streets, 12 headings each.

    Works in blocks: 41 million lines (4 GB) take little memory.
    """
    from cosplace.photos.scanning import LISTED_FILES_CHECKED

    names = Names(folder=folder / "train", list_file=folder / "train_images_paths.txt", num_images=num_images)
    names.folder.mkdir()
    panoramas = _sorted_panoramas(-(-num_images // HEADINGS))
    looked_at = np.unique(np.linspace(0, num_images - 1, LISTED_FILES_CHECKED).astype(np.int64))
    with names.list_file.open("wb") as file:
        for first in range(0, panoramas.shape[1], PANORAMAS_AT_ONCE):
            lines = _lines(panoramas[:, first : first + PANORAMAS_AT_ONCE], first)[: num_images - first * HEADINGS]
            _write_lines(file, lines)
            here = looked_at - first * HEADINGS
            for line in lines[here[(here >= 0) & (here < len(lines))]]:
                path = names.folder / line[line != 0].tobytes().decode().rstrip("\n")
                path.parent.mkdir(exist_ok=True)
                path.touch()
    return names


def _sorted_panoramas(count: int) -> np.ndarray:
    """(3, count) int64: east and north in centimeters and first heading in degrees, in the order of their names."""
    rng = np.random.default_rng(0)
    far = count // FAR_PART
    east, north = np.concatenate(
        [city(rng, part, corner) for part, corner in zip((count - far, far), CITIES, strict=True)], axis=1
    )
    order = np.lexsort((north, east, north // 100_000 % 100))
    return np.stack([east[order], north[order], rng.integers(0, 360 // HEADINGS, count)])


def city(
    rng: np.random.Generator, count: int, corner: tuple[int, int], per_block: int = PANORAMAS_PER_BLOCK
) -> np.ndarray:
    """(2, count) int64, in centimeters: panoramas along a grid of streets."""
    side = max(2, round(np.sqrt(count / per_block)))
    street = rng.integers(0, side, count) * STREET_M + 4.0
    along = rng.uniform(0, side * STREET_M, count)
    turned = rng.random(count) < 0.5
    places = np.where(turned, [street, along], [along, street]) + rng.normal(0, 1, (2, count)).clip(-4, 4)
    return np.round(100 * (places + np.array(corner)[:, None])).astype(np.int64)


def _lines(panoramas: np.ndarray, first: int) -> np.ndarray:
    """(panoramas * 12, bytes) uint8: their sorted lines, with zeros in place of digits that a heading lacks."""
    east, north, first_heading = panoramas
    block = np.tile(np.frombuffer(LINE, np.uint8), (len(east), 1))
    _put_digits(block, FOLDER_AT, north // 100_000 % 100, 2)
    for at, centimeters in ((EAST_AT, east), (NORTH_AT, north)):
        _put_digits(block, at, centimeters // 100, 7)
        _put_digits(block, at + 8, centimeters % 100, 2)
    _put_digits(block, ID_AT, first + np.arange(len(east)), 22)
    block = np.repeat(block, HEADINGS, axis=0)
    step = 360 // HEADINGS
    sorted_headings = np.array([sorted(range(start, 360, step), key=lambda h: f"{h}@") for start in range(step)])
    headings = sorted_headings[first_heading].ravel()
    _put_digits(block, HEADING_AT, headings, 3)
    block[headings < 100, HEADING_AT] = 0
    block[headings < 10, HEADING_AT + 1] = 0
    return block


def _put_digits(block: np.ndarray, at: int, values: np.ndarray, count: int) -> None:
    for place in range(count - 1, -1, -1):
        values, digit = np.divmod(values, 10)
        block[:, at + place] = digit + ord("0")


def _write_lines(file: BinaryIO, lines: np.ndarray) -> None:
    file.write(lines[lines != 0].data)


# --- the field's recipe ----------------------------------------------------------------------------------------------

Cell = tuple[int, int, int]
PlainGroups = tuple[dict[Cell, list[str]], Mapping[Any, list[Cell]]]  # paths of a class; classes of a group


def plain_groups(list_file: Path) -> PlainGroups:
    """Classes and groups by Python arithmetic, image by image."""
    paths = sorted(list_file.read_text().splitlines())
    fields = [path.split("@") for path in paths]
    texts = [(parts[1], parts[2], parts[9]) for parts in fields]
    positions = np.array(texts).astype(np.float64)
    ids = []
    for east, north, heading in positions.tolist():
        e, n, h = int(east // M * M), int(north // M * M), int(heading // ALPHA * ALPHA)
        ids.append(((e, n, h), (e % (M * N) // M, n % (M * N) // M, h % (ALPHA * L) // ALPHA)))
    paths_of: dict[Cell, list[str]] = defaultdict(list)
    for path, (class_id, _) in zip(paths, ids, strict=True):
        paths_of[class_id].append(path)
    paths_of = {class_id: inside for class_id, inside in paths_of.items() if len(inside) >= LEAST}
    classes_of: dict[Cell, set[Cell]] = defaultdict(set)
    for class_id, group_id in ids:
        if class_id in paths_of:
            classes_of[group_id].add(class_id)
    return paths_of, {group_id: list(classes) for group_id, classes in classes_of.items()}


def digest_plain(groups: PlainGroups, most: int | None = None) -> str:
    """One text for all (or the first `most`) groups: their order, classes by cell, images in order."""
    paths_of, classes_of = groups
    digest = hashlib.sha256()
    for classes in list(classes_of.values())[:most]:
        digest.update(b"group")
        for cell in sorted(classes):
            digest.update(repr(cell).encode() + "".join(f"{path}\n" for path in paths_of[cell]).encode())
    return digest.hexdigest()


def digest_ours(groups: "Groups", most: int | None = None) -> str:
    """The same of this package's groups."""
    digest = hashlib.sha256()
    text = groups.names.tobytes()
    for number in range(min(len(groups), most or len(groups))):
        group = groups[number]
        digest.update(b"group")
        cells, class_starts, starts = group.cells.tolist(), group.class_starts.tolist(), group.image_starts.tolist()
        for c in np.lexsort(group.cells.T[::-1]).tolist():
            inside = starts[class_starts[c] : class_starts[c + 1]]
            images = b"".join(text[start : text.index(b"\n", start) + 1] for start in inside)
            digest.update(repr(tuple(cells[c])).encode() + images)
    return digest.hexdigest()


# --- the sides -------------------------------------------------------------------------------------------------------


def _prepare_plain(names: Names) -> Work:
    return lambda: plain_groups(names.list_file)


def _reveal_plain(_: Names, groups: PlainGroups) -> str:
    return digest_plain(groups)


def _prepare_ours(names: Names) -> Work:
    from cosplace.config.sections import Grouping
    from cosplace.photos.scanning import scan_images
    from cosplace.training.groups import partition

    return lambda: partition(scan_images(names.folder), Grouping())


def _reveal_ours(_: Names, groups: "Groups") -> str:
    return digest_ours(groups)


def _reveal_check(names: Names, groups: "Groups") -> str | None:
    """What is wrong with the groups, from what holds for all of them and from a sample of their images."""
    sizes = np.diff(groups.class_starts)
    if groups.num_scanned != names.num_images or len(groups.image_starts) != sizes.sum() or sizes.min() < LEAST:
        return f"{groups.num_scanned} images make classes of {sizes.min()} images or more, {sizes.sum()} in all"
    group_of = np.repeat(np.arange(len(groups)), np.diff(groups.group_starts))  # (C,)
    residues = groups.cells // np.array([M, M, ALPHA]) % np.array([N, N, L])
    if len(np.unique(np.column_stack([residues, group_of]), axis=0)) != len(np.unique(residues, axis=0)):
        return "classes of a group have different places in their blocks of classes"
    for image in np.linspace(0, len(groups.image_starts) - 1, SAMPLED).astype(np.int64).tolist():
        start = int(groups.image_starts[image])
        parts = groups.names[start : start + 200].tobytes().split(b"\n")[0].split(b"@")
        east, north, heading = (float(parts[field]) for field in (1, 2, 9))
        cell = (int(east // M * M), int(north // M * M), int(heading // ALPHA * ALPHA))
        found = groups.cells[int(np.searchsorted(groups.class_starts, image, side="right")) - 1]
        if cell != tuple(found.tolist()):
            return f"an image of the class {cell} lies in the class {tuple(found.tolist())}"
    return None


def different(plain: Any, ours: Any) -> str | None:
    """The comparison of digests and the like."""
    return None if plain == ours else f"{plain} against {ours}"


def _groups_stage(name: str, size: int, **others: Any) -> Stage:
    return Stage(
        name=name,
        title="names -> groups",
        unit="names",
        make_inputs=lambda folder, num_images, _: write_names(folder, num_images),
        full_size=size,
        fresh=True,
        **others,
    )


SIDES = {
    "plain": Side(prepare=_prepare_plain, reveal=_reveal_plain),
    "ours": Side(prepare=_prepare_ours, reveal=_reveal_ours),
    "compare": different,
}

STAGES = (
    _groups_stage(
        "groups",
        1_000_000,
        **SIDES,
        quick_size=100_000,
        targets={"cpu_ratio": 12.0, "memory_ratio": 8.0},
        quick_targets={"cpu_ratio": 6.0, "memory_ratio": 2.0},
        growth_sizes=(1_000_000, 2_000_000, 4_000_000),
    ),
    _groups_stage(
        "groups-5m",
        5_600_000,
        **SIDES,
        quick_size=None,
        targets={"cpu_ratio": 18.0, "memory_ratio": 18.0},
        most_turns=3,
    ),
    _groups_stage(
        "groups-41m",
        41_000_000,
        ours=Side(prepare=_prepare_ours, reveal=_reveal_check),
        compare=lambda _, wrong: wrong,
        quick_size=None,
        targets={"most_cpu_s": 60.0, "most_memory_mib": 3072.0},
        most_turns=1,
    ),
)
