"""GET /calibration: how far the answers of this server can be trusted, linked from the map."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cosplace.localization.localizer import Localizer
from tests.browsers import open_chromium
from tests.report.calibration_samples import sample_calibration
from tests.server.server_samples import client_of, make_index


@pytest.fixture(scope="module")
def localizer(tmp_path_factory: pytest.TempPathFactory) -> Localizer:
    return Localizer(make_index(tmp_path_factory.mktemp("private")), device="cpu", uncalibrated=True)


@pytest.fixture
def calibrated(localizer: Localizer) -> Iterator[Localizer]:
    localizer.calibration = sample_calibration(queries="/home/me/secret/new-photos")
    yield localizer
    localizer.calibration = None


def test_without_calibration_the_page_says_what_to_do(localizer: Localizer) -> None:
    with client_of(localizer) as client:
        assert client.get("/config.json").json()["calibrated"] is False
        answer = client.get("/calibration")
        assert answer.status_code == 404 and "cosplace index calibrate" in answer.json()["detail"]


def test_the_page_has_no_paths_and_no_inline_styles(calibrated: Localizer) -> None:
    with client_of(calibrated) as client:
        assert client.get("/config.json").json()["calibrated"] is True
        page = client.get("/calibration")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "Calibration of the index index" in page.text and "photos of new-photos" in page.text
    assert "secret" not in page.text and str(Path(calibrated.index.address).parent) not in page.text
    assert "<style" not in page.text and "style=" not in page.text


@pytest.mark.slow
def test_the_map_links_to_the_page_which_fits_a_phone(calibrated: Localizer) -> None:
    with client_of(calibrated) as client, open_chromium() as browser:
        page = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(str(client.base_url))
        page.click("#open-help")
        page.click("#calibration a")
        page.wait_for_selector("h1:has-text('How far can you trust the answers?')")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("getComputedStyle(document.querySelector('section')).borderRadius") != "0px"  # styled
        assert errors == []
