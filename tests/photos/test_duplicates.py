"""Near-duplicates: copies that were encoded again or resized are found, other photos are not."""

import io
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from cosplace.photos.duplicates import (
    COLUMNS,
    MAX_BITS,
    ROWS,
    _close_pairs,
    difference_hashes,
    find_near_duplicates,
    gray_thumbnail,
)
from tests.synthetic_dataset import landscape

NUM_SCENES = 150


def encoded_again(pixels: np.ndarray, quality: int, scale: float) -> np.ndarray:
    image = Image.fromarray(pixels)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


@pytest.fixture(scope="module")
def scenes() -> list[np.ndarray]:
    return [landscape(number) for number in range(NUM_SCENES)]


@pytest.mark.slow
@pytest.mark.parametrize(("quality", "scale"), [(90, 1.0), (30, 1.0), (75, 0.5), (85, 2.0)])
def test_copies_are_found_and_nothing_else(scenes: list[np.ndarray], quality: int, scale: float) -> None:
    copies = [encoded_again(pixels, quality, scale) for pixels in scenes]
    pairs = find_near_duplicates(np.stack([gray_thumbnail(pixels) for pixels in scenes + copies]))
    expected = {(number, number + NUM_SCENES) for number in range(NUM_SCENES)}
    found = set(map(tuple, pairs.tolist()))
    assert len(found & expected) >= 0.99 * NUM_SCENES  # recall
    assert len(found - expected) <= 0.01 * NUM_SCENES  # precision


def test_flat_and_mirrored_photos_are_no_duplicates(scenes: list[np.ndarray]) -> None:
    flat = [np.full((50, 60, 3), value, np.uint8) for value in (0, 0, 128, 255)]
    mirrored = [pixels[:, ::-1].copy() for pixels in scenes[:20]]
    thumbnails = np.stack([gray_thumbnail(pixels) for pixels in (*flat, *scenes[:20], *mirrored)])
    assert thumbnails.shape == (44, ROWS, COLUMNS)
    assert not len(find_near_duplicates(thumbnails))
    assert find_near_duplicates(thumbnails[:0]).shape == (0, 2)


def test_many_equal_photos(scenes: list[np.ndarray]) -> None:
    thumbnails = np.stack([gray_thumbnail(scenes[0])] * 5000)
    assert set(find_near_duplicates(thumbnails)[:, 1].tolist()) == set(range(1, 5000))


def test_close_hashes_are_those_of_a_comparison_of_all_pairs() -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(0, 1 << 63, 300, dtype=np.uint64)
    for row in range(150):  # 0 to 9 bits changed
        bits = random.choice(64, row % 10, replace=False)
        hashes[row + 150] = hashes[row] ^ np.uint64(sum(1 << int(bit) for bit in bits))
    hashes = np.unique(hashes)
    expected = {
        (a, b)
        for a, b in combinations(range(len(hashes)), 2)
        if (int(hashes[a]) ^ int(hashes[b])).bit_count() <= MAX_BITS
    }
    assert len(expected) > 50
    assert set(map(tuple, _close_pairs(hashes).tolist())) == expected


def test_a_hash_by_hand() -> None:
    rising = np.tile(np.arange(COLUMNS, dtype=np.uint8) * 10, (ROWS, 1))
    assert difference_hashes(np.stack([rising, rising[:, ::-1]])).tolist() == [2**64 - 1, 0]
