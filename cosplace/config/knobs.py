"""One knob: its name, default, limits and text."""

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import field
from typing import Any

from cosplace.errors import ConfigError

BACKBONES = (
    "VGG16",
    "ResNet18",
    "ResNet50",
    "ResNet101",
    "ResNet152",
    *(f"EfficientNet_B{i}" for i in range(8)),
    "ResNet18_Small",
)
DATASET_VARIABLE = "SF_XL_PROCESSED_FOLDER"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def nearest_names(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The names that a misspelt one may have meant, best first; case and separators do not count."""
    by_plain = {_plain(candidate): candidate for candidate in names}
    return [by_plain[plain] for plain in difflib.get_close_matches(_plain(name), by_plain, n=count, cutoff=0.5)]


def canonical_backbone(name: str) -> str:
    """The name in BACKBONES that `name` spells, in any case, with or without separators.

    Raises ConfigError with the nearest names when there is none.
    """
    for backbone in BACKBONES:
        if _plain(name) == _plain(backbone):
            return backbone
    offered = nearest_names(name, BACKBONES) or BACKBONES
    raise ConfigError(f"Unknown backbone '{name}': did you mean {' or '.join(offered)}?")


# --- one knob --------------------------------------------------------------------------------------------------------


def knob(
    default: Any,
    text: str,
    *,
    parse: Callable[[str], Any] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] | None = None,
    aliases: tuple[str, ...] = (),
    metavar: str | None = None,
    several: bool = False,
    shown: str | None = None,
) -> Any:
    """A field of a section.

    parse: from the text of the command line; by default the type of `default`.  at_least, at_most: inclusive limits.
    several: one or more values, kept as a tuple.  shown: how --help prints the default where its value says little.
    """
    metadata = {
        "text": text,
        "parse": parse or (str if default is None else type(default[0] if several else default)),
        "at_least": at_least,
        "at_most": at_most,
        "choices": choices,
        "aliases": aliases,
        "metavar": metavar,
        "several": several,
        "shown": shown,
    }
    return field(default=default, metadata=metadata)


def parse_device(text: str) -> str:
    """A device's name.  Raises ConfigError for any other text."""
    if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        return text
    raise ConfigError(f"Unknown device '{text}': use auto, cpu, cuda, cuda:N or mps.")


def device_knob() -> Any:
    """Where the arithmetic runs."""
    return knob("auto", "auto, cpu, cuda, cuda:N or mps", parse=parse_device, metavar="DEVICE")


def workers_knob() -> Any:
    """What loads photos; None is `loading_workers`' choice."""
    return knob(
        None,
        "threads or processes that load images; 0 loads in between",
        parse=int,
        at_least=0,
        metavar="INT",
        shown="8, or the number of cores where fewer",
    )
