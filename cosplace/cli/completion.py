"""cosplace completion: the script with which a shell completes this program's words.

`shtab` writes the scripts from an argparse parser, which is made here from all commands and their settings.
"""

import argparse
from pathlib import Path
from typing import Any

from cosplace import __version__
from cosplace.cli.command import Command
from cosplace.cli.commands import COSPLACE
from cosplace.cli.console import print_result
from cosplace.config.completion import CompletionConfig
from cosplace.config.setting import Setting
from cosplace.config.terminal import TerminalSettings
from cosplace.config.values import all_settings

PATHS = ("FOLDER", "FILE", "PATH", "MODEL", "INDEX", "STORE", "DATASET", "RUN", "PHOTO", "PHOTOS", "SOURCE")


def run_completion(config: CompletionConfig) -> None:
    """Print the script of a shell."""
    import shtab

    print_result(shtab.complete(command_parser(COSPLACE, "cosplace"), config.shell))


def command_parser(command: Command, prog: str) -> argparse.ArgumentParser:
    """Return an argparse parser with the words of a command and of its actions: for completion, not for parsing."""
    parser = argparse.ArgumentParser(prog=prog, description=command.summary)
    _add_words(parser, command, prog)
    return parser


def _add_words(parser: argparse.ArgumentParser, command: Command, prog: str) -> None:
    if prog == "cosplace":
        parser.add_argument("--version", action="version", version=__version__, help="print the version")
    if command.actions:
        actions = parser.add_subparsers()
        for action in command.actions:
            words = f"{prog} {action.name}"
            _add_words(actions.add_parser(action.name, prog=words, help=action.summary), action, words)
        return
    for one in (*command.settings, *all_settings(TerminalSettings)):
        _add_word(parser, one)


def _add_word(parser: argparse.ArgumentParser, one: Setting) -> None:
    help = one.help.replace("%", "%%")  # argparse fills in %
    names = [one.name] if one.positional else [f"--{name}" for name in (one.name, *one.aliases)]
    if one.is_switch:
        parser.add_argument(*names, help=help, action="store_true")
        return
    choices = None if one.choices is None else list(one.choices)
    values = "*" if one.positional else "+" if one.is_list else None
    action: Any = parser.add_argument(*names, help=help, choices=choices, nargs=values, metavar=one.metavar)
    if choices is None and (one.type is Path or one.metavar in PATHS):
        import shtab

        action.complete = shtab.DIRECTORY if one.metavar == "FOLDER" else shtab.FILE
