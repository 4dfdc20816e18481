"""A few validation queries with their first predictions as one image, to see what a network finds while it trains.

Rows are queries, evenly spaced over the set and the same for each epoch; the first column is the query, the others are
its predictions: green frames are correct, red ones are not.
"""

import numpy as np

from cosplace.errors import ImageError
from cosplace.photos.image_list import ImageList, evenly_spaced
from cosplace.photos.opening import open_image
from cosplace.photos.resizing import resize
from cosplace.retrieval.dataset import RetrievalDataset
from cosplace.retrieval.evaluation import Evaluation

NUM_QUERIES, NUM_PREDICTIONS = 6, 4
SIDE, FRAME, GAP = 128, 5, 4  # pixels
QUERY, CORRECT, WRONG, EMPTY = (110, 118, 129), (11, 122, 75), (194, 54, 26), (60, 64, 70)  # RGB


def validation_image(dataset: RetrievalDataset, evaluation: Evaluation) -> np.ndarray:
    """The image, (H, W, 3) uint8.  Photos that cannot be opened are gray."""
    queries = evenly_spaced(dataset.queries, NUM_QUERIES)
    hits, num_shown = evaluation.hits, min(NUM_PREDICTIONS, evaluation.predictions.shape[1])
    step = SIDE + GAP
    image = np.full((len(queries) * step - GAP, (1 + num_shown) * step - GAP, 3), 255, np.uint8)
    for row, query in enumerate(queries):
        tiles = [_tile(dataset.queries, query, QUERY)]
        for rank in range(num_shown):
            color = CORRECT if hits[query, rank] else WRONG
            tiles.append(_tile(dataset.database, int(evaluation.predictions[query, rank]), color))
        for column, tile in enumerate(tiles):
            image[row * step : row * step + SIDE, column * step : column * step + SIDE] = tile
    return image


def _tile(images: ImageList, row: int, color: tuple[int, int, int]) -> np.ndarray:
    """A photo in a frame, (SIDE, SIDE, 3) uint8; an empty frame for row -1."""
    tile = np.full((SIDE, SIDE, 3), color, np.uint8)
    inner = SIDE - 2 * FRAME
    tile[FRAME:-FRAME, FRAME:-FRAME] = EMPTY
    if row < 0:
        return tile
    try:
        photo = open_image(images.path(row))
    except ImageError:
        return tile
    _, height, width = photo.shape
    scale = inner / max(height, width)
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    small = resize(photo, height, width).permute(1, 2, 0).numpy()
    top, left = FRAME + (inner - height) // 2, FRAME + (inner - width) // 2
    tile[top : top + height, left : left + width] = small
    return tile
