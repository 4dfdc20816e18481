"""The page of the released models: what it shows, and how a browser sorts and filters it."""

from pathlib import Path

import pytest

from cosplace.models.speeds import speed_of
from cosplace.models.zoo import MODELS, NATIVE_MODELS
from cosplace.report.zoo_page import COLUMNS, write_zoo_page, zoo_page
from tests.browsers import open_chromium

EVERY = [*MODELS.values(), *NATIVE_MODELS.values()]


def test_every_model_has_a_measured_speed() -> None:
    for model in EVERY:
        speed = speed_of(model)
        assert speed is not None and speed.photos_per_s > 0 and speed.one_photo_ms > 0, model.name
        assert speed.side == (512 if model.name in MODELS else model.input_size)


def test_the_page_has_a_row_for_each_model_and_the_terms_of_use() -> None:
    page = zoo_page(EVERY).replace("<wbr>", "")
    assert page.count("<tr>") == 1 + len(EVERY)
    for model in EVERY:
        assert f"<code>{model.name}</code>" in page
    assert "CC BY-NC-ND" in page and "GPL-3.0" in page and ">yes<" in page
    assert 'data-key="96.5"' in page  # Tokyo 24/7, MegaLoc


@pytest.mark.slow
def test_a_browser_sorts_and_filters_the_table(tmp_path: Path) -> None:
    path = tmp_path / "zoo.html"
    write_zoo_page(path, EVERY)
    titles = [column.title for column in COLUMNS]
    with open_chromium() as browser:
        page = browser.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())

        def column(title: str) -> list[str]:
            return page.eval_on_selector_all(
                f"#zoo tbody tr:not([hidden]) > :nth-child({titles.index(title) + 1})",
                "cells => cells.map(cell => cell.textContent)",
            )

        def sort_by(title: str) -> None:
            page.click(f"#zoo thead th:nth-child({titles.index(title) + 1}) button")

        for title, is_falling in (("Pitts30k", True), ("dimension", False), ("photos/s", True)):
            for falls in (is_falling, not is_falling):
                sort_by(title)
                given = column(title)
                numbers = [float(text.replace(",", "")) for text in given if text != "–"]
                assert numbers == sorted(numbers, reverse=falls)
                assert given == [*given[: len(numbers)], *["–"] * (len(EVERY) - len(numbers))]  # unknown ones last
        page.get_by_label("Commercial use").select_option("yes")
        assert column("model") == ["megaloc"]
        page.get_by_label("Commercial use").select_option("")
        page.get_by_label("Find").fill("resnet50 eigen")
        page.get_by_label("Dimension at most").fill("256")
        assert sorted(column("model")) == ["eigenplaces_resnet50_128", "eigenplaces_resnet50_256"]
        assert page.text_content("#count") == f"2 of {len(EVERY)} models"
        assert errors == []
