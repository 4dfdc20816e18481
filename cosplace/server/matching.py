"""Matching points of an upload and a photo of the index, for the map: one pair at a time, as each takes a core."""

from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

from cosplace.index.photo_pixels import photo_pixels
from cosplace.localization.local_features import MIN_INLIERS, detect_features, has_opencv
from cosplace.photos.opening import decode_upload
from cosplace.report.feature_matches import match_pair
from cosplace.server.batching import decoding_cost
from cosplace.server.photo_routes import PhotoId, read_photo
from cosplace.server.served_index import ServedIndex
from cosplace.server.single_worker import SingleWorker
from cosplace.server.uploads import Upload, UploadReader, files_body

MAX_WAITING_PAIRS = 8


def can_match() -> bool:
    """Whether points can be matched here: OpenCV is installed."""
    return has_opencv()


def add_matching_route(app: FastAPI, served: ServedIndex, reader: UploadReader) -> None:
    """Add POST /photos/{id}/matches, if OpenCV is installed."""
    if not can_match():
        return
    worker = SingleWorker("cosplace-match", MAX_WAITING_PAIRS)

    @app.post(
        "/photos/{photo_id}/matches",
        openapi_extra=files_body(),
        responses={
            404: {"description": "no such photo, or its file and its thumbnail are missing"},
            413: {"description": "too many bytes or pixels"},
            415: {"description": "not a JPEG, PNG or WebP image"},
            422: {"description": "a damaged photo, or more than one"},
            429: {"description": "the server is busy; try again after `Retry-After` seconds"},
        },
    )
    async def match_points(request: Request, photo_id: PhotoId) -> Response:
        """Find the points of a photo and of an indexed photo that match (local features that fit one geometry).

        Returns `found`, their number; `points`: x and y in the photo, x and y in the indexed photo, of up to 40 of
        them, in thousandths of the width and height; `chance_below`: fewer points are also found by chance.
        """
        async with worker.place(), reader.read(request) as form:
            return JSONResponse(await worker.run(_match, served, photo_id, form.only_upload()))


def _match(served: ServedIndex, photo_id: int, upload: Upload) -> dict[str, Any]:
    photo = read_photo(served, photo_id, served.index.photo)
    pixels = photo_pixels(served.index, photo.id, photo.path)
    if pixels is None:
        raise HTTPException(404, f"The file and the thumbnail of photo {photo_id} are missing.")
    with served.memory.reserve(decoding_cost(upload.raw, served.settings)):
        own = detect_features(decode_upload(upload.raw, upload.name, max_pixels=served.settings.max_pixels))
    return {**match_pair(own, detect_features(pixels)), "chance_below": MIN_INLIERS}
