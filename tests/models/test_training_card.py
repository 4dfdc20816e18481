"""The training card: what a model's file says about its training, also for the .pth file beside it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cosplace.errors import CheckpointError
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.training_card import (
    TRAINING_PHOTOS,
    VALIDATION_MATCHES,
    TrainingCard,
    ValidationMatches,
    card_entries,
    read_training_card,
    training_entries,
)
from cosplace.models.views import how_described
from cosplace.models.weight_files import write_weights
from cosplace.photos.viewpoints import ViewpointDigest
from cosplace.training.best_model import BEST_MODEL, BEST_MODEL_SAFE, save_best_model


def make_card(num_queries: int = 40, num_matches: int = 7) -> TrainingCard:
    rng = np.random.default_rng(0)
    shape = num_queries, num_matches
    return TrainingCard(
        photos=ViewpointDigest(num_photos=3, every=1, hashes=np.array([1, 2, 7], np.uint32)),
        matches=ValidationMatches(
            similarities=np.sort(rng.uniform(0, 1, shape))[:, ::-1], east_m=rng.normal(0, 3000, shape),
            north_m=rng.normal(0, 3000, shape), described=how_described(320),
        ),
        held_out=ViewpointDigest(num_photos=2, every=1, hashes=np.array([3, 9], np.uint32)),
    )  # fmt: skip


def test_the_best_model_has_the_card_also_as_pth(tmp_path: Path) -> None:
    card = make_card()
    network = GeoLocalizationNet("ResNet18_Small", 16)
    save_best_model(tmp_path, network, card_entries(card))
    for name in (BEST_MODEL, BEST_MODEL_SAFE):
        found = read_training_card(tmp_path / name)
        assert found is not None and found.matches is not None and card.matches is not None
        assert found.photos.hashes.tolist() == [1, 2, 7]
        assert found.held_out is not None and found.held_out.hashes.tolist() == [3, 9]
        assert found.matches.similarities == pytest.approx(card.matches.similarities, abs=6e-4)
        assert found.matches.described == how_described(320)
        assert found.matches.east_m == pytest.approx(card.matches.east_m, abs=0.06)
        assert found.matches.north_m == pytest.approx(card.matches.north_m, abs=0.06)
    # Another model beside the card.
    torch.save(GeoLocalizationNet("ResNet18_Small", 16).state_dict(), tmp_path / BEST_MODEL)
    assert read_training_card(tmp_path / BEST_MODEL) is None


def test_models_without_a_card(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    for model in (tmp_path / "a.pth", tmp_path / "none.pth", "cosplace_resnet50_512", "hub:owner/repo:entry(1)"):
        assert read_training_card(model) is None and training_entries(model) == {}
    only_photos = card_entries(TrainingCard(photos=make_card().photos, matches=None))
    assert set(only_photos) == {TRAINING_PHOTOS}
    write_weights(tmp_path / "b.safetensors", {"a": torch.zeros(1)}, only_photos)
    found = read_training_card(tmp_path / "b.safetensors")
    assert found is not None and found.matches is None and found.held_out is None


def test_damaged_cards_raise(tmp_path: Path) -> None:
    entries = card_entries(make_card())
    record = json.loads(entries[VALIDATION_MATCHES])
    for key, value in (
        ("queries", 10**9), ("queries", 41), ("matches", 0), ("data", ""), ("data", record["data"][:-30]), ("data", 5),
        ("described", {"usual_size": 10**400}), ("described", {"image_size": "9" * 10**6}), ("described", [1]),
        ("described", {"query_policy": "x" * 1000}), ("described", {"scales": ["a"]}), ("described", {"flip": 1}),
    ):  # fmt: skip
        damaged = entries | {VALIDATION_MATCHES: json.dumps(record | {key: value})}
        write_weights(tmp_path / "a.safetensors", {"a": torch.zeros(1)}, damaged)
        with pytest.raises(CheckpointError, match=r"a\.safetensors: .* damaged .* Copy the model again"):
            read_training_card(tmp_path / "a.safetensors")
