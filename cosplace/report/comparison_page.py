"""A comparison of runs as one HTML page: verdicts, differences with intervals, and the queries that flipped.

The file loads nothing else, and its only script draws the charts.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cosplace.assessment.comparison import Comparison, RecallDifference, recall_values
from cosplace.assessment.run_files import QueryResults, folder_now
from cosplace.photos.image_list import ImageList, image_list
from cosplace.photos.paths import printable
from cosplace.report.charts import Axis, Chart, Series, chart, linear_axis, values_of
from cosplace.report.comparison_tables import all_runs, facts, interval_text, p_text, run_label, signed
from cosplace.report.render import render
from cosplace.report.thumbnails import MAX_SIZE, Thumbnail, make_thumbnails
from cosplace.report.words import format_distance
from cosplace.storage import write_text

MAX_SHOWN = 30  # flipped queries with photos, of each kind
MAX_LISTED = 500  # flipped queries by name
PHOTO_BYTES = 8 << 20  # of all photos on the page
QUALITY = 78
DOT_SHARE = 0.25  # size of the dots of the chart


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoList:
    """Some photos of a part of a dataset, where they are now."""

    images: ImageList
    rows: Mapping[str, int]  # by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Photos:
    """The photos that a page may show."""

    database: PhotoList
    queries: PhotoList


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A photo with its caption."""

    kind: str  # query, correct, incorrect or expected
    thumbnail: Thumbnail
    heading: str
    caption: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """A query that is correct in only one of two runs."""

    name: str
    text: str
    tiles: list[Tile]


def write_comparison_page(
    path: Path, comparisons: Sequence[Comparison], *, dataset_folder: Path | None = None, follow_outside: bool = False
) -> None:
    """Write the page atomically.

    dataset_folder: the dataset, if it has moved since the runs.  follow_outside: also show photos that links lead to
    outside the dataset.  Raises StorageError if the disk is full or not writable.
    """
    write_text(path, comparison_page(comparisons, dataset_folder=dataset_folder, follow_outside=follow_outside))


def comparison_page(
    comparisons: Sequence[Comparison], *, dataset_folder: Path | None = None, follow_outside: bool = False
) -> str:
    """The page as text; arguments as for `write_comparison_page`."""
    runs = all_runs(comparisons)
    ns = recall_values(*runs)
    budget = PHOTO_BYTES // len(comparisons)
    photos = dataset_photos(comparisons, dataset_folder, follow_outside)
    return render(
        "comparison.html",
        title=f"Comparison of {len(runs)} runs on {printable(runs[0].queries.dataset)}",
        ns=ns,
        runs=[
            {
                "letter": run.letter,
                "name": run_label(run),
                "facts": _model_facts(run.results),
                "folder": printable(run.folder),
                "recalls": [run.recall(n) for n in ns],
            }
            for run in runs
        ],
        facts=facts(runs),
        comparisons=[_comparison(one, photos, budget) for one in comparisons],
        signed=signed,
        interval_text=interval_text,
        p_text=p_text,
    )


def _model_facts(results: Any) -> str:
    """Backbone and dimension of a model."""
    model = results.get("model")
    model = model if isinstance(model, dict) else {}
    dimension = model.get("reduced_to") or model.get("descriptor_dim")
    texts = [str(model["backbone"])] if model.get("backbone") else []
    texts += [f"{dimension} dimensions"] if dimension else []
    return printable(", ".join(texts))


def _comparison(one: Comparison, photos: Photos, budget: int) -> dict[str, Any]:
    first = one.rows[0]
    return {
        "a": one.a.letter,
        "b": one.b.letter,
        "n": first.n,
        "sentence": _sentence(one, first),
        "rows": [(row, one.verdict(row)) for row in one.rows],
        "chart": difference_chart(one),
        "conditions": one.conditions,
        "notes": one.notes,
        "kinds": [
            _flips(one, photos, one.won, budget // 2, winner=one.b.letter),
            _flips(one, photos, one.lost, budget // 2, winner=one.a.letter),
        ],
    }


def _sentence(one: Comparison, row: RecallDifference) -> str:
    """The verdict on the first recall, with its numbers."""
    a, b = one.a.letter, one.b.letter
    interval = interval_text(row.difference).replace(" ", "\u00a0")  # in one line
    numbers = (
        f"R@{row.n} is {row.recall_a:.1f}% for {a} and {row.recall_b:.1f}% for {b}: {signed(row.difference.value)} "
        f"points {interval}."
    )
    if row.sign:
        better, worse = (b, a) if row.sign > 0 else (a, b)
        return f"{better} is better than {worse}. {numbers}"
    return f"No difference between {a} and {b} can be shown. {numbers}"


def difference_chart(one: Comparison) -> Chart:
    """Chart of the difference of each recall with its interval."""
    at = np.arange(len(one.rows), dtype=np.float64)
    values, lows, highs, marks = (
        np.array([getattr(row.difference, part) for row in one.rows])
        for part in ("value", "low", "high", "is_approximate")
    )
    names = [f"R@{row.n}" for row in one.rows]
    ends = np.array([-0.5, len(one.rows) - 0.5])
    low, high = min(0.0, float(lows.min())), max(0.0, float(highs.max()))
    difference = f"{one.b.letter} minus {one.a.letter}"
    dots = Series(
        label=difference, xs=at, ys=values, lows=lows, highs=highs, are_approximate=marks,
        shares=np.full(len(at), DOT_SHARE),
    )  # fmt: skip
    return chart(
        [Series(xs=ends, ys=np.zeros(2), style="reference"), dots],
        Axis(title="", low=ends[0], high=ends[1], ticks=list(zip(at.tolist(), names, strict=True))),
        linear_axis(f"{difference}, points", min(low, -1.0), max(high, 1.0)),
        values_of([dots], "recall", lambda x: names[int(x)], lambda one: f"{signed(one.value)} {interval_text(one)}"),
        description=f"Differences of the recalls of {one.b.letter} and {one.a.letter}, with 95% intervals",
    )


# --- flipped queries -------------------------------------------------------------------------------------------------


def dataset_photos(comparisons: Sequence[Comparison], folder: Path | None, follow_outside: bool) -> Photos:
    """Lists of the photos that the page may show, in the folders of the reference run or in `folder`."""
    queries, database = set[str](), set[str]()
    reference = comparisons[0].a.queries
    for one in comparisons:
        for query in [*_first_rows(one, one.won), *_first_rows(one, one.lost)]:
            queries.add(reference.queries.names[query])
            for run in (one.a.queries, one.b.queries):
                database |= {*run.predictions[query][:1], run.expected[query]} - {""}
    return Photos(
        database=_photo_list(reference, reference.database_folder, database, folder, follow_outside),
        queries=_photo_list(reference, reference.queries_folder, queries, folder, follow_outside),
    )


def _photo_list(run: QueryResults, part: Path, names: set[str], folder: Path | None, follow_outside: bool) -> PhotoList:
    """Photos below a part of the dataset.  folder: the dataset, if it has moved."""
    part = folder_now(run, part, folder)
    images = image_list(part, sorted(names))
    images = images if follow_outside else replace(images, inside=(os.path.realpath(part),))
    return PhotoList(images=images, rows={images.name(row): row for row in range(len(images))})


def _first_rows(one: Comparison, flipped: np.ndarray) -> list[int]:
    """The flipped queries to show: those with the most confident wrong answer first."""

    def wrong_distance(query: int) -> float:
        wrong = one.b.queries if one.a.queries.is_correct(one.rows[0].n)[query] else one.a.queries
        return min(wrong.descriptor_distances[query][:1], default=float("inf"))

    return sorted(flipped.tolist(), key=wrong_distance)[:MAX_SHOWN]


def _flips(one: Comparison, photos: Photos, flipped: np.ndarray, budget: int, *, winner: str) -> dict[str, Any]:
    """Flipped queries of one kind: the first ones with photos, the others by name."""
    rows, names = _first_rows(one, flipped), one.a.queries.queries.names
    described = [_described_tiles(one, photos, query) for query in rows]
    found = make_thumbnails([tile[0] for tiles in described for tile in tiles], MAX_SIZE, QUALITY, budget)
    thumbnails = iter(found)
    shown = []
    for query, tiles in zip(rows, described, strict=True):
        made = [thumbnail for _, thumbnail in zip(tiles, thumbnails, strict=False)]
        if len(made) < len(tiles):  # the budget is used up
            break
        shown.append(
            Flip(
                name=printable(names[query]),
                text=_flip_text(one, query),
                tiles=[make(thumbnail) for (_, make), thumbnail in zip(tiles, made, strict=True)],
            )
        )
    others = [int(query) for query in flipped if int(query) not in set(rows[: len(shown)])]
    return {
        "winner": winner,
        "count": len(flipped),
        "shown": shown,
        "others": [(printable(names[query]), _flip_text(one, query)) for query in others[:MAX_LISTED]],
        "num_left_out": max(0, len(others) - MAX_LISTED),
    }


def _flip_text(one: Comparison, query: int) -> str:
    """At which rank each run has the first correct prediction."""
    texts = []
    for run in (one.a, one.b):
        rank = int(run.queries.first_correct[query])
        texts.append(f"{run.letter}: rank {rank}" if rank else f"{run.letter}: not in {run.queries.num_predictions}")
    return f"first correct prediction of {', of '.join(texts)}"


Described = tuple[tuple[ImageList, int], Callable[[Thumbnail], Tile]]  # a photo, and its tile once it is small


def _described_tiles(one: Comparison, photos: Photos, query: int) -> list[Described]:
    """The query, the first prediction of both runs, and the expected match."""
    name = one.a.queries.queries.names[query]
    described = [_described(photos.queries, name, "query", "query", "")]
    for run in (one.a, one.b):
        for image, meters in list(zip(run.queries.predictions[query], run.queries.distances_m[query], strict=True))[:1]:
            kind = "correct" if run.queries.first_correct[query] == 1 else "incorrect"
            distance = format_distance(meters, are_meters=run.queries.are_meters)
            described.append(_described(photos.database, image, kind, run.letter, distance))
    if expected := one.a.queries.expected[query]:
        described.append(_described(photos.database, expected, "expected", "expected match", ""))
    return described


def _described(photos: PhotoList, name: str, kind: str, heading: str, caption: str) -> Described:
    what = f"{heading}: {kind}, {caption} away" if caption else heading

    def make(thumbnail: Thumbnail) -> Tile:
        return Tile(
            kind=kind, thumbnail=thumbnail, heading=heading, caption=caption, description=f"{what}: {printable(name)}"
        )

    return (photos.images, photos.rows[name]), make
