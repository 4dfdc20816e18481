"""Files for the browser: the map, and a page about the API that needs no scripts and no outside requests."""

import hashlib
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request, Response

import cosplace
from cosplace.config.server import NO_TILES
from cosplace.index.photo_index import PhotoIndex
from cosplace.localization.confidence import Calibration
from cosplace.report.calibration_page import calibration_page
from cosplace.report.render import chart_script, render, style_sheet
from cosplace.server.settings import OFFERED_TILES, ServerSettings, tile_origin

WEB = Path(cosplace.__file__).parent / "web"
EXCLUDED_SUFFIXES = (".py", ".pyc", ".map")

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
    etag: str  # changes with the content


def static_file(content: bytes, media_type: str) -> StaticFile:
    """Return a file with the ETag of its content."""
    return StaticFile(content=content, media_type=media_type, etag=f'"{hashlib.sha256(content).hexdigest()[:20]}"')


def read_static_files(folder: Path = WEB) -> Mapping[str, StaticFile]:
    """Read all files for the browser, by their path below the folder.

    The path of a request is only looked up in the result: it never becomes a path on disk.
    """
    files = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        inner = path.relative_to(folder)
        is_hidden = any(part.startswith((".", "__")) for part in inner.parts)
        if not path.is_file() or path.suffix in EXCLUDED_SUFFIXES or is_hidden:
            continue
        media_type = TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        files[inner.as_posix()] = static_file(path.read_bytes(), media_type)
    return files


def static_response(file: StaticFile | None, request: Request) -> Response:
    """Return a file, or status 304 when the browser has it.  Raises HTTPException 404 for None."""
    if file is None:
        raise HTTPException(404, "There is no such page.")
    headers = {"ETag": file.etag, "Cache-Control": "no-cache"}  # cached, and revalidated by its ETag each time
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


def security_headers(settings: ServerSettings) -> list[tuple[bytes, bytes]]:
    """Return headers for every response: the page may load only from this server, and images from the map tiles.

    Tiles that are only offered are allowed too, but the page requests them only after a click.
    """
    tiles = {None: OFFERED_TILES["url"], NO_TILES: ""}.get(settings.tiles, settings.tiles)
    images = "'self' blob: data:" + (f" {tile_origin(tiles)}" if tiles else "")
    policy = (
        f"default-src 'self'; img-src {images}; style-src 'self'; script-src 'self'; connect-src 'self'; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        # Tile servers require the origin of the page.  Those that are offered get it per image.
        "Referrer-Policy": "strict-origin-when-cross-origin"
        if settings.tiles not in (None, NO_TILES)
        else "no-referrer",
        "Permissions-Policy": "camera=(self), geolocation=(self), microphone=()",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


# --- the page about the API ------------------------------------------------------------------------------------------


def api_style_sheet() -> StaticFile:
    """Return the stylesheet of the page about the API, as a file: the server's policy forbids inline styles."""
    return static_file(style_sheet().encode(), TYPES[".css"])


def chart_file() -> StaticFile:
    """Return what draws the charts of the page about the confidence, as a file for the same reason."""
    return static_file(chart_script().text.encode(), TYPES[".js"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One route of the API."""

    method: str
    path: str
    needs_token: bool
    description: str
    rows: list[tuple[str, str]]  # (name, description) of each parameter, then of each status


def api_page(openapi: Mapping[str, Any], base: str) -> str:
    """Return a page about all routes, without scripts, from the contents of /openapi.json.

    base: the address of this server, for the examples.
    """
    info = openapi["info"]
    return render(
        "api.html",
        title=f"{info['title']} {info['version']}",
        description=info.get("description", ""),
        base=base,
        routes=[
            _route(method, path, operation)
            for path, operations in openapi["paths"].items()
            for method, operation in operations.items()
        ],
    )


def _route(method: str, path: str, operation: Mapping[str, Any]) -> Route:
    rows = [
        (parameter["name"], parameter.get("description", ""))
        for parameter in operation.get("parameters", ())
        if parameter["in"] in ("query", "path")
    ]
    for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
        fields = body.get("schema", {}).get("properties", {})
        rows += [(name, field.get("description", media_type)) for name, field in fields.items()]
        rows += [] if fields else [("body", media_type)]
    rows += [(status, answer.get("description", "")) for status, answer in operation.get("responses", {}).items()]
    return Route(
        method=method.upper(),
        path=path,
        needs_token=bool(operation.get("security")),
        description=operation.get("description") or operation.get("summary", ""),
        rows=rows,
    )


# --- the page about the confidence -----------------------------------------------------------------------------------


def public_calibration_page(calibration: Calibration, index: PhotoIndex) -> str:
    """Return the page about the calibration of an index, without paths of this machine."""
    names = {
        key: Path(str(value)).name if key in ("queries", "unlabeled") else value
        for key, value in calibration.about.items()
    }
    calibration = replace(calibration, about=names)
    return calibration_page(calibration, Path(index.address).name, style_sheet="docs.css")
