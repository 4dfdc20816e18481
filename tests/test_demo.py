"""Parts of the demo; `make demo` runs all of it."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="the demo needs numba")

from cosplace.config.sections import Grouping, TrainConfig
from cosplace.config.values import from_values
from cosplace.demo import RECIPE, is_in_used_group, recall_table, summary_text
from cosplace.localization.answers import Location
from cosplace.photos.image_list import image_list
from cosplace.report.data import RecallRow
from cosplace.training.groups import partition


def test_images_of_used_groups_are_kept_and_no_others() -> None:
    rng = np.random.default_rng(0)
    east, north = rng.uniform(550_000, 550_200, 500).round(2), rng.uniform(4_180_000, 4_180_200, 500).round(2)
    heading = rng.integers(0, 12, 500) * 30
    grouping = Grouping(M=20, N=2, L=2, groups_num=3, min_images_per_class=2)
    used = is_in_used_group(east, north, heading, grouping)
    assert 0 < used.sum() < 500
    names = [
        f"@{e:.2f}@{n:.2f}@@@@@{i}@@{h}@@@@@@.jpg" for i, (e, n, h) in enumerate(zip(east, north, heading, strict=True))
    ]
    whole = partition(image_list(Path(), names), grouping)
    kept = partition(image_list(Path(), [name for name, keep in zip(names, used, strict=True) if keep]), grouping)
    assert kept.counts() == whole.counts()[:3]


def test_the_recipe_is_valid() -> None:
    config = from_values(TrainConfig, RECIPE)
    assert config.extensions.whitened_start
    assert config.model.backbone == "ResNet18_Small"


def test_the_table_is_aligned() -> None:
    rows = [
        RecallRow(name="chance", recalls={1: 1.25, 5: 6.0}),
        RecallRow(name="trained network", recalls={1: 50.0, 5: 100.0}),
    ]
    assert recall_table(rows).splitlines() == [
        "                    R@1     R@5",
        "chance              1.2     6.0",
        "trained network    50.0   100.0",
    ]


def location(latitude: float | None) -> Location:
    unknown = latitude is None
    return Location(
        photo="q.jpg", latitude=latitude, longitude=None if unknown else 7.0, radius_m=None, confidence=0.9,
        unknown=unknown, reason="", neighbours=(),
    )  # fmt: skip


def test_the_summary_counts_correct_and_unknown_answers() -> None:
    text = summary_text([location(None), location(45.0), location(46.0)], [None, 3.0, 80.0])
    assert text.startswith("3 photos: 1 unknown, 2 located, 1 of them within 25 m (median error 41.5 m)")
    assert "45.000000, 7.000000" in text
    assert "true position 3.0 m away" in text
    assert summary_text([location(None)], [None]) == "1 photo: 1 unknown"
