"""Subsets and even samples of a list of photos."""

from pathlib import Path

import pytest

from cosplace.photos.image_list import evenly_spaced, image_list

NAMES = [f"folder/{number:02d}.jpg" for number in range(10)]


@pytest.mark.parametrize(
    ("count", "rows"),
    [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, list(range(10))), (25, list(range(10))), (0, [])],
)
def test_evenly_spaced_rows(count: int, rows: list[int]) -> None:
    assert evenly_spaced(image_list(Path("photos"), NAMES), count) == rows


def test_an_empty_list_has_no_rows() -> None:
    assert evenly_spaced(image_list(Path("photos"), []), 5) == []


@pytest.mark.parametrize("rows", [[], [3], [0, 4, 9], range(2, 5)])
def test_a_subset_has_the_photos_of_its_rows(rows: list[int]) -> None:
    images = image_list(Path("photos"), NAMES)
    subset = images.subset(rows)
    assert len(subset) == len(rows)
    assert [subset.path(row) for row in range(len(subset))] == [images.path(row) for row in rows]
