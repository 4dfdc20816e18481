"""Take the screenshots of README.md and docs/map.md in a headless Chromium.

    python benchmarks/pictures.py logs/demo/<time> demo/city-0 [--to docs/pictures]

Needs the results of `cosplace demo`.  The map of a density shows the synthetic positions of the tests.  The
photos that are compared in full size are those of another synthetic city, with 512 pixels, which is rendered for this.
"""

import argparse
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
from cosplace.index.building import build_index
from cosplace.localization.local_features import count_inliers, detect_features
from cosplace.localization.localizer import Localizer
from cosplace.models.encoder import load_model
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


def index_large_photos(folder: Path, weights: Path) -> tuple[Path, Path]:
    """Render and index a small city at 512 pixels.  Returns the index and the query with the most matching points."""
    build_city(folder, CitySettings(images=12, database_images=240, num_queries=20, image_size=512))
    queries = scan_images(folder / "test" / "queries_v1")
    paths = [queries.path(number) for number in range(len(queries))]
    encoder = load_model(weights, image_size=96, device="cpu")
    build_index(folder / "test", encoder, folder / "index", settings=IndexSettings(thumbnail_size=640))
    answers = Localizer(folder / "index", device="cpu", uncalibrated=True, k=1).locate_many(paths)

    def count_points(number: int) -> int:
        mine, theirs = (
            detect_features(open_image(path)) for path in (paths[number], answers[number].neighbours[0].path)
        )
        return count_inliers(mine, theirs)

    return folder / "index", paths[max(range(len(paths)), key=count_points)]


def compare_photos(page: Any) -> None:
    """Open the comparison, with matching points."""
    page.keyboard.press("c")
    page.click("[aria-label='Matching points']")
    page.wait_for_selector(".points line")


def main() -> None:
    """Take all screenshots."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run of `cosplace demo`")
    parser.add_argument("city", type=Path, help="folder of its city")
    parser.add_argument("--to", type=Path, default=Path(__file__).parents[1] / "docs" / "pictures")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("Chromium is not installed. Install it with  apt-get install chromium.")
    from playwright.sync_api import sync_playwright

    index, folder = arguments.run / "index", arguments.to
    queries = scan_images(arguments.city / "test" / "queries_v1")
    paths = [queries.path(number) for number in range(len(queries))]
    answers = Localizer(index, device="cpu").locate_many(paths)
    by_confidence = sorted(range(len(paths)), key=lambda number: -answers[number].confidence)
    located = [paths[number] for number in by_confidence[:: max(1, len(paths) // 12)][:3]]
    unknown = [path for path, answer in zip(paths, answers, strict=True) if answer.unknown][:1]
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        shown = ("--name", "Synthetic city", "--samples", str(arguments.city / "test" / "queries_v1"))
        with serving_index(index, *shown) as address:
            take_screenshot(browser, address, folder / "map-answer.png", photos=located)
            take_screenshot(browser, address, folder / "map-answer-dark.png", photos=located, context=DARK)
            take_screenshot(browser, address, folder / "map-unknown.png", photos=unknown)
            take_screenshot(browser, address, folder / "map-phone.png", photos=located[:1], context=PHONE)
            take_screenshot(browser, address, folder / "map-empty.png", context=DARK)
            take_screenshot(browser, address, folder / "map-photo.png", prepare=open_first_photo)
        with tempfile.TemporaryDirectory() as temporary:
            large, query = index_large_photos(Path(temporary) / "city", arguments.run / "best_model.pth")
            with serving_index(large, "--uncalibrated") as address:
                take_screenshot(
                    browser, address, folder / "map-compare.png", photos=[query], context=SMALL, prepare=compare_photos
                )
        with serving(make_app(FakeCity(400_000))) as address:
            take_screenshot(browser, address, folder / "map-density.png", prepare=open_group)
        browser.close()


if __name__ == "__main__":
    main()
