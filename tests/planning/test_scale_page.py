"""docs/scale.md: its figures are those of its commands, and its other commands exist."""

import re
import shlex
from pathlib import Path

import pytest

from cosplace.cli.commands import COSPLACE
from cosplace.cli.parser import leaf_commands, parse_words
from cosplace.cli.planning import format_value
from cosplace.planning.plan import Plan, make_plan

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text()
COMMANDS = dict(leaf_commands(COSPLACE))
LINES = [line.strip() for line in PAGE.splitlines() if re.match(r"    (cosplace|torchrun|sbatch) ", line)]


def settings_of(line: str) -> tuple:
    """The settings, and the values that a command line gives."""
    words = shlex.split(line)
    words = words[words.index("cosplace") + 1 :]
    length = 2 if f"cosplace {words[0]} {words[1]}" in COMMANDS else 1
    prog = " ".join(["cosplace", *words[:length]])
    return parse_words(COMMANDS[prog], words[length:], prog, COSPLACE)


def table() -> tuple[list[str], dict[str, list[str]]]:
    """The heading of the table of three sizes, and its cells by the title of their row."""
    section = PAGE[PAGE.index("## Three sizes") :]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return rows[0], {
        row[0]: row[1:] for row in rows[2 : 2 + next(i for i, row in enumerate(rows[2:]) if "file" in row)]
    }


def plans() -> list[Plan]:
    lines = [line for line in LINES if line.startswith("cosplace plan --photos") and "machine_hour_price" in line]
    return [make_plan(*settings_of(line)) for line in lines]


def test_the_table_has_the_figures_of_the_commands() -> None:
    heading, rows = table()
    found = plans()
    assert len(found) == len(heading) - 1 == 3 and len(rows) > 15
    for number, plan in enumerate(found):
        figures = {figure.title: format_value(figure.value, figure.unit) for figure in plan.sheet.figures.values()}
        for title, cells in rows.items():
            assert cells[number] == figures[title], f"{title}, column {number + 1}"


def test_figures_in_the_text_are_those_of_the_plans() -> None:
    """Rounded figures, which the text repeats."""
    _, country, planet = ({name: figure.value for name, figure in plan.sheet.figures.items()} for plan in plans())
    assert country["parts"] > 1
    assert round(planet["photos_gb"] / 1e6) == 4 and "Four petabytes" in PAGE
    assert round(planet["parts"], -2) == 200 and "with 200 areas" in PAGE
    used = planet["part_queries_per_second"] * planet["query_core_ms"] / 1000
    share = used / (planet["replicas"] * planet["server_cores"])
    assert f"queries use {100 * share:.0f}% of their cores" in " ".join(PAGE.split())


def command_of_script(line: str) -> str:
    """The command that a script of Slurm runs: `sbatch ... SCRIPT DATASET MODEL STORE [option ...]`."""
    words = shlex.split(line)
    (number,) = [number for number, word in enumerate(words) if word.endswith(".sh")]
    (command,) = re.findall(r"^exec (cosplace .+)$", (ROOT / words[number]).read_text(), re.MULTILINE)
    dataset, model, store, *options = words[number + 1 :]
    values = {'"$dataset"': dataset, '"$model"': model, '"$store"': store, '"$@"': shlex.join(options)}
    for name, value in values.items():
        assert name in command
        command = command.replace(name, value)
    return command.replace("${SLURM_CPUS_PER_TASK:-8}", "8")


@pytest.mark.parametrize("line", LINES)
def test_commands_exist(line: str) -> None:
    settings_of(command_of_script(line) if line.startswith("sbatch") else line)


def test_files_of_the_table_exist() -> None:
    linked = set(re.findall(r"`((?:deploy|cosplace)/[\w/.]+\.\w+|deploy/Dockerfile)`", PAGE))
    assert len(linked) >= 6
    assert all((ROOT / path).is_file() for path in linked)
    shown = {path.name for path in (ROOT / "deploy").iterdir()} - {"Dockerfile.dockerignore"}
    assert shown == {path.rpartition("/")[2] for path in linked if path.startswith("deploy/")}
