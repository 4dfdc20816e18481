"""From file names to groups, and reading groups from the cache.

The plain side keeps one Python tuple per image and stores the result in one pickle, which the dataset of every group
reads.  Forming groups is measured in new interpreters, with the memory of the whole process and without the imports.
"""

import hashlib
import multiprocessing
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.filenames import Names, write_names
from benchmarks.stage import Options, Side, Stage, Work

if TYPE_CHECKING:
    from cosplace.training.groups import Groups

M, ALPHA, N, L, MIN_IMAGES = 10, 30, 5, 2, 10  # the paper's, which are the defaults
SAMPLED_IMAGES = 2_000  # images whose class is checked if the plain side is not run
NUM_GROUPS_READ = 8
PAGE = 4096


# --- plain -----------------------------------------------------------------------------------------------------------

Cell = tuple[int, int, int]
PlainGroups = tuple[dict[Cell, list[str]], Mapping[Any, list[Cell]]]  # class -> paths; group -> classes


def plain_groups(list_file: Path) -> PlainGroups:
    """Classes and groups, computed in Python image by image."""
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
    paths_of = {class_id: inside for class_id, inside in paths_of.items() if len(inside) >= MIN_IMAGES}
    classes_of: dict[Cell, set[Cell]] = defaultdict(set)
    for class_id, group_id in ids:
        if class_id in paths_of:
            classes_of[group_id].add(class_id)
    return paths_of, {group_id: list(classes) for group_id, classes in classes_of.items()}


def digest_plain(groups: PlainGroups, max_groups: int | None = None) -> str:
    """Digest of all (or the first `max_groups`) groups: their order, their classes by cell, the images in order."""
    paths_of, classes_of = groups
    digest = hashlib.sha256()
    for classes in list(classes_of.values())[:max_groups]:
        digest.update(b"group")
        for cell in sorted(classes):
            digest.update(repr(cell).encode() + "".join(f"{path}\n" for path in paths_of[cell]).encode())
    return digest.hexdigest()


def digest_ours(groups: "Groups", max_groups: int | None = None) -> str:
    """The same digest of the groups of cosplace."""
    digest = hashlib.sha256()
    text = groups.names.tobytes()
    for number in range(min(len(groups), max_groups or len(groups))):
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


def _plain_output(_: Names, groups: PlainGroups) -> str:
    return digest_plain(groups)


def _prepare_ours(names: Names) -> Work:
    from cosplace.config.sections import Grouping
    from cosplace.photos.scanning import scan_images
    from cosplace.training.groups import partition

    return lambda: partition(scan_images(names.folder), Grouping())


def _our_output(_: Names, groups: "Groups") -> str:
    return digest_ours(groups)


def _check_groups(names: Names, groups: "Groups") -> str | None:
    """Check the groups by their sizes and by a sample of images; returns what is wrong, None if nothing is."""
    sizes = np.diff(groups.class_starts)
    if groups.num_scanned != names.num_images or len(groups.image_starts) != sizes.sum() or sizes.min() < MIN_IMAGES:
        return f"{groups.num_scanned} images, classes of at least {sizes.min()} images, {sizes.sum()} images in classes"
    group_of = np.repeat(np.arange(len(groups)), np.diff(groups.group_starts))  # (C,)
    residues = groups.cells // np.array([M, M, ALPHA]) % np.array([N, N, L])
    if len(np.unique(np.column_stack([residues, group_of]), axis=0)) != len(np.unique(residues, axis=0)):
        return "a group has classes with different remainders"
    for image in np.linspace(0, len(groups.image_starts) - 1, SAMPLED_IMAGES).astype(np.int64).tolist():
        start = int(groups.image_starts[image])
        parts = groups.names[start : start + 200].tobytes().split(b"\n")[0].split(b"@")
        east, north, heading = (float(parts[field]) for field in (1, 2, 9))
        cell = (int(east // M * M), int(north // M * M), int(heading // ALPHA * ALPHA))
        found = groups.cells[int(np.searchsorted(groups.class_starts, image, side="right")) - 1]
        if cell != tuple(found.tolist()):
            return f"an image of class {cell} is in class {tuple(found.tolist())}"
    return None


def compare_equal(plain: Any, ours: Any) -> str | None:
    """Compare two outputs that must be equal."""
    return None if plain == ours else f"plain {plain}, ours {ours}"


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


BOTH_SIDES = {
    "plain": Side(prepare=_prepare_plain, output=_plain_output),
    "ours": Side(prepare=_prepare_ours, output=_our_output),
    "compare": compare_equal,
}


# --- cached groups ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """The same groups, stored by both sides."""

    pickle: Path
    block: Path
    list_file: Path
    folder: Path


def _make_cached(folder: Path, size: int, _: Options) -> Cached:
    import torch

    from cosplace.config.sections import Grouping
    from cosplace.photos.scanning import scan_images
    from cosplace.training.group_cache import cached_partition

    names = write_names(folder, size)
    groups = cached_partition(scan_images(names.folder), Grouping(), folder / "groups")
    assert groups.opened_from is not None
    paths_of, classes_of = plain_groups(names.list_file)
    torch.save((list(classes_of.values()), paths_of), folder / "groups.torch")
    return Cached(
        pickle=folder / "groups.torch", block=groups.opened_from[1][0], list_file=names.list_file, folder=names.folder
    )


def _prepare_pickles(cached: Cached) -> Work:
    import torch

    # weights_only=True, the default, takes several times longer.
    return lambda: [torch.load(cached.pickle, weights_only=False) for _ in range(NUM_GROUPS_READ)]


def _pickles_output(_: Cached, loaded: list) -> str:
    classes_of, paths_of = loaded[-1]
    return digest_plain((paths_of, dict(enumerate(classes_of))), NUM_GROUPS_READ)


def _prepare_mapped(cached: Cached) -> Work:
    from cosplace.training.group_cache import open_groups

    def work() -> "Groups":
        groups = open_groups(cached.block, cached.list_file, cached.folder)
        _read_pages(groups)
        return groups

    work()
    return work


def _read_pages(groups: "Groups") -> int:
    """Read one value from every page of every group and of the names."""
    total = int(groups.names[::PAGE].sum())
    for number in range(min(NUM_GROUPS_READ, len(groups))):
        group = groups[number]
        for array in (group.cells.ravel(), group.class_starts, group.image_starts):
            total += int(array[:: PAGE // array.itemsize].sum())
    return total


def _mapped_output(_: Cached, groups: "Groups") -> str:
    return digest_ours(groups, NUM_GROUPS_READ)


def _pages_shared(cached: Cached) -> dict[str, Any]:
    """Check whether two processes that open the groups share their memory pages."""
    from cosplace.training.group_cache import open_groups

    context = multiprocessing.get_context("fork")
    opened, measured = context.Barrier(2), context.Barrier(2)
    answers = context.SimpleQueue()

    def open_and_measure() -> None:
        groups = open_groups(cached.block, cached.list_file, cached.folder)
        _read_pages(groups)
        opened.wait(60)
        answers.put(_mapping_kb(cached.block))
        measured.wait(60)

    processes = [context.Process(target=open_and_measure) for _ in range(2)]
    for process in processes:
        process.start()
    sizes = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    # Pss counts each page divided by its number of processes.
    shared = all(kb["Rss"] and 2 * kb["Pss"] <= kb["Rss"] + 8 and not kb["Private_Dirty"] for kb in sizes)
    return {"pages_shared": shared, "mapped_kb": sizes[0]["Rss"], "proportional_kb": sizes[0]["Pss"]}


def _mapping_kb(file: Path) -> dict[str, int]:
    """Rss, Pss and Private_Dirty of a mapped file in this process, in KiB."""
    sizes: dict[str, int] = {"Rss": 0, "Pss": 0, "Private_Dirty": 0}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(file))
        elif inside and (name := line.partition(":")[0]) in sizes:
            sizes[name] += int(line.split()[1])
    return sizes


# --- stages ----------------------------------------------------------------------------------------------------------

STAGES = (
    _groups_stage(
        "groups",
        1_000_000,
        **BOTH_SIDES,
        quick_size=100_000,
        targets={"cpu_ratio": 12.0, "memory_ratio": 8.0},
        quick_targets={"cpu_ratio": 6.0, "memory_ratio": 2.0},
        growth_sizes=(1_000_000, 2_000_000, 4_000_000),
    ),
    _groups_stage(
        "groups-5m",
        5_600_000,
        **BOTH_SIDES,
        quick_size=None,
        targets={"cpu_ratio": 18.0, "memory_ratio": 18.0},
        max_turns=3,
    ),
    _groups_stage(
        "groups-41m",
        41_000_000,
        ours=Side(prepare=_prepare_ours, output=_check_groups),
        compare=lambda _, wrong: wrong,
        quick_size=None,
        targets={"most_cpu_s": 60.0, "most_memory_mib": 3072.0},
        max_turns=1,
    ),
    Stage(
        name="open-groups",
        title="opening cached groups, all 8",
        unit="names",
        make_inputs=_make_cached,
        plain=Side(prepare=_prepare_pickles, output=_pickles_output),
        ours=Side(prepare=_prepare_mapped, output=_mapped_output),
        compare=compare_equal,
        full_size=1_000_000,
        quick_size=100_000,
        targets={"cpu_ratio": 500.0, "wall_ratio": 500.0, "pages_shared": True},
        quick_targets={"cpu_ratio": 100.0, "wall_ratio": 100.0, "pages_shared": True},
        growth_sizes=(250_000, 500_000, 1_000_000),
        imports=("torch", "cosplace.training.groups"),
        find=_pages_shared,
    ),
)
