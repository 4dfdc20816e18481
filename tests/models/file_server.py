"""A local web server for tests of downloads, which can break connections and leave out headers."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Server:
    """A server that returns `files` by name, and `body` for every other name."""

    address: str = ""
    body: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)
    break_after: list[int | None] = field(default_factory=list)  # bytes sent per request; None or absent: all
    waits: threading.Event | None = None  # each body stops halfway until this is set
    accepts_ranges: bool = True
    sends_tags: bool = True
    sends_length: bool = True
    status: int = 200
    location: str = ""  # every request is redirected there
    raw: bytes = b""  # the whole answer, with its headers
    length: str = ""  # sent as Content-Length in place of the true one
    paths: list[str] = field(default_factory=list)  # of each request
    ranges: list[str | None] = field(default_factory=list)  # header of each request

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        number = len(self.ranges)
        self.paths.append(handler.path)
        requested = handler.headers["Range"]
        self.ranges.append(requested)
        if self.raw:
            handler.wfile.write(self.raw)
            return
        if self.status != 200:
            handler.send_error(self.status)
            return
        if self.location:
            handler.send_response(302)
            handler.send_header("Location", self.location)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        body = self.files.get(handler.path.rsplit("/", 1)[-1], self.body)
        tag = f'"{hashlib.md5(body).hexdigest()}"'
        same_version = handler.headers.get("If-Range", tag) == tag
        start = int(re.findall(r"\d+", requested)[0]) if requested and self.accepts_ranges and same_version else 0
        if start >= len(body) > 0:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(body)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        if self.sends_length:
            handler.send_header("Content-Length", self.length or str(len(body) - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.sends_tags:
            handler.send_header("ETag", tag)
        handler.end_headers()
        stop = self.break_after[number] if number < len(self.break_after) else None
        rest = body[start:][:stop]
        handler.wfile.write(rest[: len(rest) // 2])
        if self.waits:
            self.waits.wait(20)
        handler.wfile.write(rest[len(rest) // 2 :])


@contextmanager
def serve(body: bytes = b"") -> Iterator[Server]:
    state = Server(body=body)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class RunningServer(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # clients that were killed

    running = RunningServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.address = f"http://127.0.0.1:{running.server_address[1]}"
    try:
        yield state
    finally:
        if state.waits:
            state.waits.set()
        running.shutdown()
        running.server_close()
        thread.join()
