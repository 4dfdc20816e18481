"""The page of `cosplace validate` is a single file with the problems, the map, the histograms and the command."""

import json
from pathlib import Path

import pytest

from cosplace.cli import main
from tests.report.report_samples import Page, assert_single_file
from tests.synthetic_dataset import write_dataset, write_place


def test_page_of_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_dataset(tmp_path / "city", num_places=4, images_per_place=2)
    write_place(folder / "train", 900, 0).rename(folder / "train" / "<b>&.jpg")
    assert main(["validate", str(folder), "--html", str(tmp_path / "page.html"), "--json", "--device", "cpu"]) == 2
    result = json.loads(capsys.readouterr().out)
    html = (tmp_path / "page.html").read_text("utf-8")
    assert_single_file(html)
    page = Page(html)
    text = page.text()
    assert f"Dataset {folder}" in text and "<b>&.jpg" in text
    for report in result["folders"]:
        for problem in report["problems"]:
            assert problem["kind"] in text and f"{problem['count']:,}" in text
    for name in ("train: 9 photos", "val/database: 24 photos", "test/queries_v1: 12 photos"):
        assert name in text
    assert len(list(page.of("img"))) == 1  # the map
    assert [chart["aria-label"] for chart in page.of("svg") if chart.get("role") == "img"] == [
        "Number of classes by their number of photos",
        "Number of photos by heading",
        "Number of queries by their number of positives",
        "Number of photos by size",
    ]
    assert "No recommendation" in text or "cosplace" in text
    assert result["recommendation"]["trains"] is False


def test_page_of_photos_without_positions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_place(tmp_path / "photos", 1, 1).rename(tmp_path / "photos" / "a.jpg")
    assert main(["validate", str(tmp_path / "photos"), "--html", str(tmp_path / "page.html")]) == 2
    text = Page((tmp_path / "page.html").read_text("utf-8")).text()
    assert "No recommendation" in text and "photos: 1 photo" in text
    assert "The highlighted row" not in (tmp_path / "page.html").read_text("utf-8")
    assert "recommendation: none." in capsys.readouterr().out


def test_page_with_a_recommended_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cosplace.training.recommendation.FEW_CLASSES", 5)
    for place in range(40):
        write_place(tmp_path / "city", place, 0)
        write_place(tmp_path / "city", place, 1)
    page = tmp_path / "page.html"
    main(["validate", str(tmp_path / "city"), "--quick", "--html", str(page), "--device", "cpu"])
    out = capsys.readouterr().out
    assert f"page: {page}" in out
    lines = out.splitlines()
    first = lines.index("recommendation:") + 1
    assert lines[first].startswith("  `cosplace")
    assert max(len(line) for line in lines[: first - 1] if line.startswith(("     M", "classes", "    "))) <= 100
    (marked,) = [line for line in lines if line.endswith("  recommended")]
    command = next(line for line in lines if "cosplace train" in line).split()
    M, alpha = (command[command.index(flag) + 1] for flag in ("--M", "--alpha"))
    assert marked.split()[:2] == [M, alpha]
    html = page.read_text("utf-8")
    assert "The highlighted row" in html and f'class="ours"><th scope="row">{M} m, {alpha}°' in html
    section = html[html.index('id="recommendation"') : html.index('id="problems"')]
    assert "`" not in section and "<code>cosplace finetune" in section
    assert section.index("<pre>") < section.index("<p>")
