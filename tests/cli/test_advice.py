"""Errors advise only flags that the running command has."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import cosplace
from cosplace.cli import main
from cosplace.cli.commands import COSPLACE
from cosplace.cli.parser import flag_names, leaf_commands
from cosplace.config.terminal import TERMINAL_FLAGS
from cosplace.errors import ConfigError, CosPlaceError, DeviceError, LoadingError, advise_only
from cosplace.models.network import GeoLocalizationNet
from cosplace.photos import loading
from tests.indexed_city import write_indexed_city
from tests.synthetic_dataset import write_place

PACKAGE = Path(cosplace.__file__).parent
COMMANDS = {prog.removeprefix("cosplace "): flag_names(command) for prog, command in leaf_commands(COSPLACE)}
FLAG = re.compile(r"(?<![\w-])--(\w+)")


def advised(text: str) -> set[str]:
    """Flags in a text, without those of commands that are written out."""
    return set(FLAG.findall(re.sub(r"`cosplace [^`]*`", "", text)))


# --- the mechanism ---------------------------------------------------------------------------------------------------


def test_an_error_shows_the_remedies_of_the_running_command() -> None:
    error = DeviceError(
        "Not enough memory.",
        "use a smaller --batch_size",
        "use a smaller --image_size",
        "add memory",
        "Then resume with `cosplace train --resume_train logs/a`.",
    )
    all_of_them = "Use a smaller --batch_size, use a smaller --image_size, or add memory."
    then = "Then resume with `cosplace train --resume_train logs/a`."
    assert str(error) == f"Not enough memory. {all_of_them} {then}"
    with advise_only(["image_size", "device"]):
        assert str(error) == f"Not enough memory. Use a smaller --image_size, or add memory. {then}"
        with advise_only([]):
            assert str(error) == f"Not enough memory. Add memory. {then}"
        assert str(ConfigError("It is wrong.", "use --device")) == "It is wrong. Use --device."
    assert str(error) == f"Not enough memory. {all_of_them} {then}"


def test_every_flag_in_an_error_is_a_flag_of_some_command() -> None:
    of_torchrun = {"nproc_per_node", "nnodes", "max_restarts", "rdzv"}  # --rdzv-id
    known = {"help", *TERMINAL_FLAGS, *of_torchrun}.union(*COMMANDS.values())
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and node.exc is not None:
                texts = [part.value for part in ast.walk(node.exc) if isinstance(part, ast.Constant)]
                for text in (text for text in texts if isinstance(text, str)):
                    assert advised(re.sub("`pip [^`]*`", "", text)) <= known, f"{path.name}: {text}"


# --- typical failures ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_indexed_city(tmp_path_factory.mktemp("advice"))
    for place in range(24):  # enough to train on
        for variant in range(6):
            write_place(folder / "city" / "train", place, variant)
    return folder


def out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(GeoLocalizationNet, "forward", forward)


def not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        GeoLocalizationNet, "forward", lambda self, images: torch.full((len(images), self.fc_output_dim), torch.nan)
    )


def killed_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        with loading._process_errors(2, None):
            raise RuntimeError("DataLoader worker (pid 123) is killed by signal: Killed.")

    monkeypatch.setattr(loading, "_load_in_threads", load)


def full_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        with loading._process_errors(2, None):
            raise RuntimeError("unable to write to file </torch_123>: No space left on device (28)")

    monkeypatch.setattr(loading, "_load_in_threads", load)


def nothing_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    from cosplace.errors import ImageError
    from cosplace.photos import opening

    def fail(*_: object, **__: object) -> None:
        raise ImageError("photo.jpg is empty. Copy it again.")

    for name in ("read_file", "open_image", "decode_image"):
        for module in ("photos.opening", "retrieval.extraction", "photos.batch_memory", "training.batches"):
            monkeypatch.setattr(f"cosplace.{module}.{name}", fail, raising=False)
    assert opening.read_file is fail


RUNS: dict[str, str] = {
    "train": "--dataset_folder=CITY/city --backbone=resnet18_small --fc_output_dim=16 --device=cpu --num_workers=1 "
    "--N=1 --L=1 --groups_num=1 --min_images_per_class=2 --iterations_per_epoch=2 --epochs_num=1 --batch_size=4 "
    "--image_size=32 --recall_values 1",
    "eval": "--dataset_folder=CITY/city --model=CITY/model.pth --device=cpu --num_workers=1 --recall_values 1",
    "reduce": "CITY/model.pth --on CITY/city/train --to OUT/r.safetensors --dims 4 --device=cpu --num_workers=1",
    "index build": "CITY/city/train --model=CITY/model.pth --to OUT/index --device=cpu --num_workers=1",
    "index add": "CITY/index CITY/city/train --device=cpu --num_workers=1",
    "locate": "CITY/city/train --index CITY/bare --uncalibrated --device=cpu",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "failure", [out_of_memory, not_finite, killed_process, full_shared_memory, nothing_readable]
)  # fmt: skip
@pytest.mark.parametrize("command", RUNS)
def test_typical_failures_advise_only_flags_of_the_command(
    city: Path,
    command: str,
    failure: Callable[[pytest.MonkeyPatch], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    if command == "locate" and failure in (killed_process, full_shared_memory):
        pytest.skip("it loads no photos ahead")
    failure(monkeypatch)
    monkeypatch.chdir(tmp_path)
    words = RUNS[command].replace("CITY", str(city)).replace("OUT", str(tmp_path)).split()
    code = main([*command.split(), *words])
    printed = capsys.readouterr()
    if failure is not nothing_readable or not command.startswith("index"):  # an index lists what it leaves out
        assert code == 2
        assert printed.err.splitlines()[-1].startswith("error: ")
    for line in (*printed.out.splitlines(), *printed.err.splitlines()):
        assert advised(line) <= COMMANDS[command], line


@pytest.mark.parametrize("command", ["locate", "index add", "index build", "reduce", "serve", "export", "demo"])
def test_failures_of_shared_code_advise_only_flags_of_the_command(command: str) -> None:
    def raised(run: Callable[[], object]) -> CosPlaceError:
        with pytest.raises(CosPlaceError) as caught:
            run()
        return caught.value

    def dies() -> None:
        with loading._process_errors(2, None):
            raise RuntimeError("DataLoader worker (pid 1) is killed")

    def overflows() -> None:
        from cosplace.models.inference import encode_batch

        class Full(torch.nn.Module):
            def forward(self, _: torch.Tensor) -> torch.Tensor:
                raise torch.OutOfMemoryError("out of memory")

        encode_batch(Full(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), device=torch.device("cpu"))

    died, overflowed = raised(dies), raised(overflows)
    assert isinstance(died, LoadingError) and isinstance(overflowed, DeviceError)
    assert {"num_workers", "loader"} <= advised(str(died))
    with advise_only(COMMANDS[command]):
        assert advised(str(died)) | advised(str(overflowed)) <= COMMANDS[command]
        assert "Not enough memory on cpu" in str(overflowed)


def test_a_photo_that_cannot_be_read_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture, city: Path
) -> None:
    gone = tmp_path / "gone.jpg"
    assert main(["locate", str(gone), "--index", str(city / "bare"), "--uncalibrated", "--device=cpu"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("gone.jpg") == 1
    assert captured.err.splitlines()[-1].startswith(
        f"error: Cannot read {gone}: No such file"
    )  # not "None of 1 photos"


def test_one_photo_that_cannot_be_read_is_its_own_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture, city: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # logs/ is created there
    (tmp_path / "test").mkdir()
    for place in (1, 9):
        write_place(tmp_path / "test" / "database", place, 1)
    write_place(tmp_path / "test" / "queries", 1, 1).write_bytes(b"")
    words = ["--model", str(city / "model.pth"), "--recall_values", "1", "--device=cpu", "--num_workers=0"]
    assert main(["eval", f"--test_set_folder={tmp_path / 'test'}", *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(rf"error: {tmp_path}/test/queries/\S+ is empty\.", error)
    assert "of 1 " not in error and "--skip_unreadable" in error
