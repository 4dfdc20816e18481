"""The script of the audit in a real browser: keys, verdicts that are kept, and the export."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cosplace.assessment.audit import audit_pairs, read_export
from cosplace.assessment.run_files import QueryResults, read_query_results
from cosplace.report.audit_page import write_audit_page
from tests.assessment.comparison_samples import city_dataset, write_run

pytestmark = pytest.mark.slow  # too slow for make check; make test runs all


@pytest.fixture
def run(tmp_path: Path) -> QueryResults:
    return read_query_results(
        write_run(tmp_path / "run", city_dataset(tmp_path / "city", 4, photos=True), [1, 0, 0, 0])
    )


def test_keys_verdicts_and_export(browser: Any, run: QueryResults, tmp_path: Path) -> None:
    path = tmp_path / "audit.html"
    assert write_audit_page(path, run, audit_pairs(run, more_similar_than=0), run_folder=tmp_path) == 3
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page, problems = context.new_page(), []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(path.as_uri())
    assert page.locator(".audited:visible").count() == 1
    page.fill("#who", "nuy")  # letters in the field are not verdicts
    assert page.inner_text("#status") == "pair 1 of 3\n0 same, 0 different, 0 unsure"
    assert page.locator("#export").is_disabled()
    page.locator("h1").click()
    page.keyboard.press("y")
    page.keyboard.press("n")
    page.click("[data-verdict=unsure]")
    assert page.inner_text("#status") == "pair 3 of 3\n1 same, 1 different, 1 unsure"
    page.keyboard.press("ArrowLeft")
    assert page.locator("[data-verdict=different]").get_attribute("aria-pressed") == "true"
    page.fill("#who", "Ada")  # another person changes the second verdict
    page.locator("h1").click()
    page.keyboard.press("u")
    page.wait_for_timeout(500)  # Chromium keeps it a moment later
    page.reload()
    assert page.inner_text("#counts") == "1 same, 0 different, 2 unsure" and page.input_value("#who") == "Ada"
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(tmp_path / "verdicts.json")
    verdicts = read_export(tmp_path / "verdicts.json", run)
    assert [(one.verdict, one.who) for one in verdicts] == [("same", "nuy"), ("unsure", "Ada"), ("unsure", "nuy")]
    files = [run.queries_folder / verdicts[0].query, run.database_folder / verdicts[0].photo]
    checksums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert [verdicts[0].query_sha256, verdicts[0].photo_sha256] == checksums
    assert json.loads((tmp_path / "verdicts.json").read_text())["dataset"] == "city/queries"
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.emulate_media(media="print")
    assert page.locator(".audited:visible").count() == 3 and not page.locator("#controls").is_visible()
    context.close()
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator(".audited:visible").count() == 3 and not page.locator("#controls").is_visible()
    context.close()
    assert not problems
