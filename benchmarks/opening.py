"""What comes before any photo is opened: the scan of a folder, groups formed earlier, the answer of --help.

Cached groups, the field's way: one pickle of all paths, read by the data set of each group.
"""

import glob
import multiprocessing
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.names import different, digest_ours, digest_plain, plain_groups, write_names
from benchmarks.records import Options, Side, Stage, Work

if TYPE_CHECKING:
    from cosplace.photos.image_list import ImageList
    from cosplace.training.groups import Groups

GROUPS_USED = 8
PAGE = 4096
FILES_A_FOLDER = 500
LINKS_A_FILE = 10_000  # file systems allow some tens of thousands


# --- groups formed earlier -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """The same groups, kept in both ways."""

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

    # Not the safe unpickler, which is the default and takes several times longer.
    return lambda: [torch.load(cached.pickle, weights_only=False) for _ in range(GROUPS_USED)]


def _reveal_pickles(_: Cached, loaded: list) -> str:
    classes_of, paths_of = loaded[-1]
    return digest_plain((paths_of, dict(enumerate(classes_of))), GROUPS_USED)


def _prepare_mapped(cached: Cached) -> Work:
    from cosplace.training.group_cache import open_groups

    def work() -> "Groups":
        groups = open_groups(cached.block, cached.list_file, cached.folder)
        _touch(groups)
        return groups

    work()
    return work


def _touch(groups: "Groups") -> int:
    """Read something of every page of every group, and of the names."""
    total = int(groups.names[::PAGE].sum())
    for number in range(min(GROUPS_USED, len(groups))):
        group = groups[number]
        for array in (group.cells.ravel(), group.class_starts, group.image_starts):
            total += int(array[:: PAGE // array.itemsize].sum())
    return total


def _reveal_mapped(_: Cached, groups: "Groups") -> str:
    return digest_ours(groups, GROUPS_USED)


def _pages_shared(cached: Cached) -> dict[str, Any]:
    """Whether two processes that hold the groups hold the same pages."""
    from cosplace.training.group_cache import open_groups

    context = multiprocessing.get_context("fork")
    both, looked = context.Barrier(2), context.Barrier(2)
    answers = context.SimpleQueue()

    def hold() -> None:
        groups = open_groups(cached.block, cached.list_file, cached.folder)
        _touch(groups)
        both.wait(60)
        answers.put(_mapping_kb(cached.block))
        looked.wait(60)

    holders = [context.Process(target=hold) for _ in range(2)]
    for holder in holders:
        holder.start()
    found = [answers.get() for _ in holders]
    for holder in holders:
        holder.join()
    # Each page of two owners counts half in Pss.
    shared = all(kb["Rss"] and 2 * kb["Pss"] <= kb["Rss"] + 8 and not kb["Private_Dirty"] for kb in found)
    return {"pages_shared": shared, "mapped_kb": found[0]["Rss"], "proportional_kb": found[0]["Pss"]}


def _mapping_kb(file: Path) -> dict[str, int]:
    """How much of a mapped file this process holds: Rss, Pss and so on, in KiB."""
    sizes: dict[str, int] = {"Rss": 0, "Pss": 0, "Private_Dirty": 0}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(file))
        elif inside and (name := line.partition(":")[0]) in sizes:
            sizes[name] += int(line.split()[1])
    return sizes


# --- the scan --------------------------------------------------------------------------------------------------------


def _make_files(folder: Path, size: int, _: Options) -> Path:
    """Empty files with '@' names, some hundred in a folder; links to a few, since making files takes long."""
    rng = np.random.default_rng(0)
    east, north = rng.integers(0, 10_000_000, (2, size)) / 100
    original = ""
    for first in range(0, size, FILES_A_FOLDER):
        inside = folder / "train" / f"{37 + first / 100_000:.3f}"
        inside.mkdir(parents=True)
        for i in range(first, min(first + FILES_A_FOLDER, size)):
            name = f"@{540_000 + east[i]:010.2f}@{4_170_000 + north[i]:010.2f}@10@S@037.77510@-122.42940@{i:022d}@@"
            path = f"{inside}/{name}{i % 360}@@@@201311@@.jpg"
            if i % LINKS_A_FILE:
                os.link(original, path)
            else:
                original = path
                Path(path).touch()
    return folder / "train"


def _prepare_glob(folder: Path) -> Work:
    return lambda: sorted(glob.glob(f"{folder}/**/*.jpg", recursive=True))  # noqa: PTH207 - the plain recipe


def _reveal_glob(folder: Path, paths: list[str]) -> list[str]:
    return [path.removeprefix(f"{folder}/") for path in paths]


def _prepare_scan(folder: Path) -> Work:
    from cosplace.photos.scanning import scan_images

    return lambda: scan_images(folder)


def _reveal_scan(_: Path, images: "ImageList") -> list[str]:
    return images.names.tobytes().decode().splitlines()


def _compare_lists(plain: list[str], ours: list[str]) -> str | None:
    if plain == ours:
        return None
    return f"{len(plain)} against {len(ours)} photos, or another order"


# --- the start -------------------------------------------------------------------------------------------------------


def _prepare_help(_: None) -> Work:
    command = [sys.executable, "-m", "cosplace", "--help"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return lambda: subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def _compare_help(_: None, text: str) -> str | None:
    return None if "train" in text and "eval" in text else f"--help does not name the commands: {text[:100]!r}"


STAGES = (
    Stage(
        name="open-groups",
        title="opening cached groups, all 8",
        unit="names",
        make_inputs=_make_cached,
        plain=Side(prepare=_prepare_pickles, reveal=_reveal_pickles),
        ours=Side(prepare=_prepare_mapped, reveal=_reveal_mapped),
        compare=different,
        full_size=1_000_000,
        quick_size=100_000,
        targets={"cpu_ratio": 500.0, "wall_ratio": 500.0, "pages_shared": True},
        quick_targets={"cpu_ratio": 100.0, "wall_ratio": 100.0, "pages_shared": True},
        growth_sizes=(250_000, 500_000, 1_000_000),
        imports=("torch", "cosplace.training.groups"),
        finding=_pages_shared,
    ),
    Stage(
        name="scan",
        title="scanning a folder",
        unit="files",
        make_inputs=_make_files,
        plain=Side(prepare=_prepare_glob, reveal=_reveal_glob),
        ours=Side(prepare=_prepare_scan, reveal=_reveal_scan),
        compare=_compare_lists,
        full_size=200_000,
        quick_size=20_000,
        targets={"cpu_ratio": 2.0, "wall_ratio": 2.0},
        growth_sizes=(50_000, 100_000, 200_000),
        imports=("cosplace.photos.scanning",),
    ),
    Stage(
        name="help",
        title="cosplace --help",
        unit="start",
        make_inputs=lambda *_: None,
        ours=Side(prepare=_prepare_help),
        compare=_compare_help,
        full_size=1,
        quick_size=1,
        targets={"most_cpu_s": 0.2},
        memory=None,
    ),
)
