"""Save the predictions of queries as images and as a table.

preds/000.jpg          query 0 and its first predictions, framed, with their distances
preds/predictions.csv  one line per query and prediction

Without positions of the queries, there are images only, and no prediction is right or wrong.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cosplace.photos.paths import csv_line, path_text
from cosplace.progress import Progress, no_progress
from cosplace.report.colors import CORRECT_RGB, INCORRECT_RGB, QUERY_RGB
from cosplace.report.thumbnails import open_photo, placeholder
from cosplace.report.words import format_distance, shorten
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation
from cosplace.retrieval.two_folders import Neighbors
from cosplace.storage import write_atomically

PHOTO_HEIGHT, MAX_PHOTO_WIDTH = 320, 640  # pixels
FRAME, GAP, CAPTION = 8, 12, 34  # pixels
NEIGHBOR_RGB = (89, 98, 109)  # neither right nor wrong
CSV_HEADER = ("query", "query_path", "rank", "prediction_path", "distance_m", "right", "picture")


def save_predictions(
    folder: Path,
    dataset: RetrievalDataset,
    evaluation: Evaluation,
    num_preds: int,
    only_wrong: bool = False,
    *,
    progress: Progress = no_progress,
) -> int:
    """Save one image per query with its first `num_preds` predictions, and predictions.csv; return how many images.

    The name of an image is the number of its query.  only_wrong: only queries whose first prediction is wrong get an
    image.  A photo that cannot be opened is a gray rectangle.  Nothing is written for num_preds = 0.
    Raises StorageError if the disk is full or not writable.
    """
    hits = evaluation.hits[:, :num_preds]  # (Q, n) bool
    if num_preds < 1 or not hits.size:
        return 0
    queries = np.flatnonzero(~hits[:, 0]) if only_wrong else np.arange(len(hits))
    digits = max(3, len(str(len(hits) - 1)))
    names = {int(query): f"{query:0{digits}d}.jpg" for query in queries}

    def save(query: int) -> None:
        image = _query_image(dataset, evaluation, query, hits[query])
        write_atomically(folder / names[query], lambda file: image.save(file, "JPEG", quality=88))

    # Decoding and encoding release the GIL, so threads use all cores.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, _ in enumerate(pool.map(save, names), 1):
            progress("saving predictions", done, len(names))
    write_atomically(folder / "predictions.csv", lambda file: _write_csv(file, dataset, evaluation, hits, names))
    return len(names)


def save_neighbors(
    folder: Path, neighbors: Neighbors, num_preds: int, *, progress: Progress = no_progress
) -> dict[int, str]:
    """Save one image per query with its first `num_preds` neighbors; return the names of the images by query.

    Captions are distances of descriptors.  Raises StorageError if the disk is full or not writable.
    """
    num_queries, distances = len(neighbors.queries), neighbors.descriptor_distances
    if num_preds < 1:
        return {}
    digits = max(3, len(str(num_queries - 1)))
    names = {query: f"{query:0{digits}d}.jpg" for query in range(num_queries)}

    def save(query: int) -> None:
        tiles = [_tile(open_photo(neighbors.queries, query), f"query {query}")]
        for rank, image in enumerate(neighbors.predictions[query, :num_preds].tolist()):
            photo = open_photo(neighbors.database, image) if image >= 0 else None
            caption = f"{rank + 1}: distance {distances[query, rank]:.2f}" if image >= 0 else f"{rank + 1}: none"
            tiles.append(_tile(photo, caption, color=NEIGHBOR_RGB))
        write_atomically(folder / names[query], lambda file: _in_one_row(tiles).save(file, "JPEG", quality=88))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, _ in enumerate(pool.map(save, names), 1):
            progress("saving neighbors", done, num_queries)
    return names


def _write_csv(
    file: BinaryIO, dataset: RetrievalDataset, evaluation: Evaluation, hits: np.ndarray, names: dict[int, str]
) -> None:
    file.write(csv_line(CSV_HEADER).encode())
    for query, correct in enumerate(hits):
        query_path = path_text(dataset.queries.folder / dataset.queries.name(query))
        for rank, is_correct in enumerate(correct):
            image = int(evaluation.predictions[query, rank])
            if image >= 0:
                path = path_text(dataset.database.folder / dataset.database.name(image))
                distance = f"{evaluation.distances_m[query, rank]:.2f}"
                cells = query, query_path, rank + 1, path, distance, int(is_correct), names.get(query, "")
                file.write(csv_line(cells).encode())


def _query_image(dataset: RetrievalDataset, evaluation: Evaluation, query: int, hits: np.ndarray) -> Image.Image:
    """Draw the query and its predictions in one row, framed, with a caption above each.  hits: (n,) bool."""
    tiles = [_tile(open_photo(dataset.queries, query), f"query {query}")]
    for rank, is_correct in enumerate(hits):
        number = int(evaluation.predictions[query, rank])
        photo = open_photo(dataset.database, number) if number >= 0 else None
        caption = (
            f"{rank + 1}: {format_distance(float(evaluation.distances_m[query, rank]), are_meters=not dataset.note)}"
        )
        tiles.append(_tile(photo, caption, bool(is_correct)))
    return _in_one_row(tiles)


def _in_one_row(tiles: list[Image.Image]) -> Image.Image:
    width = sum(tile.width for tile in tiles) + GAP * (len(tiles) + 1)
    image = Image.new("RGB", (width, tiles[0].height + 2 * GAP), "white")
    left = GAP
    for tile in tiles:
        image.paste(tile, (left, GAP))
        left += tile.width + GAP
    return image


def _tile(
    photo: Image.Image | None,
    caption: str,
    is_correct: bool | None = None,
    *,
    color: tuple[int, int, int] = QUERY_RGB,
) -> Image.Image:
    """Draw one framed photo below its caption.  is_correct: of a prediction; None for the query and for neighbors."""
    if photo is None:
        photo = placeholder((PHOTO_HEIGHT, PHOTO_HEIGHT))
    if is_correct is not None:
        color = CORRECT_RGB if is_correct else INCORRECT_RGB
    scale = min(PHOTO_HEIGHT / photo.height, MAX_PHOTO_WIDTH / photo.width)
    photo = photo.resize((max(1, round(photo.width * scale)), max(1, round(photo.height * scale))))
    width = max(photo.width, 150) + 2 * FRAME
    tile = Image.new("RGB", (width, CAPTION + PHOTO_HEIGHT + 2 * FRAME), "white")
    draw = ImageDraw.Draw(tile)
    start = 2
    if is_correct is not None:
        _draw_mark(draw, (2, 6), 20, color, is_correct)
        start = 30
    draw.text((start, 16), shorten(caption, 40), fill=color, font=ImageFont.load_default(21), anchor="lm")
    left, top = (width - photo.width) // 2, CAPTION + FRAME
    box = (left - FRAME, top - FRAME, left + photo.width + FRAME - 1, top + photo.height + FRAME - 1)
    draw.rectangle(box, fill=color)
    tile.paste(photo, (left, top))
    return tile


def _draw_mark(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], side: int, color: tuple[int, int, int], is_correct: bool
) -> None:
    """Draw a tick or a cross in a square of `side` pixels; a font may have neither."""
    x, y = corner
    if is_correct:
        draw.line([(x, y + side * 0.55), (x + side * 0.38, y + side * 0.9), (x + side, y + side * 0.1)], color, 4)
        return
    draw.line([(x, y), (x + side, y + side)], color, 4)
    draw.line([(x, y + side), (x + side, y)], color, 4)
