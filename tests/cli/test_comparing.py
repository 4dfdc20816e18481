"""cosplace compare."""

import json
import shutil
from pathlib import Path

import pytest

from cosplace.cli import main
from tests.assessment.comparison_samples import city_dataset, write_run
from tests.cli.test_cli import EVALUATION, run
from tests.synthetic_dataset import write_dataset


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("runs")
    dataset = city_dataset(folder / "city", 12, photos=True)
    ranks = {"first": [1] * 4 + [0] * 8, "second": [1] * 12}
    return [str(write_run(folder / name, dataset, ranks[name])) for name in ranks]


def test_all_outputs(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / name for name in ("c.html", "c.md", "c.tex")]
    words = [f"--{name}={path}" for name, path in zip(("html", "markdown", "latex"), files, strict=True)]
    assert main(["compare", *runs, *words]) == 0
    assert "B is better" in capsys.readouterr().out
    assert [path.read_text("utf-8")[:5] for path in files] == ["<!DOC", "|  | ", "% nee"]
    assert main(["compare", *runs, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["comparisons"][0]["recalls"]["1"]["won"] == 8
    assert main(["compare", *runs, "--markdown", "-"]) == 0
    assert capsys.readouterr().out == (tmp_path / "c.md").read_text("utf-8")
    assert main(["compare", *runs, "--latex", "-", "--markdown", str(tmp_path / "d.md")]) == 0
    assert capsys.readouterr().out == (tmp_path / "c.tex").read_text("utf-8")


def test_three_runs_with_other_recalls_have_the_same_ones_in_a_table(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    third = shutil.copytree(runs[1], tmp_path / "third")
    results = json.loads((third / "results.json").read_text())
    results["recalls"] = {"1": 100.0, "3": 100.0}
    (third / "results.json").write_text(json.dumps(results))
    assert main(["compare", *runs, str(third), "--latex", "-"]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if "R@3" in line)
    assert all(line.count("&") == head.count("&") for line in lines if line.startswith(" & & "))
    assert sum(line.startswith(" & & ") for line in lines) == 2


def test_what_is_refused(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (runs[:1], "two or more runs"),
        ([], "RUN is required"),
        ([runs[0], str(tmp_path)], "not the folder of a finished run"),
        ([*runs, "--html", str(tmp_path / "c.html"), "--dataset", str(tmp_path / "none")], "is not a folder"),
        ([*runs, "--json", "--latex", "-"], "Only one of --latex and --json"),
        ([*runs, "--json", "--latex", "-", "--markdown", "-"], "Only one of --markdown and --latex and --json"),
    ):
        assert main(["compare", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_photos_that_are_elsewhere(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    city = Path(runs[0]).parent / "city"
    moved = city.rename(tmp_path / "moved")
    try:
        (tmp_path / "wrong").mkdir()
        words = ["compare", *runs, f"--html={tmp_path / 'c.html'}", f"--markdown={tmp_path / 'c.md'}"]
        for more, place in (([], city), ([f"--dataset={tmp_path / 'wrong'}"], tmp_path / "wrong")):
            assert main([*words, *more]) == 2
            assert capsys.readouterr().err == (
                f"error: The dataset of {runs[0]} is not at {place}. "
                "Use --dataset FOLDER, the folder that it has moved to.\n"
            )
            assert not (tmp_path / "c.html").exists() and not (tmp_path / "c.md").exists()
        assert main([*words, f"--dataset={moved}"]) == 0
        assert main(["compare", *runs]) == 0  # needs no photos
    finally:
        moved.rename(city)


def test_eval_compares_with_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["eval", f"--dataset_folder={write_dataset(tmp_path / 'dataset')}", *EVALUATION]
    assert run(*command, "--save_dir=first")[0] == 0
    (first,) = Path("logs/first").iterdir()
    assert run(*command, "--save_dir=wrong", f"--compare={first}", "--positive_dist_threshold=7")[0] == 2
    assert "a prediction is correct within 25 m" in capsys.readouterr().err
    assert not Path("logs/wrong").exists()  # refused before the evaluation
    assert run(*command, "--save_dir=wrong", "--compare=logs")[0] == 2
    assert not Path("logs/wrong").exists()

    capsys.readouterr()
    assert run(*command, "--save_dir=second", "--seed=1", f"--compare={first}")[0] == 0
    (second,) = Path("logs/second").iterdir()
    text = capsys.readouterr().out
    assert "B compared with A" in text and f"comparison: {second / 'comparison.html'}" in text
    assert (second / "comparison.html").is_file()
    assert json.loads((second / "config.json").read_text())["compare"] == str(first)
    assert main(["compare", str(first), str(second), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    for folder, found in zip((first, second), record["runs"], strict=True):
        assert found["recalls"] == json.loads((folder / "results.json").read_text())["recalls"]
