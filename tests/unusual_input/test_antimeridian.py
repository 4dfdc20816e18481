"""An index on both sides of longitude 180: its bounds, the first view of the map, and the lines from answer to matches.

The judges are the positions that were written, and a browser.
"""

from collections.abc import Iterator

import httpx
import pytest

from tests.unusual_input.samples import encoded, place_pixels
from tests.unusual_input.test_server import CHROMIUM, DROP, SIDE, client_of, write_index

pytestmark = pytest.mark.slow

LONGITUDES = [179.9996, 179.9998, -179.9998, -179.9995]  # from west to east, 0.0009 degrees in all


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with client_of(write_index(tmp_path_factory.mktemp("stored"), LONGITUDES)) as shared:
        yield shared


def test_the_bounds_of_an_index_are_its_west_and_east(client: httpx.Client) -> None:
    """GeoJSON (RFC 7946, section 5.2): a box across the antimeridian has a west that is larger than its east."""
    west, south, east, north = client.get("/config.json").json()["bounds"]
    assert (west, east) == (LONGITUDES[0], LONGITUDES[-1]) and (south, north) == (0, 0)
    found = client.get("/photos", params={"bbox": f"{west},-1,{east},1"}).json()
    assert found["total"] == len(LONGITUDES)


PLACES = """(longitudes) => longitudes.map((one) => {
    const map = cosplace.map, center = map.getCenter().lng;
    const near = one + 360 * Math.round((center - one) / 360);
    return map.latLngToContainerPoint([0, near]).x;
})"""
DRAWN = """() => {
    const map = cosplace.map, widths = [], center = map.getCenter().lng;
    map.eachLayer((layer) => {
        if (!layer.getLatLngs || layer.getRadius) return;
        const points = layer.getLatLngs().flat(2);
        widths.push(Math.max(...points.map((one) => one.lng)) - Math.min(...points.map((one) => one.lng)));
    });
    return widths;
}"""


@pytest.fixture(scope="module")
def page(client: httpx.Client) -> Iterator[object]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1200, "height": 800}, reduced_motion="reduce")
        opened.goto(str(client.base_url))
        opened.wait_for_selector("#map[data-ready][data-points]")
        yield opened
        browser.close()


def test_the_first_view_of_the_map_is_the_city_not_the_world(page) -> None:
    """A browser: 100 m of photos fill a part of the map that one can see, with photos from west to east."""
    places = page.evaluate(PLACES, LONGITUDES)
    width = page.evaluate("() => cosplace.map.getSize().x")
    assert places == sorted(places) and places[0] > 0 and places[-1] < width
    assert places[-1] - places[0] > 50 and page.evaluate("() => cosplace.map.getZoom()") > 14


def test_lines_from_an_answer_to_its_matches_do_not_go_around_the_earth(page) -> None:
    """The positions: no line is longer than the index is wide."""
    page.evaluate(DROP, list(encoded(place_pixels(1, side=SIDE))))
    page.wait_for_selector(".match", state="attached")
    page.wait_for_timeout(500)
    widths = page.evaluate(DRAWN)
    assert widths and max(widths) < 0.001
