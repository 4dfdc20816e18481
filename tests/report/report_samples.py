"""A small database with queries, its evaluation, a report of both, and a parser of the page."""

import base64
import dataclasses
import hashlib
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cosplace.report.data import RecallRow, Report
from cosplace.report.render import chart_script, script
from cosplace.retrieval.dataset import RetrievalDataset, open_retrieval_dataset
from cosplace.retrieval.evaluation import Evaluation, evaluate_descriptors
from cosplace.training.groups import Groups

EAST, NORTH = 550_000.0, 4_170_000.0
# The templates write some SVG tags without an end tag.
VOID_TAGS = {"meta", "img", "br", "input", "path", "rect", "circle"}


class Page(HTMLParser):
    """A parsed page: its tags with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open_tags: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID_TAGS:
            self.open_tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID_TAGS:
            assert self.open_tags.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open_tags[-1] if self.open_tags else "", data))

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self) -> str:
        return " ".join(" ".join(text for tag, text in self.texts if tag not in ("style", "script")).split())

    def scripts(self) -> list[str]:
        return [text for tag, text in self.texts if tag == "script"]


def assert_single_file(html: str) -> None:
    """Check that a page runs no code but ours, and loads nothing."""
    page = Page(html)
    assert page.open_tags == []
    assert not page.of("link") and not page.of("iframe")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    data, codes = scripts_of(page)
    for text in data:
        json.loads(text)
    num_charts = len(charts_of(html))
    has_list = len(data) > num_charts  # the list of queries has data, too
    expected = [script("report_map.js", "report.js")] * has_list + [chart_script()] * (num_charts > 0)
    assert codes == [one.text for one in expected]
    checksums = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in codes]
    if codes:
        policy += "; script-src " + " ".join(f"'sha256-{checksum}'" for checksum in checksums)
    html = html.replace(chart_script().text, "")  # names the address of uPlot in a comment
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
                assert value.startswith("data:image/")
    assert "url(" not in html and "@import" not in html
    assert "http://" not in html and "https://" not in html
    policies = [meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [policy]


def scripts_of(page: Page) -> tuple[list[str], list[str]]:
    """The data of a page as JSON, and its code."""
    scripts = list(zip(page.of("script"), page.scripts(), strict=True))
    data = [text for attributes, text in scripts if attributes.get("type") == "application/json"]
    return data, [text for attributes, text in scripts if not attributes]


def data_of(html: str) -> dict[str, Any]:
    """The values that the script of the list of queries gets."""
    data, _ = scripts_of(Page(html))
    return json.loads(data[-1])  # those before are of charts


@dataclasses.dataclass(frozen=True)
class ChartOnPage:
    """A chart as it is on a page."""

    data: dict[str, Any]  # for the script
    legend: list[str]
    columns: list[str]  # of the table
    rows: list[list[str]]


def charts_of(html: str) -> dict[str, ChartOnPage]:
    """The charts of a page by their descriptions."""
    found = {}
    for part in re.findall(r'<div class="chart">.*?</script>', html, re.DOTALL):
        page = Page(part)
        rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", part)]
        columns, *rows = [[unescape(cell).replace("\u00a0", " ") for cell in row] for row in rows]
        legend = [unescape(label) for label in re.findall(r"</svg>(.*?)</li>", part) if label]
        _, plot, *_ = page.of("div")
        data = json.loads(page.scripts()[0])
        found[plot["aria-label"]] = ChartOnPage(data=data, legend=legend, columns=columns, rows=rows)
    return found


def tiles_of(html: str) -> list[tuple[str, str]]:
    """(kind, caption) of each photo."""
    found = re.findall(r'<figure class="tile (\w+)">.*?<figcaption>(.*?)</figcaption>', html)
    return [(kind, " ".join(re.sub(r"<[^>]+>", " ", caption).split())) for kind, caption in found]


def write_photo(folder: Path, east: float, north: float, note: str = "", size: tuple[int, int] = (64, 48)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shade = int(east * 7 + north * 3) % 200
    Image.new("RGB", size, (shade, 90, 200 - shade)).save(folder / f"@{east:.2f}@{north:.2f}@{note}@.jpg")


# Meters from each query east to its predictions, best first.  25 m is still correct.
OFFSETS = {
    0: (0.0, 400.0, 3.0),
    1: (300.0, 25.0, 12.0),
    2: (25.01, 90.0, 7000.0),
    3: (24.0, 26.0, 2.0),
}


def make_dataset(folder: Path) -> RetrievalDataset:
    for query, offsets in OFFSETS.items():
        # Queries are 20 km apart from south to north, so that the sorted list has their order.
        write_photo(folder / "queries", EAST + query, NORTH + 20_000 * query)
        for offset in offsets:
            write_photo(folder / "database", EAST + query + offset, NORTH + 20_000 * query)
    return open_retrieval_dataset(folder)


def make_evaluation(dataset: RetrievalDataset) -> Evaluation:
    """Return predictions in the order of OFFSETS, from descriptors built for it."""
    database = np.zeros((len(dataset.database), 12), np.float32)
    queries = np.zeros((len(OFFSETS), 12), np.float32)
    for query, offsets in OFFSETS.items():
        queries[query, 3 * query : 3 * query + 3] = (1.0, 0.5, 0.25)
        for rank, offset in enumerate(offsets):
            place = np.array([EAST + query + offset, NORTH + 20_000 * query])
            database[np.abs(dataset.database_positions - place).sum(axis=1).argmin(), 3 * query + rank] = 1.0
    result = evaluate_descriptors(database, queries, dataset, recall_values=(1, 2, 3))
    np.testing.assert_allclose(result.distances_m, np.array(list(OFFSETS.values())), atol=0.006)
    return result


METRICS: list[dict[str, Any]] = [
    {"kind": "loss", "step": 10, "epoch": 0, "loss": 12.0},
    {"kind": "loss", "step": 20, "epoch": 0, "loss": 10.0},
    {"kind": "epoch", "epoch": 0, "group": 0, "loss": 11.0, "recalls": {"1": 40.0, "5": 60.0}, "seconds": 30.0},
    {"kind": "loss", "step": 30, "epoch": 1, "loss": 9.0},
    {"kind": "epoch", "epoch": 1, "group": 1, "loss": 9.0, "recalls": {"1": 55.5, "5": 70.0}, "seconds": 40.0},
    {"kind": "loss", "step": 40, "epoch": 2, "loss": 8.0},
    {"kind": "epoch", "epoch": 2, "group": 0, "loss": 8.0, "recalls": {"1": 50.0, "5": 71.0}, "seconds": 50.0},
]


def make_groups(cells: list[tuple[int, int, int]], sizes: list[int]) -> Groups:
    """Return groups with `sizes` cells each, in order; each cell has ten images."""
    num_images = 10 * len(cells)
    return Groups(
        folder=Path("train"),
        cells=np.array(cells, np.int64).reshape(-1, 3),
        group_starts=np.concatenate([[0], np.cumsum(sizes)]),
        class_starts=np.arange(0, num_images + 1, 10),
        image_starts=np.zeros(num_images, np.int64),
        names=np.zeros(0, np.uint8),
        num_scanned=num_images + 7,
    )


SQUARE = [(1000 + 10 * x, 5000 + 10 * y, 0) for x in range(10) for y in range(10)]


def make_report(dataset: RetrievalDataset, evaluation: Evaluation) -> Report:
    return Report(
        title="A run",
        summary=["Trained for 3 epochs.", "Tested once."],
        recall_rows=[
            RecallRow(name="chance", recalls=evaluation.chance, note="random"),
            RecallRow(name="ours", recalls=evaluation.recalls),
        ],
        highlight="ours",
        metrics=METRICS,
        groups=make_groups(SQUARE, [60, 30, 10]),
        groups_used=2,
        dataset=dataset,
        evaluation=evaluation,
        settings={"M": 10, "alpha": 30, "backbone": "ResNet18", "recall_values": (1, 2, 3)},
        num_predictions_shown=2,
    )
