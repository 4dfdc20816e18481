"""A REST API over one photo index, and the map.

    app = create_app(Localizer("my-city.index"), ServerSettings())    # for any ASGI server
    serve("my-city.index", ServerSettings(port=8000))                 # run until stopped

Files, each importing only files listed above it:

    settings       address, limits, token
    metrics        Prometheus metrics
    batching       a queue of photos: decoded by threads, located in batches
    uploads        request bodies read as streams, with limits
    parameters     parse `near`, `bbox` and numbers of a request
    points         the photos in a box of the map, or clusters of them
    static         the files of the map, and the page about the API
    middleware     hosts, headers, time limits, one log line and metrics of each request
    additions      add an uploaded photo to the index
    photo_routes   view, add and delete photos of the index
    app            create_app: all routes
    process        serve: socket, log, signals

FastAPI and its companions come with `pip install 'cosplace[serve]'`; importing this package needs none of them.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cosplace.errors import ConfigError
from cosplace.server.settings import ServerSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from cosplace.localization.localizer import Localizer

__all__ = ["ServerSettings", "create_app", "require_extra", "serve"]

EXTRA = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def require_extra() -> None:
    """Raise ConfigError, with the cure, when a package that serving needs is not installed."""
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise ConfigError(f"Serving needs {', '.join(missing)}: install with  pip install 'cosplace[serve]'.")


def create_app(localizer: "Localizer", settings: ServerSettings | None = None) -> "FastAPI":
    """The application over an opened index; several may live in one process.

    It owns a worker thread from the start of its lifespan to the end, which finishes what was accepted.
    Raises ConfigError when the `serve` extra is not installed.
    """
    require_extra()
    from cosplace.server.app import build_app

    return build_app(localizer, settings or ServerSettings())


def serve(
    index: str | Path,
    settings: ServerSettings | None = None,
    *,
    device: str = "auto",
    precision: float | None = None,
    min_confidence: float | None = None,
    uncalibrated: bool = False,
    trust_remote_code: bool = False,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Serve an index until SIGTERM or SIGINT; what was accepted by then is still answered.

    device, precision, min_confidence, uncalibrated, trust_remote_code: as Localizer takes them.  announce: is told the
    address.
    Raises ConfigError for a port that is taken, and what Localizer raises for an index that is none.
    """
    require_extra()
    from cosplace.server.process import run_server

    run_server(
        index,
        settings or ServerSettings(),
        device=device,
        precision=precision,
        min_confidence=min_confidence,
        uncalibrated=uncalibrated,
        trust_remote_code=trust_remote_code,
        announce=announce or (lambda _: None),
    )
