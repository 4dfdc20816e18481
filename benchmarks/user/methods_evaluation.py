"""Recalls as the evaluation scripts of method papers compute them.

One Dataset of all photos, a DataLoader with worker processes, a faiss index, and positives from scikit-learn.  It
stands for VPR-methods-evaluation and similar repositories.
"""

from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.user.shared_steps import (
    KS,
    RADIUS_M,
    list_photos,
    open_network,
    parse_arguments,
    photo_transform,
    positions,
    recalls_of,
    write_recalls,
)


class TestDataset(Dataset):
    """The photos of the database, then those of the queries, with the positives of each query."""

    def __init__(self, database: Path, queries: Path, image_size: int) -> None:
        self.database_paths, self.query_paths = list_photos(database), list_photos(queries)
        self.paths = self.database_paths + self.query_paths
        self.transform = photo_transform(image_size)
        neighbors = NearestNeighbors(n_jobs=-1).fit(positions(self.database_paths))
        self.positives = neighbors.radius_neighbors(
            positions(self.query_paths), radius=RADIUS_M, return_distance=False
        )  # (Q,) arrays

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as photo:
            return self.transform(photo.convert("RGB")), index

    def __len__(self) -> int:
        return len(self.paths)


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate, and write the recalls and descriptors."""
    arguments = parse_arguments(__doc__, argv)
    network = open_network(arguments.weights)
    dataset = TestDataset(arguments.database, arguments.queries, arguments.image_size)
    loader = DataLoader(dataset, batch_size=arguments.batch_size, num_workers=arguments.num_workers)
    with torch.inference_mode():
        descriptors = np.empty((len(dataset), network.dimension), dtype="float32")
        for photos, indices in loader:
            descriptors[indices.numpy()] = network(photos).numpy()
    num_database = len(dataset.database_paths)
    database, queries = descriptors[:num_database], descriptors[num_database:]
    np.save(arguments.out / "database.npy", database)
    np.save(arguments.out / "queries.npy", queries)
    index = faiss.IndexFlatL2(network.dimension)
    index.add(database)
    _, predictions = index.search(queries, max(KS))
    write_recalls(arguments.out, recalls_of(predictions, dataset.positives))


if __name__ == "__main__":
    main()
