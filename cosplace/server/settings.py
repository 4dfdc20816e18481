"""Settings of a server, in addition to the ranges of cosplace.config.server: rules between them, and derived limits."""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from cosplace.config.server import NO_TILES, ServerOptions
from cosplace.errors import ConfigError
from cosplace.server.hosts import parse_host

MEGABYTE = 1_000_000
MAX_HEADER_BYTES = 16_384  # of a request; browsers send about 1 kB
NUM_LARGEST_BODIES = 2  # request bodies of the largest size that may be in memory and temporary files at once
OFFERED_TILES = {  # loaded only after a click, if the server has no tiles of its own
    "name": "OpenStreetMap",
    "url": "https://tile.openstreetmap.org/{z}/{x}/{y}.png",
    "attribution": "© OpenStreetMap contributors",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings(ServerOptions):
    """Settings of one server.  Raises ConfigError for values out of range."""

    def __post_init__(self) -> None:
        ServerOptions.__post_init__(self)
        if self.max_files > self.max_queue:
            raise ConfigError(
                f"--max_files must not be above --max_queue, got {self.max_files} and {self.max_queue}. "
                "Raise --max_queue."
            )
        if self.token is not None and not re.fullmatch(r"[\x21-\x7e]{8,}", self.token):
            raise ConfigError(
                "The token must have at least 8 ASCII characters and no spaces. Use for example the output of "
                "`openssl rand -hex 16`."
            )
        for name in self.allowed_hosts:
            host = parse_host(name)
            if host is None or host.port is not None:
                raise ConfigError(
                    f"--allowed_hosts must be host names without a port, got '{name}'. "
                    "Use for example maps.example.org."
                )
        if self.tiles not in (None, NO_TILES):
            tile_origin(self.tiles)

    @property
    def max_upload_bytes(self) -> int:
        """Limit of one photo."""
        return self.max_upload_mb * MEGABYTE

    @property
    def max_body_bytes(self) -> int:
        """Limit of one request body: its photos and the multipart headers between them."""
        return self.max_files * (self.max_upload_bytes + 4_096) + 65_536

    @property
    def max_total_body_bytes(self) -> int:
        """Limit of all request bodies at one time, until their photos are answered."""
        return max(NUM_LARGEST_BODIES * self.max_body_bytes, 256 * MEGABYTE)

    @property
    def host_names(self) -> frozenset[str] | None:
        """Accepted values of a request's Host header; None accepts any.

        A loopback server accepts only loopback names.  Otherwise a page in the user's browser could point a host name
        of its own at this address and read the index (DNS rebinding).
        """
        if not is_loopback(self.host):
            return None
        own = parse_host(f"[{self.host}]" if ":" in self.host else self.host)
        names = {"localhost", "127.0.0.1", "::1"} | ({own.name} if own is not None else set())
        return frozenset(names) | self.allowed_names

    @property
    def allowed_names(self) -> frozenset[str]:
        """The additional host names, as `parse_host` writes them."""
        return frozenset(host.name for host in map(parse_host, self.allowed_hosts) if host is not None)


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a server on this host."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def tile_origin(template: str) -> str:
    """Return the source that the page must be allowed to load images from: scheme and host, with `{s}` as `*`.

    Raises ConfigError when the template is not an address of map tiles.
    """
    parts = urlsplit(template)
    host = parts.netloc.replace("{s}", "*")
    if (
        parts.scheme not in ("http", "https")
        or not re.fullmatch(r"(\*\.)?[A-Za-z0-9.-]+(:\d+)?", host)
        or not all(f"{{{name}}}" in parts.path + parts.query for name in "zxy")
    ):
        raise ConfigError(
            f"--tiles must be the address of map tiles, got '{template}'. "
            "Use for example https://tiles.example.org/{z}/{x}/{y}.png."
        )
    return f"{parts.scheme}://{host}"
