"""A small dataset with a model and two indexes of its database, for tests of localization and the command line."""

from pathlib import Path
from unittest.mock import patch

import torch

from cosplace.engines.encoder import load_model
from cosplace.index.photo_index import create_index
from cosplace.index.records import ModelSpec, NewPhoto
from cosplace.localization.calibration import calibrate
from cosplace.models.network import GeoLocalizationNet
from cosplace.photos.scanning import scan_images
from tests.synthetic_dataset import write_dataset

SIDE = 48  # pixels of the shorter side


def write_indexed_city(folder: Path) -> Path:
    """Write the dataset `city`, the weights `model.pth`, the calibrated index `index` and `bare`, one without."""
    write_dataset(folder / "city", num_places=2)
    torch.manual_seed(0)
    torch.save(GeoLocalizationNet("ResNet18_Small", 16).state_dict(), folder / "model.pth")
    model = load_model(folder / "model.pth", image_size=SIDE, device="cpu")
    images = scan_images(folder / "city" / "test" / "database")
    spec = ModelSpec(model=model.name, checksum=model.checksum, dimension=model.dimension, image_size=SIDE)
    paths = [images.path(row) for row in range(len(images))]
    east = [float(path.name.split("@")[1]) for path in paths]
    photos = [
        NewPhoto(path=str(path), key=path.name, latitude=37.7, longitude=-122.4 + (x - 550_000) / 88_000, time=1e9 + n)
        for n, (path, x) in enumerate(zip(paths, east, strict=True))
    ]
    with create_index(folder / "index", spec) as index:
        index.add(photos, model.encode(paths))
        with patch("cosplace.localization.calibration.MIN_PHOTOS", 10):  # in tests, the photos are few
            calibrate(index, encoder=model, num_altered=8)
    with create_index(folder / "bare", spec) as index:
        index.add(photos, model.encode(paths))
    return folder


def queries(city: Path) -> list[Path]:
    """Paths of the queries."""
    images = scan_images(city / "city" / "test" / "queries_v1")
    return [images.path(row) for row in range(len(images))]
