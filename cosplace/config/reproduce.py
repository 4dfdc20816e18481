"""Settings of protocols and reproduce."""

from dataclasses import dataclass

from cosplace.config.setting import Section, required, section, setting
from cosplace.config.shared import (
    EncodingSettings,
    device_setting,
    follow_outside_setting,
    json_setting,
    trust_remote_code_setting,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolsConfig(Section):
    """Settings of `cosplace protocols`."""

    json: bool = json_setting("the protocols, with their sources and notes,")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproduceConfig(Section):
    """Settings of `cosplace reproduce`."""

    dataset: str = required(
        "dataset of the field, such as pitts30k, as it is downloaded or prepared", positional=True, metavar="DATASET"
    )
    model: str = required("released model, a name from `cosplace zoo list`", metavar="NAME")
    protocol: str | None = setting(
        None, "protocol of the published figures, from `cosplace protocols`", metavar="NAME[@VERSION]",
        default_text="the one that the dataset matches; if there are several, the first one with a published figure",
    )  # fmt: skip
    queries_folder: str | None = setting(
        None, "name of the folder of queries next to database/", metavar="NAME", default_text="that of the protocol"
    )
    descriptors_folder: str | None = setting(
        None, "folder that stores the descriptors; an interrupted command continues from it", metavar="FOLDER"
    )
    save_dir: str = setting(
        "reproduce", "name for the results, which are written to logs/SAVE_DIR/TIME", metavar="NAME"
    )
    skip_unreadable: bool = setting(
        False, "skip photos that cannot be read instead of stopping; such queries count as misses"
    )
    follow_outside: bool = follow_outside_setting()
    device: str = device_setting()
    trust_remote_code: bool = trust_remote_code_setting()
    encoding: EncodingSettings = section(EncodingSettings)
