"""The pictures of README.md and docs/map.md, from a run of `cosplace demo`, in a headless Chromium.

python benchmarks/pictures.py logs/demo/<time> demo/city-0 [--to docs/pictures]
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from cosplace.localization.localizer import Localizer
from cosplace.photos.scanning import scan_images

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
SETTLES_MS = 2000  # the map's movements, and photos on their way
ENTER_A_PHOTO = """() => {
    const { map, dots } = cosplace;
    const { latitude, longitude } = dots.places.points[0];
    map.setView([latitude, longitude], 20.25, { animate: false });
    document.querySelector("#map").focus();
}"""


@contextmanager
def serving(index: Path) -> Generator[str]:
    """The address of the index's map, as long as it is needed."""
    command = [sys.executable, "-m", "cosplace", "serve", "--index", str(index), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            announced = re.search(r"http://\S+", server.stdout.readline())
            if announced is None:
                sys.exit(f"{index} cannot be served: try `cosplace serve --index {index}`.")
            yield announced[0]
        finally:
            server.terminate()


def shoot(  # noqa: PLR0917 - told at each call
    browser: Any,
    address: str,
    to: Path,
    photos: Sequence[Path] = (),
    look: dict[str, Any] | None = None,
    act: Callable[[Any], None] | None = None,
) -> None:
    """One picture of the page, after photos were chosen and `act` was done."""
    page = browser.new_context(**{"viewport": DESKTOP, "color_scheme": "light"} | (look or {})).new_page()
    page.goto(address)
    page.wait_for_selector("#map[data-points]")
    if photos:
        names = ("corner.jpg", "shop.jpg", "hill.jpg")
        files = [
            {"name": name, "mimeType": "image/jpeg", "buffer": photo.read_bytes()}
            for name, photo in zip(names, photos, strict=False)
        ]
        page.set_input_files("#files", files)
        page.wait_for_selector("#progress", state="hidden")
        page.click("#answers li:nth-child(1) .row")
    if act:
        act(page)
    page.mouse.move(700, 790)
    page.wait_for_timeout(SETTLES_MS)
    page.evaluate("() => document.activeElement.blur()")
    page.screenshot(path=to)
    page.context.close()
    with Image.open(to) as picture:
        smaller = picture.convert("RGB")  # without the alpha channel
    smaller.save(to, optimize=True)
    print(f"{to}  {to.stat().st_size // 1000} kB", flush=True)


def open_a_photo(page: Any) -> None:
    """Open the known photo in the middle of the map."""
    page.evaluate(ENTER_A_PHOTO)
    page.wait_for_timeout(SETTLES_MS)
    page.keyboard.press("Enter")


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run of `cosplace demo`")
    parser.add_argument("city", type=Path, help="folder of its city")
    parser.add_argument("--to", type=Path, default=Path(__file__).parents[1] / "docs" / "pictures")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("There is no Chromium: apt-get install chromium.")
    from playwright.sync_api import sync_playwright

    queries = scan_images(arguments.city / "test" / "queries_v1")
    paths = [queries.path(number) for number in range(len(queries))]
    answers = Localizer(arguments.run / "index", device="cpu").locate_many(paths)
    sure = sorted(range(len(paths)), key=lambda number: -answers[number].confidence)
    known = [paths[number] for number in sure[:: max(1, len(sure) // 12)][:3]]  # not only the surest
    unknown = [path for path, answer in zip(paths, answers, strict=True) if answer.unknown][:1]
    dark, phone = {"color_scheme": "dark"}, {"viewport": PHONE, "has_touch": True, "is_mobile": True}
    arguments.to.mkdir(parents=True, exist_ok=True)
    with serving(arguments.run / "index") as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shoot(browser, address, arguments.to / "map-answer.png", known)
        shoot(browser, address, arguments.to / "map-answer-dark.png", known, dark)
        shoot(browser, address, arguments.to / "map-unknown.png", unknown)
        shoot(browser, address, arguments.to / "map-phone.png", known[:1], phone | {"device_scale_factor": 1.5})
        shoot(browser, address, arguments.to / "map-empty.png", (), dark)
        shoot(browser, address, arguments.to / "map-photo.png", act=open_a_photo)
        browser.close()


if __name__ == "__main__":
    main()
