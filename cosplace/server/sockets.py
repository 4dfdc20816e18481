"""Sockets that a server listens on."""

import socket
from collections.abc import Generator
from contextlib import contextmanager

from cosplace.errors import ConfigError


def listening_socket(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a bound socket.  Raises ConfigError for an unknown host or a port in use.

    shared: other sockets of this user may have the same port, if they are shared too.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(
            f"--host must be an address of this machine, got {host}. Use for example 127.0.0.1."
        ) from error
    listener = socket.socket(family, kind, protocol)
    try:
        with listen_errors(host, port):
            # Not both: with SO_REUSEPORT, a port that another server listens on must be refused.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except ConfigError:
        listener.close()
        raise
    return listener


@contextmanager
def listen_errors(host: str, port: int) -> Generator[None]:
    """Convert an OSError to a ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {host}, port {port} ({error.strerror}). Choose another --port or --host."
        ) from error
