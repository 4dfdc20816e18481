"""serve: a socket, an application, and a stop that finishes what was accepted."""

import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from cosplace.errors import ConfigError
from cosplace.localization.localizer import Localizer
from cosplace.server.app import build_app
from cosplace.server.settings import ServerSettings, is_loopback

HEADER_SECONDS = 10  # for the header of a connection's first request
GRACE_SECONDS = 5  # beyond the time limit of a request, for the last answers to leave

log = logging.getLogger("cosplace.server")


def run_server(
    index: str | Path,
    settings: ServerSettings,
    *,
    device: str,
    precision: float | None,
    min_confidence: float | None,
    uncalibrated: bool,
    trust_remote_code: bool,
    announce: Callable[[str], None],
) -> None:
    """See cosplace.server.serve."""
    # First, as a model takes seconds to load and a taken port is told at once.
    with listening_socket(settings.host, settings.port) as listener:
        if not is_loopback(settings.host):
            log.warning(
                "%s is reachable from other machines, without encryption: put a proxy with TLS before it.",
                settings.host,
                extra={"event": "exposed"},
            )
        localizer = Localizer(
            index,
            device=device,
            precision=precision,
            min_confidence=min_confidence,
            uncalibrated=uncalibrated,
            trust_remote_code=trust_remote_code,
        )
        if not len(localizer.index) and settings.token is None:
            raise ConfigError(f"{index} holds no photos: add some with `cosplace index add`, or serve it with a token.")
        server = make_server(build_app(localizer, settings), settings)
        port = listener.getsockname()[1]
        name = f"[{settings.host}]" if ":" in settings.host else settings.host
        details = {
            "host": settings.host,
            "port": port,
            "photos": len(localizer.index),
            "can_write": bool(settings.token),
        }
        log.info("serving", extra={"event": "start", "details": details})
        with _told(settings.host, settings.port):
            listener.listen(settings.max_connections)
        announce(f"http://{name}:{port}/")
        with _quiet_signals():
            server.run(sockets=[listener])
        log.info("stopped", extra={"event": "stop"})


def make_server(app: FastAPI, settings: ServerSettings) -> uvicorn.Server:
    """What runs an application; it stops when its `should_exit` is set, after the answers that are due."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=_HastyProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.max_connections,
            timeout_keep_alive=HEADER_SECONDS,
            timeout_graceful_shutdown=int(settings.time_limit_s) + GRACE_SECONDS,
        )
    )


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket.  Raises ConfigError for a port that is taken or an address that is not here."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"--host {host}: no such address: give 127.0.0.1, or one of this machine.") from error
    listener = socket.socket(family, kind, protocol)
    try:
        with _told(host, port):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except ConfigError:
        listener.close()
        raise
    return listener


@contextmanager
def _told(host: str, port: int) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"Cannot listen on {host}, port {port} ({error.strerror}): choose another --port.") from error


@contextmanager
def _quiet_signals() -> Generator[None]:
    """Within: a signal that uvicorn has obeyed ends the server, and not the process with a signal's exit code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _HastyProtocol(H11Protocol):
    """Closes a connection that sends no whole header within a while, however slowly it drips."""

    def connection_made(self, transport: Any) -> None:
        """A client is there."""
        super().connection_made(transport)
        self.loop.call_later(HEADER_SECONDS, self._close_without_request)

    def _close_without_request(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()
