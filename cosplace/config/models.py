"""Settings of zoo, convert, reduce."""

from dataclasses import dataclass
from pathlib import Path

from cosplace.config.defaults import MAX_FITTED_PHOTOS
from cosplace.config.setting import Section, required, section, setting
from cosplace.config.shared import (
    MODEL_HELP,
    REDUCTION_METHODS,
    DeviceSettings,
    EncodingSettings,
    accept_license_setting,
    follow_outside_setting,
    json_setting,
)

METHODS = ("cosplace", "eigenplaces")
SORT_KEYS = ("recall", "dimension", "speed", "size", "license", "name")


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooListConfig(Section):
    """Settings of `cosplace zoo list`."""

    method: str | None = setting(None, "list only the models of this method", choices=METHODS)
    json: bool = json_setting("the models")
    sort: str | None = setting(
        None,
        "order of the models; recall is R@1 on Pitts30k, speed that on a CPU; license: those for commercial use first",
        choices=SORT_KEYS,
        default_text="by method and backbone; in a page, recall",
    )
    markdown: bool = setting(False, "print one table in Markdown of all models with published recalls")
    html: Path | None = setting(None, "write a page with a table that can be sorted and filtered", metavar="FILE")


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooInfoConfig(Section):
    """Settings of `cosplace zoo info`."""

    name: str = required("name of a model, see `cosplace zoo list`", positional=True, metavar="NAME")
    json: bool = json_setting("the record of the model")


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooDownloadConfig(Section):
    """Settings of `cosplace zoo download`."""

    names: tuple[str, ...] = setting((), "names of models, see `cosplace zoo list`", positional=True, metavar="NAME")
    all: bool = setting(False, "download all released models of CosPlace and EigenPlaces, about 5 GB")
    accept_license: bool = accept_license_setting()


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooVerifyConfig(Section):
    """Settings of `cosplace zoo verify`."""

    json: bool = json_setting("the result for each file")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertConfig(Section):
    """Settings of `cosplace convert`."""

    source: str = required(
        "model to convert: a weights file, or a name from `cosplace zoo list`", positional=True, metavar="MODEL"
    )
    to: Path = required(
        "file to write: .safetensors, or .pth for the original CosPlace code", positional=True, metavar="FILE"
    )
    force: bool = setting(False, "replace the file if it exists")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReductionSettings(Section):
    """Reduction"""

    dims: int = setting(64, "dimension after the reduction", at_least=1)
    method: str | None = setting(
        None,
        "pca_whitening, pca, pca_uncentered, or truncation, which keeps the first dimensions unchanged and needs no "
        "fitting. The last two subtract no mean, so they are multiplied into the last linear layer of a network that "
        "ends in one: the same descriptors with fewer parameters",
        choices=REDUCTION_METHODS,
        default_text="pca_whitening; pca_uncentered for MegaLoc, whose last linear layer has most of its parameters",
    )
    max_photos: int = setting(
        MAX_FITTED_PHOTOS, "fit on at most this number of photos, evenly spread over the folder", at_least=2
    )
    image_size: int | None = setting(
        None, "resize photos to this number of pixels along the shorter side", at_least=1,
        default_text="the size of each photo",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceConfig(Section):
    """Settings of `cosplace reduce`."""

    model: str = required(f"model to reduce: {MODEL_HELP}", positional=True, metavar="MODEL")
    on: Path = required("folder of photos to fit the reduction on, in any subfolders", metavar="FOLDER")
    follow_outside: bool = follow_outside_setting()
    to: Path = required("file to write, .safetensors: the model with its reduction", metavar="FILE")
    force: bool = setting(False, "replace the file if it exists")
    accept_license: bool = accept_license_setting()
    reduction: ReductionSettings = section(ReductionSettings)
    encoding: EncodingSettings = section(EncodingSettings)
    device: DeviceSettings = section(DeviceSettings)
