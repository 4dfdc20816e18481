"""A fake server for the tests of the page: the same API with synthetic photos and chosen answers.

The name of an uploaded photo selects its answer: `elsewhere*` has no match, `guess*` is uncertain, `probably*` is
probable, `plain*` is not calibrated, `broken*` fails, `busy*` gets status 429 once, all others are found at the
position of their number (`here-0.jpg`, `here-1.jpg`, ...).  `*exif*` has a position in EXIF, 30 m from the answer.
Each camera took its photos on another day from September 6, 2014.  One can walk from each camera to the next; ten
cameras are a sequence.
"""

import asyncio
import io
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image, ImageDraw

import cosplace
from cosplace.geo import bounding_box, in_box
from cosplace.server.parameters import parse_box, parse_times
from cosplace.server.points import MapPoints, find_in_box, times_of, to_mercator_y
from cosplace.server.settings import ServerSettings
from cosplace.server.static import security_headers

WEB = Path(cosplace.__file__).parent / "web"
HEADERS = {name.decode(): value.decode() for name, value in security_headers(ServerSettings())}
SEQUENCE = 120  # photos
LATITUDE, LONGITUDE = 37.76, -122.43
METERS_PER_DEGREE = np.array([111_132.0, 111_320.0 * np.cos(np.radians(LATITUDE))])


def make_streets(num_photos: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Positions (I, 2) in degrees, headings (I,): a camera every 8 m along a grid of curved streets, 12 views each."""
    rng = np.random.default_rng(seed)
    num_cameras = -(-num_photos // 12)
    side_m = max(300.0, 1.3 * np.sqrt(num_cameras * 8 * 55))
    blocks = np.arange(-side_m / 2, side_m / 2, 110.0)
    steps = np.arange(-side_m / 2, side_m / 2, 8.0)
    along, fixed = np.meshgrid(steps, blocks, indexing="ij")
    waves = 18 * np.sin(along / 260 + fixed / 190)
    streets = np.concatenate(
        [np.stack([along, fixed + waves], -1).reshape(-1, 2), np.stack([fixed + waves, along], -1).reshape(-1, 2)]
    )
    turn = np.radians(14)
    streets @= np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    # Keep the cameras nearest to the center.
    streets = streets[np.argsort(np.hypot(*streets.T) * rng.uniform(0.9, 1.1, len(streets)))][:num_cameras]
    streets = streets + rng.normal(0, 0.8, streets.shape)
    positions = np.repeat(np.array([LATITUDE, LONGITUDE]) + streets / METERS_PER_DEGREE, 12, axis=0)[:num_photos]
    return positions, np.tile(np.arange(12) * 30.0, num_cameras)[:num_photos]


def make_photo(number: int, size: tuple[int, int] = (320, 240)) -> bytes:
    """A synthetic street view as JPEG: sky, ground, buildings; the number is the random seed."""
    rng = np.random.default_rng(number)
    image = Image.new("RGB", size, (188, 208, 226))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, size[1] * 0.7, *size), fill=(112, 112, 116))
    left = -20.0
    while left < size[0]:
        width, top = rng.uniform(40, 90), rng.uniform(0.12, 0.5) * size[1]
        color = tuple(int(value) for value in rng.uniform(90, 215, 3))
        pen.rectangle((left, top, left + width - 3, size[1] * 0.74), fill=color)
        for x in np.arange(left + 8, left + width - 12, 18):
            for y in np.arange(top + 10, size[1] * 0.66, 26):
                pen.rectangle((x, y, x + 9, y + 14), fill=(60, 72, 92))
        left += width
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


class FakeCity:
    """The photos of a fake server, and the requests it received."""

    def __init__(self, num_photos: int = 1200, photos: list[Path] | None = None) -> None:
        self.positions, self.headings = make_streets(num_photos)
        self.photos = photos or []
        self.times = 1_410_000_000.0 + np.arange(num_photos) // 12 * 86_400.0  # a day per camera
        self.are_sequences = True
        self.are_lines = False  # one line through all cameras
        self.delay_s = 0.0
        self.requests: list[str] = []
        self.num_busy = 0

    def record(self, index: int) -> dict:
        latitude, longitude = self.positions[index]
        fields = {"id": index, "latitude": float(latitude), "longitude": float(longitude)}
        return fields | {"heading": float(self.headings[index])}

    def answer(self, name: str) -> dict:
        digits = re.search(r"\d+", name)
        centre = (int(digits[0]) * 37 * 12) % len(self.positions) if digits else 0
        meters = np.hypot(*((self.positions - self.positions[centre]) * METERS_PER_DEGREE).T)
        near = np.argsort(meters, kind="stable")[[0, 1, 14, 27, 40, 53, 66, 79]]
        unknown = name.startswith("elsewhere")
        if unknown:
            near = np.random.default_rng(5).choice(len(self.positions), 8, replace=False)
        latitude, longitude = self.positions[centre] + np.array([3.0, -2.0]) / METERS_PER_DEGREE
        offsets = np.hypot(*((self.positions[near] - [latitude, longitude]) * METERS_PER_DEGREE).T)
        neighbours = [
            self.record(int(index))
            | {"name": f"street/{index:06d}.jpg", "similarity": 0.86 - 0.04 * k, "distance_m": float(m)}
            for k, (index, m) in enumerate(zip(near, offsets, strict=True))
        ]
        found = {"photo": name, "latitude": latitude, "longitude": longitude, "radius_m": 12.4, "confidence": 0.934}
        found |= {"unknown": False, "calibrated": True, "verdict": "found", "reason": "", "guess": None}
        found |= {"neighbours": neighbours}
        guess = {"latitude": latitude, "longitude": longitude, "radius_m": 18.6}
        nowhere = {"latitude": None, "longitude": None, "radius_m": None, "unknown": True}
        if unknown:
            found |= nowhere | {"confidence": 0.004, "verdict": "none"}
            found |= {"reason": "the most similar photos are far apart"}
        elif name.startswith("guess"):
            found |= nowhere | {"confidence": 0.249, "verdict": "guess", "guess": guess}
            found |= {"reason": "confidence 24%, the threshold is 50%"}
        elif name.startswith("probably"):
            found |= {"confidence": 0.687, "verdict": "probable"}
        elif name.startswith("plain"):
            found |= {"confidence": 0.87, "radius_m": None, "calibrated": False, "verdict": "guess"}
            found |= {"reason": "uncalibrated: 87% of the votes agree"}
        if "exif" in name:
            found["exif"] = {"latitude": latitude + 30 / METERS_PER_DEGREE[0], "longitude": longitude}
            found["exif"] |= {} if found["unknown"] else {"distance_m": 30.0, "agrees": False}
        return found

    def find(self, query: Mapping[str, str], **options: int | None) -> dict:
        """The photos of a place, a time and a sequence."""
        first, last = parse_times(query.get("after"), query.get("before"))
        ids = None
        if "sequence" in query:
            number = int(query["sequence"]) // SEQUENCE
            ids = np.arange(number * SEQUENCE, (number + 1) * SEQUENCE)
        box = parse_box(query["bbox"]) if "bbox" in query else None
        limit = int(query.get("limit", 2000))
        return find_in_box(self.points, box, limit, after=first, before=last, ids=ids, **options)

    @property
    def points(self) -> MapPoints:
        """The photos as the real server keeps them."""
        latitudes, longitudes = self.positions.T
        return MapPoints(
            ids=np.arange(len(latitudes)),
            latitudes=latitudes,
            longitudes=longitudes,
            headings=self.headings.astype(np.float32),
            times=self.times,
            mercator_y=to_mercator_y(latitudes),
        )


def make_app(city: FakeCity, **config: object) -> FastAPI:
    app = FastAPI(openapi_url=None)
    app.mount("/static", StaticFiles(directory=WEB))

    @app.middleware("http")
    async def record_request(request: Request, call_next):
        city.requests.append(f"{request.method} {request.url.path}")
        response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(WEB / "index.html")

    @app.get("/config.json")
    def configuration() -> dict:
        bounds = bounding_box(*city.positions.T) if len(city.positions) else None
        base = {
            "tiles": None,
            "attribution": "",
            "can_write": False,
            "can_match": True,
            "can_convert_heic": False,
            "count": len(city.positions),
            "last_id": len(city.positions) - 1,
            "bounds": bounds,
            "times": times_of(city.points),
            "name": "synthetic city",
            "samples": [],
            "offered_tiles": None,
        }
        return base | {"model": "synthetic", "max_upload_mb": 2, "max_files": 16, "time_limit_s": 30} | config

    @app.post("/locate")
    async def locate(request: Request) -> Response:
        async with request.form(max_files=16) as form:
            is_empty = city.find(request.query_params)["total"] == 0
            names = [upload.filename for upload in form.getlist("files")]
        await asyncio.sleep(city.delay_s)
        if names[0].startswith("busy") and not city.num_busy:
            city.num_busy += 1
            return JSONResponse(
                {"detail": "The server is busy; try again in a moment."}, 429, headers={"Retry-After": "1"}
            )
        if names[0].startswith("broken"):
            return JSONResponse({"detail": f"{names[0]} is <b>incomplete</b>. Try exporting it again."}, 422)
        if is_empty:
            reason = {"reason": "no photo of the index matches the filter", "neighbours": []}
            return JSONResponse({"results": [city.answer("elsewhere") | reason]})
        return JSONResponse({"results": [city.answer(name) for name in names]})

    @app.get("/photos")
    def photos(request: Request, cells: int | None = None, sample: int | None = None) -> JSONResponse:
        return JSONResponse(city.find(request.query_params, cells=cells, sample=sample))

    @app.get("/lines")
    def lines(bbox: str) -> dict:
        box = parse_box(bbox)
        inside = in_box(*city.positions.T, box)[::12]
        line = city.positions[::12][inside, ::-1].ravel().tolist() if city.are_lines else []
        return {"total": len(line), "lines": [line] if line else []}

    @app.get("/samples/{number}")
    def sample(number: int) -> Response:
        return Response(make_photo(number, (640, 480)), media_type="image/jpeg")

    @app.get("/photos/{index}")
    def photo(index: int) -> Any:
        if index >= len(city.positions):
            return JSONResponse({"detail": f"There is no photo {index}."}, 404)
        others = {"previous": index - 12 if index >= 12 else None, "next": index + 12}
        fields = {"name": f"street/{index:06d}.jpg", "time": city.times[index], "source": "synthetic"}
        return city.record(index) | fields | (others if city.are_sequences else {"previous": None, "next": None})

    @app.get("/photos/{index}/image")
    def image(index: int) -> Response:
        raw = city.photos[index % len(city.photos)].read_bytes() if city.photos else make_photo(index)
        return Response(raw, media_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})

    @app.post("/photos/{index}/matches")
    async def matches(index: int, request: Request) -> Response:
        async with request.form(max_files=1) as form:
            assert len(form.getlist("files")) == 1
        points = np.random.default_rng(index).integers(50, 950, (24, 2))
        rows = np.concatenate([points, np.clip(points + 20, 0, 999)], axis=1)
        return JSONResponse({"found": 64 if index % 2 == 0 else 9, "chance_below": 30, "points": rows.ravel().tolist()})

    return app


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve an app on a free port and yield its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < until and thread.is_alive(), "the fake server did not start"
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)
