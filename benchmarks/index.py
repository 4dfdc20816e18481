"""The photo index with many photos: build, open, search, filter, add, remove; times, recall, memory, disk.

    python -m benchmarks.index [--rows N] [--dimension D] [--dtype TYPE] [--folder FOLDER] [--json FILE]
    python -m benchmarks.index --rows 10000000 --dimension 128 --dtype int8

The descriptors are synthetic, and resemble those of a trained network: a common mean of length 0.34, and variances that
fall as (i + 3)^-1.3, as for a ResNet-18 on SF-XS (its first 10 of 512 directions have half of the variance).  A place
is one random vector.  Its 10 photos, and the queries, which are not in the index, are that vector with noise of the
same spectrum.  The cosine of two photos of a place is about 0.7, of two photos of the city about 0.1, and of the most
similar photo of another place above 0.5.

With --dtype int8, descriptors are rounded to 8 bits per dimension, and the index stores the rounded values as float16.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.cli.console import log_to_terminal, print_result, write_json
from cosplace.config.index import SEARCH_CODES, IndexSettings
from cosplace.errors import CosPlaceError
from cosplace.index.filters import SearchFilter
from cosplace.index.photo_index import PhotoIndex, create_index, open_index
from cosplace.index.records import ModelSpec, NewPhoto

DIMENSION = 512
DTYPES = {"float32": "float32", "float16": "float16", "int8": "float16"}  # of descriptors, and as they are stored
PHOTOS_PER_PLACE = 10
NOISE = 0.62  # of a photo, relative to the spread of places
MEAN_LENGTH = 0.34
ROWS_PER_ADD = 20_000
NUM_QUERIES, NUM_EXACT_QUERIES, NUM_CHANGED, K = 200, 20, 1000, 20
WARM_QUERIES = 50
PLACES_PER_SEED = 256

Figures = dict[str, Any]
log = logging.getLogger("cosplace.benchmarks")


class SyntheticPlaces:
    """Descriptors and positions of photos of synthetic places."""

    def __init__(self, num_places: int, dimension: int = DIMENSION, dtype: str = "float32") -> None:
        variances = (np.arange(dimension) + 3.0) ** -1.3
        self.dimension, self.dtype = dimension, dtype
        self.spread = np.sqrt(variances / variances.sum()).astype(np.float32)
        mean = np.random.default_rng(1).standard_normal(dimension).astype(np.float32)
        self.mean = MEAN_LENGTH * mean / np.linalg.norm(mean)
        self.num_places = num_places

    def descriptors(self, places: np.ndarray, seed: int) -> np.ndarray:
        """(n, D) float32 unit descriptors of one photo of each place; another seed returns other photos."""
        rows = np.empty((len(places), self.dimension), np.float32)
        for number in np.unique(places // PLACES_PER_SEED).tolist():
            inside = places // PLACES_PER_SEED == number
            centers = np.random.default_rng([2, number]).standard_normal((PLACES_PER_SEED, self.dimension), np.float32)
            rows[inside] = centers[places[inside] - number * PLACES_PER_SEED]
        rows += NOISE * np.random.default_rng([3, seed]).standard_normal(rows.shape, np.float32)
        rows = rows * self.spread + self.mean
        if self.dtype == "int8":
            rows = np.rint(127 * rows / np.abs(rows).max(1, keepdims=True))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def photos(self, places: np.ndarray, first: int) -> list[NewPhoto]:
        """Photos of places on a grid with a spacing of 10 m; first: number of the first photo."""
        side = int(np.ceil(self.num_places**0.5))
        return [
            NewPhoto(
                path=f"/photos/city/{number:09}.jpg",
                key=f"photo-{number}",
                latitude=37.7 + 0.00009 * (place // side),
                longitude=-122.5 + 0.00011 * (place % side),
                heading=float(number * 36 % 360),
                time=1.5e9 + number,
                source="synthetic",
            )
            for number, place in enumerate(places.tolist(), first)
        ]


def measure_index(
    address: Path,
    num_rows: int,
    settings: IndexSettings | None = None,
    *,
    dimension: int = DIMENSION,
    dtype: str = "float32",
) -> Figures:
    """Build an index of `num_rows` synthetic photos at an address, use it, and return times, recalls and sizes.

    dtype: of the descriptors, one of DTYPES.  settings: of the index; by default, those for this type.
    """
    world = SyntheticPlaces(max(1, num_rows // PHOTOS_PER_PLACE), dimension, dtype)
    settings = settings or IndexSettings(stored_dtype=DTYPES[dtype])
    figures: Figures = {"rows": num_rows, "dimension": dimension, "dtype": dtype, "stored_as": settings.stored_dtype}
    spec = ModelSpec(model="synthetic", checksum="synthetic", dimension=dimension)
    with create_index(address, spec, settings) as index:
        figures["add_s"], figures["making_s"] = fill_index(index, world, num_rows)
        started = time.perf_counter()
        index.update_search()
        figures["build_search_s"] = time.perf_counter() - started
        log.info("search index built in %.0f s", figures["build_search_s"])
    figures["build_peak_memory_mb"] = _peak_mb()
    figures["disk_mb"] = sum(file.stat().st_size for file in address.rglob("*") if file.is_file()) / 1e6
    figures |= _search(address, world)
    figures |= _change(address, world, num_rows)
    figures["peak_memory_mb"] = _peak_mb()
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in figures.items()}


def fill_index(index: PhotoIndex, world: SyntheticPlaces, num_rows: int) -> tuple[float, float]:
    """Add the photos; returns the seconds spent on adding, and on generating them."""
    adding_s = generating_s = 0.0
    for first in range(0, num_rows, ROWS_PER_ADD):
        started = time.perf_counter()
        places = np.arange(first, min(first + ROWS_PER_ADD, num_rows)) // PHOTOS_PER_PLACE
        places = np.minimum(places, world.num_places - 1)
        photos, descriptors = world.photos(places, first), world.descriptors(places, 100 + first)
        generated = time.perf_counter()
        index.add(photos, descriptors)
        generating_s, adding_s = generating_s + generated - started, adding_s + time.perf_counter() - generated
        if first // ROWS_PER_ADD % 10 == 0:
            log.info("%s of %s photos added", f"{first + len(places):,}", f"{num_rows:,}")
    return adding_s, generating_s


def _search(address: Path, world: SyntheticPlaces) -> Figures:
    """Open the index as a reader, and search it."""
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
    log.info("median search time %.1f ms", figures["search_p50_ms"])
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
    """Search within 300 m of the true position."""
    columns, times_ms, is_equal = index.columns(), [], []
    for query, place in zip(queries, places.tolist(), strict=True):
        row = place * PHOTOS_PER_PLACE
        where = SearchFilter(near=(float(columns.latitudes[row]), float(columns.longitudes[row]), 300.0))
        started = time.perf_counter()
        found = index.search(query[None], K, where=where).ids
        times_ms.append(1e3 * (time.perf_counter() - started))
        is_equal.append(index.search(query[None], 1, where=where, exact=True).ids[0, 0] == found[0, 0])
        if len(is_equal) == NUM_EXACT_QUERIES:
            break
    return {"within_300_m_p50_ms": np.median(times_ms), "within_300_m_recall_at_1": float(np.mean(is_equal))}


def _change(address: Path, world: SyntheticPlaces, num_rows: int) -> Figures:
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
    """Resident memory of this process, including mapped files."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _peak_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def index_table(figures: Figures) -> str:
    """The figures as a Markdown table."""
    values = {name: value for name, value in figures.items() if name != "search"}
    values |= {f"search index: {name}": value for name, value in figures["search"].items()}
    lines = ["| what | figure |", "|---|---:|"]
    for name, value in values.items():
        text = f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
        lines.append(f"| {name.replace('_', ' ')} | {text} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure an index and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="photos (default: 1000000)")
    parser.add_argument("--dimension", type=int, default=DIMENSION, metavar="D", help="(default: 512)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of descriptors (default: float32)")
    parser.add_argument("--codes", choices=SEARCH_CODES, default="4bit", help="--search_codes (default: 4bit)")
    parser.add_argument("--folder", type=Path, help="folder for the index (default: a temporary one)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    arguments = parser.parse_args(argv)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="bench-index-"))
    try:
        with log_to_terminal():
            settings = IndexSettings(stored_dtype=DTYPES[arguments.dtype], search_codes=arguments.codes)
            figures = measure_index(
                folder / "index", arguments.rows, settings, dimension=arguments.dimension, dtype=arguments.dtype
            )
        print_result(index_table(figures))
        if arguments.json is not None:
            write_json(arguments.json, figures)
    except CosPlaceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
