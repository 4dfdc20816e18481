"""All that a server is told: its address, its limits, who may write."""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from cosplace.errors import ConfigError

MEGABYTE = 1_000_000
WAITING_BODIES = 2  # bodies of the largest size that may be on their way at once, as memory and temporary files

RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65_535),
    "max_upload_mb": (1, 2_000),
    "max_pixels": (1, 1_000_000_000),
    "max_files": (1, 1_000),
    "max_side": (16, 8_192),
    "max_batch": (1, 1_024),
    "max_queue": (1, 100_000),
    "batch_wait_ms": (0, 1_000),
    "time_limit_s": (0.1, 3_600),
    "decoding_threads": (1, 64),
    "max_connections": (1, 100_000),
    "refresh_s": (0, 86_400),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How a server behaves.  Raises ConfigError for values that cannot work."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    token: str | None = None  # what a request must show to write; None: nobody writes
    allowed_hosts: tuple[str, ...] = ()  # more names under which a loopback server may be asked, as behind a proxy
    max_upload_mb: int = 20  # of one photo, in millions of bytes
    max_pixels: int = 64_000_000  # of one photo, checked by its header before decoding
    max_files: int = 16  # of one request
    max_side: int = 1_024  # where the index keeps photos at their own size: pixels of the shorter side, at most
    max_batch: int = 16  # photos that pass the network at once
    batch_wait_ms: float = 4.0  # how long a photo waits for company
    max_queue: int = 128  # photos accepted and not yet answered; more are told to come back (429)
    time_limit_s: float = 30.0  # of one request, its upload included
    decoding_threads: int = 2
    max_connections: int = 1_024
    refresh_s: float = 30.0  # how often the index is asked for what others wrote; 0: never
    tiles: str | None = None  # address of map tiles, with {z}, {x} and {y}; None: the map asks nobody
    attribution: str = ""  # what the map says of its tiles

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            if not least <= (value := getattr(self, name)) <= most:  # false for nan, too
                raise ConfigError(f"--{name} is {value}: give {least:g} to {most:g}.")
        if self.max_files > self.max_queue:
            raise ConfigError(
                f"--max_files {self.max_files} is more than --max_queue {self.max_queue}: raise the latter."
            )
        if self.token is not None and not re.fullmatch(r"[\x21-\x7e]{8,}", self.token):
            raise ConfigError("The token needs 8 or more characters, ASCII without spaces: make a random one.")
        if self.tiles is not None:
            tile_origin(self.tiles)

    @property
    def max_upload_bytes(self) -> int:
        """Of one photo."""
        return self.max_upload_mb * MEGABYTE

    @property
    def max_body_bytes(self) -> int:
        """Of one request: its photos, and room for the multipart lines between them."""
        return self.max_files * (self.max_upload_bytes + 4_096) + 65_536

    @property
    def max_waiting_bytes(self) -> int:
        """Of all bodies at one time, until their photos are answered."""
        return max(WAITING_BODIES * self.max_body_bytes, 256 * MEGABYTE)

    @property
    def host_names(self) -> frozenset[str] | None:
        """The names a request may ask for; None for any.

        A loopback server answers to loopback names only: else a page in the user's browser could give a name of its
        own this address and read the index (DNS rebinding).
        """
        if not is_loopback(self.host):
            return None
        return frozenset({"localhost", "127.0.0.1", "::1", self.host, *(name.lower() for name in self.allowed_hosts)})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def tile_origin(template: str) -> str:
    """What the page must be allowed to load: scheme and host of a tile address, `{s}` as any one name.

    Raises ConfigError for an address that is none.
    """
    parts = urlsplit(template)
    host = parts.netloc.replace("{s}", "*")
    if (
        parts.scheme not in ("http", "https")
        or not re.fullmatch(r"(\*\.)?[A-Za-z0-9.-]+(:\d+)?", host)
        or not all(f"{{{name}}}" in parts.path + parts.query for name in "zxy")
    ):
        raise ConfigError(
            f"--tiles '{template}': give an address such as https://tiles.example.org/{{z}}/{{x}}/{{y}}.png."
        )
    return f"{parts.scheme}://{host}"
