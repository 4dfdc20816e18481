"""A real S3 server on loopback for tests: moto's, with faults on request.

Its conditional writes are those of S3: of two writes with `If-None-Match: *` at the same time, one succeeds.  Requests
that write are handled one after the other, so that this is certain.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from urllib.request import Request, urlopen

MISSING = [name for name in ("moto", "flask_cors", "obstore") if find_spec(name) is None]
REASON = f"an S3 server needs {', '.join(MISSING)}: pip install 'moto[server]' obstore"
BUCKET = "bucket"


@dataclass(frozen=True, kw_only=True)
class ObjectStore:
    """A running server."""

    url: str

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of its users."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def set_faults(self, **faults: float) -> None:
        """delay_s: of each request; status: of each request; ignore_conditions: conditional writes always succeed."""
        query = "&".join(f"{name}={value}" for name, value in faults.items())
        with urlopen(f"{self.url}/faults?{query}") as response:
            assert response.status == 200


@contextmanager
def run_object_store(folder: Path) -> Generator[ObjectStore]:
    """Start the server in a process of its own, with one bucket.  folder: for its log."""
    with (folder / "object_store.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.object_store"], stdout=subprocess.PIPE, stderr=log, text=True,
            cwd=Path(__file__).parents[1], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, (folder / "object_store.log").read_text()
        with urlopen(Request(f"{url}/{BUCKET}", method="PUT")):
            yield ObjectStore(url=url)
    finally:
        process.kill()
        process.communicate()


class _Faults:
    """A WSGI application in front of another one: faults, and one write at a time."""

    def __init__(self, application: Any) -> None:
        self.application, self.writing, self.faults = application, threading.Lock(), {}

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/faults":
            self.faults = {name: float(value[0]) for name, value in parse_qs(environ["QUERY_STRING"]).items()}
            start_response("200 OK", [("Content-Length", "0")])
            return [b""]
        time.sleep(self.faults.get("delay_s", 0))
        if "status" in self.faults:
            start_response(f"{self.faults['status']:.0f} Fault", [("Content-Length", "0")])
            return [b""]
        if "ignore_conditions" in self.faults:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self.application(environ, start_response)
        with self.writing:
            return list(self.application(environ, start_response))


def _serve() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept

        def log_request(self, *_: Any, **__: Any) -> None: ...

    application = _Faults(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Handler)
    sys.stdout.write(f"http://127.0.0.1:{server.port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    _serve()
