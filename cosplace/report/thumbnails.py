"""Which queries are shown, their thumbnails, and the same pictures saved as files.

preds/000.jpg          query 0 and its first predictions side by side, framed, with their distances
preds/predictions.csv  one line per query and prediction
"""

import base64
import csv
import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cosplace.errors import ImageError
from cosplace.photos.opening import open_image
from cosplace.report.contents import FOUND_FIRST, FOUND_LATER, MISSED, format_distance, shortened
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation
from cosplace.storage import write_atomically

THUMBNAIL = (200, 260)  # pixels: no wider, no higher
TILE_HEIGHT, MAX_TILE_WIDTH = 320, 640  # pixels, of saved pictures
FRAME, GAP, CAPTION = 8, 12, 34  # pixels
RIGHT, WRONG, PLAIN = (11, 122, 75), (194, 54, 26), (110, 118, 129)
CSV_HEADER = ("query", "query_path", "rank", "prediction_path", "distance_m", "right", "picture")


def choose_queries(outcome: np.ndarray, number: int) -> list[int]:
    """Choose queries to show: as many found first, found later and missed as there are, spread evenly over the list.

    outcome: (Q,) of FOUND_FIRST, FOUND_LATER, MISSED.  A kind that is rare leaves its places to the others.
    """
    kinds = [np.flatnonzero(outcome == kind) for kind in (FOUND_FIRST, FOUND_LATER, MISSED)]
    shares = [0, 0, 0]
    for _ in range(min(number, len(outcome))):
        open_kinds = [kind for kind in range(3) if shares[kind] < len(kinds[kind])]
        shares[min(open_kinds, key=lambda kind: shares[kind])] += 1
    chosen: list[int] = []
    for members, share in zip(kinds, shares, strict=True):
        if share:
            # The middles of equal stretches: neither only the first photos of a street nor a random draw.
            chosen += members[((np.arange(share) + 0.5) * len(members) / share).astype(np.int64)].tolist()
    return chosen


def open_picture(path: Path) -> Image.Image | None:
    """Open a photo for Pillow; None when it cannot be opened."""
    try:
        return Image.fromarray(open_image(path).permute(1, 2, 0).numpy())
    except ImageError:
        return None


def thumbnail(path: Path) -> tuple[str, int, int]:
    """(JPEG as a data URI, width, height) of a small copy of a photo, grey where it cannot be opened."""
    picture = open_picture(path)
    if picture is None:
        return placeholder_tile("cannot be opened")
    picture.thumbnail(THUMBNAIL, Image.Resampling.LANCZOS)
    return _encoded(picture)


def placeholder_tile(text: str) -> tuple[str, int, int]:
    """(JPEG as a data URI, width, height) of a grey picture that says what is missing."""
    return _encoded(placeholder((THUMBNAIL[0], 150), text))


def _encoded(picture: Image.Image) -> tuple[str, int, int]:
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=80, optimize=True)
    data = base64.b64encode(encoded.getvalue()).decode("ascii")
    return f"data:image/jpeg;base64,{data}", picture.width, picture.height


def placeholder(size: tuple[int, int], text: str = "cannot be opened") -> Image.Image:
    """Return a grey picture that says what is missing."""
    picture = Image.new("RGB", size, (128, 134, 141))
    center = (size[0] / 2, size[1] / 2)
    ImageDraw.Draw(picture).text(center, text, fill="white", font=ImageFont.load_default(17), anchor="mm")
    return picture


def save_predictions(
    folder: Path,
    dataset: RetrievalDataset,
    evaluation: Evaluation,
    num_preds: int,
    only_wrong: bool = False,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a picture of each query with its first `num_preds` predictions, and `predictions.csv`; return how many.

    A picture is named after its query's number.  only_wrong: pictures only of queries whose first prediction is
    wrong.  A photo that cannot be opened is a grey tile.  Nothing is written for num_preds = 0.
    Raises StorageError when the disk is full or refuses.
    """
    right = evaluation.hits[:, :num_preds]  # (Q, n) bool
    if num_preds < 1 or not right.size:
        return 0
    wanted = np.flatnonzero(~right[:, 0]) if only_wrong else np.arange(len(right))
    digits = max(3, len(str(len(right) - 1)))
    names = {int(query): f"{query:0{digits}d}.jpg" for query in wanted}

    def save(query: int) -> None:
        picture = _side_by_side(dataset, evaluation, query, right[query])
        write_atomically(folder / names[query], lambda file: picture.save(file, "JPEG", quality=88))

    # Decoding and encoding release the interpreter, so threads use all cores.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, _ in enumerate(pool.map(save, names), 1):
            if progress is not None:
                progress(done, len(names))
    write_atomically(folder / "predictions.csv", lambda file: _write_csv(file, dataset, evaluation, right, names))
    return len(names)


def _write_csv(
    file: BinaryIO, dataset: RetrievalDataset, evaluation: Evaluation, right: np.ndarray, names: dict[int, str]
) -> None:
    # Names go out byte by byte as they lie on the disk, also those that are no UTF-8.
    text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(CSV_HEADER)
    for query, row in enumerate(right):
        query_path = dataset.queries.path(query)
        for rank, is_right in enumerate(row):
            image = int(evaluation.predictions[query, rank])
            if image >= 0:
                path, distance = dataset.database.path(image), f"{evaluation.distances_m[query, rank]:.2f}"
                lines.writerow([query, query_path, rank + 1, path, distance, int(is_right), names.get(query, "")])
    text.flush()
    text.detach()


def _side_by_side(
    dataset: RetrievalDataset, evaluation: Evaluation, query: int, right: Sequence[bool] | np.ndarray
) -> Image.Image:
    """Put the query and its predictions into one picture, framed, with a caption above each."""
    tiles = [_tile(open_picture(dataset.queries.path(query)), f"query {query}", PLAIN)]
    for rank, is_right in enumerate(right):
        image = int(evaluation.predictions[query, rank])
        photo = open_picture(dataset.database.path(image)) if image >= 0 else None
        caption = f"{rank + 1}: {format_distance(float(evaluation.distances_m[query, rank]))}"
        tiles.append(_tile(photo, caption, RIGHT if is_right else WRONG, bool(is_right)))
    width = sum(tile.width for tile in tiles) + GAP * (len(tiles) + 1)
    picture = Image.new("RGB", (width, tiles[0].height + 2 * GAP), "white")
    left = GAP
    for tile in tiles:
        picture.paste(tile, (left, GAP))
        left += tile.width + GAP
    return picture


def _tile(
    photo: Image.Image | None, caption: str, color: tuple[int, int, int], is_right: bool | None = None
) -> Image.Image:
    """One framed photo under its caption; a drawn tick or cross, since no font is sure to hold one."""
    if photo is None:
        photo = placeholder((TILE_HEIGHT, TILE_HEIGHT))
    scale = min(TILE_HEIGHT / photo.height, MAX_TILE_WIDTH / photo.width)
    photo = photo.resize((max(1, round(photo.width * scale)), max(1, round(photo.height * scale))))
    width = max(photo.width, 150) + 2 * FRAME
    tile = Image.new("RGB", (width, CAPTION + TILE_HEIGHT + 2 * FRAME), "white")
    draw = ImageDraw.Draw(tile)
    start = 2
    if is_right is not None:
        draw_sign(draw, (2, 6), 20, color, is_right)
        start = 30
    draw.text((start, 16), shortened(caption, 40), fill=color, font=ImageFont.load_default(21), anchor="lm")
    left, top = (width - photo.width) // 2, CAPTION + FRAME
    box = (left - FRAME, top - FRAME, left + photo.width + FRAME - 1, top + photo.height + FRAME - 1)
    draw.rectangle(box, fill=color)
    tile.paste(photo, (left, top))
    return tile


def draw_sign(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], side: int, color: tuple[int, int, int], is_right: bool
) -> None:
    """Draw a tick or a cross in a square of `side` pixels."""
    x, y = corner
    if is_right:
        draw.line([(x, y + side * 0.55), (x + side * 0.38, y + side * 0.9), (x + side, y + side * 0.1)], color, 4)
        return
    draw.line([(x, y), (x + side, y + side)], color, 4)
    draw.line([(x, y + side), (x + side, y)], color, 4)
