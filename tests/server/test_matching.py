"""Matching points of an upload and a photo of the index."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from cosplace.localization.local_features import MIN_INLIERS, detect_features
from cosplace.localization.localizer import Localizer
from cosplace.photos.opening import decode_upload
from cosplace.report.feature_matches import match_pair
from cosplace.server import matching
from tests.server.server_samples import client_of, encoded, good_photo, make_index

pytest.importorskip("cv2")
pytestmark = pytest.mark.slow  # too slow for make check; make test runs all


@pytest.fixture(scope="module")
def localizer(tmp_path_factory: pytest.TempPathFactory) -> Localizer:
    return Localizer(make_index(tmp_path_factory.mktemp("matching")), device="cpu", uncalibrated=True)


@pytest.fixture
def client(localizer: Localizer):
    with client_of(localizer) as client:
        yield client


def test_points_are_those_of_the_matcher(client, localizer, monkeypatch) -> None:
    small = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    texture = np.asarray(Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC))
    # The upload is a part of the photo of the index: its points are 100 pixels to the right and 60 down.
    photo = torch.from_numpy(texture.copy()).permute(2, 0, 1)
    monkeypatch.setattr(matching, "photo_pixels", lambda *_: photo)
    raw = encoded(texture[60:420, 100:600], "PNG")
    expected = match_pair(detect_features(decode_upload(raw, "a")), detect_features(photo))
    photo_id = int(localizer.index.columns().ids[0])
    for options in ({"files": [("files", ("a.png", raw, "image/png"))]}, {"content": raw}):
        found = client.post(f"/photos/{photo_id}/matches", **options)
        assert found.status_code == 200, found.text
        assert found.json() == {**expected, "chance_below": MIN_INLIERS}
    assert expected["found"] > MIN_INLIERS and len(expected["points"]) == 4 * 40
    across, down, other_across, other_down = np.array(expected["points"]).reshape(-1, 4).T
    assert np.median(np.abs(across * 0.5 + 100 - other_across * 0.64)) < 1.5
    assert np.median(np.abs(down * 0.36 + 60 - other_down * 0.48)) < 1.5
    assert client.get("/config.json").json()["can_match"] is True


def test_mistakes(client, localizer) -> None:
    photo_id = int(localizer.index.columns().ids[0])
    good = good_photo(1)
    for path, raw, status in (
        ("/photos/999999/matches", good, 404),
        ("/photos/-1/matches", good, 422),
        (f"/photos/{photo_id}/matches", b"no image", 415),
        (f"/photos/{photo_id}/matches", good[:300], 422),
        (f"/photos/{photo_id}/matches", b"", 400),
    ):
        answer = client.post(path, content=raw, headers={"content-type": "image/jpeg"})
        assert answer.status_code == status, (path, answer.text)
        assert "\n" not in answer.json()["detail"]
    two = [("files", ("a.jpg", good, "image/jpeg")), ("files", ("b.jpg", good, "image/jpeg"))]
    answer = client.post(f"/photos/{photo_id}/matches", files=two)
    assert (answer.status_code, answer.json()["detail"]) == (422, "Send one photo, got 2.")


def test_too_many_pairs_at_once_are_refused(localizer, monkeypatch) -> None:
    started, until = threading.Event(), threading.Event()

    def wait(*_) -> dict:
        started.set()
        assert until.wait(20)
        return {"found": 0, "points": [], "chance_below": MIN_INLIERS}

    monkeypatch.setattr(matching, "_match", wait)
    monkeypatch.setattr(matching, "MAX_WAITING_PAIRS", 1)
    with client_of(localizer) as client:
        statuses = []
        path = f"/photos/{int(localizer.index.columns().ids[0])}/matches"
        thread = threading.Thread(target=lambda: statuses.append(client.post(path, content=good_photo(1)).status_code))
        thread.start()
        assert started.wait(20)
        busy = client.post(path, content=good_photo(1))
        assert (busy.status_code, busy.headers["retry-after"] > "0") == (429, True)
        until.set()
        thread.join()
        assert statuses == [200]
        assert client.post(path, content=good_photo(1)).status_code == 200  # there is room again


def test_without_opencv_the_route_is_missing(localizer, monkeypatch) -> None:
    monkeypatch.setattr(matching, "has_opencv", lambda: False)
    with client_of(localizer) as client:
        assert client.post("/photos/1/matches", content=good_photo(1)).status_code in (404, 405)
        assert client.get("/config.json").json()["can_match"] is False
