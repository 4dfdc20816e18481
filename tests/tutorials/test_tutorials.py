"""The tutorials work as they are written: their commands run in order, and print what the pages show.

Blocks marked `bash` are run, one shell per page.  A block marked `text` shows lines of what the block before it prints,
in order; numbers may differ, and a line of dots stands for any lines.  A block marked `console` is an example of what
is printed, which depends on the machine.  Other commands of a page are indented: they need downloads, and only their
flags are checked.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cosplace.cli.commands import COSPLACE
from cosplace.cli.parser import leaf_commands, parse_words

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "tutorials"
PAGES = ("own-photos.md", "paper.md", "robot.md", "proxy.md")
COMMANDS = dict(leaf_commands(COSPLACE))
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
MARK = "--- block"
LIMIT_S = 600


@dataclass(frozen=True, slots=True)
class Block:
    """A block of commands, and the lines that the page shows below it."""

    commands: str
    shown: tuple[str, ...]


def blocks_of(page: str) -> list[Block]:
    """The blocks of commands of a page, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", (FOLDER / page).read_text(), re.DOTALL | re.MULTILINE)
    blocks: list[Block] = []
    for number, (language, text) in enumerate(found):
        if language == "bash":
            blocks.append(Block(text, ()))
        elif language == "text":
            assert number and found[number - 1][0] == "bash", f"{page}: no commands print {text!r}"
            blocks[-1] = Block(blocks[-1].commands, tuple(text.splitlines()))
    return blocks


def write_programs(folder: Path) -> Path:
    """A folder for PATH with this checkout's `cosplace`, this `python3`, and `nginx`."""
    folder.mkdir()
    programs = {"cosplace": f'"{sys.executable}" -m cosplace', "python3": f'"{sys.executable}"'}
    if NGINX is not None:
        programs["nginx"] = f'"{NGINX}" -e stderr'
    for name, command in programs.items():
        (folder / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


def with_free_ports(commands: str) -> str:
    """Commands in which each port is one that is free, except those that are replaced in a file of deploy/."""
    port_pattern = r"(?<!listen )(?<!replica-\d:)\b8\d{3}\b"
    ports = sorted(set(re.findall(port_pattern, commands)))
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in ports]
    free = {port: str(one.getsockname()[1]) for port, one in zip(ports, sockets, strict=True)}
    for one in sockets:
        one.close()
    return re.sub(port_pattern, lambda match: free[match[0]], commands)


def run_blocks(blocks: list[Block], folder: Path) -> list[str]:
    """Run the blocks in one shell; what each prints.  Whatever they leave running is stopped."""
    script = "set -eo pipefail\n" + "".join(f"echo '{MARK}'\n{block.commands}" for block in blocks)
    if os.geteuid() == 0:  # nginx would become a user who cannot write to the folder of a test
        script = script.replace('"daemon off;"', '"daemon off; user root;"')
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {
        "PATH": f"{folder / 'programs'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "COSPLACE_HOME": str(folder / "home"), "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120",
    }  # fmt: skip
    with subprocess.Popen(
        ["bash", "-c", with_free_ports(script)], cwd=folder, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as shell:  # fmt: skip
        try:
            output, _ = shell.communicate(timeout=LIMIT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    printed = output.split(f"{MARK}\n")[1:]
    assert shell.returncode == 0, f"{blocks[len(printed) - 1].commands}\n{printed[-1][-3000:]}"
    return printed


def without_numbers(line: str) -> str:
    return re.sub(r"[-+]?\d+(\.\d+)?", "0", " ".join(line.split()))


def missing_lines(shown: tuple[str, ...], printed: str) -> list[str]:
    """The shown lines that are not among the printed ones, in order."""
    lines: Iterator[str] = iter([without_numbers(line) for line in printed.splitlines()])
    return [line for line in shown if line.strip() != "..." and without_numbers(line) not in lines]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a clone, in which the commands for the sample data have been run."""
    pytest.importorskip("numba", reason="rendering the city needs numba")
    folder = tmp_path_factory.mktemp("clone")
    write_programs(folder / "programs")
    for name in ("train.py", "eval.py", "examples", "deploy"):
        (folder / name).symlink_to(ROOT / name)
    check(blocks_of("README.md"), folder)
    return folder


def check(blocks: list[Block], folder: Path) -> None:
    for block, printed in zip(blocks, run_blocks(blocks, folder), strict=True):
        missing = missing_lines(block.shown, printed)
        assert not missing, f"{block.commands}\nprints\n{printed}\nwithout\n" + "\n".join(missing)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page if page == "robot.md" else pytest.param(page, marks=pytest.mark.long) for page in PAGES]
)
def test_the_commands_of_a_tutorial_print_what_it_shows(page: str, sample: Path) -> None:
    if shutil.which("curl") is None and "curl " in (FOLDER / page).read_text():
        pytest.skip("needs curl")
    blocks = blocks_of(page)
    runnable = [block for block in blocks if NGINX is not None or "nginx " not in block.commands]
    if runnable != blocks:  # what comes before the proxy
        blocks = blocks[: next(number for number, block in enumerate(blocks) if "nginx " in block.commands)]
    check([Block("cd tutorial\n", ()), *blocks], sample)
    if runnable != blocks and NGINX is None:
        pytest.skip(f"needs nginx: only the first {len(blocks)} blocks were run")


def test_all_tutorials_are_tested_and_listed() -> None:
    assert {path.name for path in FOLDER.glob("*.md")} == {*PAGES, "README.md"}
    for page in PAGES:
        assert blocks_of(page), page
        assert f"]({page})" in (FOLDER / "README.md").read_text()
        for other in ("README.md", "docs/index.md", "mkdocs.yml"):
            assert f"tutorials/{page}" in (ROOT / other).read_text(), f"{other} has no link to {page}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_need_downloads_have_valid_flags(page: str) -> None:
    text = (FOLDER / page).read_text()
    lines = re.findall(r"^    (cosplace .+|python3 (?:train|eval)\.py .+)$", text, re.MULTILINE)
    lines += re.findall(r"`(cosplace \w+ .+?)`", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))
    for line in lines:
        words = [word.removesuffix(".py") for word in shlex.split(line, comments=True)[1:]]
        assert any(name.startswith(f"cosplace {words[0]}") for name in COMMANDS), line
        if "--" not in line or "..." in line or line.startswith("cosplace locate --"):
            continue  # a name of a command, in a sentence
        if f"cosplace {words[0]}" in COMMANDS:
            prog = f"cosplace {words[0]}"
            parse_words(COMMANDS[prog], words[1:], prog, COSPLACE)


def test_the_check_finds_a_line_that_is_not_printed() -> None:
    printed = "first 1\nsecond   2.5\nthird\n"
    assert missing_lines(("first 7", "...", "third"), printed) == []
    assert missing_lines(("second 3", "first 1"), printed) == ["first 1"]
    assert missing_lines(("other",), printed) == ["other"]
