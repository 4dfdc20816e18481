"""Connections of the server: a deadline for each of their states, and a limit on their number.

    waiting     for the header of a request, or for the client to read the rest of a response
    receiving   the body of a request
    answering   a request that has been received

uvicorn limits only how long a connection is idle before the first byte of its next request.  Connections
are aborted here, not closed: closing first sends what the client does not read.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from cosplace.server.settings import MAX_HEADER_BYTES, ServerSettings

WAITING_LIMIT_S = 10.0  # for the header of a request, counted from the connection or the last response
RESPONSE_MARGIN_S = 5.0  # beyond the time limit of a request, for the application to end it
REFUSAL_LIMIT_S = 1.0  # to send the response to a connection that is refused
BACKLOG = 128  # connections that the system accepts before the server sees them
RESERVED_FILES = 256  # file descriptors for the index, temporary files and the backlog
MIN_CONNECTIONS = 8
MAX_SENT_AHEAD = 20  # requests in a row that came before the response to the previous one
FREE_CHUNKS, MIN_CHUNK_BYTES = 200, 64  # of a body: each chunk beyond the first ones must bring this on average
LOG_INTERVAL_S = 10.0  # at most one line about dropped connections in this time
REFUSAL_BODY = b'{"detail":"The server has no free connection; try again."}'
REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(REFUSAL_BODY), REFUSAL_BODY)
)

WAITING, RECEIVING, ANSWERING = "waiting", "receiving", "answering"

log = logging.getLogger("cosplace.server")


class Connections:
    """The open connections of one server, those that have been in their state for the longest time first."""

    def __init__(self, settings: ServerSettings, max_connections: int) -> None:
        self.max_connections = max_connections
        self.time_limit_s = settings.time_limit_s
        self.in_state: dict[str, dict[GuardedProtocol, None]] = {WAITING: {}, RECEIVING: {}, ANSWERING: {}}
        self.num_dropped, self.logged_at = 0, -LOG_INTERVAL_S

    def __len__(self) -> int:
        return sum(map(len, self.in_state.values()))

    def make_room(self) -> bool:
        """Drop a connection if there are too many; False if all of them are being answered.

        Clients that keep a connection without a request must not shut out others; neither must clients that send a
        request or read a response slowly.
        """
        if len(self) < self.max_connections:
            return True
        self._note_dropped()
        for state in (WAITING, RECEIVING):
            if self.in_state[state]:
                next(iter(self.in_state[state])).abort()
                return True
        for connection in self.in_state[ANSWERING]:
            if connection.transport.get_write_buffer_size():  # its client does not read
                connection.abort()
                return True
        return False

    def abort_all(self) -> None:
        """End all connections at once."""
        for connections in self.in_state.values():
            for connection in list(connections):
                connection.abort()

    def _note_dropped(self) -> None:
        self.num_dropped += 1
        now = time.monotonic()
        if now - self.logged_at >= LOG_INTERVAL_S:
            details = {"connections": self.max_connections, "dropped": self.num_dropped}
            log.warning("too many connections", extra={"event": "connections", "details": details})
            self.num_dropped, self.logged_at = 0, now


class Parser(h11.Connection):
    """HTTP from bytes.  A body in tiny chunks is an error: each takes as long as a large one, and others wait."""

    num_chunks = num_bytes = 0

    def next_event(self) -> Any:
        """The next event.  Raises h11.RemoteProtocolError for invalid requests."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.num_chunks = self.num_bytes = 0
        elif isinstance(event, h11.Data):
            self.num_chunks += event.chunk_start
            self.num_bytes += len(event.data)
            if (self.num_chunks - FREE_CHUNKS) * MIN_CHUNK_BYTES > self.num_bytes:
                raise h11.RemoteProtocolError(f"more than {FREE_CHUNKS} chunks of a few bytes")
        return event


class GuardedProtocol(H11Protocol):
    """HTTP on one connection, with a deadline at all times."""

    def __init__(self, guard: Connections, **options: Any) -> None:
        super().__init__(**options)
        self.conn = Parser(h11.SERVER, MAX_HEADER_BYTES)
        self.guard = guard
        self.state, self.state_since, self.timer = "", 0.0, None
        self.timed_request: Any = None  # the request whose deadline runs
        self.sent_slowly = False  # a part of the last response was waiting when the deadline was last checked
        self.num_sent_ahead = 0

    # --- what uvicorn calls ------------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Accept a connection, or refuse it when there are too many."""
        super().connection_made(transport)
        if self.guard.make_room():
            self._enter(WAITING, WAITING_LIMIT_S)
        else:
            transport.write(REFUSAL)
            transport.close()
            self._set_timer(REFUSAL_LIMIT_S, self.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle what the client has sent."""
        if not self.transport.is_closing():
            super().data_received(data)

    def handle_events(self) -> None:
        """Handle the received data, and change the state after a header or the end of a body."""
        super().handle_events()
        self._update()

    def on_response_complete(self) -> None:
        """Wait for the next request, unless it has already been received."""
        self.num_sent_ahead = self.num_sent_ahead + 1 if self.conn.trailing_data[0] else 0
        super().on_response_complete()
        if self.state and self.cycle.response_complete:
            self._enter(WAITING, WAITING_LIMIT_S)

    def shutdown(self) -> None:
        """Close the connection after its response, because the server is stopping."""
        if self.state == WAITING and not self.transport.get_write_buffer_size():
            self.abort()
        elif self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    # --- states and deadlines ----------------------------------------------------------------------------------------

    def abort(self) -> None:
        """End the connection at once."""
        self._leave()
        self.transport.abort()

    def _update(self) -> None:
        """Follow a request from its header to the end of its body.  One deadline holds until the response."""
        if not self.state or self.cycle is None or self.cycle.response_complete:
            return  # bytes of a header do not extend its deadline
        state = RECEIVING if self.cycle.more_body else ANSWERING
        if self.cycle is not self.timed_request:
            self.timed_request = self.cycle
            if self.num_sent_ahead >= MAX_SENT_AHEAD:  # with hundreds each, few clients would shut out others
                self.cycle.default_headers = [*self.cycle.default_headers, (b"connection", b"close")]
            self._enter(state, self.guard.time_limit_s + RESPONSE_MARGIN_S)
        elif state != self.state:
            self._enter(state)

    def _enter(self, state: str, limit_s: float | None = None) -> None:
        """Change the state.  limit_s: start its deadline; None: keep the current one."""
        if self.state:
            del self.guard.in_state[self.state][self]
        self.state, self.guard.in_state[state][self] = state, None
        if limit_s is not None:
            self.state_since, self.sent_slowly = self.loop.time(), False
            self._set_timer(limit_s, self._check)

    def _leave(self) -> None:
        if self.state:
            del self.guard.in_state[self.state][self]
            self.state = ""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _set_timer(self, seconds: float, action: Callable[[], None]) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_later(seconds, action)

    def _check(self) -> None:
        """At the deadline: abort, unless the client is still reading a response within its time."""
        is_sending = self.state == WAITING and self.transport.get_write_buffer_size() > 0
        in_time = self.loop.time() < self.state_since + self.guard.time_limit_s
        if self.state == WAITING and ((is_sending and in_time) or (self.sent_slowly and not is_sending)):
            # After the last byte of a response, a client has the whole time to send its next request.
            self.sent_slowly = is_sending
            self._set_timer(WAITING_LIMIT_S, self._check)
        else:
            self.abort()


# --- file descriptors ------------------------------------------------------------------------------------------------


def usable_connections(wanted: int) -> int:
    """Return how many connections this process can keep open; raises its soft limit of open files as far as needed."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    num_reserved = _count_open_files() + RESERVED_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + num_reserved
    if soft != resource.RLIM_INFINITY and soft < needed:
        target = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(OSError, ValueError):  # some systems have a lower limit than they report
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, target), hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return wanted
    usable = min(wanted, max(MIN_CONNECTIONS, soft - num_reserved))
    if usable < wanted:
        details = {"connections": usable, "wanted": wanted, "max_open_files": soft}
        log.warning(
            "fewer connections than --max_connections, because this process may open few files; raise `ulimit -n`",
            extra={"event": "connections", "details": details},
        )
    return usable


def _count_open_files() -> int:
    try:
        return sum(1 for _ in Path("/dev/fd").iterdir())
    except OSError:
        return 64
