"""cosplace audit: the page, and verdicts that become part of the ground truth."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cosplace.assessment.audit import find_verdicts, read_verdicts
from cosplace.cli import main
from cosplace.cli.auditing import run_audit
from cosplace.config.auditing import AuditConfig
from cosplace.photos.image_list import image_list
from cosplace.photos.tables import PhotoRecord
from tests.assessment.comparison_samples import city_dataset, write_run
from tests.synthetic_dataset import write_dataset
from tests.table_samples import write_records

RANKS = [1, 1, 0, 0]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", city_dataset(tmp_path / "city", len(RANKS), photos=True), RANKS)


def verdicts_of(page: str, verdict: str = "same") -> dict[str, Any]:
    """What the page would export if all pairs had this verdict."""
    names = ("query", "photo", "query_sha256", "photo_sha256")
    pairs = re.findall(" ".join(rf'data-{name.replace("_", "-")}="(.*?)"' for name in names), page)
    data = dict(re.findall(r'data-(format|dataset|checksum)="(.*?)"', page))
    rows = [dict(zip(names, pair, strict=True)) | {"verdict": verdict, "who": "Ada", "when": ""} for pair in pairs]
    return {
        "format": data["format"], "dataset": data["dataset"], "database_sha256": data["checksum"], "verdicts": rows,
    }  # fmt: skip


def test_page_verdicts_and_the_next_page(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(run), "--more_similar_than", "0"]) == 0
    out = capsys.readouterr().out
    assert f"audit of wrong answers, 2 pairs: {run / 'audit.html'}" in out
    assert re.search(r"the page contains photos from .*database and .*queries\n", out)
    page = (run / "audit.html").read_text("utf-8")
    assert "2 wrong answers of 4 queries: the first prediction is more than 25 m from its query. Do" in page
    assert page.count("data:image/jpeg") == 4 and "script-src 'sha256-" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)  # it loads nothing
    export = tmp_path / "verdicts.json"
    export.write_text(json.dumps(verdicts_of(page)))
    assert main(["audit", str(run), "--apply", str(export)]) == 0
    stored = tmp_path / "city" / "queries_verdicts.csv"
    assert f"{stored}: 2 verdicts, 2 of them new (2 same, 0 different, 0 unsure applied)" in capsys.readouterr().out
    assert [one.verdict for one in read_verdicts(stored)] == ["same", "same"]
    assert main(["audit", str(run), "--more_similar_than", "0"]) == 0
    page = (run / "audit.html").read_text("utf-8")
    assert "There are no wrong answers, besides 2 pairs with a verdict: there is nothing to judge" in page
    assert "<script" not in page
    assert main(["audit", str(run)]) == 0
    assert "audit of wrong answers that look right, 0 pairs" in capsys.readouterr().out
    assert "No wrong answer looks right: there is nothing to judge" in (run / "audit.html").read_text("utf-8")


def test_verdicts_on_photos_that_were_exchanged_are_not_used(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Names and positions stay the same, so the run and its database do, too."""
    dataset = city_dataset(tmp_path / "city", len(RANKS))
    words = {"run": run, "more_similar_than": 0.0}
    run_audit(AuditConfig(**words))
    export = tmp_path / "verdicts.json"
    export.write_text(json.dumps(verdicts_of((run / "audit.html").read_text("utf-8"))))
    run_audit(AuditConfig(**words, apply=export))
    stored = tmp_path / "city" / "queries_verdicts.csv"
    before = read_verdicts(stored)
    found = find_verdicts(dataset)
    assert found is not None and (found.verdicts, found.num_changed) == (before, 0) and not caplog.text
    exchanged, other = (tmp_path / "city" / "queries" / name for name in (before[0].query, "q0000.jpg"))
    contents = exchanged.read_bytes(), other.read_bytes()
    assert contents[0] != contents[1]
    other.write_bytes(contents[0])
    exchanged.write_bytes(contents[1])
    found = find_verdicts(dataset)
    assert found is not None and (found.verdicts, found.num_changed) == (before[1:], 1)
    assert f"{stored}: 1 of 2 verdicts left out, because a photo has changed since" in caplog.text
    assert f"that on {before[0].query} and {before[0].photo}." in caplog.text
    run_audit(AuditConfig(**words))  # to judge it again
    page = (run / "audit.html").read_text("utf-8")
    assert page.count('class="audited"') == 1 and before[0].query in page
    export.write_text(json.dumps(verdicts_of(page, "different")))
    run_audit(AuditConfig(**words, apply=export))
    found = find_verdicts(dataset)
    assert found is not None and [one.verdict for one in found.verdicts] == ["different", "same"]
    # A photo of the database.
    (tmp_path / "city" / "database" / before[1].photo).write_bytes(contents[0])
    found = find_verdicts(dataset)
    assert found is not None and found.num_changed == sum(one.photo == before[1].photo for one in before)


def test_verdicts_of_earlier_versions_have_no_checksums(run: Path, tmp_path: Path) -> None:
    dataset = city_dataset(tmp_path / "city", len(RANKS))
    query, photo = dataset.queries.name(3), dataset.database.name(0)
    stored = tmp_path / "city" / "queries_verdicts.csv"
    stored.write_text(f"query,photo,verdict,who,when\n{query},{photo},same,Ada,\n")
    (tmp_path / "city" / "queries" / query).write_bytes(b"another photo")
    found = find_verdicts(dataset)
    assert found is not None and (len(found.verdicts), found.num_changed) == (1, 0)
    run_audit(AuditConfig(run=run, more_similar_than=0.0))
    export = tmp_path / "verdicts.json"
    content = verdicts_of((run / "audit.html").read_text("utf-8"))
    for row in content["verdicts"]:
        del row["query_sha256"], row["photo_sha256"]
    export.write_text(json.dumps(content))
    run_audit(AuditConfig(run=run, apply=export))
    found = find_verdicts(dataset)
    assert found is not None and {one.query_sha256 for one in found.verdicts} == {""}


def test_another_place_for_verdicts_and_a_dataset_that_moved(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(tmp_path / "city", tmp_path / "moved")
    words = {"run": run, "more_similar_than": 0.0, "dataset": tmp_path / "moved"}
    run_audit(AuditConfig(**words))
    page = (run / "audit.html").read_text("utf-8")
    assert page.count("data:image/jpeg") == 4
    export = tmp_path / "verdicts.json"
    export.write_text(json.dumps(verdicts_of(page, "different")))
    run_audit(AuditConfig(**words, apply=export))
    assert len(read_verdicts(tmp_path / "moved" / "queries_verdicts.csv")) == 2
    assert "\nEvaluate again to get recalls" in capsys.readouterr().out
    run_audit(AuditConfig(**words, apply=export, verdicts=tmp_path / "moved" / "queries_verdicts.csv"))
    assert "\nEvaluate again to get recalls" in capsys.readouterr().out
    run_audit(AuditConfig(**words, apply=export, verdicts=tmp_path / "mine.csv"))
    assert len(read_verdicts(tmp_path / "mine.csv")) == 2
    flag = f"--verdicts {tmp_path / 'mine.csv'}"
    assert f"\nEvaluate again with {flag} to get recalls" in capsys.readouterr().out
    assert "they are stored next to the folder of the queries, and each later evaluation reports" in page
    (tmp_path / "mine.csv").unlink()
    run_audit(AuditConfig(**words, verdicts=tmp_path / "mine.csv"))
    page = (run / "audit.html").read_text("utf-8")
    assert f"--apply verdicts.json {flag}</code>. Each later evaluation with <code>{flag}</code> reports" in page


def test_a_dataset_that_is_not_found_changes_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_audit(AuditConfig(run=run, more_similar_than=0.0))
    page = (run / "audit.html").read_text("utf-8")
    export = tmp_path / "verdicts.json"
    export.write_text(json.dumps(verdicts_of(page)))
    (tmp_path / "city").rename(tmp_path / "moved")
    capsys.readouterr()
    for words, place in (([], "city"), (["--apply", str(export)], "city"), (["--dataset", "nothere"], "nothere")):
        assert main(["audit", str(run), *words]) == 2
        error = capsys.readouterr().err
        assert f"The dataset of {run} is not at " in error and f"{place}. Use --dataset FOLDER" in error
    assert (run / "audit.html").read_text("utf-8") == page and not (tmp_path / "city").exists()
    # Photos are not needed to store verdicts in another place, and a few may be missing.
    assert main(["audit", str(run), "--apply", str(export), "--verdicts", str(tmp_path / "mine.csv")]) == 0
    (tmp_path / "moved" / "queries" / "q0000.jpg").unlink()
    assert main(["audit", str(run), "--dataset", str(tmp_path / "moved")]) == 0


def test_a_table_that_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder of its test set is none on disk; photos are below the folder of the table."""
    city = city_dataset(tmp_path / "city", len(RANKS), photos=True)
    lists, records = {}, []
    for part, images in (("database", city.database), ("queries", city.queries)):
        names = [f"{part}/{images.name(row)}" for row in range(len(images))]
        lists[part] = image_list(tmp_path / "city", names)
        records += [PhotoRecord(path=name, latitude=1.0, longitude=2.0, split=f"test/{part}") for name in names]
    write_records(tmp_path / "city", records, with_files=False)
    dataset = replace(city, folder=tmp_path / "city" / "test", **lists)
    runs = [str(write_run(tmp_path / name, dataset, RANKS)) for name in ("run", "other")]
    (tmp_path / "city").rename(tmp_path / "moved")
    for place in ("moved", "moved/test"):
        words = ["--dataset", str(tmp_path / place)]
        assert main(["audit", runs[0], "--more_similar_than", "0", *words]) == 0
        sources = re.findall(r'src="(data:[^"]+)"', (tmp_path / "run" / "audit.html").read_text("utf-8"))
        assert len(sources) == 4 and len(set(sources)) > 2  # photos that cannot be opened are all the same gray
        assert main(["compare", *runs, "--html", str(tmp_path / "c.html"), *words]) == 0
    (tmp_path / "wrong").mkdir()
    capsys.readouterr()
    for place in ("wrong", "moved/val"):
        assert main(["audit", runs[0], "--dataset", str(tmp_path / place)]) == 2
        assert f"The dataset of {runs[0]} is not at {tmp_path / place}. Use --dataset" in capsys.readouterr().err


def test_the_folder_above_a_test_set_that_moved(tmp_path: Path) -> None:
    dataset = city_dataset(tmp_path / "city" / "images" / "test", len(RANKS), photos=True)
    run = write_run(tmp_path / "run", dataset, RANKS)
    (tmp_path / "city").rename(tmp_path / "moved")
    for place in ("moved", "moved/images", "moved/images/test"):
        run_audit(AuditConfig(run=run, more_similar_than=0.0, dataset=tmp_path / place))


def test_two_folders_that_moved(tmp_path: Path) -> None:
    """The folder of the dataset is that of the database; --dataset is the one that both are in now."""
    dataset = city_dataset(tmp_path / "city", len(RANKS), photos=True)
    run = write_run(tmp_path / "run", replace(dataset, folder=dataset.database.folder), RANKS)
    (tmp_path / "city").rename(tmp_path / "moved")
    run_audit(AuditConfig(run=run, more_similar_than=0.0, dataset=tmp_path / "moved"))
    page = (run / "audit.html").read_text("utf-8")
    sources = re.findall(r'src="(data:[^"]+)"', page)
    assert len(sources) == 4 and len(set(sources)) > 2  # photos that cannot be opened are all the same gray


def test_what_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "unlabeled").mkdir()
    (tmp_path / "unlabeled" / "answers.json").write_text("{}")
    for words, message in (
        ([str(tmp_path)], "has no queries.parquet"),
        ([str(run), "--apply", str(tmp_path / "none.json")], "does not exist"),
        ([str(run), "--apply", str(tmp_path / "x.json")], "not a file that the page of an audit exported"),
        ([str(tmp_path / "unlabeled")], "have no labels, so nothing was measured: there is nothing to audit"),
        ([str(run), "--verdicts", str(tmp_path)], "is a folder. Use the CSV file in it"),
        ([str(run), "--more_similar_than", "101"], "between 0 and 100"),
    ):
        assert main(["audit", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.mark.slow
def test_both_recalls_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    city = write_dataset(tmp_path / "city", num_places=0) / "test"
    words = ["eval", "--test_set_folder", str(city), "--backbone", "ResNet18_Small", "--fc_output_dim", "16"]
    words += ["--num_workers", "0", "--device", "cpu", "--recall_values", "1", "5", "--positive_dist_threshold", "1.5"]
    assert main([*words, "--audit"]) == 0
    (folder,) = Path("logs/default").iterdir()
    before = json.loads((folder / "results.json").read_text())
    assert "verdicts" not in before and before["recalls"]["1"] < 100
    assert main(["audit", str(folder), "--more_similar_than", "0"]) == 0
    export = tmp_path / "verdicts.json"
    export.write_text(json.dumps(verdicts_of((folder / "audit.html").read_text("utf-8"))))
    assert main(["audit", str(folder), "--apply", str(export)]) == 0
    capsys.readouterr()
    assert main([*words, "--save_dir", "after"]) == 0
    captured = capsys.readouterr()
    (folder,) = Path("logs/after").iterdir()
    after = json.loads((folder / "results.json").read_text())
    assert after["recalls"] == before["recalls"] and after["verdicts"]["recalls"]["1"] == 100
    assert "verdicts on pairs of photos: " in captured.err and "with verdicts (" in captured.out
    assert "with verdicts" in (folder / "report.html").read_text("utf-8")
