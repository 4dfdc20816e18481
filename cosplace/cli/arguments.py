"""Flags from settings, and mistakes in one line."""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from cosplace.config.knobs import nearest_names
from cosplace.config.sections import EvalConfig, GroupsConfig, TrainConfig
from cosplace.config.values import knobs
from cosplace.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One word after `cosplace`."""

    name: str
    text: str  # what it does, for --help
    add: Callable[[argparse.ArgumentParser], None]  # its flags, and `run` as a default: what takes them


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"{message} (`{self.prog} --help` lists everything)")


class Formatter(argparse.HelpFormatter):
    """Help as wide as the terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=min(120, _terminal_width()))


def _terminal_width() -> int:
    try:
        return os.get_terminal_size().columns
    except OSError:
        return 100


def add_knobs(parser: argparse.ArgumentParser, config_class: type) -> None:
    """Add a command's settings as flags; only flags that are given reach the namespace."""
    for section, items in knobs(config_class):
        group = parser.add_argument_group((type(section.default).__doc__ or section.name).lower())
        for item in items:
            meta = item.metadata
            names = [f"--{name}" for name in (item.name, *meta["aliases"])]
            shown = meta["shown"] or ("" if item.default is False else _shown(item.default))
            text = f"{meta['text']}{f' (default: {shown})' if shown else ''}".replace("%", "%%")
            if item.default is False:
                group.add_argument(*names, action="store_true", default=argparse.SUPPRESS, help=text)
                continue
            options: dict[str, Any] = {"nargs": "+"} if meta["several"] else {}
            metavar = meta["metavar"] or ("{" + ",".join(meta["choices"]) + "}" if meta["choices"] else None)
            group.add_argument(
                *names,
                dest=item.name,
                type=_parse_or_explain(meta["parse"], item.name),
                default=argparse.SUPPRESS,
                help=text,
                metavar=metavar or meta["parse"].__name__.upper(),
                action=_OneValue,
                **options,
            )


class _OneValue(argparse.Action):
    """Stores a value; two names of one flag must not say different things."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the value, or raise ConfigError."""
        before = vars(namespace).setdefault("_given_as", {})
        first, value = before.setdefault(self.dest, (option_string, values))
        if first != option_string and value != values:
            raise ConfigError(
                f"{option_string} {values} contradicts {first} {value}: they are one setting, give one of them."
            )
        setattr(namespace, self.dest, values)


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else "" if default is None else str(default)


def _parse_or_explain(parse: Any, name: str) -> Any:
    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            wanted = {int: "a whole number", float: "a number"}.get(parse, "another value")
            raise ConfigError(f"--{name} '{text}': give {wanted}.") from error

    return convert


def parse_arguments(parser: argparse.ArgumentParser, argv: list[str], only: str | None) -> dict[str, Any] | None:
    """The arguments by name; None when no command is named."""
    namespace, rest = parser.parse_known_args(argv)
    arguments = {name: value for name, value in vars(namespace).items() if name != "_given_as"}
    command = only or arguments.pop("command", None)
    if rest:
        raise ConfigError(f"{_about_unknown(rest[0].partition('=')[0], command)} (`cosplace {command} --help`)")
    return arguments if command else None


def _about_unknown(flag: str, command: str | None) -> str:
    for name, config in (("train", TrainConfig), ("eval", EvalConfig), ("groups", GroupsConfig)):
        if name != command and flag.lstrip("-") in {item.name for _, items in knobs(config) for item in items}:
            return f"{flag} belongs to `cosplace {name}`: leave it out here."
    flags = [f"--{item.name}" for config in (TrainConfig, EvalConfig) for _, items in knobs(config) for item in items]
    offered = nearest_names(flag, dict.fromkeys(flags)) if flag.startswith("-") else []
    return f"Unknown argument {flag}" + (f": did you mean {offered[0]}?" if offered else ".")
