"""Routes for the photos of the index: anyone may view them, a token is required to add or delete them."""

import asyncio
import gzip
import hmac
import json
import re
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from cosplace.errors import PhotoIndexError
from cosplace.server.failures import describe_failure
from cosplace.server.new_photos import FIELDS
from cosplace.server.parameters import (
    AFTER_HELP,
    BBOX_HELP,
    BEFORE_HELP,
    MAX_PHOTO_ID,
    SequenceOf,
    parse_box,
    parse_times,
)
from cosplace.server.points import find_in_box
from cosplace.server.sequences import lines_in_box, neighbors_of
from cosplace.server.served_index import ServedIndex
from cosplace.server.uploads import UploadReader, files_body

MAX_POINTS = 100_000  # per response
DEFAULT_POINTS = 2_000
MAX_CELLS = 1_024  # per side of a density
MAX_SAMPLE = 100
MAX_STOPS = 20_000  # of lines, about, per response
MIN_GZIP_BYTES = 20_000  # smaller responses are not compressed
CELLS_HELP = (
    "above `limit`, return `density` in place of clusters, with at most this many cells per side: `level`, the world "
    "is 2**level cells wide; `cells`, [x, y, count, x, y, count, ...] from the northwest"
)
SAMPLE_HELP = "return at most this many photos, spread evenly, and no clusters"
SLASH = r"(?:/|\\(?!x[0-9a-f]{2}))"  # also of Windows; "\xff" is a byte that is not UTF-8, see `path_text`
ABSOLUTE_PATH = re.compile(rf"{SLASH}|[A-Za-z]:{SLASH}|\w+://")  # the start of one

PhotoId = Annotated[int, Path(ge=0, le=MAX_PHOTO_ID, description="the id in an answer")]


def add_photo_routes(app: FastAPI, served: ServedIndex, reader: UploadReader) -> None:
    """Add GET, POST and DELETE of /photos."""
    _add_read_routes(app, served)
    _add_write_routes(app, served, reader)


def _add_read_routes(app: FastAPI, served: ServedIndex) -> None:
    @app.get("/photos")
    async def show_photos(  # noqa: PLR0917 - parameters of the query
        request: Request,
        bbox: Annotated[str | None, Query(description=BBOX_HELP)] = None,
        limit: Annotated[int, Query(ge=4, description=f"points and clusters, up to {MAX_POINTS}")] = DEFAULT_POINTS,
        after: Annotated[str | None, Query(description=AFTER_HELP)] = None,
        before: Annotated[str | None, Query(description=BEFORE_HELP)] = None,
        sequence: SequenceOf = None,
        cells: Annotated[int | None, Query(ge=8, le=MAX_CELLS, description=CELLS_HELP)] = None,
        sample: Annotated[int | None, Query(ge=1, le=MAX_SAMPLE, description=SAMPLE_HELP)] = None,
    ) -> Response:
        """The photos in a box: points, or clusters (with `cells`: a density) where there are more than `limit`."""
        box = None if bbox is None else parse_box(bbox)
        first, last = parse_times(after, before)
        accepts_gzip = "gzip" in request.headers.get("accept-encoding", "")
        return await asyncio.to_thread(
            lambda: _json_response(
                find_in_box(
                    served.points,
                    box,
                    min(limit, MAX_POINTS),
                    after=first,
                    before=last,
                    ids=served.ids_of_sequence(sequence),
                    cells=cells,
                    sample=sample,
                ),
                accepts_gzip=accepts_gzip,
            )
        )

    @app.get("/lines")
    async def show_lines(
        request: Request, bbox: Annotated[str | None, Query(description=BBOX_HELP)] = None
    ) -> Response:
        """The lines of sequences in a box: each is [longitude, latitude, longitude, latitude, ...]."""
        box = None if bbox is None else parse_box(bbox)
        accepts_gzip = "gzip" in request.headers.get("accept-encoding", "")
        return await asyncio.to_thread(
            lambda: _json_response(lines_in_box(served.sequences, box, MAX_STOPS), accepts_gzip=accepts_gzip)
        )

    @app.get("/photos/{photo_id}", responses={404: {"description": "no such photo"}})
    async def show_photo(photo_id: PhotoId) -> Response:
        """One photo of the index; its time is in seconds since 1970, UTC.

        `previous`, `next`: ids of the photos before and after it, if its folder is a sequence.
        """
        photo = await asyncio.to_thread(read_photo, served, photo_id, served.index.photo)
        names = ("id", "latitude", "longitude", "heading", "time", "accuracy_m")
        content = {name: getattr(photo, name) for name in names}
        # The source is the folder that the photo was added from, or another word.
        content["previous"], content["next"] = await asyncio.to_thread(lambda: neighbors_of(served.sequences, photo_id))
        return JSONResponse(content | {"name": public_name(photo.name), "source": last_part(photo.source)})

    @app.get("/photos/{photo_id}/image", responses={404: {"description": "no such photo, or no thumbnails"}})
    async def show_thumbnail(photo_id: PhotoId) -> Response:
        """The thumbnail of one photo, as JPEG."""
        jpeg = await asyncio.to_thread(read_photo, served, photo_id, served.index.thumbnail)
        if not jpeg:
            raise HTTPException(404, "This index has no thumbnails.")
        # Ids are never reused, so a thumbnail never changes.
        return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def _add_write_routes(app: FastAPI, served: ServedIndex, reader: UploadReader) -> None:
    token = served.settings.token

    def check_token(
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> None:
        if token is None:
            raise HTTPException(403, "This server is read-only. Start it with --token to allow changes.")
        # Compared in constant time, so that a token cannot be guessed letter by letter.
        if credentials is None or not hmac.compare_digest(credentials.credentials.encode(), token.encode()):
            raise HTTPException(
                401,
                "The token is missing or wrong. Send `Authorization: Bearer TOKEN`.",
                {"WWW-Authenticate": "Bearer"},
            )

    errors: dict[int | str, dict[str, Any]] = {
        401: {"description": "the token is missing or wrong"},
        403: {"description": "this server is read-only"},
        409: {"description": "another process is writing to the index"},
        503: {"description": "the index is missing or damaged"},
        507: {"description": "too little space is free on the disk of the server, or it may not write"},
    }

    @app.post(
        "/photos",
        status_code=201,
        dependencies=[Depends(check_token)],
        openapi_extra=files_body(FIELDS),
        responses={**errors, 422: {"description": "no photo could be added; `detail` says why"}},
    )
    async def add_photos(request: Request) -> Response:
        """Add photos, at the position in the form or in their EXIF data; `results` has an id or an `error` for each.

        A photo that is already in the index is not added again: its result has its id, and `added` is false.
        """
        async with reader.read(request, FIELDS) as form:
            results = await served.run_change(lambda: served.add(form.uploads, form.fields))
        messages = [result["error"] for result in results if "error" in result]
        if len(messages) == len(results):
            raise HTTPException(422, " ".join(dict.fromkeys(messages)))
        return JSONResponse({"results": results}, 201)

    @app.delete(
        "/photos/{photo_id}",
        dependencies=[Depends(check_token)],
        responses={**errors, 404: {"description": "no such photo"}},
    )
    async def delete_photo(photo_id: PhotoId) -> Response:
        """Delete one photo from the index."""
        if not await served.run_change(lambda: served.remove(photo_id)):
            raise HTTPException(404, f"There is no photo {photo_id}.")
        return JSONResponse({"deleted": photo_id})


def read_photo(served: ServedIndex, photo_id: int, read: Callable[[int], Any]) -> Any:
    """Read a photo of the index.  Raises HTTPException 404 if it has none with this id, PhotoIndexError otherwise."""
    try:
        found = read(photo_id)
    except PhotoIndexError as error:
        if served.index.columns().row_of(photo_id) is None:
            raise HTTPException(404, f"There is no photo {photo_id}.") from None
        served.photo_problem = describe_failure(error).message
        raise
    served.photo_problem = ""
    return found


def public_name(name: str) -> str:
    """Return the name of a photo for clients: without the folders of this server, even if the index has them."""
    return last_part(name) if ABSOLUTE_PATH.match(name) else name


def last_part(path: str) -> str:
    """Return the last part of a path."""
    return next((part for part in reversed(re.split(SLASH, path)) if part), "")


def _json_response(content: dict[str, Any], *, accepts_gzip: bool) -> Response:
    body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    headers = {"Vary": "Accept-Encoding"}
    if accepts_gzip and len(body) >= MIN_GZIP_BYTES:
        body = gzip.compress(body, 1)
        headers["Content-Encoding"] = "gzip"
    return Response(body, media_type="application/json", headers=headers)
