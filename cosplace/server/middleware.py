"""Middleware around every request: check host name and origin, limit the time, log, count, add security headers.

Logs contain no photos, names, positions or addresses: only route, status, time and bytes.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from cosplace.server.hosts import is_foreign, is_public, parse_host
from cosplace.server.metrics import Metrics
from cosplace.server.settings import MAX_HEADER_BYTES, MEGABYTE, ServerSettings
from cosplace.server.static import security_headers

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# Limits on reading the rest of a refused body.
MAX_DISCARDED_BYTES = 64 * MEGABYTE
DISCARD_TIMEOUT_S = 2.0

# Routes of the map and its files: a visit takes a dozen requests, which say nothing about the use of the index.
PAGES = ("/", "/static/{name:path}", "/docs", "/docs.css", "/charts.js")

log = logging.getLogger("cosplace.server")


class RequestMiddleware:
    """ASGI middleware around the whole app."""

    def __init__(self, app: App, settings: ServerSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.headers = security_headers(settings)
        self.host_names, self.allowed_names = settings.host_names, settings.allowed_names

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(receive, send, self.headers, body_received=not _has_body(scope))
        started = time.perf_counter()
        try:
            await self._respond(scope, exchange)
        finally:
            self._log_request(scope, exchange, time.perf_counter() - started)

    async def _respond(self, scope: Message, exchange: "_Exchange") -> None:
        if refusal := self._refusal(scope):
            await refusal(scope, exchange.receive, exchange.send)
            return
        try:
            async with asyncio.timeout(self.settings.time_limit_s):
                await self.app(scope, exchange.receive, exchange.send)
        except TimeoutError:
            if not exchange.status:
                limit = f"{self.settings.time_limit_s:g} s"
                failure = "was not answered" if exchange.body_received else "was not received"
                status = 504 if exchange.body_received else 408
                response = JSONResponse({"detail": f"The request {failure} within {limit}. Try again."}, status)
                response.headers["Connection"] = "close"
                await response(scope, exchange.receive, exchange.send)
        except Exception:
            log.exception("a request failed", extra={"event": "bug", "details": {"request": exchange.request_id}})
            if not exchange.status:
                detail = f"The server failed; see its log for request {exchange.request_id}."
                response = JSONResponse({"detail": detail}, 500)
                await response(scope, exchange.receive, exchange.send)

    def _refusal(self, scope: Message) -> JSONResponse | None:
        """Return the response to a request that is refused by its headers."""
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            limit = f"{MAX_HEADER_BYTES:,} bytes"
            return JSONResponse({"detail": f"The header of the request is larger than the limit of {limit}."}, 431)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if b"content-length" in headers and b"transfer-encoding" in headers:
            # A proxy may go by the other header, and treat the rest as another request (RFC 9112, section 6.3).
            detail = "The request has both Content-Length and Transfer-Encoding. Send one of them."
            return JSONResponse({"detail": detail}, 400, {"Connection": "close"})
        host = parse_host(headers.get(b"host", ""))
        if self.host_names is not None and (host is None or host.name not in self.host_names):
            return JSONResponse(
                {"detail": "This server does not accept this host name. Allow it with --allowed_hosts."}, 421
            )
        if b"host" in headers and host is None:
            return JSONResponse({"detail": "The Host header of the request is not valid."}, 400)
        if not is_public(scope["method"], scope["path"]) and is_foreign(headers, self.allowed_names):
            return JSONResponse(
                {
                    "detail": "The request comes from a page of another site. Open this server's own page. If a proxy "
                    "is in front of the server, allow the proxy's name with --allowed_hosts."
                },
                403,
            )
        return None

    def _log_request(self, scope: Message, exchange: "_Exchange", seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        self.metrics.count_request(route, scope["method"], exchange.status, seconds)
        details = {
            "request": exchange.request_id,
            "method": scope["method"][:16],
            "route": route,
            "status": exchange.status,  # 0: the client disconnected
            "milliseconds": round(1_000 * seconds, 1),
        }
        if exchange.num_bytes:
            details["bytes"] = exchange.num_bytes  # received
        is_page = route in PAGES and exchange.status < 400
        log.log(logging.DEBUG if is_page else logging.INFO, "", extra={"event": "request", "details": details})


class _Exchange:
    """One request and its response: counts received bytes, adds headers to the response."""

    def __init__(
        self, receive: Receive, send: Send, headers: list[tuple[bytes, bytes]], *, body_received: bool
    ) -> None:
        self.inner_receive, self.inner_send, self.headers = receive, send, headers
        self.request_id = f"{random.getrandbits(48):012x}"
        self.status, self.num_bytes, self.body_received = 0, 0, body_received

    async def receive(self) -> Message:
        """Receive the next part of the request's body."""
        message = await self.inner_receive()
        if message["type"] == "http.request":
            self.num_bytes += len(message.get("body", b""))
            self.body_received = not message.get("more_body", False)
        else:
            self.body_received = True
        return message

    async def send(self, message: Message) -> None:
        """Send the next part of the response."""
        if message["type"] == "http.response.start":
            if message["status"] >= 400 and not self.body_received:
                await self._discard_body()
            self.status = message["status"]
            headers = [*message.get("headers", ())]
            added = [*self.headers, (b"x-request-id", self.request_id.encode())]
            if not self.body_received:
                added.append((b"connection", b"close"))
                headers = [pair for pair in headers if pair[0].lower() != b"connection"]
            if b"cache-control" not in {name.lower() for name, _ in headers}:
                added.append((b"cache-control", b"no-store"))
            message = {**message, "headers": [*headers, *added]}
        await self.inner_send(message)

    async def _discard_body(self) -> None:
        """Read the rest of a refused body: many clients read no response before they have sent everything."""
        end = self.num_bytes + MAX_DISCARDED_BYTES
        try:
            async with asyncio.timeout(DISCARD_TIMEOUT_S):
                while not self.body_received and self.num_bytes < end:
                    await self.receive()
        except TimeoutError:
            pass


def _has_body(scope: Message) -> bool:
    """Whether a request's headers announce a body."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )
