"""Too little memory: one line that names the settings and what to do, exit code 2, nothing left behind."""

import re
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cosplace.cli import main
from cosplace.cli.commands import COSPLACE
from cosplace.cli.parser import flag_names
from cosplace.errors import DeviceError
from cosplace.memory import explain_memory_errors, is_out_of_memory
from tests.synthetic_dataset import write_dataset

OF_TORCH = (
    "[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "314572800000 bytes. Error code 12 (Cannot allocate memory)"
)
ERRORS = {
    "numpy": (MemoryError("Unable to allocate 293. GiB for an array with shape (100000, 3)"), "293 GiB"),
    "Python": (MemoryError(), ""),
    "torch": (RuntimeError(OF_TORCH), "293.0 GB"),
    "CUDA": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ..."), "2.00 GiB"),
}
HUGE = 100_000_000  # images of 512 x 512 pixels: more than the addresses of a process


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_of_memory(kind: str) -> None:
    error, amount = ERRORS[kind]
    settings: Mapping[str, Any] = {"batch_size": 100_000, "image_size": None, "lr": 1.0}
    with pytest.raises(DeviceError) as caught, explain_memory_errors(settings):
        raise error
    wanted = f": {amount} could not be allocated" if amount else ""
    assert str(caught.value) == (
        f"Not enough memory with --batch_size 100000{wanted}. Use a smaller --batch_size, use a smaller --image_size, "
        "use fewer --num_workers, or close other programs."
    )


def test_real_errors_are_recognized() -> None:
    for allocate in (lambda: np.empty((HUGE, 3, 512, 512)), lambda: torch.empty(HUGE, 3, 512, 512)):
        with pytest.raises(DeviceError, match=r"Not enough memory: [\d.]+ ?\w+ could not be allocated\. "):  # noqa: SIM117
            with explain_memory_errors({}):
                allocate()


def test_other_errors_stay_what_they_are() -> None:
    assert not is_out_of_memory(ValueError("cannot allocate memory"))
    with pytest.raises(RuntimeError, match="a bug"), explain_memory_errors({}):
        raise RuntimeError("a bug")


COMMANDS = {
    "train": ["--dataset_folder=x", "--batch_size=7"],
    "eval": ["--dataset_folder=x", "--model=m.pth", "--infer_batch_size=7"],
    "extract": ["x", "--model=m.pth", "--to=y", "--infer_batch_size=7"],
    "index build": ["x", "--model=m.pth", "--to=y", "--infer_batch_size=7"],
    "locate": ["x.jpg", "--index=y"],
    "groups": ["x"],
}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_end_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str, kind: str
) -> None:
    command = COSPLACE
    for word in name.split():
        command = next(action for action in command.actions if action.name == word)

    @wraps(command.run)
    def fail(*_: Any) -> None:
        raise ERRORS[kind][0]

    module, _, function = command.function.partition(":")
    monkeypatch.setattr(f"cosplace.cli.{module}.{function}", fail)
    assert main([*name.split(), *COMMANDS[name]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Not enough memory") and line.endswith("lose other programs.")
    assert set(re.findall(r"--(\w+)", line)) <= flag_names(command)
    assert all(flag.replace("=", " ") in line for flag in COMMANDS[name] if "batch_size" in flag)


@pytest.mark.parametrize("seeds", [[], ["--seeds", "0", "1"]])
def test_training_with_a_huge_batch_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, seeds: list[str]
) -> None:
    write_dataset(tmp_path / "dataset", num_places=2)
    monkeypatch.chdir(tmp_path)
    words = ["--dataset_folder=dataset", "--device=cpu", f"--batch_size={HUGE}", *seeds]
    assert main(["train", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: Not enough memory with --batch_size {HUGE}, --image_size 512: ")
    assert "Use a smaller --batch_size" in line
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]
