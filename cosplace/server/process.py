"""serve: run the application until a signal stops it, and finish all accepted photos first."""

import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from cosplace.errors import ConfigError
from cosplace.localization.localizer import Localizer
from cosplace.server.app import create_app
from cosplace.server.settings import ServerSettings, is_loopback

HEADER_TIMEOUT_S = 10  # for the header of a connection's first request
SHUTDOWN_MARGIN_S = 5  # beyond the time limit of a request, to send the last responses

log = logging.getLogger("cosplace.server")


def serve(
    localizer: Localizer,
    settings: ServerSettings | None = None,
    *,
    announce: Callable[[str], object] = lambda address: None,
) -> None:
    """Serve an opened index until SIGTERM or SIGINT; accepted photos are answered before the server stops.

    announce: called with the address once the server accepts connections.
    Raises ConfigError for a port in use, an unknown host, and an empty index without a token.
    """
    settings = settings or ServerSettings()
    # The socket first: loading the model takes seconds, and a port in use should be reported before.
    with listening_socket(settings.host, settings.port) as listener:
        if not is_loopback(settings.host):
            log.warning(
                "%s is reachable from other machines without encryption. Use a proxy with TLS.",
                settings.host,
                extra={"event": "exposed"},
            )
        num_photos = len(localizer.index)
        if not num_photos and settings.token is None:
            raise ConfigError(
                f"The index {localizer.index.address} has no photos. Add photos with `cosplace index add`, or set "
                "--token to add them through the server."
            )
        server = make_server(create_app(localizer, settings), settings)
        port = listener.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        details = {"host": settings.host, "port": port, "photos": num_photos, "can_write": bool(settings.token)}
        log.info("serving", extra={"event": "start", "details": details})
        with _listen_errors(settings.host, settings.port):
            listener.listen(settings.max_connections)
        announce(f"http://{host}:{port}/")
        with _ignored_signals():
            server.run(sockets=[listener])
        log.info("stopped", extra={"event": "stop"})


def make_server(app: FastAPI, settings: ServerSettings) -> uvicorn.Server:
    """Return a uvicorn server for an application.  Set its `should_exit` to stop it after the pending responses."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=_HeaderTimeoutProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.max_connections,
            timeout_keep_alive=HEADER_TIMEOUT_S,
            timeout_graceful_shutdown=int(settings.time_limit_s) + SHUTDOWN_MARGIN_S,
        )
    )


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a bound socket.  Raises ConfigError for an unknown host or a port in use."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(
            f"--host must be an address of this machine, got {host}. Use for example 127.0.0.1."
        ) from error
    listener = socket.socket(family, kind, protocol)
    try:
        with _listen_errors(host, port):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except ConfigError:
        listener.close()
        raise
    return listener


@contextmanager
def _listen_errors(host: str, port: int) -> Generator[None]:
    """Convert an OSError to a ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {host}, port {port} ({error.strerror}). Choose another --port or --host."
        ) from error


@contextmanager
def _ignored_signals() -> Generator[None]:
    """Ignore the signals that uvicorn raises again after it has handled them, so that the exit code is 0."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _HeaderTimeoutProtocol(H11Protocol):
    """Closes a connection that does not send the complete header of its first request in time."""

    def connection_made(self, transport: Any) -> None:
        """Start the timeout of a new connection."""
        super().connection_made(transport)
        self.loop.call_later(HEADER_TIMEOUT_S, self._close_without_request)

    def _close_without_request(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()
