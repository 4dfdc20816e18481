"""create_app: the routes that locate, and those that tell about the server."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from cosplace import __version__
from cosplace.errors import CosPlaceError, ImageError, PhotoFormatError, PhotoSizeError
from cosplace.index.filters import SearchFilter
from cosplace.localization.answers import as_json
from cosplace.localization.localizer import Localizer
from cosplace.server.batching import BusyError, ExpiredError, Line
from cosplace.server.metrics import Metrics
from cosplace.server.middleware import Guard
from cosplace.server.parameters import BBOX_TEXT, NEAR_TEXT, parse_bbox, parse_near
from cosplace.server.photo_routes import Shelf, add_photo_routes
from cosplace.server.settings import ServerSettings
from cosplace.server.static import answer_with_bytes, answer_with_file, api_page, read_static_files, style_sheet
from cosplace.server.uploads import Intake, files_body

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "the request is broken: `detail` says how"},
    408: {"description": "the upload took longer than a request may"},
    413: {"description": "too large: bytes, pixels or number of photos"},
    415: {"description": "no JPEG, PNG or WebP photo"},
    422: {"description": "a damaged photo, or a parameter that cannot be read"},
    429: {"description": "busy: come back after `Retry-After` seconds"},
    504: {"description": "not answered in time"},
}

log = logging.getLogger("cosplace.server")


def build_app(localizer: Localizer, settings: ServerSettings) -> FastAPI:
    """All routes over one localizer."""
    metrics = Metrics()
    line, intake, shelf = Line(localizer, settings, metrics), Intake(settings), Shelf(localizer, settings)
    metrics.watch(queue=lambda: line.num_inside, indexed=lambda: shelf.count, bodies=lambda: intake.num_bytes)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        line.start()
        shelf.start()
        watching = asyncio.create_task(_watch(shelf, settings.refresh_s))
        yield
        watching.cancel()
        await asyncio.to_thread(line.close)
        await asyncio.to_thread(shelf.close)

    app = FastAPI(
        title="CosPlace",
        version=__version__,
        description="Where was this photo taken? Answers from an index of photos with known positions.",
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    app.add_exception_handler(RequestValidationError, _explain_parameters)
    app.add_exception_handler(CosPlaceError, _explain_error)
    _add_locate_route(app, line, intake)
    add_photo_routes(app, shelf, intake)
    _add_status_routes(app, line, shelf, metrics, settings)
    _add_page_routes(app)
    return app


async def _watch(shelf: Shelf, seconds: float) -> None:
    """See what other processes write to the index."""
    while seconds:
        await asyncio.sleep(seconds)
        try:
            await asyncio.to_thread(shelf.catch_up)
        except CosPlaceError:
            log.exception("the index cannot be read", extra={"event": "storage"})


async def _explain_parameters(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    texts = [f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()]
    return JSONResponse({"detail": "; ".join(texts)}, 422)


async def _explain_error(_: Request, error: Exception) -> Response:
    if status_of(error) >= 500:
        log.error("", exc_info=error, extra={"event": "failed"})
    return JSONResponse({"detail": _one_line(error)}, status_of(error), _retry_after(error))


def status_of(error: BaseException) -> int:
    """The HTTP status that tells what kind of error it is."""
    statuses = {BusyError: 429, ExpiredError: 504, PhotoFormatError: 415, PhotoSizeError: 413, ImageError: 422}
    return next((status for kind, status in statuses.items() if isinstance(error, kind)), 500)


def _retry_after(error: BaseException) -> dict[str, str]:
    return {"Retry-After": "1"} if isinstance(error, BusyError) else {}


def _one_line(error: BaseException) -> str:
    """What a stranger is told: of other errors the log tells, as their texts may name files of the server."""
    if isinstance(error, ImageError | BusyError | ExpiredError):
        return " ".join(str(error).split())
    return "The server could not do this; its log tells why."


# --- locating --------------------------------------------------------------------------------------------------------


def _add_locate_route(app: FastAPI, line: Line, intake: Intake) -> None:
    @app.post("/locate", openapi_extra=files_body(), responses=REFUSALS)
    async def locate(
        request: Request,
        near: Annotated[str | None, Query(description=NEAR_TEXT)] = None,
        bbox: Annotated[str | None, Query(description=BBOX_TEXT)] = None,
    ) -> Response:
        """Where each photo was taken: `results` holds an answer or an `error` for each, in the order sent."""
        deadline = time.monotonic() + line.settings.time_limit_s
        where = None
        if near is not None or bbox is not None:
            where = SearchFilter(
                near=None if near is None else parse_near(near), bbox=None if bbox is None else parse_bbox(bbox)
            )
        if line.is_full():  # before the body is read
            raise BusyError("The server has its hands full: try again in a moment.")
        async with intake.read(request) as form:
            line.reserve(len(form.uploads))
            answers = [line.submit(upload.raw, upload.name, where, deadline) for upload in form.uploads]
            found = await asyncio.gather(*map(asyncio.wrap_future, answers), return_exceptions=True)
        names = [upload.name for upload in form.uploads]
        _count(line.metrics, found)
        errors = [answer for answer in found if isinstance(answer, BaseException)]
        if len(errors) == len(found):
            raise _all_refused(errors)
        results = [
            {"photo": name, "error": _one_line(answer)} if isinstance(answer, BaseException) else as_json(answer)
            for name, answer in zip(names, found, strict=True)
        ]
        return JSONResponse({"results": results})


def _all_refused(errors: list[BaseException]) -> HTTPException:
    """One answer for photos of which none can be located."""
    statuses = Counter(map(status_of, errors))
    worst = max(statuses)
    status = worst if len(statuses) == 1 or worst >= 500 else 422
    headers = next(filter(None, map(_retry_after, errors)), None)
    return HTTPException(status, " ".join(dict.fromkeys(map(_one_line, errors))), headers)


def _count(metrics: Metrics, found: list[Any]) -> None:
    for answer in found:
        if not isinstance(answer, BaseException):
            outcome = "unknown" if answer.unknown else "located"
        elif isinstance(answer, ExpiredError):
            outcome = "expired"
        else:
            outcome = "refused" if isinstance(answer, ImageError) else "failed"
        metrics.photos.labels(outcome).inc()


# --- about the server ------------------------------------------------------------------------------------------------


def _add_status_routes(app: FastAPI, line: Line, shelf: Shelf, metrics: Metrics, settings: ServerSettings) -> None:
    started = time.monotonic()

    @app.get("/health", responses={503: {"description": "no photo can be located now"}})
    async def health() -> Response:
        """Whether photos are being located."""
        working = line.is_working()
        content = {
            "status": "ok" if working else "stopped",
            "photos": shelf.count,
            "in_line": line.num_inside,
            "model": shelf.model,
            "version": __version__,
            "uptime_s": round(time.monotonic() - started, 1),
        }
        return JSONResponse(content, 200 if working else 503)

    @app.get("/metrics")
    def show_metrics() -> Response:
        """Counters for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/config.json")
    async def show_config() -> Response:
        """What the map needs to know."""
        return JSONResponse(
            {
                "tiles": settings.tiles,
                "attribution": settings.attribution,
                "can_write": settings.token is not None,
                "count": shelf.count,
                "bounds": shelf.points.bounds(),
                "model": shelf.model,
                "max_upload_mb": settings.max_upload_mb,
                "max_files": settings.max_files,
            }
        )


def _add_page_routes(app: FastAPI) -> None:
    files, style = read_static_files(), style_sheet()

    @app.get("/", include_in_schema=False)
    async def show_map(request: Request) -> Response:
        return answer_with_file(files, "index.html", request)

    @app.get("/static/{name:path}", include_in_schema=False)
    async def show_file(name: str, request: Request) -> Response:
        return answer_with_file(files, name, request)

    @app.get("/docs", include_in_schema=False)
    async def show_docs(request: Request) -> Response:
        return HTMLResponse(api_page(app.openapi(), str(request.base_url)))

    @app.get("/docs.css", include_in_schema=False)
    async def show_style(request: Request) -> Response:
        return answer_with_bytes(style, request)
