"""The pixels of an indexed photo: its file, or its thumbnail."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from cosplace.index.photo_index import create_index
from cosplace.index.photo_pixels import photo_pixels
from cosplace.index.records import ModelSpec, NewPhoto
from tests.synthetic_dataset import place_image


def test_the_thumbnail_replaces_a_missing_file(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(place_image(1, 1)).save(buffer, "JPEG")
    photos = [
        NewPhoto(path="/gone/1.jpg", key="1", thumbnail=buffer.getvalue()),
        NewPhoto(path="/gone/2.jpg", key="2"),
    ]
    with create_index(tmp_path / "index", ModelSpec(model="m", checksum="c", dimension=4)) as index:
        index.add(photos, np.eye(2, 4, dtype=np.float32))
        ids = index.columns().ids
        assert photo_pixels(index, int(ids[0]), "/gone/1.jpg").shape == (3, 64, 64)
        assert photo_pixels(index, int(ids[1]), "/gone/2.jpg") is None
