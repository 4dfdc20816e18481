"""The way between settings and flat names and values."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cosplace.config.knobs import DATASET_VARIABLE, nearest_names
from cosplace.config.sections import DatasetFolders, EvalConfig
from cosplace.errors import ConfigError

T = TypeVar("T")

# `cosplace eval` reads only the test set and never trains: knobs that could do nothing there are not offered.
LEFT_OUT: Mapping[type, frozenset[str]] = {
    EvalConfig: frozenset({"train_set_folder", "val_set_folder", "train_all_layers", "compile"}),
}


def knobs(config_class: Any) -> Iterator[tuple[dataclasses.Field, list[dataclasses.Field]]]:
    """(section, its knobs on the command line) for each section of a command's settings, in order."""
    left_out = LEFT_OUT.get(config_class, frozenset())
    for section in dataclasses.fields(config_class):
        yield section, [item for item in dataclasses.fields(_default(section)) if item.name not in left_out]


def _default(section: dataclasses.Field) -> Any:
    return section.default


def from_values(config_class: type[T], values: Mapping[str, Any]) -> T:
    """Settings from flat names and values (a knob that is absent keeps its default).

    Raises ConfigError for a value outside a knob's limits or an unknown name.
    """
    sections, known = {}, set()
    for section, items in knobs(config_class):
        given = {
            item.name: tuple(values[item.name]) if item.metadata["several"] else values[item.name]
            for item in items
            if item.name in values
        }
        for item in items:
            known.add(item.name)
            if item.name in given:
                _check_limits(item, given[item.name])
        sections[section.name] = dataclasses.replace(_default(section), **given)
    if unknown := set(values) - known:
        name = min(unknown)
        offered = nearest_names(name, known)
        raise ConfigError(f"Unknown setting '{name}'" + (f": did you mean {offered[0]}?" if offered else "."))
    return config_class(**sections)


def to_values(config: Any) -> dict[str, Any]:
    """The settings as one flat mapping, for `config.json` and comparisons."""
    values: dict[str, Any] = {}
    for section, items in knobs(type(config)):
        values |= {item.name: getattr(getattr(config, section.name), item.name) for item in items}
    return values


def _check_limits(item: dataclasses.Field, value: Any) -> None:
    meta = item.metadata
    for one in value if meta["several"] else [value]:
        if one is None:
            continue
        if meta["choices"] and one not in meta["choices"]:
            raise ConfigError(f"--{item.name} {one}: choose from {', '.join(meta['choices'])}.")
        # Written so that NaN fails too.
        if meta["at_least"] is not None and not one >= meta["at_least"]:
            raise ConfigError(f"--{item.name} {one} is too small: use {meta['at_least']} or more.")
        if meta["at_most"] is not None and not one <= meta["at_most"]:
            raise ConfigError(f"--{item.name} {one} is too large: use {meta['at_most']} or less.")


# --- folders ---------------------------------------------------------------------------------------------------------


def set_folder(folders: DatasetFolders, split: str) -> Path:
    """The folder of a split ("train", "val" or "test"), given by its own flag or inside the dataset's folder.

    Raises ConfigError when neither is given.
    """
    own = getattr(folders, f"{split}_set_folder")
    if own:
        return Path(own)
    whole = folders.dataset_folder or os.environ.get(DATASET_VARIABLE)
    if whole:
        return Path(whole) / split
    raise ConfigError(
        f"Where are the {split} photos?  Give --dataset_folder FOLDER (holding train/, val/ and test/), "
        f"--{split}_set_folder FOLDER, or the environment variable {DATASET_VARIABLE}."
    )


def loading_workers(num_workers: int | None) -> int:
    """How many loading processes: as asked, else the paper's 8 but no more than there are cores."""
    return min(8, os.cpu_count() or 1) if num_workers is None else num_workers
