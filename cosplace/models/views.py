"""What a network sees of a photo: copies whose descriptors are averaged, and the sizes and crops of queries.

Policies of Berton et al., "Deep Visual Geo-localization Benchmark", CVPR 2022; see `cosplace.retrieval.query_views`.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cosplace.errors import ConfigError
from cosplace.photos.crops import (
    CENTER,
    CENTRAL_CROP,
    CORNERS,
    NATIVE,
    NUM_CROPS,
    POLICIES,
    SEVERAL_CROPS,
    SEVERAL_DESCRIPTORS,
    SHORT_SIDE,
    SINGLE_QUERY,
    SQUARE,
    WHOLE,
    WITH_SIZE,
    Crop,
    crop_photo,
)
from cosplace.photos.resizing import Pixels, resize_shorter_side

MIN_SCALE, MAX_SCALE = 0.1, 4
USUAL_SIDE = 2048  # pixels of a square that is as large as most photos
MAX_SCALES = 10  # of a photo; the network sees each of them


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoViews:
    """Which views of a photo are described.  Raises ConfigError for a policy that needs a size and has none."""

    scales: tuple[float, ...] = (1.0,)  # sizes of the copies of each photo, relative to it
    flip: bool = False  # also its mirror image
    query_policy: str | None = None  # one of POLICIES; None: queries as the photos of the database
    query_size: int | None = None  # pixels of the shorter side, or of both sides of squares
    query_shape: tuple[int, int] | None = None  # of central_crop: height and width of all photos of the database

    def __post_init__(self) -> None:
        if self.query_policy not in (None, *POLICIES):
            raise ConfigError(
                f"An index cannot use the query policy '{self.query_policy}'. Use one of {', '.join(POLICIES)}."
            )
        needs_size = self.query_policy in WITH_SIZE
        if needs_size and (self.query_size is None or self.query_size < 1):
            raise ConfigError(f"--query_policy {self.query_policy} needs a size. Add --query_size, for example 322.")
        if not needs_size and self.query_size is not None:
            raise ConfigError(f"--query_size needs --query_policy {', '.join(WITH_SIZE[:-1])} or {WITH_SIZE[-1]}.")
        has_shape = self.query_shape is not None and len(self.query_shape) == 2 and min(self.query_shape) >= 1
        if has_shape != (self.query_policy == CENTRAL_CROP) or (self.query_shape is not None and not has_shape):
            raise ConfigError(
                f"query_shape is for the query policy {CENTRAL_CROP}, which needs it: height and width of the photos "
                f"of the index, in pixels. Got {self.query_shape} for {self.query_policy}."
            )
        if not self.scales or not all(MIN_SCALE <= scale <= MAX_SCALE for scale in self.scales):
            raise ConfigError(
                f"--scales must be between {MIN_SCALE} and {MAX_SCALE}, got {self.scales}. Use for example 0.7 1."
            )
        if len(self.scales) > MAX_SCALES:
            raise ConfigError(f"--scales has at most {MAX_SCALES} numbers, got {len(self.scales)}.")

    @property
    def num_crops(self) -> int:
        """How many crops of a query are described."""
        return NUM_CROPS if self.query_policy in SEVERAL_CROPS else 1

    @property
    def num_descriptors(self) -> int:
        """How many descriptors a query has: one, or one for each crop."""
        return NUM_CROPS if self.query_policy in SEVERAL_DESCRIPTORS else 1

    def largest_side(self, image_size: int | None) -> float:
        """Side in pixels of a square as large as what a network sees at once: a photo, or all crops of a query.

        image_size: of the photos of the database; None for their own size, which counts as USUAL_SIDE.
        """
        height, width = self.query_shape or (0, 0)
        crops = self.num_crops * (self.query_size or 0) ** 2
        return max(self.scales) * math.sqrt(max((image_size or USUAL_SIDE) ** 2, crops, height * width))

    def crops_of_query(self, photo: Pixels, image_size: int | None, name: str | Path) -> list[Pixels]:
        """What is described of a query (3, H, W): `num_crops` tensors or arrays (3, h, w).

        image_size: of the photos of the database.  name: for the PhotoSizeError of a photo that is too long and narrow.
        """
        size = self.query_size or 0
        if self.query_policy == SQUARE:
            return [crop_photo(photo, Crop(height=size, width=size, place=WHOLE), name)]
        if self.query_shape is not None:
            height, width = self.query_shape
            return [crop_photo(photo, Crop(height=height, width=width), name)]
        if self.query_policy in SEVERAL_CROPS:
            places = (*CORNERS, CENTER)
            return [crop_photo(photo, Crop(height=size, width=size, place=place), name) for place in places]
        return [resize_shorter_side(photo, self.size_of_query(image_size), name)]

    def size_of_query(self, image_size: int | None) -> int | None:
        """Pixels of the shorter side to which a query can be resized at first; None: it must keep its size."""
        sizes = {None: image_size, SHORT_SIDE: self.query_size, SINGLE_QUERY: self.query_size}
        return sizes.get(self.query_policy)

    def record(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON."""
        return {
            name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
            for name, value in asdict(self).items()
            if value != getattr(PLAIN_VIEWS, name)
        }

    def text(self) -> str:
        """All that differs from the defaults, in words; "" if nothing does."""
        parts = []
        if self.scales != (1.0,):
            parts.append(f"averaged over scales {', '.join(f'{scale:g}' for scale in self.scales)}")
        if self.flip:
            parts.append("averaged with the mirror image")
        if self.query_policy is not None:
            size = "" if self.query_size is None else f" at {self.query_size} pixels"
            if self.query_shape is not None:
                size = f" at {self.query_shape[1]} x {self.query_shape[0]} pixels"
            parts.append(f"queries {self.query_policy}{size}")
        return "; ".join(parts)


PLAIN_VIEWS = PhotoViews()


def how_described(image_size: int | None, views: PhotoViews = PLAIN_VIEWS) -> dict[str, Any]:
    """Size and views of the photos that an index or evaluation describes; equal for equal descriptors.

    image_size: shorter side of the photos of the database, in pixels; None for their own size.
    """
    usual = NATIVE if image_size is None else SHORT_SIDE
    policy = SHORT_SIDE if views.query_policy == SINGLE_QUERY else views.query_policy
    return {
        "image_size": image_size,
        "query_policy": policy or usual,
        "query_size": views.query_size if views.query_policy else image_size,
        "scales": list(views.scales),
        "flip": views.flip,
    }


def views_from_record(record: dict[str, Any]) -> PhotoViews:
    """The views that `PhotoViews.record` gave.  Raises ConfigError or TypeError for a damaged record."""
    values = dict(record)
    if "scales" in values:
        values["scales"] = tuple(float(scale) for scale in values["scales"])
    if "query_shape" in values:
        values["query_shape"] = tuple(int(side) for side in values["query_shape"])
    return PhotoViews(**values)
