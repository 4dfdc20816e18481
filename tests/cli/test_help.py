"""Help texts: every flag is explained, fits into a terminal, and is in docs/commands.md."""

import os
import re
import subprocess
import sys
from dataclasses import make_dataclass
from pathlib import Path

import pytest

from cosplace.cli.command import Command
from cosplace.cli.commands import COSPLACE
from cosplace.cli.help import explanation, help_text
from cosplace.cli.parser import leaf_commands
from cosplace.cli.reference import reference
from cosplace.config.setting import Setting, own_settings, setting

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = dict(leaf_commands(COSPLACE))
SETTINGS = [
    pytest.param(one, id=f"{prog} {one.label}") for prog, command in COMMANDS.items() for one in command.settings
]
FILLER = {"a", "an", "the", "of", "for", "to", "in", "on", "and", "or", "is", "it", "this", "with", "from", "by", "as"}


def words(text: str) -> set[str]:
    return {word.removesuffix("s") for word in re.findall(r"[a-z]+", text.lower().replace("_", " "))}


@pytest.mark.parametrize("one", SETTINGS)
def test_a_help_text_says_more_than_the_name(one: Setting) -> None:
    new_words = words(one.help) - words(one.name) - words(one.metavar) - FILLER
    assert len(new_words) >= 2, one.help
    assert len(one.help.split()) >= 3, one.help
    assert not one.help.endswith("."), "a help text is a phrase, and its default follows"


@pytest.mark.parametrize("one", SETTINGS)
def test_a_default_is_shown(one: Setting) -> None:
    text = explanation(one)
    if one.is_required:
        assert one.positional or text.endswith("(required)")
    elif one.default not in (None, False, (), ""):
        assert "(default: " in text


@pytest.mark.parametrize("prog", COMMANDS)
@pytest.mark.parametrize("width", [60, 80, 100])
def test_help_fits_and_breaks_no_word(prog: str, width: int) -> None:
    text = help_text(COMMANDS[prog], prog, width)
    assert max(map(len, text.splitlines())) <= width
    flat = " ".join(text.split())
    for one in COMMANDS[prog].settings:
        assert one.label in flat
        assert " ".join(explanation(one).split()) in flat


@pytest.mark.parametrize("one", SETTINGS)
def test_the_value_of_a_number_is_its_unit(one: Setting) -> None:
    units = {"in meters": "METERS", "in degrees": "DEGREES", "in milliseconds": "MILLISECONDS", "in seconds": "SECONDS"}
    for words, unit in units.items():
        if one.type in (int, float) and words in one.help.replace("in meters per second", ""):
            assert one.metavar == unit, one.help


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("radius_m", float, "METERS"), ("batch_wait_ms", float, "MILLISECONDS"), ("image_size", int, "PIXELS"),
        ("decoded_mb_per_s", float, "MB/S"), ("images_per_class", int, "N"), ("s", float, "SECONDS"),
        ("margin", float, "NUMBER"),
    ],
)  # fmt: skip
def test_the_value_of_a_setting_without_metavar(name: str, kind: type, value: str) -> None:
    settings = make_dataclass("Example", [(name, kind, setting(kind(1), "some number of things"))])
    assert own_settings(settings)[0].metavar == value


def test_help_lists_each_command_under_one_topic() -> None:
    names = [name for group in COSPLACE.topics.values() for name in group]
    assert sorted(names) == sorted(action.name for action in COSPLACE.actions)
    lines = help_text(COSPLACE, "cosplace", 80).splitlines()
    assert [line for line in lines if line.endswith(":") and not line.startswith(" ")] == [
        *(f"{topic}:" for topic in COSPLACE.topics), "General:",
    ]  # fmt: skip


def test_help_through_a_pipe_has_80_columns() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-m", "cosplace", "train", "--help"], capture_output=True, text=True, check=True,
        env=environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert 70 < max(map(len, done.stdout.splitlines())) <= 80


def test_every_summary_is_a_sentence() -> None:
    def check(command: Command) -> None:
        assert re.fullmatch(r"[A-Z].*\.", command.summary), command.name
        for action in command.actions:
            check(action)

    check(COSPLACE)


def test_docs_commands_md_is_up_to_date() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    assert page == reference(), "run: python -m cosplace.cli.reference > docs/commands.md"
