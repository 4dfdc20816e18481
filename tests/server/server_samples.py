"""Samples for the server tests: a small index with its model, valid photos, and malformed uploads."""

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

from cosplace.config.index import IndexSettings
from cosplace.engines.encoder import load_model
from cosplace.index.photo_index import create_index
from cosplace.index.records import ModelSpec, NewPhoto
from cosplace.localization.localizer import Localizer
from cosplace.models.network import GeoLocalizationNet
from cosplace.server import ServerSettings, create_app
from cosplace.server.process import listening_socket, make_server
from tests.synthetic_dataset import place_image

NUM_PLACES = 12
SIDE = 64


def jpeg(pixels: np.ndarray, **options) -> bytes:
    return encoded(pixels, "JPEG", **options)


def encoded(pixels: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def position_of(number: int) -> tuple[float, float]:
    """Return latitude and longitude of a place; places are 100 m apart."""
    return 37.70 + 0.0009 * number, -122.40


def good_photo(number: int, variant: int = 7, kind: str = "JPEG") -> bytes:
    return encoded(place_image(number, variant, SIDE), kind)


def make_index(folder: Path, checksum: str = "") -> Path:
    """Build an index of 3 photos per place, with thumbnails, by an untrained network.

    checksum: of the model, in place of its own.
    """
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    weights = folder / "model.pth"
    torch.save(GeoLocalizationNet("ResNet18_Small", 16).state_dict(), weights)
    encoder = load_model(weights, image_size=SIDE, device="cpu")
    images = [
        (place, variant, place_image(place, variant, SIDE)) for place in range(NUM_PLACES) for variant in range(3)
    ]
    photos = [
        NewPhoto(
            path=f"street/{place}-{variant}.jpg",
            key=f"{place}-{variant}",
            latitude=position_of(place)[0],
            longitude=position_of(place)[1],
            heading=float(10 * variant) if variant else float("nan"),
            time=1.6e9 + variant,
            source="street",
            thumbnail=jpeg(image),
        )
        for place, variant, image in images
    ]
    checksum = checksum or encoder.checksum
    spec = ModelSpec(model=encoder.name, checksum=checksum, dimension=encoder.dimension, image_size=SIDE)
    with create_index(folder / "index", spec, IndexSettings(thumbnail_size=SIDE)) as index:
        index.add(photos, encoder.encode([image for *_, image in images]))
    return folder / "index"


@contextmanager
def client_of(localizer: Localizer, **changes) -> Iterator[httpx.Client]:
    """Start a server and yield its client; afterwards the server stops and finishes all accepted photos."""
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
                thread.join()  # before the client closes, so that its requests are answered
        finally:
            server.should_exit = True
            thread.join()


# --- malformed uploads -----------------------------------------------------------------------------------------------


def png_with_size(width: int, height: int, data: bytes = b"") -> bytes:
    """Return a PNG with this size in its header."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_with_size(width: int, height: int) -> bytes:
    """Return a JPEG with this size in its frame header."""
    raw = bytearray(good_photo(0))
    at = raw.index(b"\xff\xc0")
    raw[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(raw)


def webp_with_size(width: int, height: int) -> bytes:
    """Return a WebP with this canvas size in its header."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    inner = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size + b"ANIM" + struct.pack("<I", 6) + b"\0" * 6
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


def jpeg_with_many_scans() -> bytes:
    """Return a progressive JPEG with thousands of scans."""
    raw = encoded(place_image(0, 0, SIDE), "JPEG", progressive=True)
    last = raw.rindex(b"\xff\xda")
    return raw[:last] + raw[last:-2] * 3_000 + raw[-2:]


def malformed(seed: int = 0) -> Iterator[tuple[str, bytes, set[int]]]:
    """Yield (description, bytes, expected statuses) without end."""
    rng = np.random.default_rng(seed)
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    html = b"<!doctype html><script>alert(1)</script>"
    valid = {kind: good_photo(1, kind=kind) for kind in ("JPEG", "PNG", "WEBP")}
    fixed = [
        ("empty", b"", {400, 422}),
        ("svg", svg, {415}),
        ("svg with an xml declaration", b'<?xml version="1.0"?>' + svg, {415}),
        ("html", html, {415}),
        ("gif", encoded(place_image(0, 0, SIDE), "GIF"), {415}),
        ("tiff", encoded(place_image(0, 0, SIDE), "TIFF"), {415}),
        ("bmp", encoded(place_image(0, 0, SIDE), "BMP"), {415}),
        ("json", json.dumps({"files": "photo.jpg"}).encode(), {415}),
        ("a path", b"/etc/passwd", {415}),
        ("gif and script", b"GIF89a/*" + html + b"*/=1;", {415}),
        ("pdf around a jpeg", b"%PDF-1.7\n" + valid["JPEG"], {415}),
        ("zip around a jpeg", b"PK\x03\x04" + valid["JPEG"], {415}),
        ("html after a jpeg's first bytes", b"\xff\xd8\xff\xe0" + html * 20, {422}),
        ("html after a png's first bytes", b"\x89PNG\r\n\x1a\n" + html * 20, {422}),
        ("html after a webp's first bytes", b"RIFF\xff\xff\0\0WEBP" + html * 20, {422}),
        ("a huge png", png_with_size(60_000, 60_000), {413}),
        ("the largest png", png_with_size(2**31 - 1, 2**31 - 1), {413}),
        ("a huge jpeg", jpeg_with_size(65_500, 65_500), {413}),
        ("a huge webp", webp_with_size(16_383, 16_383), {413}),
        ("a png of 0 x 0 pixels", png_with_size(0, 0), {422}),
        ("a png without pixels", png_with_size(500, 500), {422}),
        ("a png with more data than pixels", png_with_size(4_000, 4_000, zlib.compress(bytes(20_000_000), 9)), {422}),
        ("thousands of scans", jpeg_with_many_scans(), {422}),
        ("one pixel", encoded(np.zeros((1, 1, 3), np.uint8), "PNG"), {422}),
        ("one row", encoded(np.zeros((1, 5_000, 3), np.uint8), "PNG"), {422}),
    ]
    while True:
        yield from fixed
        for kind, raw in valid.items():
            cut = int(rng.integers(1, len(raw) - 100))
            yield f"{kind} cut after {cut} bytes", raw[:cut], {415, 422}
            noise = bytearray(raw)
            for at in rng.integers(0, 40, 6):  # in the header
                noise[at] = int(rng.integers(256))
            noise[:3] = b"\0\0\0"
            yield f"{kind} with other first bytes", bytes(noise), {415}
        yield "noise", rng.bytes(int(rng.integers(1, 5_000))), {415, 422}
