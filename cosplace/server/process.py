"""serve: run the application until a signal stops it, and finish all accepted photos first."""

import asyncio
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from cosplace.errors import ConfigError
from cosplace.localization.localizer import Localizer
from cosplace.server.app import create_app
from cosplace.server.connections import BACKLOG, WAITING_LIMIT_S, Connections, GuardedProtocol, usable_connections
from cosplace.server.settings import ServerSettings, is_loopback
from cosplace.server.sockets import listen_errors, listening_socket
from cosplace.server.workers import Worker

# A shutdown takes at most the time limit of a request plus this: first responses are sent, then the threads end.
SHUTDOWN_MARGIN_S = 5
RESPONSES_MARGIN_S = 2
SWITCH_INTERVAL_S = 0.0005  # of Python's threads

log = logging.getLogger("cosplace.server")


def serve(
    localizer: Localizer,
    settings: ServerSettings | None = None,
    *,
    announce: Callable[[str], object] = lambda address: None,
    worker: Worker | None = None,
) -> None:
    """Serve an opened index until SIGTERM or SIGINT; accepted photos are answered before the server stops.

    announce: called with the address once the server accepts connections.  worker: this process is one of several.
    Raises ConfigError for a port in use, an unknown host, and an empty index without a token.
    """
    settings = settings or ServerSettings()
    # The socket first: loading the model takes seconds, and a port in use should be reported before.
    with listening_socket(settings.host, settings.port) if worker is None else worker.listener as listener:
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
        server = make_server(create_app(localizer, settings, worker), settings)
        port = listener.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        details = {"host": settings.host, "port": port, "photos": num_photos, "can_write": bool(settings.token)}
        log.info("serving", extra={"event": "start", "details": details})
        with listen_errors(settings.host, settings.port):
            listener.listen(BACKLOG)
        announce(f"http://{host}:{port}/")
        with _ignored_signals(), _short_turns():
            server.run(sockets=[listener])
        log.info("stopped", extra={"event": "stop"})


def make_server(app: FastAPI, settings: ServerSettings) -> uvicorn.Server:
    """Return a uvicorn server for an application.  Set its `should_exit` to stop it after the pending responses."""
    connections = Connections(settings, usable_connections(settings.max_connections))

    def make_protocol(**options: Any) -> GuardedProtocol:
        return GuardedProtocol(connections, **options)

    config = uvicorn.Config(
        app,
        http=make_protocol,  # ty: ignore[invalid-argument-type]  (uvicorn calls it as it would call a class)
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=math.ceil(WAITING_LIMIT_S),
        timeout_graceful_shutdown=math.ceil(settings.time_limit_s) + RESPONSES_MARGIN_S,
    )
    return _Server(config, connections, settings.time_limit_s)


class _Server(uvicorn.Server):
    """A server that stops within a time limit, whatever its clients and threads do."""

    def __init__(self, config: uvicorn.Config, connections: Connections, time_limit_s: float) -> None:
        super().__init__(config)
        self.connections, self.time_limit_s = connections, time_limit_s
        self.timer: threading.Timer | None = None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for the responses, but not longer than for a request.  Then uvicorn cancels what is left."""
        asyncio.get_running_loop().call_later(self.time_limit_s + RESPONSES_MARGIN_S / 2, self.connections.abort_all)
        await super().shutdown(sockets)
        if self.force_exit:  # a second signal: uvicorn would leave the application running, which logs a traceback
            await self.lifespan.shutdown()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start the shutdown."""
        super().handle_exit(sig, frame)
        if self.timer is None:
            self.timer = threading.Timer(self.time_limit_s + SHUTDOWN_MARGIN_S, _end_process)
            self.timer.daemon = True
            self.timer.start()


def _end_process() -> None:
    """End the process at once.  All connections have ended; what threads still compute is not needed."""
    log.error("stopped before all threads had ended", extra={"event": "stop"})
    logging.shutdown()
    os._exit(1)


@contextmanager
def _short_turns() -> Generator[None]:
    """Let Python's threads take turns more often.

    The threads of the network need Python between two layers. They would wait for up to 5 ms for one that decodes.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, SWITCH_INTERVAL_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


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
