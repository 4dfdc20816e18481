"""create_app: the application with all its routes."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from cosplace import __version__
from cosplace.config.server import NO_TILES
from cosplace.errors import ConfigError, CosPlaceError, ImageError
from cosplace.index.trials import end_trials
from cosplace.localization.answers import Location, as_json
from cosplace.localization.exif_positions import compare_with_exif
from cosplace.localization.localizer import Localizer
from cosplace.photos.metadata import metadata_from_exif
from cosplace.server.batching import DecodingMemory, PhotoQueue
from cosplace.server.conversion import add_conversion_route, can_convert
from cosplace.server.failures import BusyError, ExpiredError, FailureLog, describe_failure
from cosplace.server.freed_memory import FreedMemory
from cosplace.server.matching import add_matching_route, can_match
from cosplace.server.metrics import Metrics
from cosplace.server.middleware import RequestMiddleware
from cosplace.server.parameters import (
    AFTER_HELP,
    BBOX_HELP,
    BEFORE_HELP,
    NEAR_HELP,
    SequenceOf,
    check_names,
    parse_filter,
)
from cosplace.server.photo_routes import add_photo_routes, public_name
from cosplace.server.samples import Sample, describe, read_samples
from cosplace.server.served_index import ServedIndex, index_name
from cosplace.server.settings import OFFERED_TILES, ServerSettings
from cosplace.server.static import (
    api_page,
    api_style_sheet,
    chart_file,
    public_calibration_page,
    read_static_files,
    static_response,
)
from cosplace.server.uploads import Upload, UploadReader, files_body
from cosplace.server.workers import Worker

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"description": "invalid request; `detail` says why"},
    408: {"description": "the upload exceeded the time limit"},
    413: {"description": "too many bytes, pixels or photos"},
    415: {"description": "not a JPEG, PNG or WebP image"},
    422: {"description": "a damaged photo, or an invalid parameter or form field"},
    429: {"description": "the server is busy; try again after `Retry-After` seconds"},
    503: {"description": "the index is missing or damaged"},
    504: {"description": "the response exceeded the time limit"},
}


def create_app(localizer: Localizer, settings: ServerSettings | None = None, worker: Worker | None = None) -> FastAPI:
    """Create the application for an opened index; several can run in one process.

    For any ASGI server that supports lifespan: threads start with it, and at its end all accepted photos are finished.
    worker: this process is one of several.  Raises ConfigError for settings with several workers, as an app is one.
    """
    settings = settings or ServerSettings()
    if settings.workers > 1:
        raise ConfigError(
            f"An application runs in one process, got workers={settings.workers}. Use `cosplace serve --workers "
            f"{settings.workers}`."
        )
    localizer.encoder.compile(settings.max_batch)  # else the first requests would take longer than the time limit
    metrics = Metrics()
    memory = DecodingMemory()
    queue = PhotoQueue(localizer, settings, metrics, memory)
    reader = UploadReader(settings)
    served = ServedIndex(localizer, settings, memory)
    samples = read_samples(settings.samples, localizer.index)
    metrics.set_gauges(
        queued=lambda: queue.num_photos, indexed=lambda: served.num_photos, body_bytes=lambda: reader.num_bytes
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        queue.start()
        served.start()
        works = (served.refresh_forever(), metrics.share_forever(), FreedMemory().check_forever())
        tasks = [asyncio.create_task(work) for work in works]
        yield
        for task in tasks:
            task.cancel()
        end_trials()
        await asyncio.to_thread(queue.close)
        await asyncio.to_thread(served.close)

    app = FastAPI(
        title="CosPlace",
        version=__version__,
        description="Find where a photo was taken, from an index of photos with known positions.",
        docs_url=None,  # FastAPI's own pages load scripts from other servers
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.failures = FailureLog()
    app.add_middleware(RequestMiddleware, settings=settings, metrics=metrics)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(CosPlaceError, _handle_error)
    _add_locate_route(app, queue, reader, served)
    add_photo_routes(app, served, reader)
    add_matching_route(app, served, reader)
    add_conversion_route(app, served, reader)
    _add_status_routes(app, queue, served, metrics, samples, worker=worker)
    _add_page_routes(app, served)
    return app


# --- errors ----------------------------------------------------------------------------------------------------------


async def _handle_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    messages = [f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()]
    return JSONResponse({"detail": "; ".join(messages)}, 422)


async def _handle_error(request: Request, error: Exception) -> Response:
    failure = describe_failure(error)
    if failure.status >= 500:
        request.app.state.failures.note(error)
    return JSONResponse({"detail": failure.message}, failure.status, failure.headers)


# --- locate ----------------------------------------------------------------------------------------------------------


def _add_locate_route(app: FastAPI, queue: PhotoQueue, reader: UploadReader, served: ServedIndex) -> None:
    check = [Depends(check_names)]

    @app.post("/locate", dependencies=check, openapi_extra=files_body(), responses=ERROR_RESPONSES)
    async def locate(  # noqa: PLR0917 - parameters of the query
        request: Request,
        near: Annotated[str | None, Query(description=NEAR_HELP)] = None,
        bbox: Annotated[str | None, Query(description=BBOX_HELP)] = None,
        after: Annotated[str | None, Query(description=AFTER_HELP)] = None,
        before: Annotated[str | None, Query(description=BEFORE_HELP)] = None,
        sequence: SequenceOf = None,
    ) -> Response:
        """Find where photos were taken: `results` has a location or an `error` for each, in the order sent."""
        deadline = time.monotonic() + queue.settings.time_limit_s
        ids = None if sequence is None else await asyncio.to_thread(served.ids_of_sequence, sequence)
        where = parse_filter(near, bbox, after, before, None if ids is None else ids.tolist())
        if queue.is_full():  # checked before the body is read
            raise BusyError("The server is busy; try again in a moment.")
        async with reader.read(request) as form:
            futures = queue.submit(form.uploads, where, deadline)
            outcomes = await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        _count_outcomes(queue.metrics, outcomes)
        app.state.failures.note_answers(outcomes)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if len(errors) == len(outcomes):
            raise _combined_error(errors)
        return await asyncio.to_thread(_results_response, form.uploads, outcomes)


def _results_response(uploads: Sequence[Upload], outcomes: Sequence[Location | BaseException]) -> JSONResponse:
    """Return the results of one request, in the order sent."""
    results = [
        _with_exif(outcome, upload)
        if isinstance(outcome, Location)
        else {"photo": upload.name, "error": describe_failure(outcome).message}
        for upload, outcome in zip(uploads, outcomes, strict=True)
    ]
    return JSONResponse({"results": results})


def _with_exif(location: Location, upload: Upload) -> dict[str, Any]:
    """Return an answer as JSON, with the EXIF position of the photo as `exif`, if it has one."""
    exif = compare_with_exif(location, metadata_from_exif(upload.raw))
    return public_json(location) | ({} if exif is None else {"exif": exif})


def public_json(location: Location) -> dict[str, Any]:
    """Return an answer as JSON for clients: as on the command line, but with names of photos instead of paths."""
    content = as_json(location)
    for row, match in zip(content["neighbours"], location.neighbours, strict=True):
        del row["path"]
        row["name"] = public_name(match.name)
    return content


def _combined_error(errors: Sequence[BaseException]) -> HTTPException:
    """Return one error for a request whose photos all failed."""
    failures = [describe_failure(error) for error in errors]
    statuses = {failure.status for failure in failures}
    highest = max(statuses)
    status = highest if len(statuses) == 1 or highest >= 500 else 422
    headers = next((failure.headers for failure in failures if failure.headers), None)
    return HTTPException(status, " ".join(dict.fromkeys(failure.message for failure in failures)), headers)


def _count_outcomes(metrics: Metrics, outcomes: Sequence[Location | BaseException]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, Location):
            label = "unknown" if outcome.unknown else "located"
        elif isinstance(outcome, ExpiredError):
            label = "expired"
        else:
            label = "refused" if isinstance(outcome, ImageError) else "failed"
        metrics.photos.labels(label).inc()


# --- status ----------------------------------------------------------------------------------------------------------


def _add_status_routes(
    app: FastAPI,
    queue: PhotoQueue,
    served: ServedIndex,
    metrics: Metrics,
    samples: Sequence[Sample],
    *,
    worker: Worker | None,
) -> None:
    settings = queue.settings
    started = time.monotonic()

    @app.get("/health", responses={503: {"description": "the server is not processing photos"}})
    async def show_health() -> Response:
        """Whether the server is processing photos; `degraded`: it is, but `problems` need attention."""
        is_working, problems = queue.is_working(), served.problems()
        if (problem := app.state.failures.index_problem) and problem not in problems:
            problems.append(problem)
        if worker is not None:
            problems += worker.problems()
        content = {
            "status": "stopped" if not is_working else "degraded" if problems else "ok",
            "problems": problems,
            "photos": served.num_photos,
            "in_line": queue.num_photos,
            "model": served.model,
            "version": __version__,
            "uptime_s": round(time.monotonic() - started, 1),
        }
        if worker is not None:
            content["worker"] = worker.number
        return JSONResponse(content, 200 if is_working else 503)

    @app.get("/metrics")
    def show_metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/config.json")
    async def show_config() -> Response:
        """Settings for the map."""
        return JSONResponse(
            {
                "tiles": None if settings.tiles == NO_TILES else settings.tiles,
                "attribution": settings.attribution,
                "can_write": settings.token is not None,
                "can_match": can_match(),
                "can_convert_heic": can_convert(),
                "calibrated": served.certainty.calibration is not None,
                "count": served.num_photos,
                "last_id": served.last_id,
                "bounds": served.bounds,
                "times": served.times,
                "name": settings.name or index_name(served.index.address),
                "samples": describe(samples),
                "offered_tiles": OFFERED_TILES if settings.tiles is None else None,
                "model": served.model,
                "max_upload_mb": settings.max_upload_mb,
                "max_files": settings.max_files,
                "time_limit_s": settings.time_limit_s,
            }
        )

    @app.get("/samples/{number}", responses={404: {"description": "no such photo"}})
    async def show_sample(number: Annotated[int, Path(ge=0)]) -> Response:
        """A photo to try, as JPEG; `samples` of /config.json lists them."""
        if number >= len(samples):
            raise HTTPException(404, f"There is no sample {number}.")
        return Response(samples[number].jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=60"})


# --- pages -----------------------------------------------------------------------------------------------------------


def _add_page_routes(app: FastAPI, served: ServedIndex) -> None:
    files, style, charts = read_static_files(), api_style_sheet(), chart_file()

    @app.get("/", include_in_schema=False)
    async def show_map(request: Request) -> Response:
        return static_response(files.get("index.html"), request)

    @app.get("/static/{name:path}", include_in_schema=False)
    async def show_file(name: str, request: Request) -> Response:
        return static_response(files.get(name), request)

    @app.get("/calibration", include_in_schema=False)
    async def show_calibration() -> Response:
        calibration = served.certainty.calibration
        if calibration is None:
            raise HTTPException(404, "This index is not calibrated. Run `cosplace index calibrate INDEX`.")
        return HTMLResponse(public_calibration_page(calibration, served.index))

    @app.get("/docs", include_in_schema=False)
    async def show_docs(request: Request) -> Response:
        return HTMLResponse(api_page(app.openapi(), str(request.base_url)))

    @app.get("/docs.css", include_in_schema=False)
    async def show_style(request: Request) -> Response:
        return static_response(style, request)

    @app.get("/charts.js", include_in_schema=False)
    async def show_charts(request: Request) -> Response:
        return static_response(charts, request)
