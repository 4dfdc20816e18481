"""Photos to calibrate with."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from cosplace.engines.encoder import Encoder
from cosplace.index.photo_index import PhotoIndex, create_index
from cosplace.index.records import ModelSpec, NewPhoto
from cosplace.localization import queries
from cosplace.localization.photo_changes import alter_photo
from cosplace.localization.queries import altered_queries, queries_of_folder
from cosplace.models.views import PLAIN_VIEWS
from cosplace.photos.metadata import PhotoMetadata, photo_key, read_metadata
from cosplace.photos.opening import open_image
from cosplace.photos.resizing import resize_shorter_side
from cosplace.progress import no_progress
from tests.synthetic_dataset import landscape, write_place

DIMENSION = 4
STUB = cast(Encoder, SimpleNamespace(dimension=DIMENSION, encode=lambda _: np.full((1, DIMENSION), 0.5, np.float32)))


def test_photos_of_uncertain_position_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = sorted(write_place(tmp_path, place, 0).name for place in range(12))

    def metadata(path: Path, raw: bytes, label: str | None) -> PhotoMetadata:
        known = read_metadata(path, raw, label)
        return replace(known, accuracy_m=1500.0) if path.name == names[0] else replace(known, accuracy_m=5.0)

    monkeypatch.setattr(queries, "read_metadata", metadata)
    rng: Any = np.random.default_rng(0)
    index = cast(PhotoIndex, SimpleNamespace(have_content=lambda _: np.array([False])))
    found = queries_of_folder(index, tmp_path, STUB, 100, rng, no_progress)
    assert len(found.rows) == 11
    assert found.descriptors.shape == (11, DIMENSION)


def test_photos_of_the_index_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Copies whose time is unknown are not hidden from themselves, so they would find themselves."""
    paths = [write_place(tmp_path / "photos", place, 0) for place in range(14)]
    entries = []
    for path in paths[:3]:
        raw = path.read_bytes()
        known = read_metadata(path, raw, None)
        entries.append(
            # Elsewhere, and in another direction: the content alone counts.
            NewPhoto(
                path=str(path),
                key=photo_key(raw, replace(known, latitude=1.0, heading=7.0)),
                latitude=1.0,
                longitude=2.0,
            )
        )
    rng: Any = np.random.default_rng(0)
    with create_index(tmp_path / "index", ModelSpec(model="m", checksum="c", dimension=DIMENSION)) as index:
        index.add(entries, np.full((3, DIMENSION), 0.5, np.float32))
        found = queries_of_folder(index, tmp_path / "photos", STUB, 100, rng, no_progress)
    assert len(found.rows) == 11
    assert "3 photos are left out: they are in the index" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_altered_photos_do_not_depend_on_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    paths = [write_place(tmp_path / "photos", place, 0) for place in range(20)]
    new = [NewPhoto(path=str(path), key=path.name, latitude=37.7, longitude=20.0) for path in paths]
    new[7] = replace(new[7], path="/gone.jpg")  # without a thumbnail, it cannot be altered
    encoder = cast(
        Encoder,
        SimpleNamespace(
            image_size=32, views=PLAIN_VIEWS, encode=lambda photos, batch_size: torch.stack(photos)[:, 0, 3, :4].numpy()
        ),
    )
    monkeypatch.setattr(queries, "loading_workers", lambda _: num_workers)
    with create_index(tmp_path / "index", ModelSpec(model="m", checksum="c", dimension=DIMENSION)) as index:
        index.add(new, np.full((20, DIMENSION), 0.5, np.float32))
        columns, counted = index.columns(), []
        found = altered_queries(
            index, encoder, columns, np.arange(1, 20), np.random.default_rng(3),
            lambda _, done, total: counted.append((done, total)),
        )  # fmt: skip
    assert found.rows.tolist() == [row for row in range(1, 20) if row != 7]
    assert counted == [(16, 39), (19, 39)]
    seed = int(np.random.default_rng(3).integers(2**63))
    expected = alter_photo(open_image(paths[12]), np.random.default_rng([seed, 12]), 32)
    assert found.descriptors[found.rows.tolist().index(12)].tolist() == expected[0, 3, :4].tolist()


def test_a_photo_altered_at_the_described_size_is_nearly_the_same() -> None:
    """Light and crop are the same as of the photo in full size that is resized afterwards."""
    photo = torch.from_numpy(landscape(3)).permute(2, 0, 1)
    small = alter_photo(photo, np.random.default_rng(5), 96)
    full = alter_photo(photo, np.random.default_rng(5))
    assert full.shape == photo.shape and small.shape == (3, 96, 128)
    resized = resize_shorter_side(full, 96)
    assert (small.float() - resized.float()).abs().mean() < 3
