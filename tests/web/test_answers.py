"""What an answer says and what can be done with it: verdicts, links, downloads, a reload, comparing photos."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpxpy
import pytest

from cosplace.localization.answers import Guess, Location, as_json
from cosplace.photos.sidecars import EstimatedPosition, add_position
from tests.browsers import axe_violations, open_chromium
from tests.web.fake_server import FakeCity
from tests.web.test_web import locate, opened

pytestmark = pytest.mark.slow  # too slow for make check; make test runs all

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
VIEWS = {"light": {}, "dark": {"color_scheme": "dark"}, "phone": PHONE}
ALL = ("here-1.jpg", "probably-2.jpg", "guess-3.jpg", "plain-4.jpg", "elsewhere.jpg", "broken.jpg")
HEADLINES = (
    "Found: within 12 m, 93% sure",
    "Probably here (68% sure). If right, within 12 m",
    "Not sure. Best guess, 24%",
    "Best guess, not calibrated",
    "No match in this index",
    "Couldn't process this photo",
)
BOXES = """() => {
    const box = (selector) => document.querySelector(selector).getBoundingClientRect().toJSON();
    const stage = box(".stage");
    const lines = [...document.querySelectorAll(".points line:not(.halo)")].map((line) =>
        ["x1", "y1", "x2", "y2"].map((name) => Number(line.getAttribute(name))));
    return { stage, mine: box(".mine img"), theirs: box(".theirs img"), lines, wide: document.body.scrollWidth,
             fits: [...document.querySelectorAll(".stage img")].map((one) => getComputedStyle(one).objectFit) };
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_chromium() as chromium:
        yield chromium


def select(page: Any, number: int) -> None:
    page.click(f"#answers li:nth-child({number}) .row")


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
def test_each_verdict_has_its_headline_and_its_marks(browser: Any, view: str) -> None:
    with opened(browser, **VIEWS[view]) as page:
        locate(page, *ALL)
        rows = page.locator("#answers .summary").all_inner_texts()
        assert rows == [text.split(". If")[0] for text in HEADLINES]
        assert [page.locator(kind).count() for kind in (".pin", ".pin.guess")] == [4, 2]
        marks = []
        for number, text in enumerate(HEADLINES, start=1):
            select(page, number)
            assert page.inner_text(".answer") == text
            circles = page.locator("path.radius")
            marks.append("" if circles.count() == 0 else circles.first.get_attribute("stroke-dasharray") or "solid")
            if view != "phone" or text == HEADLINES[2]:  # the same parts as on a large screen
                assert axe_violations(page) == [], text
        # Solid circles for answers, a dashed one for the guess, and none where there is no radius.
        assert marks == ["solid", "solid", "7 7", "", "", ""]
        select(page, 3)
        assert "If right, within 19 m. Confidence 24%, the threshold is 50%." in page.inner_text("#detail")
        assert "from the guess" in page.inner_text(".match-info")
        hollow = "() => getComputedStyle(document.querySelector('.pin.guess')).borderTopStyle"
        assert page.evaluate(hollow) == "dashed"
        select(page, 4)
        assert "87% of the votes agree" in page.inner_text(".explanation")


def test_headlines_are_those_of_the_command_line(browser: Any) -> None:
    answers = [
        Location(photo="q", latitude=1.0, longitude=2.0, radius_m=radius_m, confidence=confidence, unknown=False,
                 reason="", neighbours=(), calibrated=calibrated)
        for calibrated in (True, False)
        for radius_m in ((0.2, 9.4, 999.6, 1240.0, 20_000.0, None) if calibrated else (None,))
        for confidence in (0.0, 0.29, 0.499, 0.5, 0.687, 0.8999, 0.9, 0.987, 1.0)
    ]  # fmt: skip
    answers += [
        Location(photo="q", latitude=None, longitude=None, radius_m=None, confidence=0.249, unknown=True, reason="",
                 neighbours=(), guess=guess)
        for guess in (None, Guess(latitude=1.0, longitude=2.0, radius_m=5.0))
    ]  # fmt: skip
    call = "async (rows) => { const text = await import('./static/text.js'); return rows.map((r) => text.headline(r)) }"
    with opened(browser) as page:
        found = page.evaluate(call, [as_json(answer) for answer in answers])
    assert found == [answer.headline for answer in answers]
    assert len(set(found)) > 25


# --- next steps ------------------------------------------------------------------------------------------------------


def test_links_to_other_maps_make_no_request_before_a_click(browser: Any) -> None:
    city = FakeCity()
    expected = city.answer("here-1.jpg")
    where = f"{expected['latitude']:.6f},{expected['longitude']:.6f}"
    with opened(browser, city) as page:  # fails on any outside request
        locate(page, "here-1.jpg")
        urls = {name: page.get_attribute(f"[data-map='{name}']", "href") for name in ("Google Maps", "Street View")}
        assert urls["Google Maps"] == f"https://www.google.com/maps/search/?api=1&query={where}"
        street = f"https://www.google.com/maps/@?api=1&map_action=pano&viewpoint={where}&heading="
        heading = round(expected["neighbours"][0]["heading"])
        assert urls["Street View"] == f"{street}{heading}"
        latitude, longitude = where.split(",")
        osm = page.get_attribute("[data-map=OpenStreetMap]", "href")
        assert osm.endswith(f"?mlat={latitude}&mlon={longitude}#map=18/{latitude}/{longitude}")
        for link in page.locator("a[data-map]").all():
            assert (link.get_attribute("rel"), link.get_attribute("target")) == ("noopener noreferrer", "_blank")
        # The heading is that of the match which is shown.
        page.focus("#answers [aria-current]")
        page.keyboard.press("ArrowRight")
        heading = round(expected["neighbours"][1]["heading"])
        assert page.get_attribute("[data-map='Street View']", "href") == f"{street}{heading}"


def test_a_link_shows_the_answer_to_others(browser: Any) -> None:
    city = FakeCity()
    with opened(browser, city) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        locate(page, "here-1.jpg")
        page.wait_for_timeout(300)
        page.click("text=Copy link")
        page.wait_for_selector("#notice >> text=Copied a link to this answer.")
        link = page.evaluate("() => navigator.clipboard.readText()")
        best = city.answer("here-1.jpg")["neighbours"][0]["id"]
        assert re.search(
            rf"#map=[\d.]+/37\.7\d+/-122\.4\d+&photo={best}&answer=37\.7\d+,-122\.4\d+,12\.4,0\.9340,found$", link
        )
        page.click("[aria-label='Copy the coordinates']")
        page.wait_for_selector("#notice >> text=Copied 37.")
        place = page.inner_text(".coordinates")
        assert page.evaluate("() => navigator.clipboard.readText()") == place
        # Another browser has neither the photo nor its answer.
        other = page.context.browser.new_context(viewport={"width": 1200, "height": 800}, reduced_motion="reduce")
        shared = other.new_page()
        shared.goto(link)
        shared.wait_for_selector("#card img")
        assert shared.inner_text(".answer") == HEADLINES[0]
        assert "It has the answer, but not the photo." in shared.inner_text("#detail")
        assert shared.inner_text(".coordinates") == place
        assert shared.locator(".pin").count() == 1
        assert shared.get_attribute("#card img", "src") == f"photos/{best}/image"
        view = "() => [cosplace.map.getCenter().lat, cosplace.map.getCenter().lng]"
        assert shared.evaluate(view) == pytest.approx(page.evaluate(view), abs=2e-5)
        assert axe_violations(shared) == []
        other.close()


def test_links_that_are_not_valid_are_ignored(browser: Any) -> None:
    call = """async (hashes) => {
        const { parseAddress, formatAddress } = await import("./static/address.js");
        return hashes.map((hash) => { const found = parseAddress(hash); return [found, formatAddress(found)]; });
    }"""
    good = "#map=17.25/1.000000/-2.000000&photo=12&answer=1.000000,2.000000,5.0,0.9000,found"
    hashes = [good, good.replace(",", "%2C"), "", "#choose", "#map=a/b/c", "#map=17/91/0&photo=-1&answer=1,2,3",
              "#answer=1,2,,,found", "#answer=1,2,-5,0.9,found", "#answer=1,2,5,1.1,found", "#answer=1,2,5,0.9,sure",
              "#answer=100,2,5,0.9,found", "#photo=1/../2", "#answer=%E0%A4%A", "#map=//"]  # fmt: skip
    with opened(browser) as page:
        found = page.evaluate(call, hashes)
        assert [text for _, text in found] == [good, good, *["#"] * 12]
        page.goto(page.url.split("#")[0] + "#answer=<b>,2,5,0.9,found&photo=x&map=1")
        page.reload()
        page.wait_for_selector("#map[data-points]")
        assert page.locator(".pin, #answers li").count() == 0


def test_a_reload_keeps_the_answers_of_this_tab(browser: Any) -> None:
    city = FakeCity()
    with opened(browser, city) as page:
        locate(page, "here-1.jpg", "guess-3.jpg", "broken.jpg")
        select(page, 2)
        page.wait_for_function("() => cosplace.answers.entries.filter((entry) => entry.copy).length === 2")
        page.wait_for_function(
            """() => Object.entries(sessionStorage).some(([key, text]) =>
                key.startsWith("answers") && JSON.parse(text).selected === cosplace.answers.entries[1].number)"""
        )
        page.wait_for_timeout(400)
        view = page.evaluate("() => cosplace.map.getCenter().lat")
        page.reload()
        page.wait_for_selector("#map[data-points]")
        assert page.locator("#answers .summary").all_inner_texts() == [HEADLINES[0], HEADLINES[2]]
        page.wait_for_function("text => document.querySelector('.answer')?.innerText === text", arg=HEADLINES[2])
        assert page.evaluate("() => cosplace.map.getCenter().lat") == pytest.approx(view, abs=2e-5)
        page.wait_for_selector(".row img:not(.blank)")
        assert page.evaluate("() => document.querySelector('.row img').naturalWidth") == 320
        assert city.requests.count("POST /locate") == 3  # nothing is sent again
        # New photos get new letters; what is removed stays removed.
        page.click("#answers li:first-child .icon")
        locate(page, "here-5.jpg")
        assert page.locator("#answers .badge").all_inner_texts() == ["B", "C"]
        page.wait_for_timeout(300)
        page.reload()
        page.wait_for_selector("#map[data-points]")
        assert page.locator("#answers .badge").all_inner_texts() == ["B", "C"]


def save(page: Any, name: str) -> tuple[str, str]:
    with page.expect_download() as download:
        page.locator(".chip", has_text=name).click()
    return download.value.suggested_filename, Path(download.value.path()).read_text("utf-8")


def test_answers_are_saved_as_geojson_and_gpx(browser: Any) -> None:
    city = FakeCity()
    expected = city.answer("here-1.jpg")
    with opened(browser, city, accept_downloads=True) as page:
        locate(page, "here-1.jpg", "guess-3.jpg", "a <b> & 7.jpg")
        name, text = save(page, "GeoJSON")
        features = json.loads(text)["features"]
        assert name == "answers.geojson" and len(features) == 3
        assert features[0]["geometry"]["coordinates"] == [expected["longitude"], expected["latitude"]]
        assert features[1]["geometry"] is None and features[1]["properties"]["guess"]["radius_m"] == 18.6
        assert [one["properties"]["verdict"] for one in features] == ["found", "guess", "found"]
        name, text = save(page, "GPX")
        points = gpxpy.parse(text).waypoints
        assert name == "answers.gpx" and [point.name for point in points] == ["here-1.jpg", "a <b> & 7.jpg"]
        assert points[0].latitude == pytest.approx(expected["latitude"], abs=1e-6)
        assert points[0].description == HEADLINES[0]


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
def test_a_sidecar_is_saved_after_a_click(browser: Any, tmp_path: Path) -> None:
    city = FakeCity()
    expected = city.answer("here-1.jpg")
    position = EstimatedPosition(
        latitude=expected["latitude"], longitude=expected["longitude"], radius_m=12.4, confidence=0.934, verdict="found"
    )
    with opened(browser, city, accept_downloads=True) as page:
        locate(page, "here-1.jpg", "guess-3.jpg", "plain-4.jpg")
        name, text = save(page, "XMP")
        assert name == "here-1.jpg.xmp" and text.encode() == add_position(None, position)
        page.wait_for_selector("#notice >> text=Put here-1.jpg.xmp next to the photo, unless it already has a sidecar.")
        for number in (2, 3):  # a guess, and an answer that is not calibrated
            select(page, number)
            assert page.locator(".chip", has_text="XMP").count() == 0
    (tmp_path / name).write_text(text, "utf-8")
    found = subprocess.run(["exiftool", "-n", "-j", "-G1", str(tmp_path / name)], capture_output=True, check=True)
    (tags,) = json.loads(found.stdout)
    assert tags["XMP-exif:GPSLatitude"] == pytest.approx(expected["latitude"], abs=2e-7)
    assert tags["XMP-cosplace:Estimated"] in (True, "True")


# --- compare ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
def test_photos_are_compared_large_and_uncropped(browser: Any, view: str) -> None:
    city = FakeCity()
    expected = city.answer("here-1.jpg")["neighbours"]
    with opened(browser, city, **VIEWS[view]) as page:
        locate(page, "here-1.jpg")
        page.click("text=Compare >> visible=true")
        assert page.inner_text("#compare-title") == f"Match 1 of {len(expected)}"
        page.wait_for_function("() => [...document.querySelectorAll('.stage img')].every((one) => one.naturalWidth)")
        boxes = page.evaluate(BOXES)
        assert boxes["fits"] == ["contain", "contain"]
        assert page.locator(".stage figcaption").all_inner_texts() == ["Your photo", "Match 1, stored at 320 pixels"]
        side = (boxes["mine"]["width"], boxes["mine"]["height"])
        assert side == pytest.approx((boxes["theirs"]["width"], boxes["theirs"]["height"]), abs=1)
        if view == "phone":  # one above the other
            assert side[0] > 340 and boxes["theirs"]["top"] > boxes["mine"]["bottom"] and boxes["wide"] <= 390
        else:
            assert min(side) > 500 and boxes["theirs"]["left"] > boxes["mine"]["right"]
        assert axe_violations(page) == []
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#compare-title") == f"Match 2 of {len(expected)}"
        assert page.get_attribute(".theirs img", "src") == f"photos/{expected[1]['id']}/image"
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert page.inner_text("#compare-title") == f"Match {len(expected)} of {len(expected)}"
        # One over the other: the slider moves the border.
        page.click("[aria-label='One over the other']")
        page.locator(".compare input[type=range]").fill("25")
        clip = "() => getComputedStyle(document.querySelector('.mine')).clipPath"
        assert "75%" in page.evaluate(clip)
        stage = boxes["stage"]
        page.mouse.move(stage["x"] + 0.3 * stage["width"], 400)  # the border follows the pointer, too
        page.mouse.down()
        page.mouse.move(stage["x"] + 0.6 * stage["width"], 400)
        page.mouse.up()
        page.mouse.move(stage["x"] + 0.1 * stage["width"], 400)
        assert "40%" in page.evaluate(clip)
        assert axe_violations(page) == []
        page.keyboard.press("Escape")
        assert page.is_hidden("#compare")
        assert page.is_visible(".answer")  # Escape closes only the dialog
        page.keyboard.press("c")
        assert page.is_visible("#compare")


def test_matching_points_are_drawn_on_demand(browser: Any) -> None:
    city = FakeCity()
    best = city.answer("here-1.jpg")["neighbours"][0]["id"]
    path = f"POST /photos/{best}/matches"
    with opened(browser, city) as page:
        locate(page, "here-1.jpg")
        page.keyboard.press("c")
        page.wait_for_timeout(300)
        assert not any(request.endswith("/matches") for request in city.requests)
        page.click("[aria-label='Matching points']")
        page.wait_for_selector(".compare header >> text=64 matching points")
        boxes = page.evaluate(BOXES)
        assert len(boxes["lines"]) == 24
        half = boxes["stage"]["width"] / 2
        for x1, y1, x2, y2 in boxes["lines"]:  # from the left photo to the right one, inside the photos
            assert 0 < x1 < half < x2 < boxes["stage"]["width"]
            assert 0 < y1 < boxes["stage"]["height"] and 0 < y2 < boxes["stage"]["height"]
        assert axe_violations(page) == []
        page.keyboard.press("ArrowRight")  # the next match has few points
        page.wait_for_selector(".compare header >> text=9 matching points, which may be by chance")
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector(".compare header >> text=64 matching points")
        assert city.requests.count(path) == 1  # kept
        page.set_viewport_size({"width": 900, "height": 600})
        page.wait_for_timeout(200)
        moved = page.evaluate(BOXES)
        assert max(line[2] for line in moved["lines"]) < moved["stage"]["width"]


def test_without_opencv_there_is_no_button_for_points(browser: Any) -> None:
    with opened(browser, config={"can_match": False}) as page:
        locate(page, "here-1.jpg")
        page.keyboard.press("c")
        assert page.is_visible("#compare")
        assert page.locator("[aria-label='Matching points']").is_hidden()
