"""README.md and docs/index.md: their commands exist, with these flags, and both have the same table of tasks."""

import re
import shlex
from pathlib import Path

import pytest

from cosplace.cli.commands import COSPLACE
from cosplace.cli.parser import leaf_commands, parse_words

ROOT = Path(__file__).resolve().parents[1]
README, START = ((ROOT / name).read_text() for name in ("README.md", "docs/index.md"))
COMMANDS = dict(leaf_commands(COSPLACE))
MAX_LINES = 175
PROGRAM = r"cosplace|python3 (?:train|eval)\.py"


def commands_in(text: str) -> set[str]:
    """The commands of indented lines, and those of tables and sentences with a flag."""
    indented = re.findall(rf"^    ((?:{PROGRAM}) .+)$", text, re.MULTILINE)
    return {*indented, *re.findall(rf"`((?:{PROGRAM}) [^`]*--[^`]+)`", text)}


@pytest.mark.parametrize("line", sorted(commands_in(README) | commands_in(START)))
def test_a_command_has_valid_flags(line: str) -> None:
    words = [word.removesuffix(".py") for word in shlex.split(line, comments=True)[1:]]
    if words[-1] == "--help":
        return
    length = 2 if " ".join(["cosplace", *words[:2]]) in COMMANDS else 1
    prog = " ".join(["cosplace", *words[:length]])
    assert prog in COMMANDS, line
    parse_words(COMMANDS[prog], words[length:], prog, COSPLACE)


def test_both_have_the_same_table_of_tasks() -> None:
    tables = [[line for line in text.splitlines() if line.startswith("|")] for text in (README, START)]
    assert [line.replace("](docs/", "](") for line in tables[0][: len(tables[1])]] == tables[1]
    assert len(tables[1]) > 10


def test_the_first_screen_has_an_image_two_commands_and_the_table() -> None:
    first = README[: README.index("## Requirements")]
    assert README.count("\n") < MAX_LINES
    assert re.findall(r"^    (.+)$", first, re.MULTILINE) == [
        "git clone <this repository> cosplace && cd cosplace",
        "make demo",
    ]
    assert "![" in first and "| I want to |" in first and "synthcity/" not in first


def test_images_and_pages_exist() -> None:
    for target in re.findall(r"\]\(((?!http)[^)#]+)", README):
        assert (ROOT / target).exists(), target
