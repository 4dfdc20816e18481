"""Take the pictures of README.md and docs/map.md in a headless Chromium: screenshots, and an animated one.

    python benchmarks/pictures.py logs/demo/<time> [--to docs/pictures]

Needs the model of a run of `cosplace demo`.  The photos are those of another synthetic city, with 512 pixels, which is
rendered, indexed and calibrated for this.  The map of a density shows the synthetic positions of the tests.
"""

import argparse
import base64
import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cosplace.config.index import IndexSettings
from cosplace.engines.encoder import load_model
from cosplace.index.building import build_index
from cosplace.index.photo_index import open_index
from cosplace.localization.answers import Location
from cosplace.localization.calibration import calibrate
from cosplace.localization.local_features import count_inliers, detect_features
from cosplace.localization.localizer import Localizer
from cosplace.photos.opening import open_image
from cosplace.photos.scanning import scan_images
from synthcity.capture import build_city
from synthcity.settings import CitySettings
from tests.web.fake_server import FakeCity, make_app, serving

DESKTOP = {"viewport": {"width": 1280, "height": 800}}
SMALL = {"viewport": {"width": 1000, "height": 640}}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 1.5,
}
DARK = {"color_scheme": "dark"}
NAMES = ("corner.jpg", "shop.jpg", "hill.jpg")  # shown instead of the '@' names
SETTLE_MS = 2000  # until the map has stopped and its photos are loaded
FLIGHT_FRAMES, FLIGHT_MS = 12, 70  # of the animated picture, from the whole city to the answer
SEND_FILE = """([kinds, name, content]) => {
    const data = new DataTransfer();
    const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
    data.items.add(new File([bytes], name, { type: "image/jpeg" }));
    for (const kind of kinds)
        window.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
}"""
VIEW = "() => { const { lat, lng } = cosplace.map.getCenter(); return [lat, lng, cosplace.map.getZoom()] }"
SET_VIEW = "([lat, lng, zoom]) => { cosplace.map.setView([lat, lng], zoom, { animate: false }) }"
PHOTOS_ARE_LOADED = "() => [...document.querySelectorAll('#detail img')].every((image) => image.naturalWidth > 0)"
SHOW_NEXT_STEPS = """() => {
    const panel = document.querySelector("#panel");
    panel.scrollTop = panel.scrollHeight;
}"""
FOCUS_FIRST_PHOTO = """() => {
    const { map, dots } = cosplace;
    const { latitude, longitude } = dots.photos.points[0];
    map.setView([latitude, longitude], 20.25, { animate: false });
    document.querySelector("#map").focus();
}"""


@contextmanager
def serving_index(index: Path, *flags: str) -> Generator[str]:
    """Serve an index and yield its address."""
    command = [sys.executable, "-m", "cosplace", "serve", "--index", str(index), "--port", "0", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            address = re.search(r"http://\S+", server.stdout.readline())
            if address is None:
                sys.exit(f"The index {index} cannot be served. See the error of `cosplace serve --index {index}`.")
            yield address[0]
        finally:
            server.terminate()


def take_screenshot(
    browser: Any,
    address: str,
    path: Path,
    *,
    photos: Sequence[Path] = (),
    context: Mapping[str, Any] = DESKTOP,
    prepare: Callable[[Any], None] = lambda page: None,
) -> None:
    """Open the map, locate photos, call `prepare` with the page, and save a screenshot."""
    page = browser.new_context(**{"color_scheme": "light"} | DESKTOP | dict(context)).new_page()
    page.goto(address)
    page.wait_for_selector("#map[data-points]")
    if photos:
        files = [
            {"name": name, "mimeType": "image/jpeg", "buffer": photo.read_bytes()}
            for name, photo in zip(NAMES, photos, strict=False)
        ]
        page.set_input_files("#files", files)
        page.wait_for_selector("#progress", state="hidden")
        page.click("#answers li:nth-child(1) .row")
        page.wait_for_function(PHOTOS_ARE_LOADED)
    prepare(page)
    page.mouse.move(700, 790)
    page.wait_for_timeout(SETTLE_MS)
    page.evaluate("() => document.activeElement.blur()")
    page.screenshot(path=path)
    page.context.close()
    with Image.open(path) as screenshot:
        without_alpha = screenshot.convert("RGB")
    without_alpha.save(path, optimize=True)
    print(f"{path}  {path.stat().st_size // 1000} kB", flush=True)


def open_first_photo(page: Any) -> None:
    """Open the card of an indexed photo."""
    page.evaluate(FOCUS_FIRST_PHOTO)
    page.wait_for_timeout(SETTLE_MS)
    page.keyboard.press("Enter")


def open_group(page: Any) -> None:
    """Show thumbnails of the photos in the middle of the map."""
    page.mouse.click(800, 500)
    page.wait_for_selector(".thumbnails")


class Recording:
    """Frames of a page, each shown for some time."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.frames: list[Image.Image] = []
        self.durations_ms: list[int] = []

    def add(self, duration_ms: int) -> None:
        """Add the page as it is now."""
        with Image.open(io.BytesIO(self.page.screenshot())) as frame:
            self.frames.append(frame.convert("RGB"))
        self.durations_ms.append(duration_ms)

    def save(self, path: Path) -> None:
        """Write an animated WebP."""
        first, *others = self.frames
        first.save(path, save_all=True, append_images=others, duration=self.durations_ms, loop=0, quality=80, method=6)
        seconds = sum(self.durations_ms) / 1000
        print(f"{path}  {path.stat().st_size // 1000} kB, {len(self.frames)} frames, {seconds:.1f} s", flush=True)


def record_animation(browser: Any, address: str, path: Path, photo: Path) -> None:
    """Record how a photo is dropped, located and compared, and how a link to the answer is copied."""
    page = browser.new_context(**SMALL, color_scheme="light", reduced_motion="reduce").new_page()
    page.context.grant_permissions(["clipboard-write"])
    page.goto(address)
    page.wait_for_selector("#map[data-points]")
    page.wait_for_timeout(SETTLE_MS)
    recording, held = Recording(page), []
    page.route("**/locate", lambda route: held.extend([route]))  # until its frame is recorded
    file = [NAMES[0], base64.b64encode(photo.read_bytes()).decode()]
    recording.add(1000)
    page.evaluate(SEND_FILE, [["dragover"], *file])
    recording.add(700)
    page.evaluate(SEND_FILE, [["drop"], *file])
    page.wait_for_selector(".locating")
    start = page.evaluate(VIEW)
    recording.add(500)
    held[0].continue_()
    page.wait_for_selector("#progress", state="hidden")
    page.wait_for_function(PHOTOS_ARE_LOADED)
    page.wait_for_timeout(SETTLE_MS)
    end = page.evaluate(VIEW)
    for number in range(1, FLIGHT_FRAMES + 1):
        share = number / FLIGHT_FRAMES
        share = share * share * (3 - 2 * share)  # slow at both ends
        page.evaluate(SET_VIEW, [a + share * (b - a) for a, b in zip(start, end, strict=True)])
        page.wait_for_timeout(200)
        recording.add(FLIGHT_MS)
    page.wait_for_timeout(SETTLE_MS)
    recording.add(1500)
    page.keyboard.press("c")
    page.wait_for_timeout(SETTLE_MS)
    recording.add(900)
    page.click("[aria-label='Matching points']")
    page.wait_for_selector(".points line")
    recording.add(1300)
    page.keyboard.press("Escape")
    page.evaluate(SHOW_NEXT_STEPS)
    page.wait_for_timeout(300)
    recording.add(600)
    page.click("text=Copy link")
    page.wait_for_selector("#notice >> text=Copied")
    recording.add(1200)
    recording.save(path)
    page.context.close()


def index_large_photos(folder: Path, weights: Path) -> list[tuple[Path, Location]]:
    """Render, index and calibrate a small city at 512 pixels.  Returns its queries and their answers."""
    build_city(folder, CitySettings(images=12, database_images=480, num_queries=40, image_size=512))
    queries = scan_images(folder / "test" / "queries_v1")
    paths = [queries.path(number) for number in range(len(queries))]
    encoder = load_model(weights, image_size=96, device="cpu")
    build_index(folder / "test", encoder, folder / "index", settings=IndexSettings(thumbnail_size=640))
    with open_index(folder / "index", write=True) as index:
        calibrate(index, encoder=encoder)
    return list(zip(paths, Localizer(folder / "index", device="cpu").locate_many(paths), strict=True))


def count_points(photo: Path, answer: Location) -> int:
    """Count the matching points of a photo and its best match."""
    mine, theirs = (detect_features(open_image(path)) for path in (photo, answer.neighbours[0].path))
    return count_inliers(mine, theirs)


def compare_photos(page: Any) -> None:
    """Open the comparison, with matching points."""
    page.keyboard.press("c")
    page.click("[aria-label='Matching points']")
    page.wait_for_selector(".points line")


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run of `cosplace demo`")
    parser.add_argument("--to", type=Path, default=Path(__file__).parents[1] / "docs" / "pictures")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is not installed. Install it with  apt-get install chromium.")
    from playwright.sync_api import sync_playwright

    folder = arguments.to
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as temporary:
        city = Path(temporary) / "city"
        answers = index_large_photos(city, arguments.run / "best_model.pth")
        found = [(photo, answer) for photo, answer in answers if answer.verdict == "found"]
        found.sort(key=lambda pair: -count_points(*pair))
        probable = [photo for photo, answer in answers if answer.verdict == "probable"]
        least_certain = min(answers, key=lambda pair: pair[1].confidence)[0]
        best = found[0][0]
        located = [best, found[1][0], probable[0]]
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        shown = ("--name", "Synthetic city", "--samples", str(city / "test" / "queries_v1"))
        with serving_index(city / "index", *shown) as address:
            record_animation(browser, address, folder / "map.webp", best)
            take_screenshot(browser, address, folder / "map-answer.png", photos=located)
            take_screenshot(browser, address, folder / "map-answer-dark.png", photos=located, context=DARK)
            take_screenshot(browser, address, folder / "map-unknown.png", photos=[least_certain])
            take_screenshot(browser, address, folder / "map-phone.png", photos=located[:1], context=PHONE)
            take_screenshot(browser, address, folder / "map-empty.png", context=DARK)
            take_screenshot(browser, address, folder / "map-photo.png", prepare=open_first_photo)
            take_screenshot(
                browser, address, folder / "map-compare.png", photos=[best], context=SMALL, prepare=compare_photos
            )
        with serving(make_app(FakeCity(400_000))) as address:
            take_screenshot(browser, address, folder / "map-density.png", prepare=open_group)
        browser.close()


if __name__ == "__main__":
    main()
