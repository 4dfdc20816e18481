"""The card of the best model: training photos and validation matches."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cosplace.geo import destination, ecef_from_lla
from cosplace.models.training_card import TrainingCard, card_entries, read_training_card
from cosplace.models.weight_files import write_weights
from cosplace.photos.scanning import scan_images
from cosplace.photos.viewpoints import SEEN, UNSEEN, digest_of, viewpoints_of_names
from cosplace.retrieval.dataset import open_retrieval_dataset
from cosplace.retrieval.evaluation import evaluate_descriptors
from cosplace.training import loop
from cosplace.training.best_model import BEST_MODEL
from cosplace.training.data import open_training_data
from cosplace.training.loop import train
from cosplace.training.seen_photos import _east_north, digest_training_photos, validation_matches
from cosplace.training.setup import prepare
from tests.places import units
from tests.synthetic_dataset import settings, write_dataset


def write_placed_dataset(folder: Path, num_places: int) -> Path:
    """A dataset whose names have no latitude and longitude: those of the helper are the same for all photos."""
    for path in sorted(write_dataset(folder, num_places=num_places).rglob("@*")):
        fields = path.name.split("@")
        path.rename(path.with_name("@".join([*fields[:5], "", "", *fields[7:]])))
    return folder


def test_the_digest_has_the_photos_of_the_groups_that_are_trained_on(tmp_path: Path) -> None:
    folder = write_placed_dataset(tmp_path, num_places=8)
    data = open_training_data(settings(folder, groups_num=1, N=2, L=1, M=10))
    digest = digest_training_photos(data)
    assert digest is not None
    group = data.groups[0]
    trained = {group.image_name(row) for row in range(group.num_images)}
    images = scan_images(folder / "train")
    status = digest.status(viewpoints_of_names(images))
    assert 0 < len(trained) < len(images)
    for row in range(len(images)):
        assert status[row] == (SEEN if images.name(row) in trained else UNSEEN)


def test_a_photo_without_a_zone_is_left_out_with_a_warning(tmp_path: Path, caplog) -> None:
    folder = write_placed_dataset(tmp_path, num_places=8)
    first = sorted((folder / "train").rglob("@*"))[0]
    fields = first.name.split("@")
    first.rename(first.with_name("@".join([*fields[:3], "", "", *fields[5:]])))
    data = open_training_data(settings(folder, groups_num=1, N=1, L=1, M=10, alpha=360, min_images_per_class=1))
    with caplog.at_level("WARNING"):
        digest = digest_training_photos(data)
    assert digest is not None and digest.num_photos == data.groups[0].num_images - 1
    assert "1 of the training photos have no zone" in caplog.text


def test_photos_of_the_model_that_training_starts_from_are_kept(tmp_path: Path) -> None:
    folder = write_placed_dataset(tmp_path / "data", num_places=4)
    data = open_training_data(settings(folder, min_images_per_class=1, groups_num=1, L=1))
    before = viewpoints_of_names(scan_images(folder / "test" / "database"))
    card = card_entries(TrainingCard(photos=digest_of([before]), matches=None))
    write_weights(tmp_path / "start.safetensors", {"a": torch.zeros(1)}, card)
    digest = digest_training_photos(data, tmp_path / "start.safetensors")
    assert digest is not None and (digest.status(before) == SEEN).all()
    assert (digest.status(viewpoints_of_names(scan_images(folder / "train"))) == SEEN).all()
    assert digest_training_photos(data, tmp_path / "gone.pth") is not None


def test_matches_of_the_validation(tmp_path: Path) -> None:
    folder = write_placed_dataset(tmp_path, num_places=2)
    (folder / "val" / "queries" / "@569000.00@4180000.00@10@S@@@p5000@@0@@@@202001@@.jpg").touch()  # without positives
    dataset = open_retrieval_dataset(folder / "val")
    rng = np.random.default_rng(0)
    database, queries = (units(rng.standard_normal((len(images), 8))) for images in (dataset.database, dataset.queries))
    evaluation = evaluate_descriptors(database, queries, dataset, recall_values=(1,), num_predictions=6)
    seen = [row for row in range(len(dataset.queries)) if row % 3 == 0]
    photos = digest_of([viewpoints_of_names(dataset.queries.subset(seen))])
    found = validation_matches(photos, evaluation, dataset)
    kept = [row for row in range(len(dataset.queries)) if row not in seen and "@p5000" not in dataset.queries.name(row)]
    assert found is not None and found.similarities.shape == (len(kept), 6)
    similarities = queries[kept] @ database.T
    best = np.argsort(-similarities, axis=1)[:, :6]
    assert found.similarities == pytest.approx(np.take_along_axis(similarities, best, 1), abs=1e-5)
    offsets_m = dataset.database_positions[best] - dataset.query_positions[kept][:, None]
    assert found.east_m == pytest.approx(offsets_m[..., 0]) and found.north_m == pytest.approx(offsets_m[..., 1])
    native = replace(evaluation, image_size=None, views={"flip": False})
    described = validation_matches(photos, native, dataset)
    assert described is not None and described.described is not None
    with Image.open(dataset.queries.path(kept[0])) as photo:
        side = min(photo.size)
    assert described.described == {"image_size": None, "flip": False, "usual_size": side}
    assert validation_matches(digest_of([viewpoints_of_names(dataset.queries)]), evaluation, dataset) is None


def test_offsets_between_points_in_space_are_east_and_north() -> None:
    latitudes, longitudes = np.array([0.0, 60.0, -35.0]), np.array([0.0, 179.9999, -70.0])
    east_m, north_m = np.array([300.0, -40.0, 5.0]), np.array([-20.0, 400.0, -7.0])
    there = ecef_from_lla(*destination(latitudes, longitudes, east_m, north_m))
    origins = ecef_from_lla(latitudes, longitudes)
    found = _east_north(origins, (there - origins)[:, None])
    assert found[0][:, 0] == pytest.approx(east_m, abs=0.1) and found[1][:, 0] == pytest.approx(north_m, abs=0.1)


def test_a_network_that_stays_best_before_training_was_trained_on_no_photo(tmp_path: Path) -> None:
    folder = write_placed_dataset(tmp_path / "data", 24)
    train(prepare(settings(folder, lr=0.0, epochs_num=1, iterations_per_epoch=1)), tmp_path / "run")
    card = read_training_card(tmp_path / "run" / BEST_MODEL)
    assert card is not None and card.matches is not None and card.photos.num_photos == 0
    assert (card.photos.status(viewpoints_of_names(scan_images(folder / "train"))) == UNSEEN).all()


@pytest.mark.slow
def test_a_run_writes_the_card(tmp_path: Path, monkeypatch) -> None:
    folder = write_placed_dataset(tmp_path / "data", 24)
    monkeypatch.setattr(loop, "judge_start", lambda run: None)  # so that an epoch is the best
    train(prepare(settings(folder)), tmp_path / "run")
    card = read_training_card(tmp_path / "run" / BEST_MODEL)
    assert card is not None and card.matches is not None and len(card.matches) == 12
    assert (card.photos.status(viewpoints_of_names(scan_images(folder / "train"))) == SEEN).any()
    assert (card.photos.status(viewpoints_of_names(scan_images(folder / "test" / "database"))) == UNSEEN).all()
