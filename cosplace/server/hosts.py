"""Host names and origins of requests.  Pure: headers in, decisions out.

A browser sends the name of the server that it connects to (`Host`) and, with most requests of a page, the origin of
that page (`Origin`) and how both are related (`Sec-Fetch-Site`).  Other clients send only `Host`.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address

HOST = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9_.-]{1,254}))(?::(?P<port>[0-9]{1,5}))?", re.ASCII
)
LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)
DEFAULT_PORTS = {"http": 80, "https": 443}
SAME_SITE_VALUES = ("same-origin", "none")  # of Sec-Fetch-Site: a page of this server, or the user's address bar

# Pages that other sites may link to.  They are the same for everyone and contain nothing of the index.
PUBLIC_PATHS = ("/", "/docs", "/docs.css", "/charts.js", "/openapi.json", "/health")
PUBLIC_FOLDER = "/static/"


@dataclass(frozen=True, slots=True)
class Host:
    """The host of an address: a name in lower case, or an IP address in its shortest form."""

    name: str
    port: int | None


def parse_host(text: str) -> Host | None:
    """Parse `name`, `name:port`, `192.0.2.1:port` or `[2001:db8::1]:port`; None for anything else."""
    found = HOST.fullmatch(text)
    if found is None:
        return None
    port = None if found["port"] is None else int(found["port"])
    if port is not None and port > 65_535:
        return None
    try:
        if found["ipv6"] is not None:
            return Host(IPv6Address(found["ipv6"]).compressed, port)
        name = found["name"].lower().removesuffix(".")
        labels = name.split(".")
        if labels[-1].isdigit():  # as browsers do: a name that ends with a number is an IPv4 address
            return Host(str(IPv4Address(name)), port)
    except AddressValueError:
        return None
    return Host(name, port) if all(map(LABEL.fullmatch, labels)) else None


def parse_origin(text: str) -> tuple[str, Host] | None:
    """Parse an origin of the web, `https://name:port`, into scheme and host; None for anything else, such as `null`."""
    scheme, separator, rest = text.partition("://")
    host = parse_host(rest)
    return (scheme, host) if separator and scheme in DEFAULT_PORTS and host is not None else None


def is_public(method: str, path: str) -> bool:
    """Whether a request only reads a page that other sites may link to."""
    return method in ("GET", "HEAD") and (path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDER))


def is_foreign(headers: dict[bytes, str], own_names: Collection[str]) -> bool:
    """Whether a request comes from a page of another site.

    headers: `host`, `origin` and `sec-fetch-site`, where the request has them.  own_names: further names of this
    server, for proxies that change the `Host` header.
    """
    if headers.get(b"sec-fetch-site", "none") not in SAME_SITE_VALUES:
        return True
    if b"origin" not in headers:
        return False
    origin, host = parse_origin(headers[b"origin"]), parse_host(headers.get(b"host", ""))
    if origin is None or host is None:
        return True
    scheme, page = origin
    default = DEFAULT_PORTS[scheme]
    return page.name not in own_names and (page.name, page.port or default) != (host.name, host.port or default)
