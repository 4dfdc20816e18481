"""Open every photo of a list once: which cannot be opened, sizes, checksums, thumbnails to find near-duplicates."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from cosplace.errors import ImageError
from cosplace.photos.duplicates import COLUMNS, ROWS, gray_thumbnail
from cosplace.photos.image_list import ImageList
from cosplace.photos.opening import decode_image, read_file
from cosplace.progress import Progress, no_progress

CHUNK = 4096  # photos whose results are waited for at once


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoContents:
    """What is inside the photos of a list."""

    sizes: np.ndarray  # (I, 2) int32: width and height, 0 where a photo cannot be opened
    checksums: np.ndarray  # (I,) S32: SHA-256 of the file, empty where it cannot be read
    thumbnails: np.ndarray  # (I, ROWS, COLUMNS) uint8, black where a photo cannot be opened
    messages: list[str] = field(default_factory=list)  # of the photos that cannot be opened

    @property
    def opened(self) -> np.ndarray:
        """Which photos can be opened, (I,) bool."""
        return self.sizes[:, 0] > 0


def read_contents(images: ImageList, progress: Progress = no_progress) -> PhotoContents:
    """Decode all photos of a list, in threads.  Memory: 330 bytes per photo."""
    contents = PhotoContents(
        sizes=np.zeros((len(images), 2), np.int32),
        checksums=np.zeros(len(images), "S32"),
        thumbnails=np.zeros((len(images), ROWS, COLUMNS), np.uint8),
    )

    def read(row: int) -> str:
        try:
            path = images.path(row)
            raw = read_file(path)
            contents.checksums[row] = hashlib.sha256(raw).digest()
            pixels = decode_image(raw, path).permute(1, 2, 0).numpy()
        except ImageError as error:
            return str(error)
        contents.sizes[row] = pixels.shape[1], pixels.shape[0]
        contents.thumbnails[row] = gray_thumbnail(pixels)
        return ""

    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter's lock
        for first in range(0, len(images), CHUNK):
            rows = range(first, min(first + CHUNK, len(images)))
            for row, message in zip(rows, pool.map(read, rows), strict=True):
                contents.messages.extend([message] if message else [])
                progress("opening photos", row + 1, len(images))
    return contents
