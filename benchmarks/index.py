"""The photo index under load: build, reopen, search, filter, add, remove; times, recall, memory, disk.

    python -m benchmarks.index [--rows N] [--folder FOLDER] [--json FILE]

Descriptors are made, as no one ships a million photos.  They resemble those of a trained network on real streets: a
common mean of length 0.34, and variances that fall as (i + 3)^-1.3, which is what a ResNet-18 shows on SF-XS (its
first 10 of 512 directions hold half of the variance).  A place is one draw; its 10 photos, and the queries, which the
index does not hold, are that place with noise of the same spectrum: the cosine of two photos of a place is about 0.7,
of two photos of the city about 0.1, and the best of a wrong place above 0.5.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.errors import CosPlaceError
from cosplace.index.filters import SearchFilter
from cosplace.index.photo_index import PhotoIndex, create_index, open_index
from cosplace.index.records import ModelSpec, NewPhoto, Settings

DIMENSION = 512
PHOTOS_PER_PLACE = 10
NOISE = 0.62  # of a photo, in units of the spread of places
MEAN_LENGTH = 0.34
ADDED_AT_ONCE = 20_000
NUM_QUERIES, NUM_EXACT_QUERIES, NUM_CHANGED, K = 200, 20, 1000, 20
WARM_QUERIES = 50
PLACES_AT_ONCE = 256

Figures = dict[str, Any]


class MadeWorld:
    """Descriptors of a made city, and where its photos were taken."""

    def __init__(self, num_places: int) -> None:
        variances = (np.arange(DIMENSION) + 3.0) ** -1.3
        self.spread = np.sqrt(variances / variances.sum()).astype(np.float32)
        mean = np.random.default_rng(1).standard_normal(DIMENSION).astype(np.float32)
        self.mean = MEAN_LENGTH * mean / np.linalg.norm(mean)
        self.num_places = num_places

    def descriptors(self, places: np.ndarray, seed: int) -> np.ndarray:
        """(n, D) float32 unit descriptors of photos of some places; another seed takes other photos of them."""
        rows = np.empty((len(places), DIMENSION), np.float32)
        for number in np.unique(places // PLACES_AT_ONCE).tolist():
            inside = places // PLACES_AT_ONCE == number
            centers = np.random.default_rng([2, number]).standard_normal((PLACES_AT_ONCE, DIMENSION), np.float32)
            rows[inside] = centers[places[inside] - number * PLACES_AT_ONCE]
        rows += NOISE * np.random.default_rng([3, seed]).standard_normal(rows.shape, np.float32)
        rows = rows * self.spread + self.mean
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def photos(self, places: np.ndarray, first: int) -> list[NewPhoto]:
        """Photos on a grid of places 10 m apart."""
        side = int(np.ceil(self.num_places**0.5))
        return [
            NewPhoto(
                path=f"/photos/city/{number:09}.jpg",
                key=f"photo-{number}",
                latitude=37.7 + 0.00009 * (place // side),
                longitude=-122.5 + 0.00011 * (place % side),
                heading=float(number * 36 % 360),
                time=1.5e9 + number,
                source="made",
            )
            for number, place in enumerate(places.tolist(), first)
        ]


def measure_index(
    address: Path, num_rows: int, say: Callable[[str], None], settings: Settings | None = None
) -> Figures:
    """Build an index of so many made photos at the address, use it, and tell what it took."""
    world = MadeWorld(max(1, num_rows // PHOTOS_PER_PLACE))
    figures: Figures = {"rows": num_rows, "dimension": DIMENSION}
    with create_index(address, ModelSpec(model="made", checksum="made", dimension=DIMENSION), settings) as index:
        figures["add_s"], figures["making_s"] = _fill(index, world, num_rows, say)
        started = time.perf_counter()
        index.update_search(lambda done, total: None)
        figures["build_search_s"] = time.perf_counter() - started
        say(f"search structure made in {figures['build_search_s']:.0f} s")
    figures["disk_mb"] = sum(file.stat().st_size for file in address.rglob("*") if file.is_file()) / 1e6
    figures |= _search(address, world, say)
    figures |= _change(address, world, num_rows)
    figures["peak_memory_mb"] = _peak_mb()
    return figures


def _fill(index: PhotoIndex, world: MadeWorld, num_rows: int, say: Callable[[str], None]) -> tuple[float, float]:
    """Seconds that adding took, and that making took beside it."""
    adding = making = 0.0
    for first in range(0, num_rows, ADDED_AT_ONCE):
        started = time.perf_counter()
        places = np.arange(first, min(first + ADDED_AT_ONCE, num_rows)) // PHOTOS_PER_PLACE
        places = np.minimum(places, world.num_places - 1)
        photos, descriptors = world.photos(places, first), world.descriptors(places, 100 + first)
        made = time.perf_counter()
        index.add(photos, descriptors)
        making, adding = making + made - started, adding + time.perf_counter() - made
        if first // ADDED_AT_ONCE % 10 == 0:
            say(f"{first + len(places):,} of {num_rows:,} photos added")
    return adding, making


def _search(address: Path, world: MadeWorld, say: Callable[[str], None]) -> Figures:
    """Open and search as a reader does."""
    places = np.sort(np.random.default_rng(5).choice(world.num_places, min(NUM_QUERIES, world.num_places), False))
    queries = world.descriptors(places, 6)
    before = _memory_mb()
    started = time.perf_counter()
    index = open_index(address)
    index.search(queries[:1], K)
    figures: Figures = {"reopen_and_first_search_s": time.perf_counter() - started}
    for query in queries[:WARM_QUERIES]:
        index.search(query[None], K)
    found, times_ms = [], []
    for query in queries:
        started = time.perf_counter()
        found.append(index.search(query[None], K).ids[0])
        times_ms.append(1e3 * (time.perf_counter() - started))
    figures["search_p50_ms"], figures["search_p95_ms"] = np.percentile(times_ms, [50, 95])
    say(f"p50 {figures['search_p50_ms']:.1f} ms")
    started = time.perf_counter()
    exact = index.search(queries, K, exact=True).ids
    figures["exact_batch_ms_per_query"] = 1e3 * (time.perf_counter() - started) / len(queries)
    times_ms = [_time_ms(lambda query=query: index.search(query[None], K, exact=True)) for query in queries[:5]]
    figures["exact_p50_ms"] = np.median(times_ms)
    figures["recall_at_1"] = float((np.array(found)[:, 0] == exact[:, 0]).mean())
    figures["recall_at_20"] = float(
        np.mean([np.isin(row, other).mean() for row, other in zip(exact, found, strict=True)])
    )
    figures["right_place_first"] = float((exact[:, 0] // PHOTOS_PER_PLACE == places).mean())
    figures |= _search_filtered(index, queries, places)
    figures["search"] = index.info()["search"]
    figures["search_memory_mb"] = _memory_mb() - before
    return figures


def _search_filtered(index: PhotoIndex, queries: np.ndarray, places: np.ndarray) -> Figures:
    """Within 300 m around the true position."""
    columns, times_ms, right = index.columns(), [], []
    for query, place in zip(queries, places.tolist(), strict=True):
        row = place * PHOTOS_PER_PLACE
        where = SearchFilter(near=(float(columns.latitudes[row]), float(columns.longitudes[row]), 300.0))
        started = time.perf_counter()
        found = index.search(query[None], K, where=where).ids
        times_ms.append(1e3 * (time.perf_counter() - started))
        right.append(index.search(query[None], 1, where=where, exact=True).ids[0, 0] == found[0, 0])
        if len(right) == NUM_EXACT_QUERIES:
            break
    return {"within_300_m_p50_ms": np.median(times_ms), "within_300_m_recall_at_1": float(np.mean(right))}


def _change(address: Path, world: MadeWorld, num_rows: int) -> Figures:
    """Add some photos, find one of them, remove some."""
    with open_index(address, write=True) as index:
        places = np.sort(np.random.default_rng(7).choice(world.num_places, NUM_CHANGED))
        photos, descriptors = world.photos(places, num_rows), world.descriptors(places, 8)
        started = time.perf_counter()
        index.add(photos[:1], descriptors[:1])
        figures: Figures = {"open_and_add_first_s": time.perf_counter() - started}
        figures["add_1000_s"] = _time_ms(lambda: index.add(photos, descriptors)) / 1e3
        started = time.perf_counter()
        assert index.search(descriptors[5:6], 1).paths[0][0] == photos[5].path
        figures["find_added_s"] = time.perf_counter() - started
        ids = np.arange(0, num_rows, max(1, num_rows // NUM_CHANGED))
        figures["remove_1000_s"] = _time_ms(lambda: index.remove(ids)) / 1e3
        assert not np.isin(index.search(world.descriptors(places[:9], 9), K).ids, ids).any()
    return figures


def _time_ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - started)


def _memory_mb() -> float:
    """Resident memory of this process, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _peak_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def index_table(figures: Figures) -> str:
    """What was measured, as a table of Markdown."""
    lines = ["| what | figure |", "|---|---:|"]
    for name, value in figures.items():
        shown = f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        lines.append(f"| {name.replace('_', ' ')} | {shown} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="photos (default: 1000000)")
    parser.add_argument("--folder", type=Path, default=None, help="where the index is made (default: a temporary one)")
    parser.add_argument("--json", type=Path, default=None, help="also write the figures there")
    arguments = parser.parse_args(argv)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="bench-index-"))
    try:
        figures = measure_index(folder / "index", arguments.rows, lambda text: print(text, file=sys.stderr))
    except CosPlaceError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)
    figures = {name: value.item() if isinstance(value, np.generic) else value for name, value in figures.items()}
    sys.stdout.write(index_table(figures) + "\n")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
