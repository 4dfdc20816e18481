"""HEIC photos are converted for browsers that cannot show them."""

import io

import numpy as np
import pytest
from PIL import Image

from cosplace.localization.localizer import Localizer
from cosplace.photos.metadata import metadata_from_exif
from cosplace.server import conversion
from tests.server.server_samples import client_of, good_photo, make_index, position_of
from tests.server.test_server import with_gps

pytestmark = pytest.mark.slow  # too slow for make check; make test runs all


@pytest.fixture(scope="module")
def localizer(tmp_path_factory: pytest.TempPathFactory) -> Localizer:
    return Localizer(make_index(tmp_path_factory.mktemp("conversion")), device="cpu", uncalibrated=True)


def heic_photo() -> bytes:
    """A photo of a place with its position in EXIF, as a phone stores it."""
    pillow_heif = pytest.importorskip("pillow_heif")
    with Image.open(io.BytesIO(with_gps(*position_of(4), 0.0))) as photo:
        target = io.BytesIO()
        pillow_heif.from_pillow(photo.convert("RGB")).save(target, exif=photo.info["exif"], quality=95)
    return target.getvalue()


def test_a_heic_photo_becomes_a_jpeg_with_its_position(localizer: Localizer) -> None:
    raw = heic_photo()
    with client_of(localizer) as client:
        assert client.get("/config.json").json()["can_convert_heic"] is True
        answer = client.post("/jpeg", files={"files": ("IMG_1.HEIC", raw, "image/heic")})
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
        found = metadata_from_exif(answer.content)
        assert (found.latitude, found.longitude) == pytest.approx(position_of(4), abs=1e-5)
        with Image.open(io.BytesIO(answer.content)) as photo, Image.open(io.BytesIO(good_photo(4))) as original:
            assert photo.size == original.size
        located = client.post("/locate", content=answer.content).json()["results"][0]
        assert located["exif"]["latitude"] == pytest.approx(position_of(4)[0], abs=1e-5)


def test_other_and_damaged_photos_are_refused(localizer: Localizer) -> None:
    raw = heic_photo()
    with client_of(localizer) as client:
        for body, status, words in (
            (good_photo(1), 415, "is not a HEIC photo"),
            (raw[: len(raw) // 2], 422, "Export it as JPEG"),
            (b"", 400, "empty"),
        ):
            answer = client.post("/jpeg", content=body)
            assert answer.status_code == status and words in answer.json()["detail"], answer.text
    noise = Image.fromarray(np.zeros((400, 300, 3), np.uint8))
    target = io.BytesIO()
    pytest.importorskip("pillow_heif").from_pillow(noise).save(target)
    with client_of(localizer, max_pixels=100_000) as client:
        answer = client.post("/jpeg", content=target.getvalue())
        assert (answer.status_code, answer.json()["detail"]) == (422, "photo has 300 x 400 pixels. Resize it.")


def test_without_pillow_heif_the_route_is_missing(localizer: Localizer, monkeypatch) -> None:
    monkeypatch.setattr(conversion, "can_read_heic", lambda: False)
    with client_of(localizer) as client:
        assert client.post("/jpeg", content=good_photo(1)).status_code in (404, 405)
        assert client.get("/config.json").json()["can_convert_heic"] is False
