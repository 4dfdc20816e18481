"""Help texts, from settings."""

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator

from cosplace.cli.command import Command
from cosplace.config.setting import Setting
from cosplace.config.terminal import TerminalSettings
from cosplace.config.values import all_settings

MIN_WIDTH, MAX_WIDTH = 60, 100  # characters
INDENT = 26  # of explanations


def help_width() -> int:
    """Characters per line: those of the terminal, also when the help goes to a pager; else 80."""
    if not os.environ.get("COLUMNS"):
        for stream in (sys.__stdout__, sys.__stderr__):
            try:
                columns = os.get_terminal_size(stream.fileno()).columns if stream else 0
            except (OSError, ValueError):
                continue
            return max(MIN_WIDTH, min(columns, MAX_WIDTH))
    return max(MIN_WIDTH, min(shutil.get_terminal_size((80, 24)).columns, MAX_WIDTH))


def help_text(command: Command, prog: str, width: int | None = None) -> str:
    """Return what `--help` prints.  prog: the words that call the command, such as `cosplace index build`."""
    width = width or help_width()
    lines = [*_fill(f"usage: {usage(command, prog)}", width, indent=7), "", *_fill(command.summary, width)]
    if command.actions:
        for heading, actions in _actions_by_topic(command):
            lines += ["", f"{heading}:", *_table(((one.name, one.summary) for one in actions), width, indent=14)]
        word = "COMMAND" if prog == "cosplace" else "ACTION"
        lines += ["", *_fill(f"`{prog} {word} --help` explains the settings of each.", width)]
    positional = [one for one in command.settings if one.positional]
    if positional:
        lines += ["", "Arguments:", *_table(((usage_of(one), explanation(one)) for one in positional), width)]
    for group in command.groups:
        title = "Options" if group.section is None else group.title
        rows = [(flag_text(one), explanation(one)) for one in group.settings if not one.positional]
        if rows:
            lines += ["", f"{title}:", *_table(rows, width)]
    general = [(flag_text(one), explanation(one)) for one in all_settings(TerminalSettings)]
    general.insert(0, ("-h, --help", "print this help"))
    if prog == "cosplace":
        general.append(("--version", "print the version"))
    lines += ["", "General:", *_table(general, width)]
    return "\n".join([*lines, ""])


def _actions_by_topic(command: Command) -> list[tuple[str, list[Command]]]:
    """The actions of a command under their headings; those without a topic come last."""
    by_name = {action.name: action for action in command.actions}
    topics = [(heading, [by_name.pop(name) for name in names]) for heading, names in command.topics.items()]
    return topics + ([("More" if topics else "Actions", list(by_name.values()))] if by_name else [])


def usage(command: Command, prog: str) -> str:
    """Return the usage line of a command: required arguments by name, the rest as [options]."""
    if command.actions:
        return f"{prog} {'COMMAND' if prog == 'cosplace' else 'ACTION'} ..."
    words = [usage_of(one) for one in command.settings if one.positional]
    words += [f"--{one.name} {one.metavar}" for one in command.settings if one.is_required and not one.positional]
    return " ".join([prog, *words, "[options]"])


def usage_of(one: Setting) -> str:
    """Return a positional argument as usage lines write it."""
    words = f"{one.metavar} [{one.metavar} ...]" if one.is_list else one.metavar
    return words if one.is_required else f"[{one.metavar} ...]" if one.is_list else f"[{one.metavar}]"


def flag_text(one: Setting) -> str:
    """Return a flag with its value, and its other names."""
    value = "" if one.is_switch else f" {one.metavar}" + (f" [{one.metavar} ...]" if one.is_list else "")
    return ", ".join(f"--{name}{value}" for name in (one.name, *one.aliases))


def explanation(one: Setting) -> str:
    """Return the help of a setting with its default."""
    if one.is_required and not one.positional:
        return f"{one.help} (required)"
    return f"{one.help} (default: {one.shown_default})" if one.shown_default else one.help


def _table(rows: Iterable[tuple[str, str]], width: int, indent: int = INDENT) -> Iterator[str]:
    for label, text in rows:
        lines = _fill(text, width - indent)
        if len(label) + 4 > indent:
            yield f"  {label}"
        else:
            yield f"  {label}".ljust(indent) + lines.pop(0)
        yield from (" " * indent + line for line in lines)


def _fill(text: str, width: int, indent: int = 0) -> list[str]:
    return textwrap.wrap(
        text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )  # fmt: skip
