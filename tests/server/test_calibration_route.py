"""GET /calibration: how far the answers of this server can be trusted, linked from the map."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from cosplace.index.photo_index import open_index
from cosplace.localization.confidence import Calibration, as_record
from cosplace.localization.localizer import Localizer
from tests.browsers import open_chromium
from tests.report.calibration_samples import sample_calibration
from tests.server.server_samples import SIDE, client_of, good_photo, make_index
from tests.synthetic_dataset import place_image


@pytest.fixture(scope="module")
def localizer(tmp_path_factory: pytest.TempPathFactory) -> Localizer:
    return Localizer(make_index(tmp_path_factory.mktemp("private")), device="cpu", uncalibrated=True)


@pytest.fixture
def calibrated(localizer: Localizer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Localizer]:
    certainty = localizer.certainty()
    calibration = sample_calibration(queries="/home/me/secret/new-photos")
    with monkeypatch.context() as patched:
        patched.setattr(localizer, "certainty", lambda: replace(certainty, calibration=calibration))
        yield localizer


def test_without_calibration_the_page_says_what_to_do(localizer: Localizer) -> None:
    with client_of(localizer) as client:
        assert client.get("/config.json").json()["calibrated"] is False
        answer = client.get("/calibration")
        assert answer.status_code == 404 and "cosplace index calibrate" in answer.json()["detail"]


def test_the_page_has_no_paths_and_no_inline_styles_or_scripts(calibrated: Localizer) -> None:
    with client_of(calibrated) as client:
        assert client.get("/config.json").json()["calibrated"] is True
        page, script = client.get("/calibration"), client.get("/charts.js")
    assert script.status_code == 200 and script.headers["content-type"].startswith("text/javascript")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "Calibration of the index index" in page.text and "photos of new-photos" in page.text
    assert "secret" not in page.text and str(Path(calibrated.index.address).parent) not in page.text
    assert "<style" not in page.text and "style=" not in page.text and "<script>" not in page.text
    assert '<script src="charts.js"></script>' in page.text


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
        page.locator(".plot canvas").nth(1).wait_for()  # drawn by a script of this server
        page.locator(".u-over").first.hover()
        assert page.locator(".tip:visible").inner_text().startswith("stated confidence: ")
        assert errors == []


def write_calibration(address: Path, calibration: Calibration) -> None:
    with open_index(address, write=True) as index:
        index.write_record("calibration", as_record(calibration))


def confidence_of(localizer: Localizer) -> float:
    return localizer.locate(place_image(1, 7, SIDE)).confidence


@pytest.fixture
def city(tmp_path: Path) -> Path:
    address = make_index(tmp_path / "private")
    write_calibration(address, replace(sample_calibration(), bias=-20.0))
    return address


def wait_until(client: httpx.Client, condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, client.get("/health").text
        time.sleep(0.02)


def test_a_new_calibration_is_used_with_new_photos_without_a_restart(city: Path) -> None:
    files = {"files": ("a.png", good_photo(1, kind="PNG"))}
    with client_of(Localizer(city, device="cpu", precision=0.7), refresh_s=0.05) as client:
        assert client.post("/locate", files=files).json()["results"][0]["confidence"] == 0
        with open_index(city, write=True) as index:
            index.remove([35])
        write_calibration(city, replace(sample_calibration(num_photos=4321), bias=20.0))
        wait_until(client, lambda: "4321" in client.get("/calibration").text)
        found = client.post("/locate", files=files).json()["results"][0]
        assert client.get("/health").json() | {"uptime_s": 0} == client.get("/health").json() | {
            "uptime_s": 0, "status": "ok", "problems": [], "photos": 35
        }  # fmt: skip
    assert found["confidence"] == pytest.approx(confidence_of(Localizer(city, device="cpu"))) == 1


def test_the_first_calibration_of_an_index_is_used_without_a_restart(tmp_path: Path) -> None:
    address = make_index(tmp_path / "private")
    with client_of(Localizer(address, device="cpu"), refresh_s=0.05) as client:
        assert client.get("/calibration").status_code == 404
        write_calibration(address, sample_calibration())
        wait_until(client, lambda: client.get("/config.json").json()["calibrated"])
        assert client.get("/calibration").status_code == 200
        assert client.post("/locate", files={"files": ("a.jpg", good_photo(1))}).json()["results"][0]["calibrated"]


@pytest.mark.parametrize("is_damaged", [True, False])
def test_a_calibration_that_cannot_be_used_is_reported(city: Path, *, is_damaged: bool) -> None:
    with client_of(Localizer(city, device="cpu", precision=0.7), refresh_s=0.05) as client:
        with open_index(city, write=True) as index:
            record = as_record(sample_calibration(num_photos=4321))
            index.write_record(
                "calibration", {} if is_damaged else record | {"curve": (0 * sample_calibration().curve).tolist()}
            )
        wait_until(client, lambda: client.get("/health").json()["status"] == "degraded")
        assert "answers use the previous one" in client.get("/health").json()["problems"][0]
        assert str(city.parent) not in client.get("/health").text
        assert "376" in client.get("/calibration").text
        answer = client.post("/locate", files={"files": ("a.jpg", good_photo(1))}).json()["results"][0]
        assert answer["calibrated"] and answer["confidence"] == 0
        write_calibration(city, sample_calibration(num_photos=4321))
        wait_until(client, lambda: client.get("/health").json()["status"] == "ok")
        assert "4321" in client.get("/calibration").text


def test_a_localizer_uses_the_new_calibration_of_an_index_that_was_read_again(city: Path) -> None:
    localizer = Localizer(city, device="cpu", precision=0.7)
    assert confidence_of(localizer) == 0
    threshold = localizer.min_confidence
    calibration = sample_calibration()
    better = np.minimum(calibration.curve + np.array([0, 0, 0.1, 0, 0.1]), 1)
    write_calibration(city, replace(calibration, bias=20.0, curve=better))
    assert confidence_of(localizer) == 0 and localizer.min_confidence == threshold
    localizer.index.refresh()
    assert confidence_of(localizer) == 1 and localizer.min_confidence < threshold
