"""Recalls by one loop over the photos, without worker processes, and a faiss index.

It stands for the script that a user writes in ten minutes.
"""

from collections.abc import Sequence

import faiss
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

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


def extract(network: nn.Module, paths: list[str], image_size: int, batch_size: int) -> np.ndarray:
    """Descriptors (n, D) of photos."""
    transform = photo_transform(image_size)

    def open_photo(path: str) -> Tensor:
        with Image.open(path) as photo:
            return transform(photo.convert("RGB"))

    descriptors = []
    with torch.inference_mode():
        for start in range(0, len(paths), batch_size):
            batch = torch.stack([open_photo(path) for path in paths[start : start + batch_size]])
            descriptors.append(network(batch).numpy())
    return np.concatenate(descriptors)


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate, and write the recalls and descriptors."""
    arguments = parse_arguments(__doc__, argv)
    network = open_network(arguments.weights)
    paths = [list_photos(folder) for folder in (arguments.database, arguments.queries)]
    database, queries = (extract(network, each, arguments.image_size, arguments.batch_size) for each in paths)
    np.save(arguments.out / "database.npy", database)
    np.save(arguments.out / "queries.npy", queries)
    index = faiss.IndexFlatL2(network.dimension)
    index.add(database)
    _, predictions = index.search(queries, max(KS))
    places, visited = map(positions, paths)
    positives = [np.flatnonzero(np.linalg.norm(places - point, axis=1) <= RADIUS_M) for point in visited]
    write_recalls(arguments.out, recalls_of(predictions, positives))


if __name__ == "__main__":
    main()
