"""The main parts of the map in Firefox, and no errors in its console.

First run, verdicts, errors, comparing, links, downloads, HEIC photos, filters, EXIF positions, street map, density,
indexed photos, the keyboard, the sheet on a phone.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gpxpy
import pytest

from tests.browsers import open_firefox
from tests.web.fake_server import FakeCity, make_app, make_photo, serving
from tests.web.test_answers import ALL, HEADLINES

pytestmark = pytest.mark.slow  # too slow for make check; make test runs all

TIMEOUT_S = 30.0
# Images of this server instead of tiles of OpenStreetMap, so that the test sends no outside request.
OSM = {"name": "OpenStreetMap", "url": "samples/{z}?{x}-{y}", "attribution": "© OpenStreetMap contributors"}
HEIC = b"\0\0\0\x18ftypheic"
PHONE = {"width": 500, "height": 850}  # no window is narrower
KEYS = {
    "ArrowRight": "\ue014",
    "ArrowUp": "\ue013",
    "ArrowDown": "\ue015",
    "End": "\ue010",
    "Delete": "\ue017",
    "Escape": "\ue00c",
}
# Scripts run in the page itself.  As they may not wait, the test asks again.
ADD_PHOTOS = """
    const [photos] = arguments;
    const data = new DataTransfer();
    for (const [name, bytes] of photos) data.items.add(new File([new Uint8Array(bytes)], name, { type: "image/jpeg" }));
    for (const kind of ["dragover", "drop"])
        window.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
"""
IS_DONE = """
    const states = [...document.querySelectorAll("#answers li")].map((row) => row.dataset.state);
    return states.length === arguments[0] && states.every((state) => state === "located" || state === "failed");
"""
TEXTS = "return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText.trim())"
CLIPBOARD = """
    window.copied = null;
    navigator.clipboard.readText().then((text) => (window.copied = text));
"""
# Errors of scripts and violations of the Content Security Policy, from the console of the browser.
CONSOLE = """
    const errors = Services.console.getMessageArray().filter((one) => one instanceof Ci.nsIScriptError);
    Services.console.reset();
    const found = errors.filter(({ category }) => category === "content javascript" || category.startsWith("CSP"));
    return found.map(({ category, errorMessage }) => `${category}: ${errorMessage}`);
"""


class Page:
    """The map in a tab of Firefox."""

    def __init__(self, firefox: Any, address: str) -> None:
        self.firefox, self.address = firefox, address

    def open(self, url: str) -> None:
        """Open an address, and wait until the photos of the index are loaded."""
        self.firefox.navigate(url)
        self.wait_for("return document.querySelector('#map[data-ready][data-points]') !== null")

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page and return its value."""
        return self.firefox.execute_script(script, script_args=arguments, sandbox=None)

    def wait_for(self, script: str, *arguments: Any) -> Any:
        """Run a script until its value is true, and return it."""
        until = time.monotonic() + TIMEOUT_S
        while not (value := self.run(script, *arguments)):
            assert time.monotonic() < until, script
            time.sleep(0.05)
        return value

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements."""
        return self.run(TEXTS, selector)

    def text(self, selector: str) -> str:
        """The text of the only element."""
        (text,) = self.texts(selector)
        return text

    def wait_for_text(self, selector: str, text: str) -> None:
        """Wait until an element contains a text."""
        self.wait_for("return document.querySelector(arguments[0])?.innerText.includes(arguments[1])", selector, text)

    def click(self, selector: str) -> None:
        """Click an element with the mouse."""
        self.firefox.find_element("css selector", selector).click()

    def press(self, *keys: str) -> None:
        """Press keys one after the other."""
        for code in (KEYS.get(key, key) for key in keys):
            self.firefox.actions.sequence("key", "keyboard").key_down(code).key_up(code).perform()

    def locate(self, *names: str) -> None:
        """Drop photos on the page and wait for their answers."""
        count = self.run("return document.querySelectorAll('#answers li').length")
        photos = [HEIC if name.endswith(".HEIC") else make_photo(k, (64, 48)) for k, name in enumerate(names)]
        self.run(ADD_PHOTOS, [[name, list(photo)] for name, photo in zip(names, photos, strict=True)])
        self.wait_for(IS_DONE, count + len(names))

    def errors(self) -> list[str]:
        """Errors in the console since the last call."""
        with self.firefox.using_context("chrome"):
            return self.firefox.execute_script(CONSOLE)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("firefox")


@pytest.fixture(scope="module")
def firefox(downloads: Path) -> Iterator[Any]:
    with open_firefox(downloads / "log.txt") as browser:
        browser.set_window_rect(width=1280, height=900)
        yield browser


@contextmanager
def opened(firefox: Any, city: FakeCity | None = None, **config: Any) -> Iterator[Page]:
    """Open the page on a fake server, with the headers of the real one.  Afterwards: no error in the console."""
    with serving(make_app(city or FakeCity(), **config)) as address:
        page = Page(firefox, address)
        page.errors()
        page.open(address)
        yield page
        assert page.errors() == []
        firefox.navigate("about:blank")


def saved(path: Path) -> str:
    """The text of a file that the browser saves."""
    until = time.monotonic() + TIMEOUT_S
    # Firefox creates an empty file first, and writes into another one beside it.
    while not (path.exists() and path.stat().st_size and not path.with_name(path.name + ".part").exists()):
        assert time.monotonic() < until, path
        time.sleep(0.02)
    return path.read_text("utf-8")


def test_the_first_page_offers_photos_to_try(firefox: Any) -> None:
    with opened(firefox, samples=[{"photo": 3}, {"photo": 400}]) as page:
        assert page.text("#count") == "synthetic city · 1,200 photos · 213 m × 219 m"
        assert page.text("#legend").split("\n") == ["indexed photo", "answer", "likely error"]
        page.wait_for("return [...document.querySelectorAll('.samples img')].every((one) => one.naturalWidth > 0)")
        page.click("[aria-label='Locate sample photo 2']")
        page.wait_for_text(".answer", "Found")
        assert "This photo is in the index, so it finds itself." in page.text("#detail")


def test_heic_photos_that_nobody_can_convert_are_explained(firefox: Any) -> None:
    with opened(firefox) as page:
        page.locate("IMG_1.HEIC", "here-1.jpg")
        assert page.texts("#answers .summary") == [HEADLINES[-1], HEADLINES[0]]
        assert page.text(".error").startswith("Neither this browser nor the server can convert HEIC photos.")


def test_each_verdict_has_its_headline_and_its_marks(firefox: Any, downloads: Path) -> None:
    with opened(firefox) as page:
        page.locate(*ALL)
        assert page.texts("#answers .summary") == [text.split(". If")[0] for text in HEADLINES]
        marks = []
        for number, text in enumerate(HEADLINES, start=1):
            page.click(f"#answers li:nth-child({number}) .row")
            assert page.text(".answer") == text
            circle = "const circle = document.querySelector('path.radius');"
            marks.append(page.run(f"{circle} return circle ? circle.getAttribute('stroke-dasharray') ?? 'solid' : ''"))
        assert marks == ["solid", "solid", "7 7", "", "", ""]
        style = "return getComputedStyle(document.querySelector('.pin.guess')).borderTopStyle"
        assert page.run(style) == "dashed"
        # The answers as files.
        page.click("#answers li:nth-child(1) .row")
        for kind in ("GeoJSON", "GPX"):
            page.click(f"[title='Save all answers as {kind}']")
        features = json.loads(saved(downloads / "answers.geojson"))["features"]
        assert [one["properties"]["photo"] for one in features] == list(ALL[:-1])
        points = gpxpy.parse(saved(downloads / "answers.gpx")).waypoints
        assert (points[0].name, points[0].description) == (ALL[0], HEADLINES[0])


def test_an_exif_position_on_a_street_map_and_a_server_that_is_gone(firefox: Any) -> None:
    city = FakeCity()
    with opened(firefox, city, offered_tiles=OSM) as page:
        page.locate("here-exif-1.jpg")
        assert page.text(".exif-note") == "The position in its EXIF data is 30 m from the answer: they disagree."
        marks = "return ['.exif', 'path.exif-line'].map((mark) => document.querySelectorAll(mark).length)"
        assert page.run(marks) == [1, 1]
        tiles = "return document.querySelectorAll('img.leaflet-tile-loaded').length"
        assert page.run(tiles) == 0 and not any("/samples/" in request for request in city.requests)
        page.click(".map-button[aria-pressed]")
        page.wait_for(tiles)
        assert page.text(".credit") == OSM["attribution"]
        page.click(".map-button[aria-pressed]")
        assert page.run(tiles) == 0 and page.texts(".credit") == []
        page.run("window.real = fetch; window.fetch = () => Promise.reject(new TypeError('NetworkError'))")
        page.locate("here-2.jpg", "here-3.jpg")
        assert page.texts("#answers .summary")[1:] == ["Can't reach the server"] * 2
        page.run("window.fetch = window.real")
        page.click("[title='Send all these photos again']")
        page.wait_for(IS_DONE, 3)
        assert page.texts("#answers .summary") == [HEADLINES[0]] * 3


def test_many_photos_are_drawn_as_a_density(firefox: Any) -> None:
    city = FakeCity(130_000)
    pixel = """
        const canvas = document.querySelector(".leaflet-dots-pane canvas");
        const [frame, map] = [canvas, document.querySelector("#map")].map((one) => one.getBoundingClientRect());
        return arguments[0].map((place) => {
            const at = cosplace.map.latLngToContainerPoint(place);
            const [x, y] = [at.x + map.x - frame.x, at.y + map.y - frame.y].map((one) => one * devicePixelRatio);
            return canvas.getContext("2d").getImageData(x, y, 1, 1).data[3];
        });
    """
    with opened(firefox, city) as page:
        assert page.run("return document.querySelector('#map').dataset.density") == "130000"
        places = city.positions[::10_000]
        outside = places.mean(0) + (0.9 * (places.max(0) - places.min(0))) * [1, 0]
        *inside, empty = page.run(pixel, [*places.tolist(), outside.tolist()])
        assert min(inside) > 30 and empty == 0
        page.run("cosplace.indexPhotos.openGroup(L.latLng(arguments[0]))", city.positions[0].tolist())
        page.wait_for("return document.querySelectorAll('.thumbnails button').length === 12")


def test_photos_are_compared_large_with_their_matching_points(firefox: Any) -> None:
    with opened(firefox) as page:
        page.locate("here-1.jpg")
        page.press("c")
        assert page.text("#compare-title") == "Match 1 of 8"
        page.press("ArrowRight")
        assert page.text("#compare-title") == "Match 2 of 8"
        page.wait_for("return [...document.querySelectorAll('.stage img')].every((one) => one.naturalWidth > 0)")
        images = "return [...document.querySelectorAll('.stage img')]"
        assert min(page.run(f"{images}.map((one) => one.getBoundingClientRect().width)")) > 500
        assert page.run(f"{images}.map((one) => getComputedStyle(one).objectFit)") == ["contain", "contain"]
        page.click("[aria-label='Matching points']")
        page.wait_for_text(".compare header", "matching points")
        assert page.run("return document.querySelectorAll('.points circle').length") == 48
        page.press("Escape")
        assert page.run("return document.querySelector('#compare').open") is False


def test_a_link_shows_the_answer_to_others(firefox: Any) -> None:
    with opened(firefox) as page:
        page.locate("here-1.jpg")
        page.click("[title='Copy a link to this answer']")
        page.wait_for_text("#notice", "Copied a link to this answer.")
        page.run(CLIPBOARD)
        link = page.wait_for("return window.copied")
        assert link.startswith(page.address) and link.endswith(",found")
        place = page.text(".coordinates")
        tab = firefox.current_window_handle
        firefox.switch_to_window(firefox.open(type="tab", focus=True)["handle"])
        page.open(link)  # this tab has neither the photo nor its answer
        page.wait_for("return document.querySelector('#card img') !== null")
        assert page.text(".answer") == HEADLINES[0] and page.text(".coordinates") == place
        assert "It has the answer, but not the photo." in page.text("#detail")
        firefox.close()
        firefox.switch_to_window(tab)


def test_dates_and_the_visible_area_restrict_the_search(firefox: Any) -> None:
    set_dates = """
        document.querySelector("#dates").open = true;
        ["date-first", "date-last"].forEach((id, k) => {
            const input = document.getElementById(id);
            input.value = arguments[k];
            input.dispatchEvent(new Event("change"));
        });
    """
    with opened(firefox) as page:
        page.run(set_dates, "2014-09-07", "2014-09-08")
        page.wait_for("return document.querySelector('#map').dataset.points === '24'")
        page.locate("here-0.jpg")
        assert "Only a part of the index was searched" in page.text("#detail")
        page.run(set_dates, "", "")
        page.click("#visible-only")
        page.run("cosplace.map.setView([0, 179.9999], 17, { animate: false })")
        page.locate("here-1.jpg")
        assert page.text(".answer") == "No indexed photos in this area"


def test_from_an_answer_along_a_sequence(firefox: Any) -> None:
    city = FakeCity()
    best = city.answer("here-1.jpg")["neighbours"][0]["id"]
    with opened(firefox, city) as page:
        page.locate("here-1.jpg")
        for key, number in (("o", best), ("ArrowUp", best + 12)):
            page.press(key)
            image = f"document.querySelector(`#card img[src='photos/{number}/image']`)"
            page.wait_for(f"return {image} && cosplace.indexPhotos.record?.id === {number}")
            page.wait_for("return document.activeElement.id === 'card'")
        page.click("[data-role='sequence filter']")
        page.wait_for("return document.querySelector('#map').dataset.points <= 120")  # 10 spots, if all are in view
        assert page.text("#sequence-filter").startswith("Only the sequence of ")


def test_the_sheet_is_dragged_on_a_phone(firefox: Any) -> None:
    box = "return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()"
    before = firefox.set_window_rect(**PHONE)
    try:
        with opened(firefox) as page:
            page.locate("here-1.jpg")
            height = page.run("return innerHeight")
            tops = []
            for share in (0.05, 0.95, 0.4):
                start = page.run(box, "#sheet-handle")["y"] + 10
                finger = firefox.actions.sequence("pointer", "finger", {"pointerType": "touch"})
                finger.pointer_move(195, round(start)).pointer_down().pointer_move(195, round(share * height), 100)
                finger.pointer_up().perform()
                tops.append(page.run(box, "#panel")["y"] / height)
            assert tops == pytest.approx([0.08, 0.78, 0.38], abs=0.04)
            assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        firefox.set_window_rect(width=before["width"], height=before["height"])


def test_everything_works_from_the_keyboard(firefox: Any) -> None:
    with opened(firefox) as page:
        page.locate("here-1.jpg", "elsewhere.jpg", "here-2.jpg")
        page.run("document.querySelector('#answers [aria-current]').focus()")
        page.press("ArrowDown")
        assert page.text(".answer") == "No match in this index"
        page.press("End", "ArrowRight")
        pressed = "return document.querySelector('.strip li:nth-child(2) button').getAttribute('aria-pressed')"
        assert page.text(".pin.selected") == "C" and page.run(pressed) == "true"
        page.press("Delete")
        assert len(page.texts("#answers li")) == 2
        page.press("Escape", "?")
        assert page.run("return document.querySelector('#help').open && document.querySelector('#detail').hidden")
        page.press("Escape")
        theme = page.run("return document.documentElement.dataset.theme")
        page.press("d")
        assert page.run("return document.documentElement.dataset.theme") != theme


def test_errors_in_the_console_are_found(firefox: Any) -> None:
    """The check of all other tests."""
    script = """
        document.body.append(Object.assign(document.createElement("script"), { textContent: "1" }));
        setTimeout(() => { throw new Error("an error"); }, 0);
        setTimeout(() => document.body.dataset.done = "", 0);
    """
    with opened(firefox) as page:
        page.run(script)
        page.wait_for("return 'done' in document.body.dataset")
        blocked, thrown = sorted(page.errors())
        assert "script-src 'self'" in blocked and thrown == "content javascript: Error: an error"
