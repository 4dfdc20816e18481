"""Sizes and crops of queries, which have other sizes than the database, and the search with several crops.

Policies of Berton et al., "Deep Visual Geo-localization Benchmark", CVPR 2022 (section 4.4 and appendix); `square` is
their hard_resize with equal sides.  The database keeps the size that it has without a policy.

native        each query keeps its size
short_side    the shorter side has `size` pixels
single_query  the same, one query per batch
square        size x size pixels, whatever the aspect ratio was
central_crop  the largest crop around the center with the aspect ratio of the database photos, at their size
five_crops    five squares of size x size after short_side, four corners and the center: the mean of their descriptors
nearest_crop  the same squares: the distance of a database image is the smallest one of the five
maj_voting    the same squares, and images that several of them find first get closer (see `crop_ranking`)

Legend: Q queries, R database images, K predictions per query, V crops, D descriptor dimension.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cosplace.errors import ConfigError, DatasetError, ImageError
from cosplace.photos.crops import (
    CENTER,
    CENTRAL_CROP,
    CORNERS,
    FIVE_CROPS,
    NATIVE,
    POLICIES,
    SHORT_SIDE,
    SINGLE_QUERY,
    SQUARE,
    WHOLE,
    WITH_SIZE,
    Crop,
)
from cosplace.photos.image_list import ImageList
from cosplace.photos.opening import upright_shape
from cosplace.photos.paths import printable
from cosplace.photos.resizing import resized_shape
from cosplace.retrieval.compression import Compression, compress, search_compressed
from cosplace.retrieval.crop_ranking import VOTE_RANKS, rank_crops
from cosplace.retrieval.extraction import Extraction, ExtractionSettings
from cosplace.retrieval.search import nearest

Views = Extraction | tuple[Extraction, ...]  # descriptors of the queries: one per query, or one per crop


# --- what is described -----------------------------------------------------------------------------------------------


def check_policy(policy: str | None, size: int | None) -> None:
    """Raise ConfigError for an unknown policy, and for one without the size that it needs."""
    if policy not in (None, *POLICIES):
        raise ConfigError(f"The query policy must be one of {', '.join(POLICIES)}, got '{policy}'.")
    if policy in WITH_SIZE and (size is None or size < 1):
        raise ConfigError(f"The query policy {policy} needs a size of 1 pixel or more, got {size}.")


def query_extractions(
    policy: str | None, size: int | None, extraction: ExtractionSettings, database: ImageList
) -> list[ExtractionSettings]:
    """Settings for the descriptors of the queries, one per crop.

    policy: None describes queries as the database.  extraction: that of the database.
    Raises DatasetError for central crops if database photos have different sizes, ImageError if none can be opened.
    """
    if policy is None:
        return [extraction]
    if policy == NATIVE:
        return [replace(extraction, image_size=None)]
    if policy == CENTRAL_CROP:
        height, width = database_shape(database, extraction.image_size)
        return [replace(extraction, crop=Crop(height=height, width=width))]
    check_policy(policy, size)
    assert size is not None
    if policy == SHORT_SIDE:
        return [replace(extraction, image_size=size)]
    if policy == SINGLE_QUERY:
        return [replace(extraction, image_size=size, batch_size=1)]
    if policy == SQUARE:
        return [replace(extraction, crop=Crop(height=size, width=size, place=WHOLE))]
    return [replace(extraction, crop=Crop(height=size, width=size, place=place)) for place in (*CORNERS, CENTER)]


def database_shape(
    database: ImageList, image_size: int | None, indexed: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Height and width of the photos of a database after resizing, from the headers of all of them.

    indexed: those of photos that an index has, to which these are added.  Photos that cannot be opened are left out:
    the extraction reports them.
    Raises DatasetError if photos have different sizes, ImageError if none can be opened.
    """
    found = indexed
    failure: ImageError | None = None
    for row in range(len(database)):
        try:
            height, width = upright_shape(database.path(row))
        except ImageError as error:
            failure = failure or error
            continue
        shape = (height, width) if image_size is None else resized_shape(height, width, image_size)
        if found is not None and shape != found:
            sizes = " and ".join(f"{width} x {height}" for height, width in (found, shape))
            advice = "Use another --query_policy, such as five_crops."
            if indexed is not None:
                advice = "Use photos of that size, or build an index with another --query_policy, such as five_crops."
            raise DatasetError(
                f"central_crop crops queries to the size of the database photos, but these have different sizes, such "
                f"as {sizes} ({printable(database.name(row))}). {advice}"
            )
        found = shape
    if found is None:
        raise failure or DatasetError("central_crop needs database photos. Use a database with photos.")
    return found


def combine(policy: str | None, crops: Sequence[Extraction]) -> Views:
    """Descriptors of the queries from those of their crops: the mean for five_crops, else all of them.

    The mean (Q, D) of five_crops is normalized.
    """
    if len(crops) == 1:
        return crops[0]
    if policy != FIVE_CROPS:
        return tuple(crops)
    mean = np.mean([np.asarray(crop.descriptors[:], np.float32) for crop in crops], axis=0)
    lengths = np.linalg.norm(mean, axis=1, keepdims=True)
    return replace(
        crops[0],
        descriptors=mean / np.where(lengths > 0, lengths, 1),  # 0 for a query that could not be opened
        seconds=sum(crop.seconds for crop in crops),
    )


# --- search ----------------------------------------------------------------------------------------------------------


def search(
    database: Extraction,
    queries: Views,
    k: int,
    *,
    policy: str | None = None,
    device: str = "cpu",
    compression: Compression | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best database images of each query (Q, K) int64, best first, and their squared distances (Q, K) float32.

    Queries that could not be opened have -1 and inf.  With several crops, a distance is the smallest one of them; with
    maj_voting, the order is that after the votes.  compression: search by compressed descriptors, on the CPU.
    """
    crops = queries if isinstance(queries, tuple) else (queries,)
    readable = crops[0].readable
    num_searchable = int(database.readable.sum())
    # With several crops, each finds enough images for the votes; the k best ones are among those of all crops.
    num_found = k if len(crops) == 1 else min(max(k, *VOTE_RANKS), num_searchable)
    searchable = None if database.readable.all() else database.readable
    described = [crop.descriptors if readable.all() else crop.descriptors[np.flatnonzero(readable)] for crop in crops]
    if compression is None:
        found = [
            nearest(rows, database.descriptors, num_found, device=device, searchable=searchable) for rows in described
        ]
    else:
        codes = compress(database.descriptors, compression.method, searchable=searchable)
        found = [
            search_compressed(rows, database.descriptors, codes, num_found, compression.shortlist) for rows in described
        ]
    predictions = np.full((len(readable), k), -1, np.int64)
    squared_distances = np.full((len(readable), k), np.inf, np.float32)
    if len(crops) == 1:
        predictions[readable], squared_distances[readable] = found[0]
        return predictions, squared_distances
    images = np.stack([images for images, _ in found], axis=1)  # (Q, V, n)
    squared = np.stack([squared for _, squared in found], axis=1)
    predictions[readable], squared_distances[readable], _ = rank_crops(images, squared, k, policy=policy)
    return predictions, squared_distances
