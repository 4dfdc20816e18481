"""One flipped bit in each file of an index: an answer is right, or there is an error of ours."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from cosplace import open_index
from cosplace.config.index import IndexSettings
from cosplace.errors import CosPlaceError
from cosplace.index.photo_index import create_index
from cosplace.index.records import ModelSpec, NewPhoto

pytestmark = pytest.mark.slow

D, NUM_PHOTOS, NUM_QUERIES = 16, 300, 20


def rows(count: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((count, D)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    address = tmp_path_factory.mktemp("stored") / "index"
    photos = [
        NewPhoto(path=f"/photos/{n}.jpg", key=str(n), latitude=10 + n / 1000, longitude=20 + n / 1000, heading=n)
        for n in range(NUM_PHOTOS)
    ]
    spec = ModelSpec(model="model.pth", checksum="c" * 64, dimension=D)
    with create_index(address, spec, IndexSettings(exact_rows=100)) as index:
        index.add(photos, rows(NUM_PHOTOS, 1))
        index.update_search()
        index.remove([7])
    return address


@pytest.mark.parametrize("flips", [1, pytest.param(4, marks=pytest.mark.long)])
def test_a_flipped_bit_in_any_file_gives_right_answers_or_an_error(stored: Path, tmp_path: Path, flips: int) -> None:
    """Right: what the undamaged index answers, or the nearest of all descriptors where a search compares them all.

    The search index is approximate: the clusters it finds, and so which neighbor it misses, depend on the machine.
    """
    queries = rows(NUM_QUERIES, 2)
    similarities = queries @ rows(NUM_PHOTOS, 1).T
    similarities[:, 7] = -2  # removed
    nearest = similarities.argmax(axis=1)
    with open_index(stored) as index:
        undamaged = index.search(queries, 1).ids[:, 0]
    assert (undamaged == nearest).mean() >= 0.7
    names = sorted(path.relative_to(stored) for path in stored.rglob("*") if path.is_file() and path.stat().st_size)
    rng, num_errors = np.random.default_rng(0), 0
    wrong: list[str] = []
    for name in names:
        for _ in range(flips):
            address = shutil.copytree(stored, tmp_path / "index")
            raw = bytearray((address / name).read_bytes())
            place, bit = int(rng.integers(len(raw))), int(rng.integers(8))
            raw[place] ^= 1 << bit
            (address / name).write_bytes(raw)
            try:
                with open_index(address) as index:
                    found = index.search(queries, 1).ids[:, 0]
                    photos = [index.photo(int(n)) for n in found]
                is_right = bool(((found == undamaged) | (found == nearest)).all()) and all(
                    (photo.path, photo.latitude, photo.longitude) == (f"/photos/{n}.jpg", 10 + n / 1000, 20 + n / 1000)
                    for n, photo in zip(found.tolist(), photos, strict=True)
                )
                wrong += [] if is_right else [f"{name}, byte {place}, bit {bit}: wrong answer"]
            except CosPlaceError:
                num_errors += 1
            except BaseException as error:  # also the panics of compiled code
                wrong.append(f"{name}, byte {place}, bit {bit}: {type(error).__name__}")
            shutil.rmtree(address)
    assert not wrong, "\n".join(wrong)
    assert num_errors > flips * len(names) / 4
