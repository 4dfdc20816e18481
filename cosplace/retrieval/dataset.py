"""A database with its queries, all with known positions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cosplace.errors import DatasetError
from cosplace.photos.image_list import ImageList
from cosplace.photos.names import utm_positions
from cosplace.photos.scanning import scan_images

QUERIES_FOLDERS = ("queries_v1", "queries")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalDataset:
    """A database of R photos and Q queries, all with known positions."""

    name: str
    folder: Path
    database: ImageList
    queries: ImageList
    database_positions: np.ndarray  # (R, 2) float64, UTM east and north in meters
    query_positions: np.ndarray  # (Q, 2) float64


def open_retrieval_dataset(folder: str | Path, queries_folder: str | None = None) -> RetrievalDataset:
    """Open the dataset in a folder: database/ and the queries in `queries_folder` (default: queries_v1, else queries).

    Raises DatasetError when a folder is missing or empty, or a file name has no coordinates.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder} does not exist. Use the folder that contains database/ and queries/.")
    if not (folder / "database").is_dir():
        raise DatasetError(f"{folder} has no subfolder database/. Use the folder that contains database/ and queries/.")
    candidates = [queries_folder] if queries_folder else QUERIES_FOLDERS
    queries = next((name for name in candidates if (folder / name).is_dir()), None)
    if queries is None:
        others = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name != "database")
        hint = f" Choose one of its subfolders with --queries_folder: {', '.join(others[:8])}." if others else ""
        raise DatasetError(f"{folder} has no subfolder of queries ({' or '.join(candidates)}).{hint}")
    database, query_images = scan_images(folder / "database"), scan_images(folder / queries)
    return RetrievalDataset(
        name=f"{folder.resolve().name}/{queries}",
        folder=folder,
        database=database,
        queries=query_images,
        database_positions=utm_positions(database),
        query_positions=utm_positions(query_images),
    )
