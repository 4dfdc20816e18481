"""Recalls by descriptors in an HDF5 file, one group per photo, and a list of pairs.

It stands for hloc (`extract_features`, then `pairs_from_retrieval`), with larger batches than hloc's single photos.
Like hloc, it stores 16-bit numbers.
Needs h5py.
"""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image
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

FEATURES, PAIRS, DESCRIPTOR = "features.h5", "pairs.txt", "global_descriptor"


class Photos(Dataset):
    """Photos by name."""

    def __init__(self, paths: Sequence[str], image_size: int) -> None:
        self.paths, self.transform = paths, photo_transform(image_size)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        with Image.open(self.paths[index]) as photo:
            return self.transform(photo.convert("RGB")), group_name(self.paths[index])

    def __len__(self) -> int:
        return len(self.paths)


def group_name(path: str) -> str:
    """The name of a photo in the file: its folder and its file name."""
    return "/".join(path.split("/")[-2:])


def read_descriptors(file: Path, names: Sequence[str]) -> np.ndarray:
    """Descriptors (n, D) float32 of photos by name."""
    with h5py.File(file, "r") as features:
        return np.stack([features[name][DESCRIPTOR][()] for name in names]).astype(np.float32)


def main(argv: Sequence[str] | None = None) -> None:
    """Extract the descriptors, match them, and write the pairs and the recalls."""
    arguments = parse_arguments(__doc__, argv)
    database, queries = list_photos(arguments.database), list_photos(arguments.queries)
    network = open_network(arguments.weights)
    dataset = Photos(database + queries, arguments.image_size)
    loader = DataLoader(dataset, batch_size=arguments.batch_size, num_workers=arguments.num_workers)
    with torch.inference_mode(), h5py.File(arguments.out / FEATURES, "w") as features:
        for photos, names in loader:
            for name, descriptor in zip(names, network(photos).numpy(), strict=True):
                group = features.create_group(name)
                group.create_dataset(DESCRIPTOR, data=descriptor.astype(np.float16))

    database_names, query_names = [group_name(path) for path in database], [group_name(path) for path in queries]
    file = arguments.out / FEATURES
    similarities = torch.einsum(
        "qd,rd->qr",
        torch.from_numpy(read_descriptors(file, query_names)),
        torch.from_numpy(read_descriptors(file, database_names)),
    )
    predictions = similarities.topk(max(KS), dim=1).indices.numpy()
    pairs = [f"{name} {database_names[i]}" for name, row in zip(query_names, predictions, strict=True) for i in row]
    (arguments.out / PAIRS).write_text("\n".join(pairs))

    places, visited = positions(database), positions(queries)
    positives = [np.flatnonzero(np.linalg.norm(places - point, axis=1) <= RADIUS_M) for point in visited]
    write_recalls(arguments.out, recalls_of(predictions, positives))


if __name__ == "__main__":
    main()
