"""One setting: its default, limits and help text; and the check of a value against its limits."""

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin

from cosplace.config.names import either, similar_names
from cosplace.errors import ConfigError

T = TypeVar("T")

# The unit of a number, as help writes it, by the last word of the setting's name.
UNITS = {
    "m": "METERS", "s": "SECONDS", "ms": "MILLISECONDS", "minutes": "MINUTES", "hours": "HOURS", "kb": "KB", "mb": "MB",
    "gb": "GB", "size": "PIXELS", "side": "PIXELS", "lr": "RATE", "share": "SHARE", "price": "PRICE", "seed": "SEED",
    "port": "PORT",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A field of a section of settings, as the command line sees it."""

    name: str
    default: Any  # MISSING when a value is required
    type: type  # of one value: str, int, float, bool or Path
    help: str
    parse: Callable[[str], Any]  # from the text of the command line to one value
    is_list: bool = False  # one or more values, kept as a tuple
    positional: bool = False  # an argument without a flag
    at_least: float | None = None  # inclusive
    at_most: float | None = None  # inclusive
    above: float | None = None  # exclusive
    choices: tuple[str, ...] | None = None
    aliases: tuple[str, ...] = ()
    metavar: str = ""
    default_text: str | None = None  # how help shows the default, for one whose value explains little
    example: str = ""  # for error messages

    @property
    def is_required(self) -> bool:
        """Whether the setting must be given, because it has no default."""
        return self.default is MISSING

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no value."""
        return self.type is bool

    @property
    def label(self) -> str:
        """The setting as the command line writes it: --flag, or the name of a positional argument."""
        return self.metavar if self.positional else f"--{self.name}"

    @property
    def shown_default(self) -> str:
        """The default as help shows it; empty for none."""
        if self.default_text is not None:
            return self.default_text
        if self.is_required or self.is_switch or self.default in (None, "", ()):
            return ""
        if isinstance(self.default, tuple):
            return " ".join(map(str, self.default))
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)

    def check(self, value: Any) -> None:
        """Raise ConfigError for a value outside the limits; None and what has no limits pass."""
        for one in value if self.is_list else (value,):
            if one is None:
                continue
            if self.choices is not None and one not in self.choices:
                similar = similar_names(str(one), self.choices, count=1)
                hint = f" Did you mean {similar[0]}?" if similar else ""
                raise ConfigError(f"{self.label} must be {either(self.choices)}, got '{one}'.{hint}")
            # Written so that NaN fails too.
            inside = (
                (self.at_least is None or one >= self.at_least)
                and (self.at_most is None or one <= self.at_most)
                and (self.above is None or one > self.above)
            )
            if not inside:
                example = f" Use for example {self.example}." if self.example else ""
                raise ConfigError(f"{self.label} must be {self._limits()}, got {_number(one)}.{example}")

    def _limits(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"between {_number(self.at_least)} and {_number(self.at_most)}"
        if self.at_least is not None:
            return f"{_number(self.at_least)} or more"
        if self.above is not None and self.at_most is not None:
            return f"above {_number(self.above)} and up to {_number(self.at_most)}"
        return f"above {_number(self.above)}" if self.above is not None else f"{_number(self.at_most)} or less"


def setting(
    default: Any,
    help: str,
    *,
    parse: Callable[[str], Any] | None = None,
    positional: bool = False,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    aliases: tuple[str, ...] = (),
    metavar: str = "",
    default_text: str | None = None,
    example: str = "",
) -> Any:
    """Return a dataclass field that is a setting.  Its type decides how a value is parsed and how many there may be.

    The arguments are explained at `Setting`.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "parse": parse,
            "positional": positional,
            "at_least": at_least,
            "at_most": at_most,
            "above": above,
            "choices": choices,
            "aliases": aliases,
            "metavar": metavar,
            "default_text": default_text,
            "example": example,
        },
    )


def required(help: str, **options: Any) -> Any:
    """Return a dataclass field that is a setting without a default; see `setting`."""
    return setting(MISSING, help, **options)


def section(kind: type[T], *, hidden: tuple[str, ...] = ()) -> T:
    """Return a dataclass field that is a section of settings at their defaults.

    hidden: settings of the section that have no effect in this command; they are neither flags nor stored.
    """
    return field(default_factory=kind, metadata={"hidden": frozenset(hidden)})


class Section:
    """Base class of settings: checks their values when they are created."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for one in own_settings(type(self)):
            one.check(getattr(self, one.name))


@cache
def own_settings(kind: Any) -> tuple[Setting, ...]:
    """The settings that are fields of a dataclass, in order; other fields are left out."""
    return tuple(_as_setting(item) for item in dataclasses.fields(kind) if "help" in item.metadata)


def _as_setting(item: dataclasses.Field) -> Setting:
    known = dict(item.metadata)
    kind = _without_none(item.type)
    is_list = get_origin(kind) is tuple and known["parse"] is None
    if is_list:
        kind = get_args(kind)[0]
    kind = kind if isinstance(kind, type) else str
    known["parse"] = known["parse"] or PARSERS.get(kind, kind)
    known["metavar"] = known["metavar"] or "|".join(known["choices"] or ()) or _metavar(item.name, kind)
    return Setting(name=item.name, default=item.default, type=kind, is_list=is_list, **known)


def _metavar(name: str, kind: type) -> str:
    """How help writes the value of a setting: its unit, if the name ends with one, else what kind of value it is."""
    if kind in (int, float):
        *words, last = name.split("_")
        if words[-1:] == ["per"] and last == "s":
            return f"{words[-2]}/S".upper()  # decoded_mb_per_s: MB/S
        return UNITS.get(last, "N" if kind is int else "NUMBER")
    return "TEXT" if kind is str else "PATH"


def parse_path(text: str) -> Path:
    """A path.  Raises ValueError for an empty text, as of a shell variable without a value: it is not this folder."""
    if not text:
        raise ValueError("an empty path")
    return Path(text)


def parse_whole(text: str) -> int:
    """A whole number, also such as 1e7.  Raises ValueError for anything else."""
    number = float(text) if "e" in text.lower() else int(text)
    if not float(number).is_integer():
        raise ValueError(f"{text} is not a whole number")
    return int(number)


PARSERS: dict[type, Callable[[str], Any]] = {Path: parse_path, int: parse_whole}  # of types, unless they parse


def _without_none(kind: Any) -> Any:
    """The X of X | None."""
    if isinstance(kind, UnionType):
        (kind,) = (part for part in get_args(kind) if part is not NoneType)
    return kind


def _number(value: float | None) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
