"""The index's own photos: looked at by anyone, added and deleted by who shows the token."""

import asyncio
import gzip
import hmac
import json
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from cosplace.errors import ImageError, PhotoIndexError, StorageError
from cosplace.index.photo_index import PhotoIndex, open_index
from cosplace.localization.localizer import Localizer
from cosplace.server.additions import FIELDS, join_photo
from cosplace.server.batching import BusyError
from cosplace.server.parameters import BBOX_TEXT, parse_bbox
from cosplace.server.points import keep_points, look
from cosplace.server.settings import ServerSettings
from cosplace.server.uploads import Intake, Upload, files_body

MOST_POINTS = 100_000  # of one answer
DEFAULT_POINTS = 2_000
WAITING_WRITES = 8
COMPRESSED_FROM = 20_000  # bytes of an answer
LARGEST_ID = 2**63 - 1

log = logging.getLogger("cosplace.server")
T = TypeVar("T")

PhotoId = Annotated[int, Path(ge=0, le=LARGEST_ID, description="as the answers give it")]


class Shelf:
    """The photos of the index: what the map needs of them in memory, and the one thread that changes them."""

    def __init__(self, localizer: Localizer, settings: ServerSettings) -> None:
        self.localizer, self.settings = localizer, settings
        self.model = localizer.encoder.name.rpartition("/")[2] or "model"
        self.num_writes, self.lock = 0, threading.Lock()
        self.writer: ThreadPoolExecutor | None = None
        self.reload()

    @property
    def index(self) -> PhotoIndex:
        """Opened for reading."""
        return self.localizer.index

    def start(self) -> None:
        """Start the thread."""
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="cosplace-write")

    def close(self) -> None:
        """Finish the writes that were accepted."""
        if self.writer is not None:
            self.writer.shutdown(wait=True)

    def reload(self) -> None:
        """Read the positions again."""
        columns = self.index.columns()
        self.points = keep_points(columns.ids, columns.latitudes, columns.longitudes, columns.headings)
        self.count = len(columns)

    def catch_up(self) -> None:
        """See what others wrote."""
        if self.index.refresh():
            self.reload()

    async def write(self, change: Callable[[], T]) -> T:
        """Run a change after those before it.  Raises BusyError when many wait."""
        with self.lock:
            if self.writer is None or self.num_writes >= WAITING_WRITES:
                raise BusyError("Many changes are waiting: try again in a moment.")
            self.num_writes += 1

        def run() -> T:
            try:
                return change()
            finally:
                with self.lock:
                    self.num_writes -= 1

        # Shielded: a change that has begun is finished, whoever still waits for it.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self.writer, run))

    def add(self, uploads: Sequence[Upload], fields: dict[str, str]) -> list[dict[str, Any]]:
        """Describe photos and add them; for each its id, or what is wrong with it."""
        results: list[dict[str, Any]] = [{"photo": upload.name} for upload in uploads]
        joining = []
        for upload, result in zip(uploads, results, strict=True):
            try:
                joining.append((result, *join_photo(upload, fields, self.settings, self.localizer, self.index)))
            except ImageError as error:
                result["error"] = " ".join(str(error).split())
        if joining:
            found, photos, pixels = zip(*joining, strict=True)
            descriptors = self.localizer.encoder.encode(list(pixels), batch_size=self.settings.max_batch)
            added = self._change(lambda index: index.add(photos, descriptors))
            for result, photo_id, is_new in zip(found, added.ids.tolist(), added.is_new.tolist(), strict=True):
                result |= {"id": photo_id, "added": is_new}
            log.info("", extra={"event": "added", "details": {"photos": int(added.is_new.sum())}})
        return results

    def remove(self, photo_id: int) -> bool:
        """Remove a photo; whether it was there."""
        was_there = self._change(lambda index: index.remove([photo_id])) > 0
        if was_there:
            log.info("", extra={"event": "removed", "details": {"photo": photo_id}})
        return was_there

    def _change(self, change: Callable[[PhotoIndex], T]) -> T:
        """Change the index while nobody else writes, then show it as it is now."""
        if self.index.can_write:
            done = change(self.index)
        else:
            try:
                writing = open_index(self.index.address, write=True)
            except PhotoIndexError as error:
                log.warning("%s", error, extra={"event": "locked"})
                raise HTTPException(409, "The index is in use by another writer: try again when it is done.") from error
            try:
                with writing:
                    done = change(writing)
            except StorageError as error:
                log.exception("", extra={"event": "storage"})
                raise HTTPException(507, "The index has no room or cannot be written; nothing was lost.") from error
            self.index.refresh()
        self.reload()
        return done


# --- routes ----------------------------------------------------------------------------------------------------------


def add_photo_routes(app: FastAPI, shelf: Shelf, intake: Intake) -> None:
    """GET, POST and DELETE of /photos."""
    _add_reading_routes(app, shelf)
    _add_writing_routes(app, shelf, intake)


def _add_reading_routes(app: FastAPI, shelf: Shelf) -> None:
    @app.get("/photos")
    async def show_photos(
        request: Request,
        bbox: Annotated[str | None, Query(description=BBOX_TEXT)] = None,
        limit: Annotated[int, Query(ge=4, description=f"points and clusters, up to {MOST_POINTS}")] = DEFAULT_POINTS,
    ) -> Response:
        """The photos in a box: points, or clusters of them where they are more than `limit`."""
        box = None if bbox is None else parse_bbox(bbox)
        small = "gzip" in request.headers.get("accept-encoding", "")
        return await asyncio.to_thread(lambda: _packed(look(shelf.points, box, min(limit, MOST_POINTS)), small))

    @app.get("/photos/{photo_id}", responses={404: {"description": "no such photo"}})
    async def show_photo(photo_id: PhotoId) -> Response:
        """What the index knows about one photo; times are seconds since 1970, UTC."""
        photo = await asyncio.to_thread(_found, lambda: shelf.index.photo(photo_id), photo_id)
        names = ("id", "path", "latitude", "longitude", "heading", "time", "source")
        return JSONResponse({name: getattr(photo, name) for name in names})

    @app.get("/photos/{photo_id}/image", responses={404: {"description": "no such photo, or none is kept"}})
    async def show_image(photo_id: PhotoId) -> Response:
        """A small JPEG of one photo, as the index keeps it."""
        jpeg = await asyncio.to_thread(_found, lambda: shelf.index.thumbnail(photo_id), photo_id)
        if not jpeg:
            raise HTTPException(404, "This index keeps no pictures.")
        # Ids are never given again, so a picture never changes.
        return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def _add_writing_routes(app: FastAPI, shelf: Shelf, intake: Intake) -> None:
    token = shelf.settings.token

    def check_token(
        shown: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
    ) -> None:
        if token is None:
            raise HTTPException(403, "This server takes no changes: start it with a token to allow them.")
        # Compared in constant time, so that a wrong token's first letters cannot be found one by one.
        if shown is None or not hmac.compare_digest(shown.credentials.encode(), token.encode()):
            raise HTTPException(401, "Show the token: `Authorization: Bearer TOKEN`.", {"WWW-Authenticate": "Bearer"})

    refusals: dict[int | str, dict[str, Any]] = {
        401: {"description": "the token is missing or wrong"},
        403: {"description": "this server takes no changes"},
        409: {"description": "the index is in use by another writer"},
    }

    @app.post(
        "/photos",
        status_code=201,
        dependencies=[Depends(check_token)],
        openapi_extra=files_body(FIELDS),
        responses={**refusals, 422: {"description": "no photo could be added: `detail` says why"}},
    )
    async def add_photos(request: Request) -> Response:
        """Add photos where the form says, or where their EXIF data say; `results` holds an id or an `error` for each.

        A photo that is there already is not added again: its answer has its id, and `added` is false.
        """
        async with intake.read(request) as form:
            results = await shelf.write(lambda: shelf.add(form.uploads, form.fields))
        errors = [result["error"] for result in results if "error" in result]
        if len(errors) == len(results):
            raise HTTPException(422, " ".join(dict.fromkeys(errors)))
        return JSONResponse({"results": results}, 201)

    @app.delete(
        "/photos/{photo_id}",
        dependencies=[Depends(check_token)],
        responses={**refusals, 404: {"description": "no such photo"}},
    )
    async def delete_photo(photo_id: PhotoId) -> Response:
        """Delete one photo from the index."""
        if not await shelf.write(lambda: shelf.remove(photo_id)):
            raise HTTPException(404, f"There is no photo {photo_id}.")
        return JSONResponse({"deleted": photo_id})


def _found(read: Callable[[], T], photo_id: int) -> T:
    try:
        return read()
    except PhotoIndexError as error:
        raise HTTPException(404, f"There is no photo {photo_id}.") from error


def _packed(content: dict[str, Any], small: bool) -> Response:
    body = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    if not small or len(body) < COMPRESSED_FROM:
        return Response(body, media_type="application/json", headers={"Vary": "Accept-Encoding"})
    headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
    return Response(gzip.compress(body, 1), media_type="application/json", headers=headers)
