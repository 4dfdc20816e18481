"""REST API over a photo index, and the map.

    localizer = Localizer("my-city.index")
    app = create_app(localizer, ServerSettings())    # for any ASGI server
    serve(localizer, ServerSettings(port=8000))      # run until stopped

Files, each importing only files listed above it:

    hosts          host names and origins of requests
    json_lines     log lines as JSON
    settings       address, limits, token
    sockets        sockets that a server listens on
    workers        several processes on one port: start them, start them again, stop them
    failures       errors as responses: status and message
    metrics        Prometheus metrics
    freed_memory   return memory that requests leave behind to the system
    threads        how many threads compute a batch, and how many batches are computed at a time
    fair_queue     a queue in which requests take turns
    parameters     parse `near`, `bbox`, dates and numbers of a request; refuse unknown names
    uploads        request bodies read as streams, with limits
    batching       a queue of photos: decoded by threads, located in batches
    points         the photos in a box of the map, clusters of them, or their density
    sequences      photos of one folder in time order
    samples        photos that the map offers to try
    static         the files of the map, and the page about the API
    middleware     host names, origins, time limit, log, metrics and headers of every request
    new_photos     convert an upload to a new photo of the index
    served_index   the index of a server: positions in memory, changes one at a time
    photo_routes   view, add and delete photos of the index
    single_worker  tasks that run one after the other
    matching       matching points of an upload and a photo of the index
    conversion     HEIC photos to JPEG
    app            create_app: all routes
    connections    deadlines of connections, and a limit on their number
    process        serve: socket, log, signals

FastAPI and the other packages of a server come with `pip install 'cosplace[serve]'`.  Importing this package does not
need them; using create_app or serve does.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from cosplace.errors import ConfigError
from cosplace.server.settings import ServerSettings as ServerSettings

if TYPE_CHECKING:
    from cosplace.server.app import create_app as create_app
    from cosplace.server.process import serve as serve

REQUIRED_PACKAGES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "threadpoolctl")


def require_extra() -> None:
    """Raise ConfigError when a package of the `serve` extra is not installed."""
    missing = [name for name in REQUIRED_PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(f"Serving needs {', '.join(missing)}. Install with: pip install 'cosplace[serve]'.")


def __getattr__(name: str) -> Any:
    """Import create_app and serve when they are first used."""
    if name == "create_app":
        require_extra()
        from cosplace.server.app import create_app

        return create_app
    if name == "serve":
        require_extra()
        from cosplace.server.process import serve

        return serve
    raise AttributeError(f"module 'cosplace.server' has no attribute '{name}'")
