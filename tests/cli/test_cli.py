"""The command line as a stranger meets it: help, mistakes, and the paper's commands from end to end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from cosplace.cli import main
from cosplace.cli.console import Bars, console
from cosplace.config.sections import EvalConfig, TrainConfig
from cosplace.config.values import knobs
from cosplace.errors import ConfigError
from tests.streets import write_place, write_streets

ROOT = Path(__file__).resolve().parents[2]
NETWORK = ["--backbone=resnet18-small", "--fc_output_dim=16"]
TESTING = ["--image_size=32", "--resize_test_imgs", "--num_workers=0", "--device=cpu"]
JUDGED = [*NETWORK, *TESTING]
QUICK = [
    *JUDGED, "--N=1", "--L=1", "--groups_num=1", "--min_images_per_class=4",
    "--batch_size=4", "--epochs_num=1", "--iterations_per_epoch=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_streets(tmp_path_factory.mktemp("streets"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def run(*arguments: object) -> tuple[int, list[Path]]:
    """Exit code, and what the command left in the current folder."""
    code = main([str(argument) for argument in arguments])
    return code, sorted(Path().rglob("*"))


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from cosplace.cli import main\n"
        "try: main(['train', '--help'])\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "--iterations_per_epoch" in done.stdout


@pytest.mark.parametrize(("command", "config"), [("train", TrainConfig), ("eval", EvalConfig)])
def test_every_flag_is_in_help(command: str, config: type, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    for _, items in knobs(config):
        for item in items:
            assert f"--{item.name} " in text or f"--{item.name}\n" in text


def test_python_m_and_the_scripts_are_the_same_program() -> None:
    environment = {**os.environ, "COLUMNS": "100"}
    texts = []
    for start in (["-m", "cosplace", "train"], [str(ROOT / "train.py")]):
        done = subprocess.run(
            [sys.executable, *start, "--help"], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
        )
        texts.append(done.stdout[done.stdout.index("Train CosPlace") :])
    assert texts[0] == texts[1]


# --- mistakes: one line, exit code 2, nothing left behind ------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "--dataset_folder"),
        (["eval"], "--dataset_folder"),
        (["train", "--dataset_folder", "nowhere"], "nowhere/train does not exist"),
        (["eval", "--dataset_folder", "nowhere"], "nowhere/test does not exist"),
        (["groups", "nowhere"], "nowhere does not exist"),
        (["train", "--backbone", "resnet19"], "did you mean ResNet18"),
        (["train", "--batch_size", "0", "--dataset_folder", "x"], "--batch_size 0 is too small"),
        (["train", "--batch_size", "many"], "give a whole number"),
        (["train", "--itertions_per_epoch", "5"], "did you mean --iterations_per_epoch"),
        (["eval", "--N", "5"], "--N belongs to `cosplace train`"),
        (["train", "--device", "gpu"], "Unknown device 'gpu'"),
        (["eval", "--recall_values", "0", "--dataset_folder", "x"], "use 1 or more"),
        (["teach"], "invalid choice"),
        (["train", "--resume_train", "gone.pth"], "gone.pth does not exist"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    code, left = run(*arguments)
    captured = capsys.readouterr()
    assert code == 2
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert left == []


def test_mistakes_in_the_data_are_one_line(streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def refused(said: str, *arguments: object) -> None:
        code, left = run(*arguments)
        error = capsys.readouterr().err.splitlines()[-1]
        assert code == 2
        assert error.startswith("error: ")
        assert said in error
        assert not [path for path in left if path.suffix == ".pth"]

    def weights(content: object, name: str) -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    empty = tmp_path / "empty"
    empty.mkdir()
    refused("holds no photos", "groups", empty)
    write_place(tmp_path / "few", 0, 0)
    refused("--min_images_per_class", "train", f"--dataset_folder={streets}", f"--train_set_folder={tmp_path / 'few'}")
    Image.new("RGB", (8, 8)).save(tmp_path / "few" / "holiday.jpg")
    refused("holiday.jpg: field 1 of the name (utm_east)", "groups", tmp_path / "few")
    refused("Recall@50 needs 50", "eval", f"--dataset_folder={streets}", *NETWORK, "--recall_values", 50)
    (tmp_path / "cut.pth").write_bytes(weights({"a": torch.zeros(1000)}, "whole.pth").read_bytes()[:700])
    for bad in (tmp_path / "cut.pth", tmp_path / "whole.pth", tmp_path / "few" / "holiday.jpg", tmp_path / "gone"):
        refused(str(bad), "eval", f"--dataset_folder={streets}", "--resume_model", bad)
    refused("v2", "eval", f"--dataset_folder={streets}", "--backbone=vgg16", "--imagenet_weights=v2")
    if not torch.cuda.is_available():
        refused("--device cpu", "eval", f"--dataset_folder={streets}", *NETWORK, "--device=cuda")


def test_unreadable_photos_stop_an_evaluation_unless_skipped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = write_streets(tmp_path / "data", num_places=1)
    bad = sorted((folder / "test" / "database").iterdir())[3]
    bad.write_bytes(b"")
    arguments = ["eval", f"--dataset_folder={folder}", *NETWORK, "--device=cpu", "--num_workers=0"]
    assert run(*arguments)[0] == 2
    error = capsys.readouterr().err
    assert bad.name in error
    assert "--skip_unreadable" in error
    assert run(*arguments, "--skip_unreadable")[0] == 0
    assert "1 photos could not be opened" in next(Path("logs").rglob("report.html")).read_text()


# --- the paper's commands --------------------------------------------------------------------------------------------


def test_groups_as_text_and_json(streets: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("groups", streets / "train", "--N=2", "--L=1", "--min_images_per_class=3", "--json")[0] == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert groups == [{"num_classes": 12, "num_images": 72}, {"num_classes": 12, "num_images": 72}]
    assert run("groups", streets / "train", "--no_cache")[0] == 0
    text = capsys.readouterr().out
    assert "144 images, 0 in classes of 10 or more" in text
    assert "--min_images_per_class 5" in text


def test_train_then_eval_gives_the_same_recalls(streets: Path, capsys: pytest.CaptureFixture) -> None:
    code, _ = run("train", f"--dataset_folder={streets}", *QUICK, "--save_dir=mine", "--num_preds_to_save=2")
    assert code == 0
    said = capsys.readouterr().out.splitlines()
    folder = next(Path("logs/mine").iterdir())
    left = {path.name for path in folder.iterdir()}
    assert {"best_model.pth", "last_checkpoint.pth", "config.json", "metrics.jsonl", "info.log", "debug.log"} <= left
    assert {"report.html", "results.json", "preds"} <= left
    assert any(name.startswith("events.out.tfevents") for name in left)
    assert "group 0: 24 classes, 144 images" in (folder / "info.log").read_text()

    # Backbone and dimension are read from the weights.
    model = folder / "best_model.pth"
    evaluation = ["eval", f"--dataset_folder={streets}", f"--resume_model={model}", *TESTING, "--save_dir=judged"]
    assert run(*evaluation)[0] == 0
    assert capsys.readouterr().out.splitlines()[0] == said[0]
    results = json.loads(next(Path("logs/judged").rglob("results.json")).read_text())
    assert results["recalls"] == json.loads((folder / "results.json").read_text())["recalls"]
    assert (results["num_database"], results["num_queries"]) == (24, 12)

    assert run(*evaluation, "--backbone=ResNet50")[0] == 2
    assert "contradicts" in capsys.readouterr().err
    assert run(*evaluation, "--fc_output_dim=16")[0] == 0


@pytest.mark.parametrize("command", ["train", "eval"])
def test_a_dry_run_tells_and_leaves_nothing(streets: Path, capsys: pytest.CaptureFixture, command: str) -> None:
    flags = QUICK if command == "train" else JUDGED
    code, left = run(command, f"--dataset_folder={streets}", *flags, "--dry_run")
    assert (code, left) == (0, [])
    said = capsys.readouterr().out
    assert all(f"\n{word}: " in f"\n{said}" for word in ("time", "memory", "disk"))


def test_old_spellings_and_layouts(
    streets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("SF_XL_PROCESSED_FOLDER", str(streets))
    assert run("train", *QUICK, "--exp_name=old", "--back=RESNET18_SMALL")[0] == 0
    assert run("eval", *JUDGED, "--queries_folder=queries_v1", "--exp_name", "old")[0] == 0
    assert len(list(Path("logs/old").iterdir())) == 2


def test_descriptors_are_kept_and_used_again(streets: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["eval", f"--dataset_folder={streets}", *JUDGED, "--descriptors_folder=kept"]
    assert run(*arguments)[0] == 0
    first = capsys.readouterr().out.splitlines()[0]
    shards = {path: path.stat().st_mtime_ns for path in Path("kept").rglob("*.npy")}
    assert shards
    assert run(*arguments)[0] == 0
    assert capsys.readouterr().out.splitlines()[0] == first
    assert shards == {path: path.stat().st_mtime_ns for path in Path("kept").rglob("*.npy")}
    assert run(*arguments, "--seed=1")[0] == 2  # other random weights


@pytest.mark.slow
def test_reference_recall_of_a_random_network_on_real_photos(real_photos_folder: Path, capsys) -> None:
    arguments = ["--imagenet_weights=none", "--image_size=256", "--resize_test_imgs", "--device=cpu"]
    assert run("eval", f"--dataset_folder={real_photos_folder}", *arguments)[0] == 0
    recall1 = float(capsys.readouterr().out.split("R@1: ")[1].split(",")[0])
    assert 20 <= recall1 <= 34


def test_a_bar_that_an_error_interrupts_is_cleared_before_the_error_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    bars = Bars()
    with pytest.raises(ConfigError), console():
        bars("training", 1, 5)
        raise ConfigError("interrupted")
    shown = capsys.readouterr().err
    assert "training" in shown
    assert shown.endswith("\r")
    assert shown.split("\r")[-2].isspace()
