"""Settings of extract."""

import math
from dataclasses import dataclass
from pathlib import Path

from cosplace.config.setting import Section, required, section, setting
from cosplace.config.shared import (
    MODEL_HELP,
    DeviceSettings,
    EncodingSettings,
    accept_license_setting,
    cluster_engine_setting,
    follow_outside_setting,
    json_setting,
)
from cosplace.errors import ConfigError

DTYPES = ("float32", "float16", "int8", "binary")
STORE_SHARD_ROWS = 4096  # also enough photos to keep a worker busy
NUM_SHARDS, MIN_SHARD_ROWS = 64, 64  # so that a few workers finish few photos at about the same time


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings(Section):
    """What is stored"""

    dtype: str = setting(
        "float32", "type of the stored descriptors; float16 needs half of the disk space, int8 a quarter, binary (one "
        "bit per dimension) a 32nd; docs/extract.md has the recall of each", choices=DTYPES,
    )  # fmt: skip
    shard_rows: int | None = setting(
        None, "photos per shard, the unit that a worker computes and loses if it is killed", at_least=1,
        default_text=f"{STORE_SHARD_ROWS}, or a {NUM_SHARDS}th of the photos if less, at least {MIN_SHARD_ROWS}",
    )  # fmt: skip

    def rows_of_shard(self, num_photos: int) -> int:
        """Photos per shard of a new store."""
        if self.shard_rows is not None:
            return self.shard_rows
        return min(STORE_SHARD_ROWS, max(MIN_SHARD_ROWS, math.ceil(num_photos / NUM_SHARDS)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractConfig(Section):
    """Settings of `cosplace extract`."""

    dataset: Path | None = setting(
        None,
        "photos: a folder, with all its subfolders, or a table; not used by --status, and by --verify only to compute "
        "damaged shards again",
        positional=True,
        metavar="DATASET",
    )
    model: str | None = setting(
        None,
        f"model that computes the descriptors: {MODEL_HELP}",
        metavar="MODEL",
        default_text="required, except for --status and --verify",
    )
    to: str = required(
        "store to create or continue: a folder, which several machines may share, or object storage such as "
        "s3://bucket/store",
        metavar="STORE",
    )
    part: str | None = setting(
        None, "only this part of a dataset with a database and queries", choices=("database", "queries"),
        default_text="all photos of DATASET",
    )  # fmt: skip
    queries_folder: str | None = setting(
        None, "with --part queries, the name of their folder next to the database, for example queries_night",
        metavar="NAME", default_text="queries_v1, or queries if that does not exist",
    )  # fmt: skip
    follow_outside: bool = follow_outside_setting()
    image_size: int | None = setting(
        None, "resize photos to this number of pixels along the shorter side", at_least=1,
        default_text="the size of each photo",
    )  # fmt: skip
    scales: tuple[float, ...] = setting(
        (1.0,), "average the descriptors of copies of each photo: their sizes relative to it, for example 0.7 1 1.4",
        at_least=0.1, at_most=4, metavar="FACTOR",
    )  # fmt: skip
    flip: bool = setting(False, "average the descriptors of each photo and its mirror image")
    reduce_to: int | None = setting(
        None, "use only the first dimensions of a model written by `cosplace reduce`", at_least=1, default_text="all"
    )
    use_amp16: bool = setting(False, "16-bit mixed precision: fp16 on CUDA, bf16 on CPUs that support it")
    engine: str = cluster_engine_setting(
        "runs one task per shard on a Ray cluster, that of the environment variable RAY_ADDRESS, else one on this "
        "machine, with torch, and needs `pip install 'cosplace[cluster]'`. All others compute in this process, which "
        "may be one of many: of torchrun, of a Slurm array, or started by hand"
    )
    status: bool = setting(
        False, "print the progress of the store, the rate of all workers and the time left; then stop"
    )
    verify: bool = setting(
        False, "compare the shards of a finished or unfinished store with their checksums, and remove damaged ones; "
        "with DATASET and --model, also compute them again",
    )  # fmt: skip
    retry_unreadable: bool = setting(
        False, "compute shards again that have photos which could not be opened, also where their files are as before"
    )
    json: bool = json_setting("the result of --status or --verify")
    accept_license: bool = accept_license_setting()
    storage: StoreSettings = section(StoreSettings)
    encoding: EncodingSettings = section(EncodingSettings)
    device: DeviceSettings = section(DeviceSettings)

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if self.status and (self.verify or self.retry_unreadable):
            raise ConfigError("--status only prints. Omit --verify and --retry_unreadable, or omit --status.")
        if self.json and not (self.status or self.verify):
            raise ConfigError("--json prints the result of --status or --verify. Add one of them, or omit --json.")
        if self.json and self.verify and self.dataset is not None:
            raise ConfigError("--json prints the result of --verify alone. Omit DATASET, or omit --json.")
        if self.use_amp16 and self.engine not in ("torch", "ray"):
            raise ConfigError(f"--use_amp16 needs --engine torch, not {self.engine}. Omit one of them.")
        if self.queries_folder is not None and self.part != "queries":
            raise ConfigError("--queries_folder is for --part queries. Add it, or omit --queries_folder.")
        if len(set(self.scales)) < len(self.scales):
            raise ConfigError(f"--scales must be different numbers, got {' '.join(f'{one:g}' for one in self.scales)}.")
        if self.dataset is None and not (self.status or self.verify):
            raise ConfigError("DATASET is required: the folder or table of the photos. Or use --status or --verify.")
        if self.model is None and not (self.status or (self.verify and self.dataset is None)):
            raise ConfigError("--model is required: a weights file, or a name from `cosplace zoo list`.")
