"""Settings of index build, add, sync, remove, info, verify, compact, calibrate."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosplace.config.defaults import EXACT_ROWS, MAX_IMAGE_SIZE, THUMBNAIL_SIZE
from cosplace.config.setting import Section, required, section, setting
from cosplace.config.shared import (
    MODEL_HELP,
    DeviceSettings,
    EncodingSettings,
    accept_license_setting,
    cluster_engine_setting,
    follow_outside_setting,
    index_engine_setting,
    index_setting,
    json_setting,
    moved_model_setting,
    root_setting,
    seed_setting,
)

SEARCH_CODES = ("4bit", "binary", "int8")
PART_HELP = (
    "photos of a dataset to index: all, queries too; or only those of its database/ or gallery/, to measure an index "
    "with its queries; stored with the index"
)
SOURCE_HELP = "label for the source of the photos, stored with them"


def part_setting() -> Any:
    """--part: which photos of a dataset are indexed."""
    return setting(
        None, PART_HELP, choices=("all", "database"),
        default_text="as before; at first, database for a dataset that came with one; for photos of your own, also "
        "after `cosplace split`, all but those in folders named like queries",
    )  # fmt: skip


def without_positions_setting() -> bool:
    """--without_positions: also index a folder in which no photo has a position."""
    return setting(False, "index the photos even if none of them has a position")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings(Section):
    """Settings of a new index"""

    stored_dtype: str = setting(
        "float32", "type of stored descriptors; float16 halves the disk space and may swap nearly equal matches",
        choices=("float32", "float16"),
    )  # fmt: skip
    thumbnail_size: int = setting(
        THUMBNAIL_SIZE, "pixels of the longer side of stored thumbnails; 640 to compare photos in full size on the "
        "map; 0 stores none", at_least=0,
    )  # fmt: skip
    search_codes: str = setting(
        "4bit", "codes that approximate search compares before full descriptors: 4bit, the fastest; binary, 1 bit per "
        "dimension for a smaller search index; int8, 8 bits per dimension", choices=SEARCH_CODES,
    )  # fmt: skip
    exact_rows: int = setting(
        EXACT_ROWS, "above this number of photos, use approximate search, whose recall is measured", at_least=1
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexBuildConfig(Section):
    """Settings of `cosplace index build`."""

    dataset: Path = required(
        "folder of photos, in any subfolders, or a table of photos; for a dataset that came with database/ and "
        "queries/, only its database/ or gallery/ is used",
        positional=True,
        metavar="DATASET",
    )
    model: str = required(f"model that computes the descriptors: {MODEL_HELP}", metavar="MODEL")
    to: str = required(
        "index to create or continue: a folder, or object storage such as s3://bucket/city", metavar="INDEX"
    )
    part: str | None = part_setting()
    image_size: int | None = setting(
        None, "resize photos to this number of pixels along the shorter side", at_least=1, at_most=MAX_IMAGE_SIZE,
        default_text="the size of each photo",
    )  # fmt: skip
    scales: tuple[float, ...] = setting(
        (1.0,), "average the descriptors of copies of each photo, also of queries: their sizes relative to it, for "
        "example 0.7 1 1.4", at_least=0.1, at_most=4, metavar="FACTOR",
    )  # fmt: skip
    flip: bool = setting(False, "average the descriptors of each photo and its mirror image, also of queries")
    query_policy: str | None = setting(
        None,
        "how photos to locate are encoded, if not as those of the index: native keeps their size; short_side and "
        "single_query resize the shorter side to --query_size; square makes them square; central_crop cuts them to the "
        "size of the photos of the index, which must all have one size; five_crops averages five square crops, "
        "nearest_crop takes the best of them, maj_voting lets them vote",
        choices=(
            "native", "short_side", "square", "single_query", "central_crop", "five_crops", "nearest_crop",
            "maj_voting",
        ),
        metavar="POLICY",
        default_text="as photos of the index",
    )  # fmt: skip
    query_size: int | None = setting(
        None,
        "size to which --query_policy resizes photos, in pixels",
        at_least=1,
        at_most=MAX_IMAGE_SIZE,
        default_text="--image_size",
    )
    reduce_to: int | None = setting(
        None, "use only the first dimensions of a model written by `cosplace reduce`", at_least=1, default_text="all"
    )
    source: str = setting("", SOURCE_HELP, metavar="LABEL", default_text="their folder")
    follow_outside: bool = follow_outside_setting()
    without_positions: bool = without_positions_setting()
    no_calibrate: bool = setting(False, "do not calibrate confidence; `cosplace index calibrate` can do it later")
    engine: str = cluster_engine_setting(
        "computes descriptors and builds the search index on a Ray cluster, that of the environment variable "
        "RAY_ADDRESS, else one on this machine, with torch, and needs `pip install 'cosplace[cluster]'`"
    )
    accept_license: bool = accept_license_setting()
    storage: IndexSettings = section(IndexSettings)
    encoding: EncodingSettings = section(EncodingSettings)
    device: DeviceSettings = section(DeviceSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexAddConfig(Section):
    """Settings of `cosplace index add`."""

    index: str = index_setting(positional=True)
    photos: Path = required(
        "folder of photos, in any subfolders, or a table of photos; else positions are read from '@' names or EXIF",
        positional=True,
        metavar="PHOTOS",
    )  # fmt: skip
    part: str | None = part_setting()
    source: str = setting("", SOURCE_HELP, metavar="LABEL", default_text="their folder")
    check_content: bool = setting(
        False,
        "read all photos, even those whose size and modification time have not changed, for example after "
        "`exiftool -P`; only photos whose content has changed are encoded again",
    )
    follow_outside: bool = follow_outside_setting()
    without_positions: bool = without_positions_setting()
    model: str | None = moved_model_setting()
    root: tuple[str, ...] = root_setting()
    engine: str | None = index_engine_setting()
    encoding: EncodingSettings = section(EncodingSettings)
    device: DeviceSettings = section(DeviceSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSyncConfig(IndexAddConfig):
    """Settings of `cosplace index sync`."""

    photos: Path = required(
        "folder of photos, in any subfolders, or a table of photos; indexed photos from other folders are kept",
        positional=True,
        metavar="PHOTOS",
    )  # fmt: skip
    dry_run: bool = setting(False, "print what would be done, without changing anything")
    yes: bool = setting(
        False, "remove photos even if the folder is missing or empty, or if more than half of its photos are gone"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRemoveConfig(Section):
    """Settings of `cosplace index remove`."""

    index: str = index_setting(positional=True)
    photos: tuple[str, ...] = required(
        "photos to remove: ids, paths, or folders of photos", positional=True, metavar="PHOTO"
    )
    root: tuple[str, ...] = root_setting()


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexInfoConfig(Section):
    """Settings of `cosplace index info`."""

    index: str = index_setting(positional=True)
    json: bool = json_setting("all information")
    root: tuple[str, ...] = root_setting()


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexVerifyConfig(Section):
    """Settings of `cosplace index verify`."""

    index: str = index_setting(positional=True)
    repair: bool = setting(False, "remove damaged photos, and rebuild the search index and the file checksums")
    json: bool = json_setting("the result")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexCompactConfig(Section):
    """Settings of `cosplace index compact`."""

    index: str = index_setting(positional=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexCalibrateConfig(Section):
    """Settings of `cosplace index calibrate`."""

    index: str = index_setting(positional=True)
    queries: Path | None = setting(
        None, "calibrate on the photos of a folder; they must have positions, and be neither in the index nor in the "
        "training set of its model", metavar="FOLDER", default_text="photos of the index",
    )  # fmt: skip
    unlabeled: Path | None = setting(
        None, "if the index contains photos that its model was trained on, adjust the calibration to 100 or more new "
        "photos in a folder; they need no positions, and must be neither in the index nor in the training set",
        metavar="FOLDER", default_text="the model's validation queries take their place",
    )  # fmt: skip
    seed: int = seed_setting("seed for choosing the photos used for calibration")
    model: str | None = moved_model_setting()
    root: tuple[str, ...] = root_setting()
    engine: str | None = index_engine_setting()
    device: DeviceSettings = section(DeviceSettings)
