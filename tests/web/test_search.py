"""The first run of the page, and search on the map: samples, dates, EXIF, density, sequences, street map."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.browsers import axe_violations, open_chromium
from tests.web.fake_server import FakeCity, make_photo
from tests.web.test_answers import VIEWS
from tests.web.test_web import locate, opened

pytestmark = pytest.mark.slow  # too slow for make check; make test runs all

OSM = {
    "name": "OpenStreetMap",
    "url": "/tiles/{z}/{x}/{y}.png",  # of this server, so that the test sends no outside request
    "attribution": "© <b>OpenStreetMap</b> contributors",
}
# Pixels of labels of the grid under the buttons of the map, while it moves past them.
COVERED_LABELS = """() => {
    const canvas = document.querySelector(".leaflet-labels-pane canvas");
    const pen = canvas.getContext("2d");
    const [frame, corner] = [canvas, document.querySelector(".leaflet-bottom.leaflet-right")]
        .map((one) => one.getBoundingClientRect());
    const ratio = canvas.width / frame.width;
    const box = [corner.x - frame.x, corner.y - frame.y, corner.width, corner.height].map((one) => one * ratio);
    let covered = 0;
    for (let k = 0; k < 20; k += 1) {
        covered += pen.getImageData(...box).data.filter((value, at) => at % 4 === 3 && value > 0).length;
        cosplace.map.panBy([0, 8], { animate: false });
    }
    cosplace.map.panBy([0, -160], { animate: false });
    return covered;
}"""
OPACITY = """(places) => {
    const canvas = document.querySelector(".leaflet-dots-pane canvas");
    const pen = canvas.getContext("2d");
    const [ratio, frame] = [canvas.width / parseFloat(canvas.style.width), canvas.getBoundingClientRect()];
    const map = document.querySelector("#map").getBoundingClientRect();
    return places.map((place) => {
        const at = cosplace.map.latLngToContainerPoint(place);
        const x = (at.x + map.x - frame.x) * ratio;
        const y = (at.y + map.y - frame.y) * ratio;
        return pen.getImageData(x, y, 1, 1).data[3];
    });
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_chromium() as chromium:
        yield chromium


# --- first run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
def test_the_first_page_says_what_is_shown_and_offers_photos(browser: Any, view: str) -> None:
    city = FakeCity()
    samples = [{"photo": 3}, {"photo": 400}, {"photo": 900}]
    with opened(browser, city, config={"samples": samples}, **VIEWS[view]) as page:
        assert page.inner_text("#count") == "synthetic city · 1,200 photos · 213 m × 219 m"
        assert "Each dot on the map is a photo with a known position." in page.inner_text("#hint")
        assert page.inner_text("#legend").split("\n") == ["indexed photo", "answer", "likely error"]
        assert page.inner_text("#samples-title") == "Or try a photo of this index. Each finds itself:"
        assert page.locator("#sample-list button").count() == 3
        page.wait_for_function("() => [...document.querySelectorAll('.samples img')].every((one) => one.naturalWidth)")
        assert axe_violations(page) == []
        page.click("[aria-label='Locate sample photo 2']")
        page.wait_for_selector(".answer >> text=Found")
        assert page.inner_text("#answers .file") == "sample-2.jpg"
        assert "This photo is in the index, so it finds itself." in page.inner_text("#detail")
        assert page.is_hidden("#samples") and page.is_hidden("#legend")


def test_samples_of_a_folder_are_not_marked(browser: Any) -> None:
    with opened(browser, config={"samples": [{"photo": None}]}) as page:
        assert page.inner_text("#samples-title") == "Or try one of these:"
        page.click("[aria-label='Locate sample photo 1']")
        page.wait_for_selector(".answer >> text=Found")
        assert "finds itself" not in page.inner_text("#detail")


# --- search ----------------------------------------------------------------------------------------------------------


def set_dates(page: Any, first: str, last: str) -> None:
    page.evaluate("() => { document.querySelector('#dates').open = true; }")
    page.fill("#date-first", first)
    page.fill("#date-last", last)
    page.dispatch_event("#date-last", "change")
    page.wait_for_timeout(200)


def test_dates_restrict_the_search_and_the_dots(browser: Any) -> None:
    city = FakeCity()  # a camera per day, with 12 photos, from September 6, 2014
    with opened(browser, city) as page:
        assert page.get_attribute("#date-first", "min") == "2014-09-06"
        urls = []
        page.on("request", lambda request: urls.append(request.url.split("?")[-1]) if "/locate" in request.url else 0)
        set_dates(page, "2014-09-07", "2014-09-08")  # both days are included
        page.wait_for_selector("#map[data-points='24']")
        locate(page, "here-0.jpg")
        assert urls == ["after=2014-09-07&before=2014-09-09"]
        assert "Only a part of the index was searched, so the confidence may be too high." in page.inner_text("#detail")
        assert axe_violations(page) == []
        set_dates(page, "2013-01-01", "2013-12-31")
        page.wait_for_selector("#map[data-points='0']")
        page.wait_for_selector("#notice >> text=No photos in view meet the filter.")
        locate(page, "here-1.jpg")
        assert page.inner_text(".answer") == "No indexed photos from these dates"  # not "no match"
        assert page.inner_text(".explanation") == "Nothing was compared. Search all dates."
        set_dates(page, "2014-09-09", "2014-09-07")
        assert page.evaluate("() => document.querySelector('#date-last').validity.customError")
        set_dates(page, "", "")
        page.wait_for_selector("#map:not([data-points='0'])")


@pytest.mark.parametrize("view", ["light", "phone"])
def test_a_sequence_restricts_the_search_and_the_dots(browser: Any, view: str) -> None:
    city = FakeCity()
    with opened(browser, city, **VIEWS[view]) as page:
        urls = []
        page.on("request", lambda request: urls.append(request.url.split("?")[-1]) if "/locate" in request.url else 0)
        page.evaluate("() => cosplace.indexPhotos.openById(130)")
        page.click("text=Only this sequence")
        page.wait_for_selector("#map[data-points='120']")  # of 10 cameras
        assert page.inner_text("#sequence-filter") == "Only the sequence of 000130.jpg"
        assert page.evaluate("() => document.activeElement.innerText") == "All sequences"
        assert axe_violations(page) == []
        locate(page, "here-1.jpg")
        assert urls == ["sequence=130"]
        assert "Only a part of the index was searched" in page.inner_text("#detail")
        page.click("#sequence-filter-remove")
        page.wait_for_selector("#map:not([data-points='120'])")
        assert page.is_hidden("#sequence-filter")
        locate(page, "here-2.jpg")
        assert "?" not in urls[1]


def test_an_empty_area_is_named(browser: Any) -> None:
    with opened(browser) as page:
        page.check("#visible-only")
        page.evaluate("() => { cosplace.map.setView([0, 179.9999], 17, { animate: false }) }")
        locate(page, "here-1.jpg")
        assert page.inner_text(".answer") == "No indexed photos in this area"
        box = page.evaluate("() => cosplace.answers.selected.where.bbox")
        assert box[0] > 179 and box[2] < -179  # across the antimeridian


@pytest.mark.parametrize("shift", [0.0, 180.0])  # the second city is on both sides of the antimeridian
def test_the_exif_position_is_drawn_with_its_distance(browser: Any, shift: float) -> None:
    city = FakeCity()
    answer = city.answer("here-exif-1.jpg")
    if shift:
        city.positions[:, 1] = (city.positions[:, 1] - answer["longitude"] + shift + 1e-5 + 180) % 360 - 180
    with opened(browser, city) as page:
        locate(page, "here-exif-1.jpg")
        assert page.inner_text(".exif-note") == "The position in its EXIF data is 30 m from the answer: they disagree."
        page.wait_for_timeout(300)
        marks = page.evaluate(
            """() => {
                const box = (selector) => document.querySelector(selector).getBoundingClientRect();
                const { map } = cosplace;
                const meters = map.distance(map.containerPointToLatLng([0, 0]), map.containerPointToLatLng([100, 0]));
                const [exif, pin] = [box(".match-icon:has(.exif)"), box(".pin-icon")];
                return [exif.x - pin.x, (pin.y - exif.y) * (meters / 100), exif.y];
            }"""
        )
        assert marks[0] == pytest.approx(0, abs=2)  # 30 m north of the answer, in view
        assert marks[1] == pytest.approx(30, abs=1) and marks[2] > 0
        assert page.locator("path.exif-line").count() == 1
        assert axe_violations(page) == []
        locate(page, "elsewhere-exif-2.jpg")
        assert page.inner_text(".exif-note") == "The map shows the position in the photo's EXIF data."
        locate(page, "guess-exif-3.jpg")
        assert page.inner_text(".exif-note") == "The position in its EXIF data is 30 m from the guess."


# --- indexed photos --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 180.0])
def test_many_photos_are_drawn_as_a_density(browser: Any, shift: float) -> None:
    city = FakeCity(130_000)
    if shift:
        city.positions[:, 1] = (city.positions[:, 1] - city.positions[0, 1] + shift + 180) % 360 - 180
    with opened(browser, city) as page:
        assert page.get_attribute("#map", "data-density") == "130000"
        assert "Zoom in to see each as a dot." in page.inner_text("#hint")
        # Color where photos are, also on the other side of the antimeridian, and none elsewhere.
        places = city.positions[:: 130_000 // 40].copy()
        center = page.evaluate("() => cosplace.map.getCenter().lng")
        places[:, 1] += 360 * np.round((center - places[:, 1]) / 360)
        outside = places.mean(0) + np.array([0.9, 0]) * np.ptp(places[:, 0])
        opacities = page.evaluate(OPACITY, [*places.tolist(), outside.tolist()])
        assert min(opacities[:-1]) > 30 and opacities[-1] == 0
        if shift:
            return
        # A click shows thumbnails of the photos there, and leads to each of them and to a closer view.
        before = page.evaluate("() => cosplace.map.getZoom()")
        at = page.evaluate("(p) => { const at = cosplace.map.latLngToContainerPoint(p); return [at.x, at.y] }",
                           city.positions[0].tolist())  # fmt: skip
        page.mouse.click(*at)
        page.wait_for_selector(".thumbnails")
        assert page.locator(".thumbnails button").count() == 12
        assert page.inner_text("#card .muted") == "12 of them, spread evenly"
        assert axe_violations(page) == []
        page.click("#card .chip")
        page.wait_for_selector("#map:not([data-points='0'])[data-density='0']")
        assert page.evaluate("() => cosplace.map.getZoom()") > before and page.is_hidden("#card")
        page.evaluate("() => cosplace.indexPhotos.openGroup(cosplace.map.getCenter())")
        page.wait_for_selector(".thumbnails")
        page.click("[aria-label='Open photo 1 of 12']")
        page.wait_for_selector("#card >> text=Facing")


def test_from_an_answer_along_a_sequence(browser: Any) -> None:
    city = FakeCity()
    best = city.answer("here-1.jpg")["neighbours"][0]["id"]
    with opened(browser, city) as page:
        locate(page, "here-1.jpg")
        page.keyboard.press("o")
        for key, photo in (("ArrowUp", best + 12), ("ArrowDown", best), ("ArrowUp", best + 12)):
            page.wait_for_function("() => document.activeElement.id === 'card' && cosplace.indexPhotos.record")
            page.wait_for_timeout(200)
            page.keyboard.press(key)
            page.wait_for_selector(f"#card img[src='photos/{photo}/image']")
        page.keyboard.press("Escape")
        page.click(".match-line >> text=Open")
        page.wait_for_selector(f"#card img[src='photos/{best}/image']")
        assert page.inner_text(".answer").startswith("Found")  # the answer stays


def test_walking_along_a_sequence(browser: Any) -> None:
    city = FakeCity()
    with opened(browser, city) as page:
        page.evaluate("() => cosplace.indexPhotos.openById(25)")
        page.wait_for_selector("#card >> text=View 2 of 12 at this spot")
        page.click("text=Ahead →")
        page.wait_for_selector("#card img[src='photos/37/image']")
        assert page.evaluate("() => document.activeElement.dataset.role") == "Ahead →"
        assert axe_violations(page) == []
        page.keyboard.press("ArrowDown")
        page.wait_for_selector("#card img[src='photos/25/image']")
        page.wait_for_timeout(300)
        page.keyboard.press("ArrowDown")
        page.wait_for_selector("#card img[src='photos/13/image']")
        page.wait_for_timeout(300)
        page.keyboard.press("ArrowDown")
        page.wait_for_selector("#card img[src='photos/1/image']")
        assert page.locator("text=← Back").is_disabled()
        for _ in range(6):  # the map follows
            page.wait_for_timeout(200)
            page.evaluate("() => cosplace.indexPhotos.walk(cosplace.indexPhotos.record.next)")
        inside = "() => cosplace.map.getBounds().contains(cosplace.indexPhotos.marker.getLatLng())"
        assert page.evaluate(inside)
        city.are_sequences = False
        page.evaluate("() => cosplace.indexPhotos.openById(500)")
        page.wait_for_selector("#card img[src='photos/500/image']")
        page.wait_for_timeout(200)
        assert page.locator("text=Ahead →").count() == 0


def test_a_button_keeps_the_focus_where_its_card_is_drawn_again(browser: Any) -> None:
    with opened(browser) as page:
        requests: list[Any] = []

        def answer(route: Any) -> None:
            requests.append(route)
            if len(requests) == 1:  # the second one, for the details on the card, has to wait
                route.continue_()

        page.route("**/photos/25", answer)
        page.evaluate("() => cosplace.indexPhotos.openById(25)")
        page.wait_for_selector("#card >> text=View 2 of 12 at this spot")
        page.focus("text=Ahead →")
        assert len(requests) == 2
        with page.expect_response("**/photos/25"):
            requests[1].continue_()
        page.wait_for_function("() => cosplace.indexPhotos.record?.id === 25")
        assert page.evaluate("() => document.activeElement.dataset.role") == "Ahead →"


def test_marks_that_overlap_are_one_mark(browser: Any) -> None:
    with opened(browser) as page:
        locate(page, "here-1.jpg", "here-2.jpg")
        near = page.locator(".match").count()
        assert near > 4 and page.locator(".pin").count() == 2
        page.evaluate("() => { cosplace.map.setZoom(12, { animate: false }) }")
        assert page.locator(".match").count() == 1 and page.inner_text(".match") == "1 2 3 …"
        assert page.locator(".pin").count() == 1 and page.inner_text(".pin") == "A+1"
        page.locator(".pin").dispatch_event("click")  # the next photo of the pin
        assert page.evaluate("() => cosplace.answers.selected.letter") == "B"


# --- the map itself --------------------------------------------------------------------------------------------------


def test_the_own_position_is_shown_and_not_sent(browser: Any) -> None:
    city = FakeCity()
    place = {"latitude": 37.76, "longitude": -122.43, "accuracy": 25}
    with opened(browser, city, geolocation=place, permissions=["geolocation"]) as page:
        before = len(city.requests)
        page.click("text=My position")
        page.wait_for_selector("path.me.dot")
        page.wait_for_timeout(600)
        center = page.evaluate("() => [cosplace.map.getCenter().lat, cosplace.map.getCenter().lng]")
        assert center == pytest.approx([37.76, -122.43], abs=1e-4)
        assert set(city.requests[before:]) <= {"GET /photos"}
    with opened(browser, permissions=[]) as page:
        page.evaluate("() => { navigator.geolocation.getCurrentPosition = (show, fail) => fail({ code: 1 }) }")
        page.click("text=My position")
        page.wait_for_selector("#notice >> text=This page may not use your position.")


@pytest.mark.parametrize("view", ["light", "phone"])
def test_a_street_map_is_loaded_only_after_a_click(browser: Any, view: str) -> None:
    city = FakeCity()
    tiles = []
    with opened(browser, city, config={"offered_tiles": OSM}, **VIEWS[view]) as page:
        page.route("**/tiles/**", lambda route: (tiles.append(route.request.headers.get("referer", "")),
                   route.fulfill(body=make_photo(1, (256, 256)), content_type="image/jpeg")))  # fmt: skip
        page.wait_for_timeout(300)
        assert page.evaluate(COVERED_LABELS) == 0
        assert tiles == [] and page.get_attribute(".map-button[aria-pressed]", "aria-pressed") == "false"
        page.click("text=Street map")
        page.wait_for_selector(".leaflet-tile-loaded")
        assert page.inner_text(".credit") == "© OpenStreetMap contributors"
        assert all(referer.startswith("http://127.0.0.1") for referer in tiles)  # OpenStreetMap requires it
        assert axe_violations(page) == []
        page.reload()  # the choice is kept
        page.wait_for_selector(".leaflet-tile-loaded")
        page.click("text=Street map")
        assert page.locator(".leaflet-tile, .credit").count() == 0
        assert page.locator(".leaflet-grid-pane canvas").count() == 1
        count = len(tiles)
        page.reload()
        page.wait_for_selector("#map[data-points]")
        page.wait_for_timeout(300)
        assert len(tiles) == count


@pytest.mark.parametrize("shift", [0.0, 180.0])  # the second city is on both sides of the antimeridian
def test_lines_of_sequences_are_the_base_map(browser: Any, shift: float) -> None:
    city = FakeCity(24)
    city.are_lines = True
    city.positions[12:] = city.positions[0] + [0.0, 0.002]  # two cameras, 176 m apart
    city.positions[:, 1] = (city.positions[:, 1] - city.positions[:, 1].mean() + shift + 180) % 360 - 180
    with opened(browser, city) as page:
        page.wait_for_selector("#map[data-lines='1']")
        center = page.evaluate("() => cosplace.map.getCenter().lng")
        middle = [float(city.positions[0, 0]), 360 * round((center - shift) / 360) + shift]
        pixel = OPACITY.replace("dots-pane", "lines-pane")
        off = [middle[0] + 0.0005, middle[1]]
        drawn = page.evaluate(pixel, [middle, off])
        assert drawn[0] > 200 and drawn[1] == 0
    with opened(browser) as page:  # without sequences, the server is asked once
        urls = []
        page.on("request", lambda request: urls.append(request.url) if "/lines" in request.url else None)
        page.evaluate("() => { cosplace.map.zoomOut(3, { animate: false }) }")
        page.wait_for_timeout(600)
        assert urls == []
