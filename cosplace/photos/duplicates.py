"""Near-duplicates: photos that were resized, encoded again, or taken from the same spot a moment later.

Each photo becomes a gray thumbnail and, from it, a 64-bit difference hash (dHash).  Pairs whose hashes differ in few
bits are candidates; they are found by parts of the hashes that are equal, without comparing all pairs.  Candidates are
near-duplicates if their thumbnails are correlated.  On 2,834 photos of streets, copies at half the size or with JPEG
quality 20 differ in 4 bits or less and correlate by more than 0.999, and no two different photos by more than 0.94.
"""

from itertools import combinations

import numpy as np

ROWS, COLUMNS = 16, 18  # of a thumbnail
MAX_BITS = 6  # that differ between the hashes of near-duplicates
MIN_CORRELATION = 0.97  # of their thumbnails
NUM_BLOCKS = 8  # of a hash; hashes that differ in MAX_BITS bits have at least two equal blocks
BLOCK_BITS = 64 // NUM_BLOCKS
MAX_BUCKET = 2048  # photos with two equal blocks are compared with this number of others, to limit time
CHUNK = 1 << 15  # thumbnails, or pairs of them, that are converted to floats at once
FLAT = 1.0  # standard deviation of gray values; photos below it show nothing to compare


def gray_thumbnail(pixels: np.ndarray) -> np.ndarray:
    """A gray thumbnail (ROWS, COLUMNS) uint8 of a photo (H, W, 3) uint8: means of areas."""
    from PIL import Image

    gray = Image.fromarray(pixels).convert("L")
    return np.asarray(gray.resize((COLUMNS, ROWS), Image.Resampling.BOX, reducing_gap=2.0))


def difference_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Hashes of thumbnails (I, ROWS, COLUMNS), (I,) uint64: whether each of 8 x 9 areas is darker than the next one."""
    areas = thumbnails.reshape(len(thumbnails), 8, ROWS // 8, 9, COLUMNS // 9).mean((2, 4), dtype=np.float32)
    rising = (areas[:, :, 1:] > areas[:, :, :-1]).reshape(len(thumbnails), 64)
    return np.packbits(rising, axis=1).view(">u8")[:, 0].astype(np.uint64)


def find_near_duplicates(thumbnails: np.ndarray) -> np.ndarray:
    """Pairs of near-duplicates, (P, 2) int64, sorted, the lower row of each pair first.

    thumbnails: (I, ROWS, COLUMNS) uint8.  Photos of one flat color have no near-duplicates.  Of photos with the same
    hash, each is compared with the one before it, and only the first one with photos of other hashes.
    """
    rows = np.flatnonzero(_deviations(thumbnails) >= FLAT)
    if not len(rows):
        return np.zeros((0, 2), np.int64)
    hashes = difference_hashes(thumbnails[rows])
    order = np.argsort(hashes, kind="stable")
    is_same = hashes[order[1:]] == hashes[order[:-1]]
    same = np.stack([order[:-1][is_same], order[1:][is_same]], 1)
    first = order[np.concatenate([[True], ~is_same])]
    pairs = np.concatenate([same, first[_close_pairs(hashes[first])]])
    pairs = np.sort(rows[pairs], axis=1)
    pairs = pairs[_correlations(thumbnails, pairs) >= MIN_CORRELATION]
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _deviations(thumbnails: np.ndarray) -> np.ndarray:
    """Standard deviation of the gray values of each thumbnail, (I,) float32."""
    deviations = np.zeros(len(thumbnails), np.float32)
    for start in range(0, len(thumbnails), CHUNK):
        chunk = thumbnails[start : start + CHUNK].reshape(-1, ROWS * COLUMNS)
        deviations[start : start + CHUNK] = chunk.std(axis=1, dtype=np.float32)
    return deviations


def _close_pairs(hashes: np.ndarray) -> np.ndarray:
    """Pairs (P, 2) int64 of hashes (n,) uint64, all different, that differ in at most MAX_BITS bits."""
    found = [np.zeros(0, np.int64)]
    mask = np.uint64((1 << BLOCK_BITS) - 1)
    blocks = [(hashes >> np.uint64(BLOCK_BITS * number)) & mask for number in range(NUM_BLOCKS)]
    for one, other in combinations(range(NUM_BLOCKS), 2):
        keys = (blocks[one] << np.uint64(BLOCK_BITS)) | blocks[other]
        order = np.argsort(keys, kind="stable")
        keys, in_order = keys[order], hashes[order]
        places = np.arange(len(keys))
        for step in range(1, MAX_BUCKET):  # each hash with the next one of its bucket, then with the second next, ...
            places = places[places + step < len(keys)]
            places = places[keys[places] == keys[places + step]]
            if not len(places):
                break
            close = places[_num_bits(in_order[places] ^ in_order[places + step]) <= MAX_BITS]
            a, b = order[close], order[close + step]
            found.append(np.minimum(a, b) * len(hashes) + np.maximum(a, b))
    return np.stack(np.divmod(np.unique(np.concatenate(found)), max(1, len(hashes))), 1)


def _num_bits(values: np.ndarray) -> np.ndarray:
    """Number of bits that are set in each of (n,) uint64."""
    two, four, eight = (np.uint64(pattern) for pattern in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F))
    values = values - ((values >> np.uint64(1)) & two)
    values = (values & four) + ((values >> np.uint64(2)) & four)
    values = (values + (values >> np.uint64(4))) & eight
    return (values * np.uint64(0x0101010101010101)) >> np.uint64(56)


def _correlations(thumbnails: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Correlation of the gray values of pairs (P, 2) of thumbnails that are not flat, (P,) float32."""
    correlations = np.zeros(len(pairs), np.float32)
    for start in range(0, len(pairs), CHUNK):
        chunk = pairs[start : start + CHUNK]
        one, other = (_standardized(thumbnails[chunk[:, side]]) for side in (0, 1))
        correlations[start : start + len(chunk)] = (one * other).sum(axis=1)
    return correlations


def _standardized(thumbnails: np.ndarray) -> np.ndarray:
    """Gray values (n, ROWS * COLUMNS) float32 of mean 0 and length 1."""
    values = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    return values / np.linalg.norm(values, axis=1, keepdims=True)
