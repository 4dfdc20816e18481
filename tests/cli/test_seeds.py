"""train --seeds: a run for each seed, and the mean and standard deviation of their recalls."""

import json
import shutil
import statistics
from pathlib import Path

import pytest

from cosplace.cli.seeds import summarize_seeds, summary_lines
from cosplace.errors import DeviceError
from tests.cli.test_cli import QUICK, run
from tests.synthetic_dataset import write_dataset


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(autouse=True)
def _in_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_mean_and_standard_deviation() -> None:
    recalls = {0: {"1": 60.0, "5": 80.0}, 1: {"1": 63.0, "5": 80.0}, 7: {"1": 66.0, "5": 86.0}}
    summary = summarize_seeds(recalls)
    assert summary["mean"] == {"1": 63.0, "5": 82.0}
    # The square root of ((3² + 0 + 3²) / 2), and of ((2² + 2² + 4²) / 2).
    assert summary["standard_deviation"] == pytest.approx({"1": 3.0, "5": 12**0.5})
    assert summary_lines(summary)[-1] == ("mean ± standard deviation of 3 seeds: R@1: 63.0 ± 3.0, R@5: 82.0 ± 3.5")


def test_flags_that_contradict_seeds(dataset_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", f"--dataset_folder={dataset_folder}", *QUICK]
    for words, message in (
        (["--seeds", "0", "1", "--resume_train=x"], "--seeds and --resume_train contradict"),
        (["--seeds", "0", "1", "--dry_run"], "--seeds and --dry_run contradict"),
        (["--seeds", "0", "1", "--seed=3"], "--seeds and --seed contradict"),
        (["--seeds", "0", "1", "0"], "a seed twice: 0 1 0"),
        (["--seeds", "4"], "two or more seeds, got 4"),
    ):
        assert run(*command, *words)[0] == 2
        assert message in capsys.readouterr().err
    assert not Path("logs").exists()


def test_a_group_that_is_refused_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_dataset(tmp_path / "city")
    command = ["train", f"--dataset_folder={dataset}", *QUICK, "--seeds", "0", "1"]
    assert run(*command, "--nested_dims", "9999")[0] == 2
    assert "--nested_dims 9999 must rise" in capsys.readouterr().err
    photo = min((dataset / "train").rglob("*.jpg"))
    shutil.copy(photo, dataset / "test" / "queries_v1" / photo.name)
    assert run(*command)[0] == 2
    assert "is also a training photo" in capsys.readouterr().err
    assert not Path("logs").exists()


@pytest.mark.slow
def test_a_stopped_group_continues_with_the_same_command(
    dataset_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", f"--dataset_folder={dataset_folder}", *QUICK, "--save_dir=group"]
    from cosplace.training import loop

    validate, calls = loop.validate, []

    def stop_in_the_second_run(*words: object, **options: object) -> None:
        calls.append(0)
        if len(calls) == 2:
            raise DeviceError("no memory")
        validate(*words, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "validate", stop_in_the_second_run)
    assert run(*command, "--seeds", "3", "5")[0] == 2
    (folder,) = Path("logs/group").iterdir()
    assert (folder / "seed_3" / "results.json").exists()
    assert not (folder / "seed_5" / "results.json").exists()
    first = (folder / "seed_3" / "results.json").stat().st_mtime_ns
    monkeypatch.setattr(loop, "validate", validate)
    capsys.readouterr()

    assert run(*command, "--seeds", "3", "5")[0] == 0
    assert [path.name for path in Path("logs/group").iterdir()] == [folder.name]
    assert (folder / "seed_3" / "results.json").stat().st_mtime_ns == first
    summary = json.loads((folder / "seeds.json").read_text())
    for seed in ("3", "5"):
        assert summary["recalls"][seed] == json.loads((folder / f"seed_{seed}" / "results.json").read_text())["recalls"]
        assert json.loads((folder / f"seed_{seed}" / "config.json").read_text())["seed"] == int(seed)
    values = [summary["recalls"][seed]["1"] for seed in ("3", "5")]
    assert summary["mean"]["1"] == statistics.fmean(values)
    assert "mean ± standard deviation of 2 seeds: R@1: " in capsys.readouterr().out

    # A run of the group is the run of its seed alone.
    assert run("train", f"--dataset_folder={dataset_folder}", *QUICK, "--save_dir=alone", "--seed=5")[0] == 0
    (alone,) = Path("logs/alone").iterdir()
    losses = [
        [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]
        for path in (alone, folder / "seed_5")
    ]
    assert losses[0] == losses[1]

    # The group is finished: the same command starts another one.
    monkeypatch.setattr("cosplace.cli.seeds._recalls", lambda _: {"1": 50.0})
    assert run(*command, "--seeds", "3", "5")[0] == 0
    assert len(list(Path("logs/group").iterdir())) == 2
