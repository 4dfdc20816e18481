"""The scripts of `cosplace completion`, run by the shells themselves."""

import shutil
import subprocess
from pathlib import Path

import pytest

from cosplace.cli import main
from cosplace.cli.commands import COSPLACE
from cosplace.cli.parser import leaf_commands

BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_shtab_cosplace
printf '%s\\n' "${COMPREPLY[@]}"
"""
EXPECTED = [  # the words so far, and what the last one becomes
    (["cosplace", "tr"], ["train"]),
    (["cosplace", "comp"], ["compare", "completion"]),
    (["cosplace", "index", "b"], ["build"]),
    (["cosplace", "index", "build", "--mod"], ["--model"]),
    (["cosplace", "train", "--backbone", "ResNet18", "--epo"], ["--epochs_num"]),
    (["cosplace", "train", "--qui"], ["--quiet"]),
    (["cosplace", "completion", "z"], ["zsh"]),
]


def script(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", shell]) == 0
    path = folder / f"cosplace.{shell}"
    path.write_text(capsys.readouterr().out)
    return path


def needs(shell: str) -> str:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    return program


def output(*words: str | Path) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def test_bash_completes_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script("bash", tmp_path, capsys)
    for words, completed in EXPECTED:
        found = output(needs("bash"), "-c", BASH, "bash", path, *words).split()
        assert sorted(found) == completed, words


def test_fish_completes_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script("fish", tmp_path, capsys)
    for words, completed in EXPECTED:
        found = output(needs("fish"), "-N", "-c", 'source $argv[1]; complete -C "$argv[2]"', path, " ".join(words))
        assert sorted(line.partition("\t")[0] for line in found.splitlines()) == completed, words


def test_zsh_loads_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script("zsh", tmp_path, capsys)
    load = 'autoload -Uz compinit && compinit -D && eval "$(cat $1)" && print -r -- $_comps[cosplace]'
    assert output(needs("zsh"), "-fc", load, "zsh", path).strip() == "_shtab_cosplace"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_and_flag_is_in_the_script(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = script(shell, tmp_path, capsys).read_text()
    for prog, command in leaf_commands(COSPLACE):
        assert prog.split()[-1] in text
        for one in command.settings:
            assert one.positional or (one.name if shell == "fish" else f"--{one.name}") in text, (prog, one.name)


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "SHELL must be bash, zsh or fish, got 'tcsh'" in capsys.readouterr().err


def test_paths_are_completed_as_files_or_folders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    text = capsys.readouterr().out
    kinds = {
        "split_pos_0": "files",
        "index_add_pos_1": "files",
        "eval___compare": "files",
        "eval___test_set_folder": "dirs",
    }
    for value, kind in kinds.items():
        assert f"_shtab_cosplace_{value}_COMPGEN=_shtab_compgen_{kind}\n" in text
