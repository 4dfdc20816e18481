"""cosplace runs."""

import json
from pathlib import Path

import pytest

from cosplace.cli import main
from tests.assessment.test_run_list import TRAIN, make_run


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for day, recall in ((1, 50.0), (2, 70.0), (3, 60.0)):
        results = {"recalls": {"1": recall, "5": 90.0 - recall}, "num_queries": 100}
        make_run(Path("logs/default") / f"2026-01-0{day}_00-00-00", {"resume_model": "m.pth"}, results)
    make_run(Path("logs/default/2026-01-04_00-00-00"), TRAIN, epochs=1)
    Path("logs/photos").mkdir()
    return tmp_path


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


def test_runs_in_order(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def days(*words: str) -> list[str]:
        assert main(["runs", *words, "--json"]) == 0
        return [Path(run["folder"]).name[8:10] for run in json.loads(capsys.readouterr().out)]

    assert days() == ["04", "03", "02", "01", ""]
    assert days("--sort", "r1") == ["02", "03", "01", "04", ""]
    assert days("--sort", "r5") == ["01", "03", "02", "04", ""]
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[1].split()[-3:] == ["1/3", "stopped", "logs/default/2026-01-04_00-00-00"]
    assert "60.0 [50.2, 69.1]" in lines[2]  # Wilson, 60 of 100
    assert "not readable: not a run: it is empty" in lines[5]


def test_long_names_and_reasons_are_cut_in_the_table_only(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{'m' * 40}.pth"
    model = {"name": name, "backbone": "ResNet18", "descriptor_dim": 512}
    make_run(Path("logs/long"), {"resume_model": name}, {"recalls": {"1": 1.0}, "num_queries": 9, "model": model})
    make_run(Path("logs/damaged") / ("x" * 60), "[")
    assert main(["runs"]) == 0
    out = capsys.readouterr().out
    assert f" {'m' * 18}… (ResNet18 512) " in out
    (line,) = [line for line in out.splitlines() if "damaged" in line and "xxx" in line]
    assert "not readable: " in line and "… " in line
    assert main(["runs", "--json"]) == 0
    found = {run["folder"]: run for run in json.loads(capsys.readouterr().out)}
    assert found["logs/long"]["model"] == name
    assert found[f"logs/damaged/{'x' * 60}"]["reason"].endswith("Evaluate the model again.")


def test_no_runs_and_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert "There are no runs" in capsys.readouterr().out
    assert main(["runs", str(tmp_path / "nowhere")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_a_narrow_terminal(logs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"resume_model": f"/weights/{'m' * 40}.pth", "test_set_folder": "/data/city"}
    results = {"recalls": {"1": 1.0}, "num_queries": 9, "dataset": {"name": f"{'long' * 8}/test/queries_night"}}
    make_run(Path("logs/default/2026-01-05_00-00-00"), config, results)
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].split()[:4] == ["time", "kind", "model", "dataset"]
    assert "…" in lines[1] and "test/queries_night" in lines[1]
    assert lines[2] == "  logs/default/2026-01-05_00-00-00"
    assert lines[4] == "  logs/default/2026-01-04_00-00-00, epochs 1/3, stopped"
    assert "]*" in lines[1] and lines[-1] == "* approximate interval"  # of 9 queries


def test_the_protocol_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, deviations in (("a", []), ("b", ["2 photos could not be opened"])):
        protocol = {"id": "pitts30k-test@1", "version": 1, "deviations": deviations}
        results = {"recalls": {"1": 60.0}, "num_queries": 100, "protocol": protocol}
        make_run(tmp_path / name, {"resume_model": "m.pth"}, results)
    assert main(["runs", str(tmp_path), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["protocol"], first["deviations"]) == ("pitts30k-test@1", [])
    assert (second["protocol"], second["deviations"]) == ("pitts30k-test@1", ["2 photos could not be opened"])
    assert main(["runs", str(tmp_path)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    start = head.index("protocol")
    assert lines[0][start:].startswith("pitts30k-test@1   ")
    assert lines[1][start:].startswith("pitts30k-test@1 (deviates)  ")
    monkeypatch.setenv("COLUMNS", "90")
    assert main(["runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].endswith("/a, protocol pitts30k-test@1")
    assert lines[4].endswith("/b, protocol pitts30k-test@1 (deviates)")


def test_a_fine_tuning_shows_what_was_tested(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = {"recalls": {"1": 1.0}, "num_queries": 9, "evaluated_on": "test/queries"}
    make_run(Path("logs/tuned"), {"recipe": {"epochs_num": 2}, "dataset": "my/city"}, results)
    assert main(["runs", "logs/tuned", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["dataset"] == "city: test/queries"
