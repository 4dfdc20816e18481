"""Scanning a folder of photos, and whole commands from their start: --help, and locating one photo.

The growth of `locate` is that of its index, whose rows are synthetic.
"""

import glob
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.stage import Options, Side, Stage, Work

if TYPE_CHECKING:
    from cosplace.photos.image_list import ImageList

FILES_PER_FOLDER = 500
LINKS_PER_FILE = 10_000  # file systems limit the number of links to a file


# --- scanning --------------------------------------------------------------------------------------------------------


def _make_files(folder: Path, size: int, _: Options) -> Path:
    """Empty files with '@' names, 500 per folder.  Most are hard links, which are faster to create than files."""
    rng = np.random.default_rng(0)
    east, north = rng.integers(0, 10_000_000, (2, size)) / 100
    original = ""
    for first in range(0, size, FILES_PER_FOLDER):
        inside = folder / "train" / f"{37 + first / 100_000:.3f}"
        inside.mkdir(parents=True)
        for i in range(first, min(first + FILES_PER_FOLDER, size)):
            name = f"@{540_000 + east[i]:010.2f}@{4_170_000 + north[i]:010.2f}@10@S@037.77510@-122.42940@{i:022d}@@"
            path = f"{inside}/{name}{i % 360}@@@@201311@@.jpg"
            if i % LINKS_PER_FILE:
                os.link(original, path)
            else:
                original = path
                Path(path).touch()
    return folder / "train"


def _prepare_glob(folder: Path) -> Work:
    return lambda: sorted(glob.glob(f"{folder}/**/*.jpg", recursive=True))  # noqa: PTH207 - the usual recipe


def _glob_output(folder: Path, paths: list[str]) -> list[str]:
    return [path.removeprefix(f"{folder}/") for path in paths]


def _prepare_scan(folder: Path) -> Work:
    from cosplace.photos.scanning import scan_images

    return lambda: scan_images(folder)


def _scan_output(_: Path, images: "ImageList") -> list[str]:
    return images.names.tobytes().decode().splitlines()


def _compare_lists(plain: list[str], ours: list[str]) -> str | None:
    if plain == ours:
        return None
    return f"{len(plain)} photos by plain, {len(ours)} by ours, or another order"


# --- --help ----------------------------------------------------------------------------------------------------------


def _prepare_help(_: None) -> Work:
    command = [sys.executable, "-m", "cosplace", "--help"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return lambda: subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def _compare_help(_: None, text: str) -> str | None:
    return None if "train" in text and "eval" in text else f"--help does not list the commands: {text[:100]!r}"


# --- locating one photo ----------------------------------------------------------------------------------------------

IMPORT_TORCH = "import torch; print(torch.get_num_threads() > 0)"  # what a plain program of one's own starts with


def _make_index(folder: Path, size: int, _: Options) -> list[str]:
    """The words of a command that locates a photo in an index of `size` photos."""
    import torch
    from PIL import Image

    from benchmarks.index import PHOTOS_PER_PLACE, ROWS_PER_ADD, SyntheticPlaces
    from cosplace.engines.encoder import load_model
    from cosplace.index.photo_index import create_index
    from cosplace.index.records import ModelSpec
    from cosplace.models.network import GeoLocalizationNet

    network = GeoLocalizationNet("ResNet18", 512, generator=torch.Generator().manual_seed(0))
    torch.save(network.state_dict(), folder / "model.pth")
    model = load_model(folder / "model.pth", image_size=224, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((640, 480)).save(folder / "photo.jpg")
    world = SyntheticPlaces(max(1, size // PHOTOS_PER_PLACE))
    spec = ModelSpec(model=model.name, checksum=model.checksum, dimension=model.dimension, image_size=224)
    with create_index(folder / "index", spec) as index:
        for first in range(0, size, ROWS_PER_ADD):
            rows = np.arange(first, min(first + ROWS_PER_ADD, size))
            places = np.minimum(rows // PHOTOS_PER_PLACE, world.num_places - 1)
            index.add(world.photos(places, first), world.descriptors(places, 100 + first))
        index.update_search()
    options = ["--index", str(folder / "index"), "--uncalibrated", "--json", "--device", "cpu"]
    return ["-m", "cosplace", "locate", str(folder / "photo.jpg"), *options]


def _prepare_locate(words: list[str]) -> Work:
    return _program(words)


def _prepare_torch(_: list[str]) -> Work:
    return _program(["-c", IMPORT_TORCH])


def _program(words: list[str]) -> Work:
    """Runs Python once before, so that files are in the cache of the system."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def work() -> str:
        command = [sys.executable, *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    work()
    return work


def _compare_locate(torch_is_there: str, text: str) -> str | None:
    answer = json.loads(text)
    return None if torch_is_there.strip() == "True" and answer["neighbours"] else f"no neighbors: {text[:100]!r}"


STAGES = (
    Stage(
        name="scan",
        title="scanning a folder",
        unit="files",
        make_inputs=_make_files,
        plain=Side(prepare=_prepare_glob, output=_glob_output),
        ours=Side(prepare=_prepare_scan, output=_scan_output),
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
    Stage(
        name="locate",
        title="cosplace locate, one photo, beside `import torch` alone",
        unit="photos in the index",
        make_inputs=_make_index,
        plain=Side(prepare=_prepare_torch),
        ours=Side(prepare=_prepare_locate),
        compare=_compare_locate,
        full_size=1_000,
        quick_size=1_000,
        targets={"cpu_ratio": 0.6, "wall_ratio": 0.6},
        growth_sizes=(1_000, 10_000, 100_000),
        memory=None,
    ),
)
