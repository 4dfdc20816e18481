"""Settings from flat names and values, and back; folders and numbers that follow from settings."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from cosplace.config.defaults import SPLIT_PARENTS
from cosplace.config.methods import method_defaults
from cosplace.config.names import similar_names
from cosplace.config.sections import DATASET_VARIABLE, DatasetFolders
from cosplace.config.setting import Setting, own_settings
from cosplace.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingGroup:
    """The settings of one section of a command, without hidden ones."""

    section: str | None  # name of the section's field; None for the settings that the command has itself
    kind: type  # dataclass of the section
    settings: tuple[Setting, ...]

    @property
    def title(self) -> str:
        """Heading in help texts."""
        return (self.kind.__doc__ or "").partition("\n")[0]


def setting_groups(config_class: Any) -> Iterator[SettingGroup]:
    """Settings of a command by section; those that it has itself come first."""
    if own := own_settings(config_class):
        yield SettingGroup(section=None, kind=config_class, settings=own)
    for item in fields(config_class):
        if "hidden" not in item.metadata:
            continue
        kind, hidden = item.default_factory, item.metadata["hidden"]
        assert isinstance(kind, type)
        visible = tuple(one for one in own_settings(kind) if one.name not in hidden)
        yield SettingGroup(section=item.name, kind=kind, settings=visible)


def all_settings(config_class: Any) -> list[Setting]:
    """All settings of a command, in order."""
    return [one for group in setting_groups(config_class) for one in group.settings]


def from_values(config_class: type[T], values: Mapping[str, Any]) -> T:
    """Create the settings of a command from names and values; a setting that is absent keeps its default.

    The defaults of CosPlace are those of the paper; --method may choose others.

    Raises ConfigError for an unknown name, a value outside its limits, and a missing value without a default.
    """
    known = {one.name: one for one in all_settings(config_class)}
    values = {name: value for name, value in method_defaults(values).items() if name in known} | dict(values)
    if unknown := sorted(set(values) - set(known)):
        similar = similar_names(unknown[0], known, count=1)
        raise ConfigError(f"Unknown setting '{unknown[0]}'." + (f" Did you mean {similar[0]}?" if similar else ""))
    missing = [one for one in known.values() if one.is_required and one.name not in values]
    if missing:
        raise ConfigError(f"{missing[0].label} is required ({missing[0].help}).")
    arguments: dict[str, Any] = {}
    for group in setting_groups(config_class):
        given = {
            one.name: tuple(values[one.name]) if one.is_list else values[one.name]
            for one in group.settings
            if one.name in values
        }
        if group.section is None:
            arguments |= given
        else:
            arguments[group.section] = group.kind(**given)
    return config_class(**arguments)


def to_values(config: Any) -> dict[str, Any]:
    """Return the settings of a command as one flat mapping, for `config.json` and comparisons."""
    values: dict[str, Any] = {}
    for group in setting_groups(type(config)):
        owner = config if group.section is None else getattr(config, group.section)
        values |= {one.name: getattr(owner, one.name) for one in group.settings}
    return values


# --- what follows from settings --------------------------------------------------------------------------------------


def set_folder(folders: DatasetFolders, split: str) -> Path:
    """Return the folder of a split ("train", "val" or "test"): its own flag, or in the folder of the dataset.

    Splits may be in images/, processed/ or small/ of that folder, as those of pitts30k and SF-XL are, or be parts of
    its table.
    A dataset without test/ is the test set itself if it has database/.
    Raises ConfigError when neither is given.
    """
    own = getattr(folders, f"{split}_set_folder")
    if own:
        return Path(own)
    dataset = folders.dataset_folder or os.environ.get(DATASET_VARIABLE)
    if dataset:
        # raw/ of SF-XL has panoramas for training, which have to be cut into photos first.
        levels = (*SPLIT_PARENTS, *(["raw"] if split != "train" else []))
        usual = [Path(dataset) / between / split for between in levels]
        found = next((folder for folder in usual if folder.is_dir()), None)
        is_test_set = split == "test" and (Path(dataset) / "database").is_dir()
        return found or (Path(dataset) if is_test_set else usual[0])
    raise ConfigError(
        f"--dataset_folder is required: the folder with train/, val/ and test/. Or use --{split}_set_folder, or set "
        f"the environment variable {DATASET_VARIABLE}.",
        "For two folders of photos, use --database_folder and --queries_folder.",
    )


def loading_workers(num_workers: int | None) -> int:
    """Return the number of threads or processes that load images: --num_workers, or up to 8 but not above the cores."""
    return min(8, os.cpu_count() or 1) if num_workers is None else num_workers
