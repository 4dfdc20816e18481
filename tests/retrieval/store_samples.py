"""Photos, networks and stores for tests of stores of descriptors."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cosplace.models.network import GeoLocalizationNet, new_network
from cosplace.photos.image_list import ImageList, image_list
from cosplace.photos.names import format_image_name
from cosplace.photos.scanning import scan_images
from cosplace.retrieval.extraction import ExtractionSettings, extraction_meta
from cosplace.retrieval.shards import META, StoreMeta, write_shard_file
from cosplace.retrieval.store_files import open_files
from cosplace.retrieval.stored_codes import fit_codes, is_code, stored_rows
from cosplace.retrieval.stored_photos import write_photos


def small_network() -> GeoLocalizationNet:
    return new_network(
        backbone="ResNet18_Small", fc_output_dim=32, train_all_layers=True, imagenet_weights="none", seed=0
    )


def write_model(path: Path) -> Path:
    torch.save(small_network().state_dict(), path)
    return path


def place_name(number: int, offset_m: float = 0.0, note: str = "") -> str:
    """'@' name of a photo; consecutive numbers are 100 m apart."""
    return format_image_name(
        utm_east=550_000.0 + 100 * number + offset_m, utm_north=4_180_000.0, zone=10, letter="S", latitude=37.7,
        longitude=-122.4, heading=0, timestamp="202001", note=note,
    )  # fmt: skip


def write_photos_folder(folder: Path, count: int, side: int = 48, offset_m: float = 0.0) -> ImageList:
    """Photos with '@' names and blocks of random colors; those of the same number have the same content."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        blocks = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
        width = side if number % 3 else side + 16  # two sizes, so that batches are mixed
        image = Image.fromarray(blocks).resize((width, side), Image.Resampling.NEAREST)
        image.save(folder / place_name(number, offset_m), quality=90)
    return scan_images(folder)


def unit_rows(count: int, dimension: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_store(
    address: str | Path,
    descriptors: np.ndarray,
    *,
    dtype: str = "float32",
    shard_rows: int = 100,
    offset_m: float = 0.0,
    folder: str = "/photos",
) -> None:
    """A complete store of given descriptors (I, D), of photos that do not exist, 100 m apart."""
    images = image_list(Path(folder), [place_name(number, offset_m) for number in range(len(descriptors))])
    settings = ExtractionSettings(shard_rows=shard_rows)
    codes = fit_codes(dtype, descriptors[:512]) if is_code(dtype) else None
    extraction = extraction_meta(images, settings, "checksum")
    values = {name: getattr(extraction, name) for name in extraction.__slots__} | {"dtype": dtype}
    meta = StoreMeta(extraction=type(extraction)(**values), dimension=descriptors.shape[1], codes=codes)
    files = open_files(address)
    files.create(META, meta.text().encode())
    write_photos(files, images)
    for number in range(extraction.num_shards):
        rows = extraction.shard(number)
        block = descriptors[rows.start : rows.stop].astype("float16" if dtype == "float16" else "float32")
        write_shard_file(files, number, meta, rows=stored_rows(block, meta), unreadable=[])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
