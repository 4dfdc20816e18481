"""Bodies of requests: read as streams, cut off at their limits, never written under a name that a request gave."""

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from cosplace.server.settings import MEGABYTE, ServerSettings

MAX_FIELDS = 16  # of a form, beside its files
MAX_FIELD_BYTES = 1_024
MAX_NAME = 120  # characters of a file's name that are kept
DRAINED_BYTES = 64 * MEGABYTE  # of a refused body: read and dropped, so that the client reads the answer
UNNAMED = "photo"


def files_body(fields: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the API's description says of a body with photos, and of a form's further fields (name -> meaning)."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    files["description"] = "one photo or several: JPEG, PNG or WebP"
    further = {name: {"type": "number", "description": text} for name, text in (fields or {}).items()}
    content = {
        "multipart/form-data": {"schema": {"type": "object", "properties": {"files": files, **further}}},
        "image/*": {"schema": {"type": "string", "format": "binary"}},
    }
    return {"requestBody": {"required": True, "content": content}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One file of a request."""

    name: str  # for messages and the index; not a path
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What a request brought."""

    uploads: tuple[Upload, ...]
    fields: dict[str, str]


class Intake:
    """How many bytes of bodies are on their way, in all requests of one app."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings, self.num_bytes = settings, 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncGenerator[Form]:
        """The files and fields of a multipart body, or the one photo that is the body.

        Raises HTTPException: 413 above a limit, 415 for a body of another kind, 400 for a broken or empty one, 429
        when too much is on its way.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        self._check_declared(request)
        taken = _Taken(self)
        try:
            if kind == "multipart/form-data":
                yield await self._read_parts(request, taken)
            elif kind in ("", "application/octet-stream") or kind.startswith("image/"):
                yield Form(uploads=(await self._read_raw(request, taken),), fields={})
            else:
                raise HTTPException(
                    415, f"The body is {safe_name(kind)}: send multipart/form-data with `files`, or one photo's bytes."
                )
        except ClientDisconnect as error:
            raise HTTPException(400, "The upload ended before its end.") from error
        finally:
            self.num_bytes -= taken.num_bytes

    def _check_declared(self, request: Request) -> None:
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > self.settings.max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> HTTPException:
        settings = self.settings
        return HTTPException(
            413, f"The upload is too large: send up to {settings.max_files} photos of {settings.max_upload_mb} MB each."
        )

    async def _read_raw(self, request: Request, taken: "_Taken") -> Upload:
        body = bytearray()
        async for chunk in taken.stream(request):
            body += chunk
            if len(body) > self.settings.max_upload_bytes:
                raise HTTPException(
                    413, f"The photo is larger than {self.settings.max_upload_mb} MB: send a smaller one."
                )
        if not body:
            raise HTTPException(400, "The body is empty: send a photo.")
        return Upload(name=UNNAMED, raw=bytes(body))

    async def _read_parts(self, request: Request, taken: "_Taken") -> Form:
        parser = _PhotoParts(request, taken.stream(request), self.settings)
        try:
            parts = await parser.parse()
        except MultiPartException as error:
            too_many = "aximum" in error.message
            raise HTTPException(413 if too_many else 400, f"The form cannot be read: {error.message}") from error
        try:
            files = [part for _, part in parts.multi_items() if isinstance(part, UploadFile)]
            fields = {name: value for name, value in parts.multi_items() if isinstance(value, str)}
            uploads = tuple([Upload(name=safe_name(file.filename), raw=await file.read()) for file in files])
        finally:
            await parts.close()
        if not uploads:
            raise HTTPException(400, "The form holds no file: send photos in the field `files`.")
        return Form(uploads=uploads, fields=fields)


class _PhotoParts(MultiPartParser):
    """Starlette's parser with a limit for each file; files beyond a megabyte go to nameless temporary ones."""

    def __init__(self, request: Request, stream: AsyncGenerator[bytes, None], settings: ServerSettings) -> None:
        super().__init__(
            request.headers,
            stream,
            max_files=settings.max_files,
            max_fields=MAX_FIELDS,
            max_part_size=MAX_FIELD_BYTES,
        )
        self.settings, self.num_part_bytes = settings, 0

    def on_part_begin(self) -> None:
        """A part starts."""
        self.num_part_bytes = 0
        super().on_part_begin()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """More of a part."""
        self.num_part_bytes += end - start
        if self.num_part_bytes > self.settings.max_upload_bytes:
            raise MultiPartException(f"Maximum size of a photo is {self.settings.max_upload_mb} MB.")
        super().on_part_data(data, start, end)


class _Taken:
    """The bytes of one request, counted as they come."""

    def __init__(self, intake: Intake) -> None:
        self.intake, self.num_bytes = intake, 0

    async def stream(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The body, cut off at the limits, whether its length was declared or not."""
        settings = self.intake.settings
        async for chunk in request.stream():
            self.num_bytes += len(chunk)
            self.intake.num_bytes += len(chunk)
            if self.num_bytes > settings.max_body_bytes:
                raise self.intake._too_large()
            if self.intake.num_bytes > settings.max_waiting_bytes:
                raise HTTPException(429, "Too many uploads at once: try again in a moment.", {"Retry-After": "2"})
            yield chunk


def safe_name(name: str | None) -> str:
    """A file's name for messages and the index: its last part, printable, not long; never used to open anything."""
    last = PurePosixPath((name or "").replace("\\", "/")).name
    shown = re.sub(r"\s+", " ", "".join(sign if sign.isprintable() else " " for sign in last)).strip(" .")
    return shown[-MAX_NAME:] or UNNAMED
