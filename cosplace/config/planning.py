"""Settings of plan."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosplace.config.defaults import EXACT_ROWS, THUMBNAIL_SIZE
from cosplace.config.names import canonical_backbone
from cosplace.config.setting import Section, required, section, setting
from cosplace.config.shared import MODEL_HELP, json_setting
from cosplace.errors import ConfigError

STORE_DTYPES = ("float32", "float16", "int8", "binary")
MAX_PHOTOS = 1e13


def _speed_setting(help: str) -> Any:
    """A measured constant that a flag may replace."""
    return setting(None, help, parse=float, above=0, default_text="measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSettings(Section):
    """Machines"""

    machines: int | None = setting(
        None, "number of machines that compute descriptors and build the index", at_least=1, at_most=1_000_000,
        default_text="as many as finish within --within_hours",
    )  # fmt: skip
    within_hours: float = setting(168.0, "time to compute descriptors and to build the index, in hours", above=0)
    cores: int = setting(16, "CPU cores of each of these machines", at_least=1, at_most=10_000)
    gpus: int = setting(1, "GPUs of each of these machines; 0 for machines without a GPU", at_least=0, at_most=1_000)
    server_cores: int = setting(16, "CPU cores of each server", at_least=1, at_most=10_000)
    server_gpus: int = setting(0, "GPUs of each server; 0 for servers without a GPU", at_least=0, at_most=1_000)
    server_memory_gb: float = setting(128.0, "memory of each machine that serves, in GB", above=0)
    memory_share: float = setting(0.8, "share of the memory of servers to use", above=0, at_most=1)
    utilization: float = setting(
        0.5, "share of the time of servers to use, so that requests rarely wait", above=0, at_most=1, metavar="SHARE"
    )
    min_replicas: int = setting(2, "minimum number of servers with the same photos, so that one may fail", at_least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceSettings(Section):
    """Prices, in any currency; without them there are no costs"""

    machine_hour_price: float | None = setting(
        None,
        "price of one machine that computes descriptors and trains, per hour",
        parse=float,
        at_least=0,
    )
    server_hour_price: float | None = setting(
        None, "price of one machine that serves queries, per hour", parse=float, at_least=0
    )
    gb_month_price: float | None = setting(None, "price of storing one GB for a month", parse=float, at_least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedSettings(Section):
    """Speeds and sizes to use instead of the measured ones"""

    photo_kb: float | None = _speed_setting("mean size of the files of photos, in KB")
    thumbnail_kb: float | None = _speed_setting("mean size of a thumbnail in the index, in KB")
    decoded_mb_per_s: float | None = _speed_setting("MB of photos that one core decodes per second")
    cpu_photos_per_s: float | None = _speed_setting("photos per second that the network processes on one core")
    gpu_photos_per_s: float | None = _speed_setting("photos per second that the network processes on one GPU")
    gpu_training_photos_per_s: float | None = _speed_setting("photos per second of training on one GPU")
    write_mb_per_s: float | None = _speed_setting("MB per second that one machine writes to the storage")
    indexed_mb_per_s: float | None = _speed_setting(
        "MB of float32 descriptors that one core adds to the index per second"
    )
    assigned_gflop_per_s: float | None = _speed_setting(
        "billions of operations per second of one core when it compares descriptors with the centers of partitions"
    )
    search_ms: float | None = _speed_setting("CPU time of a search, without comparing codes, in milliseconds")
    scan_gb_per_s: float | None = _speed_setting("GB of codes that one core compares per second")
    exact_gb_per_s: float | None = _speed_setting("GB of descriptors that one core compares per second in exact search")
    probed_share: float | None = setting(
        None, "share of the partitions of the index that a search reads; `cosplace index info` prints both numbers",
        parse=float, above=0, at_most=1, default_text="measured",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig(Section):
    """Settings of `cosplace plan`."""

    photos: float = required(
        "number of photos in the index, for example 1e9", at_least=1, at_most=MAX_PHOTOS, metavar="N",
        example="1e6",
    )  # fmt: skip
    model: str | None = setting(None, f"model that exists: {MODEL_HELP}", metavar="MODEL", default_text="train one")
    backbone: str | None = setting(
        None, "backbone of a model to train", parse=canonical_backbone, metavar="NAME", default_text="ResNet18"
    )
    dim: int | None = setting(
        None, "dimension of the descriptors", at_least=1, at_most=65_536, default_text="that of the model, or 512"
    )
    dtype: str = setting("float32", "type of the numbers in the descriptor store of `cosplace extract`",
                         choices=STORE_DTYPES)  # fmt: skip
    stored_dtype: str = setting("float32", "type of the descriptors in the index", choices=("float32", "float16"))
    image_size: int | None = setting(
        None, "side of the photos in pixels, when the network processes them", at_least=1, at_most=100_000,
        default_text="512, or the recommended size of the model",
    )  # fmt: skip
    thumbnail_size: int = setting(
        THUMBNAIL_SIZE, "pixels of the longer side of thumbnails in the index; 0 stores none", at_least=0,
        at_most=10_000,
    )  # fmt: skip
    exact_rows: int = setting(EXACT_ROWS, "above this number of photos, the index uses approximate search", at_least=1)
    shard_rows: int = setting(4096, "photos per shard of the descriptor store, as of `cosplace extract`", at_least=1)
    training_images: float | None = setting(
        None, "images to train with, counting repetitions: epochs x iterations x batch size", parse=float, at_least=0,
        metavar="N", default_text="16 million, as in the paper; 0 with --model",
    )  # fmt: skip
    queries_per_second: float = setting(1.0, "photos to locate per second", above=0, at_most=1e9, metavar="N")
    indexes_per_query: int | None = setting(
        None,
        "if the photos need several indexes: the number of them that each query is sent to, for example 1 when its "
        "area is known",
        at_least=1,
        default_text="all",
    )
    measure: bool = setting(
        False, "first measure the speeds of this machine, in about a minute: decoding, network, writing, index, search"
    )
    measured_photos: Path | None = setting(
        None,
        "folder of typical photos, whose size and time to decode are measured",
        metavar="FOLDER",
        default_text="generated photos",
    )
    explain: bool = setting(False, "print for each figure its formula with numbers, or the source of the measurement")
    json: bool = json_setting("all figures")
    machine: MachineSettings = section(MachineSettings)
    prices: PriceSettings = section(PriceSettings)
    speeds: SpeedSettings = section(SpeedSettings)

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        for name in ("photos", "training_images"):
            value = getattr(self, name)
            if value is not None and value != round(value):
                raise ConfigError(f"--{name} must be a whole number, got {value:.12g}. Use for example 1e6.")
        if self.model is not None and self.backbone is not None:
            raise ConfigError(
                "--model and --backbone contradict each other: use --model for a model that exists, --backbone for one "
                "to train."
            )
        if self.measured_photos is not None and not self.measure:
            raise ConfigError("--measured_photos has an effect only with --measure. Add --measure.")
