"""Around every request: whose name it asks for, how long it may take, what is logged and counted, safe headers.

Logs hold neither photos nor positions nor addresses: route, status, time, bytes.
"""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import JSONResponse

from cosplace.server.metrics import Metrics
from cosplace.server.settings import ServerSettings
from cosplace.server.static import security_headers
from cosplace.server.uploads import DRAINED_BYTES

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

DRAINED_SECONDS = 2.0  # for the rest of a body that was refused

log = logging.getLogger("cosplace.server")


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, event, and what belongs to the event."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as one line."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "note"),
            **getattr(record, "details", {}),
        }
        if text := record.getMessage():
            line["message"] = text
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Guard:
    """ASGI middleware around the whole app."""

    def __init__(self, app: App, settings: ServerSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.headers, self.host_names = security_headers(settings), settings.host_names

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(receive, send, self.headers, received_all=not _has_body(scope))
        started = time.perf_counter()
        try:
            await self._answer(scope, exchange)
        finally:
            self._note(scope, exchange, time.perf_counter() - started)

    async def _answer(self, scope: Message, exchange: "_Exchange") -> None:
        if self.host_names is not None and _host_name(scope) not in self.host_names:
            answer = JSONResponse({"detail": "This server answers to its own name only (--allowed_hosts)."}, 421)
            await answer(scope, exchange.receive, exchange.send)
            return
        try:
            async with asyncio.timeout(self.settings.time_limit_s):
                await self.app(scope, exchange.receive, exchange.send)
        except TimeoutError:
            if not exchange.status:
                limit = f"{self.settings.time_limit_s:g} s"
                late = "was not answered" if exchange.received_all else "was not received"
                status = 504 if exchange.received_all else 408
                answer = JSONResponse({"detail": f"The request {late} within {limit}: try again."}, status)
                answer.headers["Connection"] = "close"
                await answer(scope, exchange.receive, exchange.send)
        except Exception:
            log.exception("a request failed", extra={"event": "bug", "details": {"request": exchange.number}})
            if not exchange.status:
                answer = JSONResponse(
                    {"detail": f"The server failed; its log tells why (request {exchange.number})."}, 500
                )
                await answer(scope, exchange.receive, exchange.send)

    def _note(self, scope: Message, exchange: "_Exchange", seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        self.metrics.request(route, scope["method"], exchange.status, seconds)
        details = {
            "request": exchange.number,
            "method": scope["method"][:16],
            "route": route,
            "status": exchange.status,  # 0: the client left
            "milliseconds": round(1_000 * seconds, 1),
            "bytes": exchange.num_bytes,
        }
        log.info("", extra={"event": "request", "details": details})


class _Exchange:
    """One request and its answer, watched."""

    def __init__(self, receive: Receive, send: Send, headers: list[tuple[bytes, bytes]], *, received_all: bool) -> None:
        self.inner_receive, self.inner_send, self.headers = receive, send, headers
        self.number = secrets.token_hex(6)
        self.status, self.num_bytes, self.received_all = 0, 0, received_all

    async def receive(self) -> Message:
        """The next part of the body."""
        message = await self.inner_receive()
        if message["type"] == "http.request":
            self.num_bytes += len(message.get("body", b""))
            self.received_all = not message.get("more_body", False)
        else:
            self.received_all = True
        return message

    async def send(self, message: Message) -> None:
        """The next part of the answer."""
        if message["type"] == "http.response.start":
            if message["status"] >= 400 and not self.received_all:
                await self._drain()
            self.status = message["status"]
            own = [*self.headers, (b"x-request-id", self.number.encode())]
            given = [*message.get("headers", ())]
            if not self.received_all:
                own.append((b"connection", b"close"))
                given = [pair for pair in given if pair[0].lower() != b"connection"]
            names = {name.lower() for name, _ in given}
            if b"cache-control" not in names:
                own.append((b"cache-control", b"no-store"))
            message = {**message, "headers": [*given, *own]}
        await self.inner_send(message)

    async def _drain(self) -> None:
        """Read and drop what a refused client still sends: many read no answer before they have sent all."""
        until = self.num_bytes + DRAINED_BYTES
        try:
            async with asyncio.timeout(DRAINED_SECONDS):
                while not self.received_all and self.num_bytes < until:
                    await self.receive()
        except TimeoutError:
            pass


def _has_body(scope: Message) -> bool:
    """Whether a request's headers announce a body."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


def _host_name(scope: Message) -> str:
    """The name a request asks for, without its port."""
    host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1").lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host
