"""A tiny index with its model, photos to send, and photos to refuse: what the tests of the server stand on."""

import io
import json
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image

from cosplace.index.photo_index import create_index
from cosplace.index.records import ModelSpec, NewPhoto, Settings
from cosplace.localization.localizer import Localizer
from cosplace.models.encoder import load_model
from cosplace.models.network import GeoLocalizationNet
from cosplace.server import ServerSettings, create_app
from cosplace.server.process import listening_socket, make_server
from tests.streets import place_picture

NUM_PLACES = 12
SIDE = 64


def jpeg(pixels: np.ndarray, **options) -> bytes:
    return encoded(pixels, "JPEG", **options)


def encoded(pixels: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def place_of(number: int) -> tuple[float, float]:
    """Latitude and longitude of a place: 100 m from its neighbours, and further than a degree from the equator."""
    return 37.70 + 0.0009 * number, -122.40


def good_photo(number: int, variant: int = 7, kind: str = "JPEG") -> bytes:
    return encoded(place_picture(number, variant, SIDE), kind)


def make_index(folder: Path) -> Path:
    """An index of 3 photos of each place by an untrained network, with pictures."""
    torch.manual_seed(0)
    weights = folder / "model.pth"
    torch.save(GeoLocalizationNet("ResNet18_Small", 16).state_dict(), weights)
    encoder = load_model(weights, image_size=SIDE, device="cpu")
    pictures = [
        (place, variant, place_picture(place, variant, SIDE)) for place in range(NUM_PLACES) for variant in range(3)
    ]
    photos = [
        NewPhoto(
            path=f"street/{place}-{variant}.jpg",
            key=f"{place}-{variant}",
            latitude=place_of(place)[0],
            longitude=place_of(place)[1],
            heading=float(10 * variant) if variant else float("nan"),
            time=1.6e9 + variant,
            source="street",
            thumbnail=jpeg(picture),
        )
        for place, variant, picture in pictures
    ]
    spec = ModelSpec(model=encoder.name, checksum=encoder.checksum, dimension=encoder.dimension, image_size=SIDE)
    with create_index(folder / "index", spec, Settings(thumbnail_size=SIDE)) as index:
        index.add(photos, encoder.encode([picture for *_, picture in pictures]))
    return folder / "index"


@contextmanager
def client_of(localizer: Localizer, **changes) -> Iterator[httpx.Client]:
    """A client of a server of its own, over loopback; leaving stops the server, which finishes what it accepted."""
    settings = ServerSettings(**changes)
    with listening_socket("127.0.0.1", 0) as listener:
        server = make_server(create_app(localizer, settings), settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.listen(100)
        thread.start()
        try:
            with httpx.Client(base_url=address, timeout=20, trust_env=False) as client:
                yield client
                server.should_exit = True
                thread.join()  # before the client leaves: its connections are answered
        finally:
            server.should_exit = True
            thread.join()


# --- what must be refused --------------------------------------------------------------------------------------------


def png_claiming(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header promises much."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_claiming(width: int, height: int) -> bytes:
    """A JPEG whose frame header promises much."""
    raw = bytearray(good_photo(0))
    at = raw.index(b"\xff\xc0")
    raw[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(raw)


def webp_claiming(width: int, height: int) -> bytes:
    """A WebP whose canvas promises much."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    inner = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size + b"ANIM" + struct.pack("<I", 6) + b"\0" * 6
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


def many_scans() -> bytes:
    """A progressive JPEG that passes over its pixels thousands of times."""
    raw = encoded(place_picture(0, 0, SIDE), "JPEG", progressive=True)
    last = raw.rindex(b"\xff\xda")
    return raw[:last] + raw[last:-2] * 3_000 + raw[-2:]


def malformed(seed: int = 0) -> Iterator[tuple[str, bytes, set[int]]]:
    """Endless (what it is, bytes, the statuses that are right for it)."""
    rng = np.random.default_rng(seed)
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    html = b"<!doctype html><script>alert(1)</script>"
    whole = {kind: good_photo(1, kind=kind) for kind in ("JPEG", "PNG", "WEBP")}
    fixed = [
        ("empty", b"", {400, 422}),
        ("svg", svg, {415}),
        ("svg with a prologue", b'<?xml version="1.0"?>' + svg, {415}),
        ("html", html, {415}),
        ("gif", encoded(place_picture(0, 0, SIDE), "GIF"), {415}),
        ("tiff", encoded(place_picture(0, 0, SIDE), "TIFF"), {415}),
        ("bmp", encoded(place_picture(0, 0, SIDE), "BMP"), {415}),
        ("json", json.dumps({"files": "photo.jpg"}).encode(), {415}),
        ("a path", b"/etc/passwd", {415}),
        ("gif and script", b"GIF89a/*" + html + b"*/=1;", {415}),
        ("pdf around a jpeg", b"%PDF-1.7\n" + whole["JPEG"], {415}),
        ("zip around a jpeg", b"PK\x03\x04" + whole["JPEG"], {415}),
        ("jpeg's first bytes and html", b"\xff\xd8\xff\xe0" + html * 20, {422}),
        ("png's first bytes and html", b"\x89PNG\r\n\x1a\n" + html * 20, {422}),
        ("webp's first bytes and html", b"RIFF\xff\xff\0\0WEBP" + html * 20, {422}),
        ("a huge png", png_claiming(60_000, 60_000), {413}),
        ("the largest png", png_claiming(2**31 - 1, 2**31 - 1), {413}),
        ("a huge jpeg", jpeg_claiming(65_500, 65_500), {413}),
        ("a huge webp", webp_claiming(16_383, 16_383), {413}),
        ("a png of nothing", png_claiming(0, 0), {422}),
        ("a png without pixels", png_claiming(500, 500), {422}),
        ("a bomb with too few pixels", png_claiming(4_000, 4_000, zlib.compress(bytes(20_000_000), 9)), {422}),
        ("thousands of scans", many_scans(), {422}),
        ("one pixel", encoded(np.zeros((1, 1, 3), np.uint8), "PNG"), {422}),
        ("one row", encoded(np.zeros((1, 5_000, 3), np.uint8), "PNG"), {422}),
    ]
    while True:
        yield from fixed
        for kind, raw in whole.items():
            cut = int(rng.integers(1, len(raw) - 100))
            yield f"{kind} cut after {cut} bytes", raw[:cut], {415, 422}
            noise = bytearray(raw)
            for at in rng.integers(0, 40, 6):  # in the header, so that it cannot stay whole
                noise[at] = int(rng.integers(256))
            noise[:3] = b"\0\0\0"
            yield f"{kind} with another beginning", bytes(noise), {415}
        yield "noise", rng.bytes(int(rng.integers(1, 5_000))), {415, 422}
