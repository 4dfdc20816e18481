"""What goes wrong, each in its own sentence, with a way to go on: photos, the server, the network, a changed index."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browsers import axe_violations, open_chromium
from tests.web.fake_server import FakeCity, make_app, make_photo, serving
from tests.web.test_web import locate, opened

pytestmark = pytest.mark.slow  # too slow for make check; make test runs all

HEIC = {"name": "IMG_1.HEIC", "mimeType": "image/heic", "buffer": b"\0\0\0\x18ftypheic"}
JPEG = {"name": "here-1.jpg", "mimeType": "image/jpeg", "buffer": make_photo(1)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_chromium() as chromium:
        yield chromium


# --- photos ----------------------------------------------------------------------------------------------------------


def test_errors_are_shown_as_plain_text(browser: Any) -> None:
    city = FakeCity()
    with opened(browser, city) as page:
        locate(page, "broken <img src=x>.jpg")
        assert page.inner_text(".error") == "broken <img src=x>.jpg is <b>incomplete</b>. Try exporting it again."
        assert page.locator(".error b").count() == 0
        page.set_input_files("#files", [{"name": "large.jpg", "mimeType": "image/jpeg", "buffer": bytes(2_500_000)}])
        page.wait_for_selector(".error >> text=The photo has 3 MB, and the limit is 2 MB. Choose a smaller copy.")
        assert page.inner_text(".answer") == "The photo is too large"
        page.wait_for_selector("#answers li:nth-child(2) .no-photo")  # instead of an image that the browser cannot show
        assert page.locator("#detail img").count() == 0
        assert page.locator(".chip", has_text="Retry").count() == 0  # it would fail again
        with page.expect_file_chooser():
            page.click("text=Choose another photo")
        assert axe_violations(page) == []
        notes, track = ({"name": name, "mimeType": "text/plain", "buffer": b"1"} for name in ("notes.txt", "track.gpx"))
        page.set_input_files("#files", [notes])
        page.wait_for_selector("#notice >> text=notes.txt is not a photo. Choose JPEG, PNG, WebP or HEIC images.")
        page.set_input_files("#files", [notes, track])
        page.wait_for_selector("#notice >> text=notes.txt and 1 more are not photos. Choose JPEG")
    assert city.requests.count("POST /locate") == 1


def test_heic_photos_that_nobody_can_convert_are_explained(browser: Any) -> None:
    city = FakeCity()
    with opened(browser, city) as page:
        assert "heic" not in page.get_attribute("#files", "accept")  # phones then give JPEG
        page.set_input_files("#files", [HEIC, JPEG])
        page.wait_for_selector(
            ".error >> text=Neither this browser nor the server can convert HEIC photos. Save the photo as JPEG"
        )
        page.wait_for_selector("#answers .summary >> text=Found")  # the other photo is located
        assert page.inner_text(".chips button") == "Choose another photo"
    assert city.requests.count("POST /locate") == 1


def test_heic_photos_are_converted_by_the_server(browser: Any) -> None:
    city = FakeCity()
    with opened(browser, city, config={"can_convert_heic": True}) as page:
        assert "image/heic" in page.get_attribute("#files", "accept")
        jpeg = {"body": make_photo(1), "content_type": "image/jpeg"}
        busy = {"json": {"detail": "The server is busy."}, "status": 429, "headers": {"Retry-After": "1"}}
        replies = [busy, jpeg]
        page.route("**/jpeg", lambda route: route.fulfill(**replies.pop(0)))
        page.set_input_files("#files", [HEIC])
        page.wait_for_selector("#detail >> text=The server is busy; trying again in 1 s")
        page.wait_for_selector(".answer >> text=Found")
        assert page.inner_text("#answers .file") == "IMG_1.HEIC"  # a sidecar has the name of the photo
        for image in ("#answers img", "#detail img"):
            page.wait_for_function("(selector) => document.querySelector(selector).naturalWidth === 320", arg=image)
        page.unroute("**/jpeg")
        page.route("**/jpeg", lambda route: route.abort())
        page.set_input_files("#files", [HEIC])
        page.wait_for_selector(".answer >> text=Can't reach the server")
        page.unroute("**/jpeg")
        damaged = {"json": {"detail": "IMG_1.HEIC is damaged (ValueError). Export it as JPEG."}, "status": 422}
        page.route("**/jpeg", lambda route: route.fulfill(**damaged))
        page.click(".chip >> text=Retry")
        page.wait_for_selector(".error >> text=IMG_1.HEIC is damaged (ValueError). Export it as JPEG.")


# --- the server and the network --------------------------------------------------------------------------------------


def test_a_busy_server_is_tried_again(browser: Any) -> None:
    city = FakeCity()
    with opened(browser, city) as page:
        locate(page, "busy-1.jpg")
        assert page.inner_text(".answer") == "Found: within 12 m, 93% sure"
    assert city.requests.count("POST /locate") == 2


def test_a_server_that_stays_busy_is_named(browser: Any) -> None:
    detail = "The server is busy; try again in a moment."
    with opened(browser) as page:
        page.evaluate("() => { window.setTimeout = (run) => queueMicrotask(run) }")  # the waits
        page.route("**/locate", lambda route: route.fulfill(status=429, json={"detail": detail}))
        locate(page, "here-1.jpg")
        assert page.inner_text(".answer") == "The server is busy"
        assert page.inner_text(".error") == "It was busy at each of 8 attempts. Retry in a minute."
        page.unroute("**/locate")
        for status, title in ((503, "The server had an error"), (504, "No answer in time")):
            failure = {"status": status, "json": {"detail": f"Detail {status}."}}
            page.route("**/locate", lambda route, _, failure=failure: route.fulfill(**failure))
            page.click(".chip >> text=Retry")
            page.wait_for_selector(f".error >> text=Detail {status}.")
            assert page.inner_text(".answer") == title
            page.unroute("**/locate")
        page.click(".chip >> text=Retry")
        page.wait_for_selector(".answer >> text=Found: within 12 m")


def test_a_server_that_does_not_answer_is_named(browser: Any) -> None:
    city = FakeCity()
    with opened(browser, city, config={"time_limit_s": -9.5}) as page:  # the page waits 10 s longer than the server
        city.delay_s = 3.0
        locate(page, "here-1.jpg")
        assert page.inner_text(".answer") == "No answer within 0.5 s"
        assert page.inner_text(".error") == "The server may be busy; retry in a moment."
        assert page.locator(".chip", has_text="Retry").count() == 1


def test_an_unreachable_server_is_named_and_photos_are_sent_again(browser: Any) -> None:
    with opened(browser) as page:
        page.route("**/locate", lambda route: route.abort())
        locate(page, "here-1.jpg", "here-2.jpg")
        assert page.locator("#answers .summary").all_inner_texts() == ["Can't reach the server"] * 2
        assert page.inner_text(".answer") == "Can't reach the server"  # the photo may be fine
        assert page.inner_text(".error") == "Check the connection and that the server is running, then retry."
        assert axe_violations(page) == []
        page.unroute("**/locate")
        page.click(".chip >> text=Retry all 2")
        page.wait_for_selector("#progress", state="hidden")
        assert page.evaluate("() => document.activeElement.closest('#answers li')?.classList.contains('selected')")
        assert page.locator("#answers .summary").all_inner_texts() == ["Found: within 12 m, 93% sure"] * 2


def test_photos_of_the_index_are_loaded_again(browser: Any) -> None:
    with opened(browser) as page:
        page.route("**/photos?*", lambda route: route.abort())
        page.evaluate("() => { cosplace.map.setView([37.9, -122.43], 17, { animate: false }) }")
        page.wait_for_selector("#notice >> text=Can't reach the server.")
        page.wait_for_timeout(300)
        assert axe_violations(page) == []
        page.unroute("**/photos?*")
        page.click("#notice button")
        page.wait_for_selector("#map[data-points='0']")
        assert page.is_hidden("#notice")


def test_a_page_that_cannot_start_offers_to_try_again(browser: Any) -> None:
    with serving(make_app(FakeCity())) as address:
        page = browser.new_page()
        page.route("**/config.json", lambda route: route.fulfill(status=503, body="no JSON"))
        page.goto(address)
        page.wait_for_selector("#notice >> text=The server returned status 503")
        page.unroute("**/config.json")
        page.click("#notice button")
        page.wait_for_selector("#map[data-points]")
        page.close()


# --- the index -------------------------------------------------------------------------------------------------------


def test_a_changed_index_is_read_again(browser: Any) -> None:
    city = FakeCity()
    with opened(browser, city) as page:
        page.evaluate("() => cosplace.checkIndex()")
        assert page.is_hidden("#notice")
        city.positions, city.headings, city.times = city.positions[:600], city.headings[:600], city.times[:600]
        page.evaluate("() => cosplace.checkIndex()")
        page.wait_for_selector("#notice >> text=The index has changed: 600 photos, 600 fewer.")
        page.wait_for_selector("#map[data-points='600']")
        assert "600 photos" in page.inner_text("#count")


def test_a_photo_that_was_removed_is_named(browser: Any) -> None:
    city = FakeCity()
    with opened(browser, city) as page:
        city.positions, city.headings, city.times = city.positions[:600], city.headings[:600], city.times[:600]
        page.evaluate("() => cosplace.indexPhotos.openById(900)")
        page.wait_for_selector(
            "#notice >> text=This photo is no longer in the index. The index has changed: 600 photos"
        )
        page.wait_for_selector("#map[data-points='600']")
        assert page.is_hidden("#card")
        sentence = "import('./static/index_changes.js').then((m) => m.describeChange({ count: 5 }, { count: 5 }))"
        assert page.evaluate(sentence) == "The index has other photos now: 5 photos."
