"""Photos with EXIF, for tests of the import."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from cosplace.config.importing import ImportSettings
from cosplace.importing.import_run import ImportResult, run_import
from cosplace.photos.tables import TABLE_NAME, PhotoRecord, from_table, read_table
from tests.photos.exif_blocks import RATIONAL, Tag, Tags, ascii_tag, degrees, exif_block, exif_segment

ACME: Tags = {0x010F: ascii_tag("Acme"), 0x0110: ascii_tag("Cam 1")}


def jpeg_pixels(seed: int = 0, size: tuple[int, int] = (16, 12)) -> bytes:
    """A JPEG of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def gps_tags(latitude: float, longitude: float, heading: float | None = None) -> dict[int, Tag]:
    """GPS tags as a phone writes them."""
    tags = {
        1: ascii_tag("S" if latitude < 0 else "N"), 2: degrees(latitude),
        3: ascii_tag("W" if longitude < 0 else "E"), 4: degrees(longitude),
    }  # fmt: skip
    if heading is not None:
        tags |= {16: ascii_tag("T"), 17: Tag(RATIONAL, [(round(heading * 100), 100)])}
    return tags


def write_photo(
    path: Path,
    latitude: float | None = None,
    longitude: float = 0.0,
    heading: float | None = None,
    *,
    seed: int | None = None,
    taken: Tags | None = None,
    gps: Mapping[int, Tag] = {},
    image: Tags | None = ACME,
) -> Path:
    """A photo with the position and heading in EXIF; seed: of its pixels, by default another one for each name."""
    raw = jpeg_pixels(sum(path.name.encode()) if seed is None else seed)
    tags = gps_tags(latitude, longitude, heading) if latitude is not None else {}
    block = exif_block({**tags, **gps}, taken, image)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw[:2] + exif_segment(block) + raw[2:])
    return path


def rows_of(dataset: Path) -> dict[str, PhotoRecord]:
    """The rows of a dataset, by path."""
    return {record.path: record for record in from_table(read_table(dataset / TABLE_NAME))}


def import_all(
    *sources: Path, to: Path | None, settings: ImportSettings | None = None, **options: bool
) -> ImportResult:
    """Run an import."""
    return run_import(sources, to, settings or ImportSettings(), **options)
