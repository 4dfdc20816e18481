"""Settings and sections of settings that several commands share."""

from dataclasses import dataclass
from typing import Any

from cosplace.config.defaults import ALL_MATCHES, MIN_CONFIDENCE
from cosplace.config.names import ENGINES, parse_device
from cosplace.config.setting import Section, parse_whole, required, setting
from cosplace.errors import ConfigError

REDUCTION_METHODS = ("pca_whitening", "pca", "pca_uncentered", "truncation")
MODEL_HELP = "weights file, name from `cosplace zoo list`, or hub:owner/repo:entry(args)"


def parse_matches(text: str) -> int:
    """A number of queries; `all` is ALL_MATCHES."""
    return ALL_MATCHES if text.strip().lower() == "all" else parse_whole(text)


def device_setting() -> Any:
    """Return the setting --device."""
    return setting(
        "auto", "where to compute: auto, cpu, cuda, cuda:N or mps; auto uses a GPU if there is one",
        parse=parse_device, metavar="DEVICE",
    )  # fmt: skip


ENGINE_HELP = (
    "program that runs the network: torch, the reference, torch_bf16, and torch_compile, which compiles in each "
    "process for a minute or more (CPU or CUDA); onnx, onnx_int8 (ONNX Runtime) and openvino, openvino_bf16, "
    "openvino_fp16, openvino_int8, openvino_int8_weights (OpenVINO) run an exported file on the CPU, which is often "
    "faster and needs `pip install 'cosplace[export]'` or `'cosplace[openvino]'`; auto measures those that are "
    "installed on your photos, takes the fastest whose descriptors agree with those of torch (cosine similarity of at "
    "least 0.9999), and remembers it. torch_compile is never chosen, nor int8, whose descriptors cannot be compared "
    "with those of other engines"
)


def engine_setting() -> Any:
    """Return the setting --engine."""
    return setting("torch", ENGINE_HELP, choices=("auto", *ENGINES), metavar="ENGINE")


def cluster_engine_setting(ray_help: str) -> Any:
    """Return the setting --engine of commands that can also use a Ray cluster.  ray_help: what ray does."""
    return setting("torch", f"{ENGINE_HELP}; ray {ray_help}", choices=("auto", *ENGINES, "ray"), metavar="ENGINE")


def index_engine_setting() -> Any:
    """Return the setting --engine of commands that use an index."""
    return setting(
        None, ENGINE_HELP, choices=("auto", *ENGINES), metavar="ENGINE",
        default_text="torch, or the int8 engine that the index was built with",
    )  # fmt: skip


def trust_remote_code_setting() -> Any:
    """Return the setting --trust_remote_code."""
    return setting(False, "allow a model from torch.hub to run the code of its repository on this machine")


def accept_license_setting() -> Any:
    """Return the setting --accept_license."""
    return setting(
        False,
        "accept the license of weights that may be used only under its terms, see `cosplace zoo info`; needed once",
    )


def infer_batch_size_setting() -> Any:
    """Return the setting --infer_batch_size."""
    return setting(16, "images per batch when computing descriptors", at_least=1, metavar="N")


def num_workers_setting(help: str = "threads or processes that load images; 0 loads them between batches") -> Any:
    """Return the setting --num_workers; `loading_workers` chooses a number for None."""
    return setting(
        None, help, parse=int, at_least=0, metavar="N", default_text="8, or the number of cores if that is less"
    )


def seed_setting(help: str) -> Any:
    """Return the setting --seed."""
    return setting(0, help, at_least=0, at_most=2**32 - 1)


def json_setting(what: str) -> Any:
    """Return the setting --json."""
    return setting(False, f"print {what} as JSON")


def jitter_setting(default: float) -> Any:
    """Return a setting of color jitter: --brightness, --contrast or --saturation."""
    return setting(default, "color jitter: the factor is drawn from 1 - X to 1 + X", at_least=0, metavar="X")


def follow_outside_setting() -> Any:
    """Return the setting --follow_outside."""
    return setting(False, "also use photos that links or a list file point to outside the folder")


def index_setting(**options: Any) -> Any:
    """Return the setting for an index that exists."""
    return required(
        "index built by `cosplace index build`: a folder, or object storage such as s3://bucket/city",
        metavar="INDEX",
        **options,
    )


def moved_model_setting() -> Any:
    """Return the setting --model of commands that use an index."""
    return setting(
        None, "the model of the index, if its file has moved: a weights file or a name with the same checksum",
        metavar="MODEL", default_text="the model recorded in the index",
    )  # fmt: skip


def root_setting() -> Any:
    """Return the setting --root."""
    return setting(
        (), "new folder of the photos of the index, if they have moved; OLD=NEW if the index has photos from several "
        "folders", metavar="FOLDER", default_text="the recorded folder, also relative to the index",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings(Section):
    """Device and remote code"""

    device: str = device_setting()
    trust_remote_code: bool = trust_remote_code_setting()


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingSettings(Section):
    """Speed and memory"""

    infer_batch_size: int = infer_batch_size_setting()
    num_workers: int | None = num_workers_setting()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceSettings(Section):
    """Confidence of answers"""

    min_confidence: float | None = setting(
        None, "minimum confidence of an answer, from 0 to 1; less confident answers are unknown", parse=float,
        at_least=0, at_most=1, metavar="CONFIDENCE", default_text=str(MIN_CONFIDENCE),
    )  # fmt: skip
    precision: float | None = setting(
        None, "target precision, such as 0.95, used instead of --min_confidence: the share of answers that are "
        "correct, and of photos taken outside the area of the index that are unknown", parse=float, above=0, at_most=1,
        metavar="SHARE",
    )  # fmt: skip
    uncalibrated: bool = setting(
        False, "accept an index that has not been calibrated; confidence is then only the share of matches that agree"
    )

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if self.min_confidence is not None and self.precision is not None:
            raise ConfigError("--min_confidence and --precision contradict each other. Use only one of them.")
