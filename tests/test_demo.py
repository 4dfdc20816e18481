"""The demo's parts; the whole of it is `make demo`."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="the demo needs numba")

from cosplace.config.sections import Grouping, TrainConfig
from cosplace.config.values import from_values
from cosplace.demo import RECIPE, in_used_groups, recall_table
from cosplace.photos.image_list import image_list
from cosplace.report.contents import RecallRow
from cosplace.training.groups import partition


def test_only_images_of_the_used_groups_are_made() -> None:
    rng = np.random.default_rng(0)
    east, north = rng.uniform(550_000, 550_200, 500).round(2), rng.uniform(4_180_000, 4_180_200, 500).round(2)
    heading = rng.integers(0, 12, 500) * 30
    grouping = Grouping(M=20, N=2, L=2, groups_num=3, min_images_per_class=2)
    used = in_used_groups(east, north, heading, grouping)
    assert 0 < used.sum() < 500
    names = [
        f"@{e:.2f}@{n:.2f}@@@@@{i}@@{h}@@@@@@.jpg" for i, (e, n, h) in enumerate(zip(east, north, heading, strict=True))
    ]
    whole = partition(image_list(Path(), names), grouping)
    kept = partition(image_list(Path(), [name for name, keep in zip(names, used, strict=True) if keep]), grouping)
    assert kept.counts() == whole.counts()[:3]


def test_recipe_is_a_valid_training() -> None:
    config = from_values(TrainConfig, RECIPE)
    assert config.departures.whitened_start
    assert config.model.backbone == "ResNet18_Small"


def test_table() -> None:
    rows = [
        RecallRow(name="chance", recalls={1: 1.25, 5: 6.0}),
        RecallRow(name="trained network", recalls={1: 50.0, 5: 100.0}),
    ]
    assert recall_table(rows).splitlines() == [
        "                    R@1     R@5",
        "chance              1.2     6.0",
        "trained network    50.0   100.0",
    ]
