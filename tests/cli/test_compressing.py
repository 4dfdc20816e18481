"""cosplace eval --compress: what it prints and records, and that compressed figures never pass as exact ones."""

import json
from pathlib import Path

import pytest

from cosplace.assessment.comparison import compare, open_runs
from cosplace.assessment.compression_loss import loss_lines, measure_loss
from cosplace.cli import main
from cosplace.report.comparison_tables import run_label
from cosplace.retrieval.compression import Compression
from cosplace.retrieval.evaluation import evaluate_descriptors
from tests.assessment.comparison_samples import city_dataset, write_run
from tests.assessment.test_provenance import SCHEMA, violations
from tests.cli.test_cli import EVALUATION, run
from tests.retrieval.test_compression import city
from tests.synthetic_dataset import write_dataset


def test_eval_reports_both_recalls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = [
        "eval", f"--dataset_folder={write_dataset(tmp_path / 'dataset')}", *EVALUATION, "--descriptors_folder=stored",
        "--recall_values", "1", "2", "--num_preds_to_save=0",
    ]  # fmt: skip
    assert run(*command, "--save_dir=exact")[0] == 0
    exact_line = capsys.readouterr().out.splitlines()[0]
    (exact,) = Path("logs/exact").iterdir()
    assert "compression" not in json.loads((exact / "results.json").read_text())
    assert run(*command, "--save_dir=int8", "--compress=int8", "--shortlist=0", f"--compare={exact}")[0] == 0
    printed = capsys.readouterr().out
    (folder,) = Path("logs/int8").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert list(violations(results["compression"], SCHEMA["properties"]["compression"])) == []
    assert printed.splitlines()[0].startswith(f"R@1: {results['recalls']['1']:.1f}, ")
    assert f"\nexact search: {exact_line}\n" in printed
    assert "\ncompressed: int8 codes alone; 16 bytes per photo instead of 64 (4.0 times less)\n" in printed
    assert "Search: exact in A, int8 codes alone in B.\n" in printed
    assert "precision–recall by confidence" not in printed  # not calibrated for distances of codes
    assert results["compression"]["exact_recalls"] == json.loads((exact / "results.json").read_text())["recalls"]
    assert results["compression"]["bytes_per_photo"] == 16
    page = (folder / "report.html").read_text("utf-8")
    assert "exact search" in page and "Search by int8 codes alone." in page
    assert main(["runs", "logs"]) == 0
    assert " eval, int8 codes alone, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shortlist=50"], "--shortlist has no effect without --compress"),
        (["--compress=binary", "--shortlist=10"], "--shortlist 10 is smaller than the 20 predictions that --recall_v"),
        (
            ["--compress=binary", "--shortlist=4", "--recall_values", "1", "--query_policy=maj_voting"],
            "--shortlist 4 is smaller than the 10 predictions that the votes of --query_policy maj_voting",
        ),
        (["--compress=binary", "--protocol=pitts30k-test"], "--compress cannot be used with the protocol pitts30k"),
        (["--compress=int8", "--no_labels"], "it does not go with --compress"),
        (["--compress=pq"], "--compress must be binary or int8"),
        (["--compress=binary", "--shortlist=10001"], "--shortlist must be between 0 and 10,000"),
    ],
)
def test_flags_that_contradict_each_other(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test").mkdir()
    assert main(["eval", f"--dataset_folder={tmp_path}", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_loss_is_that_of_the_same_queries(tmp_path: Path) -> None:
    dataset, database, queries = city(tmp_path)
    exact = evaluate_descriptors(database, queries, dataset)
    binary = evaluate_descriptors(database, queries, dataset, compression=Compression(method="binary", shortlist=0))
    loss = measure_loss(exact, binary, dataset.query_positions[:, 0].astype(int) // 100)
    first = loss.rows[0]
    assert (loss.bytes_per_photo, loss.bytes_per_photo_exact) == (8, 80)
    assert (first.recall_a, first.recall_b) == (exact.recalls[1], binary.recalls[1])
    assert first.lost - first.won == round(0.6 * (exact.recalls[1] - binary.recalls[1])) > 0
    about, before, difference = loss_lines(loss)
    assert about.startswith("compressed: binary codes alone; 8 bytes per photo instead of 80 (10.0 times less)")
    assert before == f"exact search: {exact.recalls_text()}"
    assert f"R@1 {binary.recalls[1] - exact.recalls[1]:+.1f} [" in difference
    none = loss_lines(measure_loss(exact, evaluate_descriptors(
        database, queries, dataset, compression=Compression(method="binary", shortlist=1000)
    ), dataset.query_positions[:, 0].astype(int) // 100))  # fmt: skip
    assert "binary codes, the best 1,000 compared exactly" in none[0]
    assert "R@1 0.0 [" in none[2]


def test_comparisons_say_how_runs_were_searched(tmp_path: Path) -> None:
    dataset = city_dataset(tmp_path / "city", 8)
    shortlist = {"compression": {"method": "binary", "shortlist": 100}}
    alone = {"compression": {"method": "binary", "shortlist": 0}}
    odd = {"compression": {"method": ["?"]}}
    folders = [
        write_run(tmp_path / name, dataset, [1] * 8, **values)
        for name, values in (("a", {}), ("b", shortlist), ("c", alone), ("d", odd), ("e", {}))
    ]
    a, b, c, d, e = open_runs(folders)
    assert list(compare(a, b).notes) == ["Search: exact in A, binary codes with a shortlist of 100 in B."]
    assert list(compare(b, c).notes) == ["Search: binary codes with a shortlist of 100 in B, binary codes alone in C."]
    assert compare(a, d).notes
    assert [run_label(run).partition(" (")[2] for run in (a, b, c, d)] == [
        "", "binary codes)", "binary codes alone)", "",
    ]  # fmt: skip
    assert not compare(a, e).notes
