"""Settings from the words of a command line, and suggestions for misspelled ones.

argparse finds the flags, in every spelling that it accepts (--flag value, --flag=value, unique beginnings of a name);
positional arguments may stand before, between or after flags.
"""

import argparse
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from cosplace.cli.command import Command
from cosplace.config.names import either, similar_names
from cosplace.config.setting import Setting, parse_path, parse_whole
from cosplace.config.shared import parse_matches
from cosplace.config.values import from_values
from cosplace.errors import ConfigError

NUMBER = re.compile(r"^-\d")  # -5, and -33.8,151.2 as coordinates; no flag begins like this
DATASET_FLAG = "dataset_folder"  # of train and eval, where other commands have a positional argument
FLAGS_OF_DATASETS = {DATASET_FLAG, "test_set_folder", "dataset", "folder", "photos"}
NAMES_OF_DATASETS = {"DATASET", "FOLDER", "PHOTO", "PHOTOS"}  # of positional arguments
MANY_ACTIONS = 10  # more are not listed in an error
MANY_OWNERS = 3  # of a flag; of more, two are listed
KINDS = {
    parse_whole: "a whole number", int: "a whole number", float: "a number", parse_path: "a path",
    parse_matches: "a whole number or all",
}  # fmt: skip


class HelpRequested(Exception):  # noqa: N818 - not an error
    """The command line contains --help."""


def parse_words(command: Command, words: Sequence[str], prog: str, root: Command) -> tuple[Any, dict[str, Any]]:
    """Return the settings of a command, and the values that the words give, by name.

    prog: the words that call the command, for messages.  root: the command with all commands, for suggestions.
    Raises ConfigError for anything that is wrong with the words, HelpRequested for --help.
    """
    try:
        given = _parse(command, words, prog, root)
        return from_values(command.config, given), given
    except _UsageError as error:
        raise ConfigError(f"{error} See `{prog} --help`.") from error


class _UsageError(ConfigError):
    """The words do not fit the command."""


class _FlagParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message[:1].upper()}{message[1:]}.")


def _parse(command: Command, words: Sequence[str], prog: str, root: Command) -> dict[str, Any]:
    parser = _FlagParser(prog=prog, add_help=False, exit_on_error=False, argument_default=argparse.SUPPRESS)
    parser._negative_number_matcher = NUMBER
    parser.add_argument("-h", "--help", action="store_true", dest="-help")
    for one in command.settings:
        if not one.positional:
            _add_flag(parser, one)
    end = list(words).index("--") if "--" in words else len(words)  # after --, nothing is a flag
    try:
        namespace, rest = parser.parse_known_args(list(words[:end]))
    except argparse.ArgumentError as error:
        raise _UsageError(_explain(error)) from error
    texts = vars(namespace)
    if texts.pop("-help", False):
        raise HelpRequested
    for word in rest:
        if word.startswith("-") and word != "-" and not NUMBER.match(word):
            raise _UsageError(_about_unknown_flag(word.partition("=")[0], command, prog, root))
    texts.pop("-names", None)
    texts |= _assign_positional(command, [*rest, *words[end + 1 :]])
    return {one.name: _parse_value(one, texts[one.name]) for one in command.settings if one.name in texts}


def _add_flag(parser: argparse.ArgumentParser, one: Setting) -> None:
    names = [f"--{name}" for name in (one.name, *one.aliases)]
    if one.is_switch:
        parser.add_argument(*names, dest=one.name, action="store_true")
    else:
        parser.add_argument(*names, dest=one.name, action=_StoreOnce, nargs="+" if one.is_list else None)


class _StoreOnce(argparse.Action):
    """Store a value; two names of one flag must not have different values."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        names = vars(namespace).setdefault("-names", {})
        first = names.setdefault(self.dest, option_string)
        before = getattr(namespace, self.dest, values)
        if first != option_string and before != values:
            ours, theirs = (" ".join(one) if isinstance(one, list) else one for one in (values, before))
            raise ConfigError(
                f"{option_string} {ours} contradicts {first} {theirs}: both set the same value. Use only one of them."
            )
        setattr(namespace, self.dest, values)


def _explain(error: argparse.ArgumentError) -> str:
    if error.message.startswith("expected"):
        return f"{error.argument_name} needs a value."
    if value := re.search(r"ignored explicit argument '(.*)'", error.message):
        return f"{error.argument_name} takes no value, got '{value[1]}'."
    return f"{error.argument_name}: {error.message}."


def _assign_positional(command: Command, words: list[str]) -> dict[str, Any]:
    """Give the words without flag to the positional arguments; one that takes a list gets all that are left."""
    texts: dict[str, Any] = {}
    for one in command.settings:
        if one.positional and words:
            texts[one.name] = words if one.is_list else words.pop(0)
            words = [] if one.is_list else words
    if words:
        takes_dataset = any(one.name == DATASET_FLAG and not one.positional for one in command.settings)
        remedy = f" Name a dataset as --{DATASET_FLAG} {shlex.quote(words[0])}." if takes_dataset else ""
        raise _UsageError(f"Unexpected argument '{words[0]}'.{remedy}")
    return texts


def _parse_value(one: Setting, text: Any) -> Any:
    if one.is_switch:
        return text
    return tuple(map(_value_parser(one), text)) if one.is_list else _value_parser(one)(text)


def _value_parser(one: Setting) -> Any:
    def parse(text: str) -> Any:
        try:
            return one.parse(text)
        except ValueError as error:
            kind = KINDS.get(one.parse, f"a {one.metavar.lower()}")
            example = f" Use for example {one.example}." if one.example else ""
            if one.is_list and re.search(r"\d\s*[,x]\s*-?\d", text):
                example = " Separate numbers with spaces."
            raise ConfigError(f"{one.label} must be {kind}, got '{text}'.{example}") from error

    return parse


# --- suggestions -----------------------------------------------------------------------------------------------------


def about_unknown_action(word: str, command: Command, prog: str) -> str:
    """Explain that a command has no such action, with the most similar one, or with all of a few."""
    kind, names = "command" if prog == "cosplace" else "action", [action.name for action in command.actions]
    owners = [one.name for one in command.actions if one.find_action(word)]  # `cosplace build`, without index
    if owners:
        calls = either([f"`{prog} {owner} {word}`" for owner in owners])
        return f"Unknown {kind} '{word}'. Did you mean {calls}? See `{prog} --help`."
    similar = similar_names(word, names, count=1, cutoff=0.65)
    few = f"Choose from {', '.join(names)}. " if len(names) <= MANY_ACTIONS else ""
    hint = f"Did you mean `{similar[0]}`? " if similar else few
    return f"Unknown {kind} '{word}'. {hint}See `{prog} --help`."


def about_missing_action(flag: str, command: Command, prog: str) -> str:
    """Explain that a flag stands where an action should."""
    if prog == "cosplace":
        return f"Choose a command before {flag}. See `cosplace --help`."
    return f"Choose an action before {flag}: {', '.join(action.name for action in command.actions)}."


def _about_unknown_flag(flag: str, command: Command, prog: str, root: Command) -> str:
    """Explain that a command has no such flag: it belongs to another command, or is spelled differently."""
    name = flag.lstrip("-")
    argument = next((one.metavar for one in command.settings if one.positional), "")
    if name in FLAGS_OF_DATASETS and argument in NAMES_OF_DATASETS:
        return f"`{prog}` has no {flag}. Give the folder without a flag: `{prog} {argument}`."
    same = name.replace("-", "_")
    owners = [path for path, other in leaf_commands(root) if same in flag_names(other) - flag_names(command)]
    group = prog.rpartition(" ")[0]  # actions of the same command are nearest
    owners.sort(key=lambda path: path.rpartition(" ")[0] != group or group == "cosplace")
    similar = similar_flag(name, command, by_help=not owners)
    hint = f" Did you mean --{similar}?" if similar else ""
    if owners:
        names = [f"`{path}`" for path in owners]
        if len(names) > MANY_OWNERS:
            names = [*names[:2], f"{len(names) - 2} other commands"]
        shown = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        return f"{flag} belongs to {shown}, not to `{prog}`.{hint}"
    return f"Unknown flag {flag}.{hint}"


def similar_flag(name: str, command: Command, *, by_help: bool = True) -> str | None:
    """Return the flag that a misspelled one may mean: by spelling, by words of the name, or by words of the help.

    --itertions_per_epoch means --iterations_per_epoch, --epochs means --epochs_num, --learning_rate means --lr.
    """
    flags = [one for one in command.settings if not one.positional]
    names = [alias for one in flags for alias in (one.name, *one.aliases)]
    if close := similar_names(name, names, count=1, cutoff=0.8):
        return close[0]
    words = _words(name)
    for candidate in names:
        if words <= _words(candidate):
            return candidate
    for one in flags if by_help else ():
        if words <= _words(one.help):
            return one.name
    return next(iter(similar_names(name, names, count=1, cutoff=0.65)), None)


def leaf_commands(root: Command, prog: str = "cosplace") -> Iterator[tuple[str, Command]]:
    """All commands and actions that have settings, with the words that call them."""
    for command in root.actions:
        if command.actions:
            yield from leaf_commands(command, f"{prog} {command.name}")
        else:
            yield f"{prog} {command.name}", command


def flag_names(command: Command) -> set[str]:
    """All names of the flags of a command, without dashes."""
    return {name for one in command.settings if not one.positional for name in (one.name, *one.aliases)}


def _words(text: str) -> set[str]:
    return {word.removesuffix("s") for word in re.findall(r"[a-z0-9]+", text.lower().replace("_", " "))}
