"""The photos and the weights of the comparison.

Photos have 512 x 512 pixels and about 85 KB, as in SF-XL.  Without a folder of photos, each place is a generated photo
and its views are crops of it.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from benchmarks.photos import QUALITY, SIDE, generate_photo
from benchmarks.plain_network import MEAN, STD
from cosplace.errors import DatasetError
from cosplace.photos.scanning import scan_images

if TYPE_CHECKING:
    import torch

VIEWS_PER_PLACE = 10  # one of them is a query
MARGIN = 64  # pixels by which a view is smaller than its place
AWAY_M = 10_000.0  # mirrored photos show other places, this far to the east
EAST_M, NORTH_M = 500_000.0, 4_180_000.0  # of the first generated place
DIMENSION = 512
NUM_CENTERED = 32  # photos whose mean descriptor becomes zero


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSet:
    """Folders of photos with '@' names."""

    database: Path
    queries: Path
    num_photos: int


def write_test_set(folder: Path, num_photos: int, source: Path | None, side: int = SIDE) -> TestSet:
    """Write `num_photos` photos, every tenth as a query.

    source: photos with '@' names to copy; if there are too few, their mirror images follow.  side: of generated photos.
    Raises DatasetError if `source` has less than half of the photos.
    """
    test_set = TestSet(database=folder / "database", queries=folder / "queries", num_photos=num_photos)
    for part in (test_set.database, test_set.queries):
        part.mkdir(parents=True)
    files = _generated(num_photos, side) if source is None else _copied(source, num_photos)
    for number, (name, content) in enumerate(files):
        part = test_set.database if number % VIEWS_PER_PLACE else test_set.queries
        (part / name).write_bytes(content)
    return test_set


def _generated(num_photos: int, side: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of generated photos.  Places are 100 m apart."""
    for number in range(num_photos):
        place, view = divmod(number, VIEWS_PER_PLACE)
        if view == 0:
            whole = Image.open(io.BytesIO(generate_photo(place, side + MARGIN)))
        rng = np.random.default_rng((place, view))
        left, top = rng.integers(0, MARGIN, 2).tolist()
        yield (
            _name(EAST_M + 100 * place + view, NORTH_M, number),
            _jpeg(whole.crop((left, top, left + side, top + side))),
        )


def _copied(source: Path, num_photos: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the photos of a folder, then of their mirror images."""
    images = scan_images(source)
    if 2 * len(images) < num_photos:
        raise DatasetError(
            f"{source} has {len(images):,} photos, and {num_photos:,} need at least half as many. Use a smaller --size."
        )
    paths = [images.path(row) for row in range(min(len(images), num_photos))]
    for number, path in enumerate(paths):
        fields = path.name.split("@")
        yield _name(float(fields[1]), float(fields[2]), number), path.read_bytes()
    for number, path in enumerate(paths[: num_photos - len(paths)], start=len(paths)):
        fields = path.name.split("@")
        with Image.open(path) as photo:
            yield (
                _name(float(fields[1]) + AWAY_M, float(fields[2]), number),
                _jpeg(ImageOps.mirror(photo.convert("RGB"))),
            )


def _name(east_m: float, north_m: float, number: int) -> str:
    return f"@{east_m:010.2f}@{north_m:010.2f}@10@S@@@{number:06d}@@0@@@@@@.jpg"


def _jpeg(photo: Image.Image) -> bytes:
    content = io.BytesIO()
    photo.save(content, "JPEG", quality=QUALITY)
    return content.getvalue()


def write_weights(file: Path, photos: Path | None = None, image_size: int = SIDE) -> None:
    """Write random weights of a ResNet-18 in the layout of the released ones, the same each time.

    photos: folder; the mean descriptor of some of its photos becomes zero.  Without that, all descriptors of a random
    network are nearly equal, and rounding decides which is the nearest.
    """
    import torch

    from cosplace.models.network import GeoLocalizationNet

    network = GeoLocalizationNet("ResNet18", DIMENSION, generator=torch.Generator().manual_seed(0)).eval()
    if photos is not None:
        linear = next(layer for layer in network.aggregation if isinstance(layer, torch.nn.Linear))
        outputs: list[torch.Tensor] = []
        linear.register_forward_hook(lambda layer, inputs, output: outputs.append(output))
        with torch.inference_mode():
            for path in sorted(photos.iterdir())[:NUM_CENTERED]:
                network(_normalized(path, image_size))
        linear.bias.data -= torch.cat(outputs).mean(0).clone()
    torch.save(network.state_dict(), file)


def _normalized(path: Path, image_size: int) -> "torch.Tensor":
    """The input of a network for a photo, (1, 3, H, W)."""
    import torchvision.transforms.functional as F

    with Image.open(path) as photo:
        pixels = F.to_tensor(F.resize(photo.convert("RGB"), [image_size]))
    return F.normalize(pixels, MEAN, STD)[None]
