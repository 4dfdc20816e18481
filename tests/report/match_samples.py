"""Queries whose photos are shifted, turned, plain or damaged copies of each other, and their evaluation."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.evaluation import Evaluation, evaluate_descriptors
from tests.report.report_samples import EAST, NORTH

WIDTH, HEIGHT, SHIFT = 320, 240, 30  # pixels
# Of each query: similarity of its first prediction, meters to it, and meters to another database image.
QUERIES = ((0.9, 400, 2), (0.8, 3, 600), (0.95, 700, 800), (0.7, 500, 4))


def texture(seed: int) -> Image.Image:
    """A photo with many corners, larger than the copies."""
    noise = np.random.default_rng(seed).integers(0, 256, (400, 400, 3), np.uint8)
    blurred = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(3)), np.float64)
    return Image.fromarray(np.clip((blurred - 128) * 6 + 128, 0, 255).astype(np.uint8))


def part(photo: Image.Image, left: int, top: int) -> Image.Image:
    return photo.crop((left, top, left + WIDTH, top + HEIGHT))


def make_matched_dataset(folder: Path) -> RetrievalDataset:
    """Query 0: first prediction turned by 90° and wrong, expected match shifted.  Query 1: the first prediction is the
    expected match, shifted.  Query 2: plain photos, no positives.  Query 3: a wrong photo, the expected one damaged.
    """
    plain = Image.new("RGB", (WIDTH, HEIGHT), "gray")
    copies = [part(texture(number), 60, 60) for number in range(5)]
    moved = [part(texture(number), 60 + SHIFT, 60 - SHIFT) for number in range(2)]
    turned = copies[0].transpose(Image.Transpose.ROTATE_90)
    photos = [
        (copies[0], turned, moved[0]), (copies[1], moved[1], plain), (plain, plain, copies[2]),
        (copies[3], copies[4], None),
    ]  # fmt: skip
    for name in ("queries", "database"):
        (folder / name).mkdir(parents=True)
    for number, ((_, *offsets), (query, *images)) in enumerate(zip(QUERIES, photos, strict=True)):
        north = NORTH + 20_000 * number
        query.save(folder / "queries" / f"@{EAST:.2f}@{north:.2f}@@.png")
        for offset, image in zip(offsets, images, strict=True):
            path = folder / "database" / f"@{EAST + offset:.2f}@{north:.2f}@@.png"
            if image is None:
                path.write_bytes(b"no photo")
            else:
                image.save(path)
    return open_retrieval_dataset(folder)


def make_matched_evaluation(dataset: RetrievalDataset) -> Evaluation:
    """Predictions with the similarities of QUERIES."""
    database, queries = np.zeros((len(dataset.database), 8)), np.eye(8)[:4]
    for number, (similarity, first, _) in enumerate(QUERIES):
        offsets = dataset.database_positions - np.array([EAST, NORTH + 20_000 * number])
        for row in np.flatnonzero(np.abs(offsets[:, 1]) < 100):
            cosine = similarity if abs(offsets[row, 0] - first) < 1 else 0.1
            database[row, [number, 4 + number]] = cosine, np.sqrt(1 - cosine**2)
    return evaluate_descriptors(database.astype(np.float32), queries.astype(np.float32), dataset, recall_values=(1, 2))
