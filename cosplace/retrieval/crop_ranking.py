"""One ranked list for each query with several crops, from the lists of its crops.  Without torch.

nearest_crop  the distance of an image is the smallest one of the crops
maj_voting    the same, but images that several crops find first get closer (see `vote`)

Legend: Q queries, V crops, n images found by each crop, K images per query.  Pure.
"""

import numpy as np

from cosplace.photos.crops import MAJORITY

VOTE_WEIGHT = 0.01  # in squared distance
VOTE_RANKS = (1, 5, 10)


def rank_crops(
    images: np.ndarray, squared_distances: np.ndarray, k: int, *, policy: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k best images of each query (Q, K) int64, best first and each once, and their smallest squared distances.

    images: (Q, V, n) int64, best first per crop; -1 for none.  squared_distances: (Q, V, n) float32.
    The third array is what the images are ordered by: the squared distances (Q, K) float32, with maj_voting after the
    votes.  Queries with fewer images end with -1 and inf.
    """
    found = np.full((len(images), k), -1, np.int64)
    squared, ranked_by = np.full((2, len(images), k), np.inf, np.float32)
    squared_distances = np.where(images >= 0, squared_distances, np.inf)
    for row, (own_images, own_squared) in enumerate(zip(images, squared_distances, strict=True)):
        own_ranks = vote(own_images, own_squared) if policy == MAJORITY else own_squared
        best, distances = smallest(own_images, own_ranks, own_squared, k)
        count = int((best >= 0).sum())  # the missing ones are the last
        found[row, :count], squared[row, :count] = best[:count], distances[:count]
        ranked_by[row, :count] = _smallest_of(best[:count], own_images, own_ranks)
    return found, squared, ranked_by


def vote(images: np.ndarray, squared_distances: np.ndarray, weight: float = VOTE_WEIGHT) -> np.ndarray:
    """Squared distances (V, n) after the votes of the crops of a query; images: (V, n) int64, best first per crop.

    For n = 1, 5 and 10: an image that c > 1 crops have among their first n gets closer by weight * c / n, in the
    lists where it is among the first n.
    """
    voted = squared_distances.astype(np.float64)
    for n in VOTE_RANKS:
        first = images[:, :n]
        _, inverse, counts = np.unique(first, return_inverse=True, return_counts=True)
        votes = np.where(counts > 1, counts, 0)[inverse.reshape(first.shape)]
        voted[:, :n] -= weight * votes / n
    return voted


def smallest(
    images: np.ndarray, ranked_by: np.ndarray, squared_distances: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k images (K,) with the smallest rank, each once, and their smallest squared distances (K,) float32.

    images, ranked_by, squared_distances: (V, n), of the crops of a query.  On ties, the lower image comes first.
    """
    order = np.lexsort((images.ravel(), ranked_by.ravel()))
    ranked = images.ravel()[order]
    found = ranked[np.sort(np.unique(ranked, return_index=True)[1])[:k]]
    return found, _smallest_of(found, images, squared_distances).astype(np.float32)


def _smallest_of(found: np.ndarray, images: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The smallest value (K,) of each of some images (K,) in lists of images (V, n)."""
    own = np.where(images[None] == found[:, None, None], values[None], np.inf)
    return own.min(axis=(1, 2), initial=np.inf)
