"""What a browser gets: the files of the map, and a page about the API, made without scripts or outside requests."""

import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request, Response

import cosplace
from cosplace.server.settings import ServerSettings, tile_origin

WEB = Path(cosplace.__file__).parent / "web"
LEFT_OUT = (".py", ".pyc", ".map")

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticFile:
    """One file, in memory."""

    content: bytes
    media_type: str
    tag: str  # changes with the content


def read_static_files(folder: Path = WEB) -> Mapping[str, StaticFile]:
    """All files that ship for the browser, by their path below the folder.

    A request's path is only looked up here: it never becomes a path on disk.
    """
    found = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        inner = path.relative_to(folder)
        if not path.is_file() or path.suffix in LEFT_OUT or any(part.startswith((".", "__")) for part in inner.parts):
            continue
        content = path.read_bytes()
        guessed = TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        digest = hashlib.sha256(content).hexdigest()[:20]
        found[inner.as_posix()] = StaticFile(content=content, media_type=guessed, tag=f'"{digest}"')
    return found


def answer_with_file(files: Mapping[str, StaticFile], name: str, request: Request) -> Response:
    """A static file, or that it has not changed.  Raises HTTPException 404."""
    if name not in files:
        raise HTTPException(404, "There is no such page.")
    return answer_with_bytes(files[name], request)


def answer_with_bytes(file: StaticFile, request: Request) -> Response:
    """The same for what is at hand."""
    headers = {"ETag": file.tag, "Cache-Control": "no-cache"}  # kept, and asked about each time
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


def security_headers(settings: ServerSettings) -> list[tuple[bytes, bytes]]:
    """Sent with every answer: the page loads only from here, and from the tiles where they are set."""
    images = "'self' blob: data:" + (f" {tile_origin(settings.tiles)}" if settings.tiles else "")
    policy = (
        f"default-src 'self'; img-src {images}; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        # Servers of tiles ask for the page's origin; nobody else is asked for anything.
        "Referrer-Policy": "strict-origin-when-cross-origin" if settings.tiles else "no-referrer",
        "Permissions-Policy": "camera=(self), geolocation=(self), microphone=()",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


# --- the page about the API ------------------------------------------------------------------------------------------

STYLE = """:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 52rem; margin: 3rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; }
h2 { font-size: 1.1rem; margin-top: 2.2rem; border-top: 1px solid #8884; padding-top: 1.2rem; }
code, pre { font: 0.92em/1.5 ui-monospace, monospace; }
pre { background: #8882; padding: 0.8rem 1rem; overflow-x: auto; }
.method { font-weight: 700; display: inline-block; min-width: 4.5rem; } .lock { opacity: 0.7; font-weight: 400; }
table { border-collapse: collapse; width: 100%; } td { vertical-align: top; padding: 0.3rem 1rem 0.3rem 0; }
td:first-child { white-space: nowrap; }
"""

EXAMPLE = """curl -F files=@photo.jpg {base}locate
curl -F files=@a.jpg -F files=@b.jpg '{base}locate?near=37.77,-122.42,500'
curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' {base}locate
curl -H "Authorization: Bearer $COSPLACE_TOKEN" -F files=@new.jpg -F latitude=37.77 -F longitude=-122.42 {base}photos"""


def style_sheet() -> StaticFile:
    """Of the page about the API."""
    digest = hashlib.sha256(STYLE.encode()).hexdigest()[:20]
    return StaticFile(content=STYLE.encode(), media_type=TYPES[".css"], tag=f'"{digest}"')


def api_page(openapi: Mapping[str, Any], base: str) -> str:
    """The routes in plain HTML, from the same description that /openapi.json gives to programs.

    base: the address of this server, for the examples.
    """
    routes = [
        _route(method, path, operation)
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    ]
    info = openapi["info"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(info["title"])}</title><link rel="stylesheet" href="docs.css"></head><body>'
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info.get('description', ''))} "
        '<a href="./">The map</a> · <a href="openapi.json">openapi.json</a></p>'
        f"<pre>{escape(EXAMPLE.format(base=base))}</pre>{''.join(routes)}</body></html>"
    )


def _route(method: str, path: str, operation: Mapping[str, Any]) -> str:
    lock = ' <span class="lock">(needs the token)</span>' if operation.get("security") else ""
    rows = [
        (parameter["name"], parameter.get("description", ""))
        for parameter in operation.get("parameters", ())
        if parameter["in"] in ("query", "path")
    ]
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        fields = body.get("schema", {}).get("properties", {})
        rows += [(name, field.get("description", kind)) for name, field in fields.items()] or [("body", kind)]
    rows += [(status, answer.get("description", "")) for status, answer in operation.get("responses", {}).items()]
    table = "".join(f"<tr><td><code>{escape(name)}</code></td><td>{escape(text)}</td></tr>" for name, text in rows)
    return (
        f'<h2><span class="method">{escape(method.upper())}</span> <code>{escape(path)}</code>{lock}</h2>'
        f"<p>{escape(operation.get('description') or operation.get('summary', ''))}</p><table>{table}</table>"
    )
