"""The audit of the ground truth as one HTML page: pairs of photos, and buttons for verdicts.

Verdicts stay in the browser until they are exported.  The file loads nothing else; of scripts, only ours runs.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cosplace.assessment.audit import FORMAT, AuditPair, photo_checksum
from cosplace.assessment.run_files import QueryResults, folder_now
from cosplace.photos.image_list import ImageList, image_list
from cosplace.photos.paths import path_text, printable
from cosplace.progress import format_count
from cosplace.report.render import render, script
from cosplace.report.thumbnails import Thumbnail, make_thumbnails
from cosplace.report.words import format_distance, radius_text
from cosplace.storage import write_text

MAX_PAIRS = 200
PHOTO_SIZE, QUALITY = (640, 640), 80  # pixels at most, and quality of the JPEG
PHOTO_BYTES = 40 << 20  # of all photos on the page, as base64


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPair:
    """A pair with its photos and texts."""

    query: str  # as stored in verdicts
    photo: str
    query_sha256: str
    photo_sha256: str
    query_name: str  # as shown
    photo_name: str
    query_thumbnail: Thumbnail
    photo_thumbnail: Thumbnail
    distance: str
    similarity: str
    comparison: str


def write_audit_page(
    path: Path,
    run: QueryResults,
    pairs: Sequence[AuditPair],
    *,
    run_folder: Path,
    num_judged: int = 0,
    all_wrong: bool = False,
    dataset_folder: Path | None = None,
    verdicts_flag: str = "",
    follow_outside: bool = False,
) -> int:
    """Write the page atomically; returns how many pairs it shows.

    num_judged: pairs that are left out because they have verdicts.  all_wrong: the pairs are all wrong answers,
    also those that do not look right.  dataset_folder: the dataset, if it has moved.
    verdicts_flag: --verdicts FILE, if `cosplace eval` needs it to find the verdicts.
    follow_outside: also show photos that links lead to outside the dataset.
    Raises StorageError if the disk is full or not writable.
    """
    shown = _shown_pairs(run, pairs[:MAX_PAIRS], dataset_folder, follow_outside)
    key = hashlib.sha256(f"{run.queries.database_sha256}{run.queries_folder}".encode("utf-8", "replace")).hexdigest()
    text = render(
        "audit.html",
        title=f"Audit of {printable(run.dataset)}",
        dataset=path_text(run.dataset),
        database_sha256=run.queries.database_sha256,
        format=FORMAT,
        key=key[:16],
        pairs=shown,
        num_pairs=len(pairs),
        num_judged=num_judged,
        all_wrong=all_wrong,
        num_queries=len(run.queries.names),
        radius=radius_text(run.queries.radius_m, are_meters=run.are_meters),
        folder=printable(run_folder),
        verdicts_flag=verdicts_flag,
        script=script("audit.js"),
    )
    write_text(path, text)
    return len(shown)


def _shown_pairs(
    run: QueryResults, pairs: Sequence[AuditPair], dataset_folder: Path | None, follow_outside: bool
) -> list[ShownPair]:
    """The first pairs, as many as the budget of the photos allows."""
    queries, query_rows = photos_of_run(
        run, run.queries_folder, [pair.query for pair in pairs], dataset_folder, follow_outside
    )
    database, image_rows = photos_of_run(
        run, run.database_folder, [pair.photo for pair in pairs], dataset_folder, follow_outside
    )
    photos = [
        photo for pair in pairs for photo in ((queries, query_rows[pair.query]), (database, image_rows[pair.photo]))
    ]
    found = make_thumbnails(photos, PHOTO_SIZE, QUALITY, PHOTO_BYTES)
    thumbnails = zip(found[::2], found[1::2], strict=False)  # a pair whose second photo does not fit is left out
    return [
        _shown_pair(
            pair, query, photo, photo_checksum(queries, query_rows[pair.query]),
            photo_checksum(database, image_rows[pair.photo]), are_meters=run.are_meters,
        )
        for pair, (query, photo) in zip(pairs, thumbnails, strict=False)
    ]  # fmt: skip


def photos_of_run(
    run: QueryResults, folder: Path, names: Sequence[str], dataset_folder: Path | None, follow_outside: bool
) -> tuple[ImageList, dict[str, int]]:
    """Some photos below a folder of the run, and their rows by name.  dataset_folder: the dataset, if it has moved."""
    folder = folder_now(run, folder, dataset_folder)
    images = image_list(folder, sorted(set(names)))
    images = images if follow_outside else replace(images, inside=(os.path.realpath(folder),))
    return images, {images.name(row): row for row in range(len(images))}


def _shown_pair(
    pair: AuditPair, query: Thumbnail, photo: Thumbnail, query_sha256: str, photo_sha256: str, *, are_meters: bool
) -> ShownPair:
    return ShownPair(
        query=path_text(pair.query),
        photo=path_text(pair.photo),
        query_sha256=query_sha256,
        photo_sha256=photo_sha256,
        query_name=printable(pair.query),
        photo_name=printable(pair.photo),
        query_thumbnail=query,
        photo_thumbnail=photo,
        distance=format_distance(pair.distance_m, are_meters=are_meters),
        similarity=f"{pair.similarity:.3f}",
        comparison=f"more similar than {pair.more_similar_than:.0f}% of the correct answers",
    )


def pairs_text(num_shown: int, num_pairs: int) -> str:
    """Say how many pairs a page shows."""
    pairs = format_count(num_pairs, "pair")
    return pairs if num_shown == num_pairs else f"the {num_shown:,} most similar of {pairs}"
