"""Read request bodies as streams, with limits.  No file is ever written under a name from a request."""

import logging
import re
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from fastapi import HTTPException, Request
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from cosplace.server.failures import describe_upload_failure
from cosplace.server.parameters import check_fields, check_once
from cosplace.server.settings import ServerSettings

MAX_FIELDS = 16  # form fields besides the files
MAX_FIELD_BYTES = 1_024
MAX_NAME_LENGTH = 120  # characters of a file name that are kept
DEFAULT_NAME = "photo"

log = logging.getLogger("cosplace.server")


def files_body(fields: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the OpenAPI description of a body with photos.  fields: further form fields, name -> description."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    files["description"] = "one or more photos: JPEG, PNG or WebP"
    other_fields = {name: {"type": "number", "description": text} for name, text in (fields or {}).items()}
    content = {
        "multipart/form-data": {"schema": {"type": "object", "properties": {"files": files, **other_fields}}},
        "image/*": {"schema": {"type": "string", "format": "binary"}},
    }
    return {"requestBody": {"required": True, "content": content}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One uploaded file."""

    name: str  # for messages and the index; not a path
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The content of one request."""

    uploads: tuple[Upload, ...]
    fields: dict[str, str]

    def only_upload(self) -> Upload:
        """Return the only photo.  Raises HTTPException 422 if there are several."""
        if len(self.uploads) != 1:
            raise HTTPException(422, f"Send one photo, got {len(self.uploads)}.")
        return self.uploads[0]


class UploadReader:
    """Reads the bodies of all requests of one app, with a limit on their total size."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.num_bytes = 0  # of all bodies that are in memory or in temporary files

    @asynccontextmanager
    async def read(self, request: Request, fields: Collection[str] = ()) -> AsyncGenerator[Form]:
        """Read a multipart body, or one photo sent as the body.  Its bytes count until the block ends.

        fields: names of further form fields.
        Raises HTTPException: 400 for a broken or empty body, 413 above a limit, 415 for another content type, 422 for
        a form field that is unknown or given twice, 429 when too many bytes are being uploaded, 503 or 507 when the
        server cannot store them.
        """
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        self._check_content_length(request)
        body = _BodyStream(self, request)
        try:
            form = await self._read_form(request, content_type, body)
            check_fields(request, form.fields, fields)
            yield form
        finally:
            self.num_bytes -= body.num_bytes

    async def _read_form(self, request: Request, content_type: str, body: "_BodyStream") -> Form:
        try:
            if content_type == "multipart/form-data":
                return await self._read_multipart(request, body)
            if content_type in ("", "application/octet-stream") or content_type.startswith("image/"):
                return Form(uploads=(await self._read_photo(body),), fields={})
        except ClientDisconnect as error:
            raise HTTPException(400, "The upload is incomplete. Send it again.") from error
        except OSError as error:  # larger photos are kept in temporary files
            log.error("an upload cannot be stored", exc_info=error, extra={"event": "storage"})
            failure = describe_upload_failure(error)
            raise HTTPException(failure.status, failure.message) from error
        raise HTTPException(
            415,
            f"Content type {safe_name(content_type)} is not supported. "
            "Send multipart/form-data with `files`, or one photo as the body.",
        )

    def _check_content_length(self, request: Request) -> None:
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > self.settings.max_body_bytes:
            raise self.body_too_large()

    def body_too_large(self) -> HTTPException:
        """Return the error for a body above the limit."""
        max_files, max_mb = self.settings.max_files, self.settings.max_upload_mb
        return HTTPException(413, f"The upload is too large; the limit is {max_files} photos of {max_mb} MB each.")

    async def _read_photo(self, body: "_BodyStream") -> Upload:
        raw = bytearray()
        async for chunk in body.chunks():
            raw += chunk
            if len(raw) > self.settings.max_upload_bytes:
                raise HTTPException(413, f"The photo is too large; the limit is {self.settings.max_upload_mb} MB.")
        if not raw:
            raise HTTPException(400, "The body is empty. Send a photo.")
        return Upload(name=DEFAULT_NAME, raw=bytes(raw))

    async def _read_multipart(self, request: Request, body: "_BodyStream") -> Form:
        parser = _PhotoFormParser(request, body.chunks(), self.settings)
        try:
            parts = await parser.parse()
        except (MultiPartException, FormParserError) as error:  # the second by starlette before 0.44
            is_above_limit = "aximum" in str(error)
            status = 413 if is_above_limit else 400
            raise HTTPException(status, f"The form cannot be read: {error}") from error
        try:
            files = [part for _, part in parts.multi_items() if isinstance(part, UploadFile)]
            given = [(name, value) for name, value in parts.multi_items() if isinstance(value, str)]
            uploads = tuple([Upload(name=safe_name(file.filename), raw=await file.read()) for file in files])
        finally:
            await parts.close()
        check_once([name for name, _ in given])
        if not uploads:
            raise HTTPException(400, "The form contains no file. Send photos in the field `files`.")
        return Form(uploads=uploads, fields=dict(given))


class _PhotoFormParser(MultiPartParser):
    """Starlette's parser, with a limit per file.  Files above one megabyte go to unnamed temporary files."""

    def __init__(self, request: Request, stream: AsyncGenerator[bytes, None], settings: ServerSettings) -> None:
        super().__init__(request.headers, stream, max_files=settings.max_files, max_fields=MAX_FIELDS)
        self.max_part_size = MAX_FIELD_BYTES  # not an argument before starlette 0.44
        self.settings, self.num_part_bytes = settings, 0

    def on_part_begin(self) -> None:
        """Start to count a part's bytes."""
        self.num_part_bytes = 0
        super().on_part_begin()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Check the limit before more of a part is stored."""
        self.num_part_bytes += end - start
        if self.num_part_bytes > self.settings.max_upload_bytes:
            raise MultiPartException(f"Maximum size of a photo is {self.settings.max_upload_mb} MB.")
        super().on_part_data(data, start, end)


class _BodyStream:
    """The body of one request; its bytes are counted as they arrive."""

    def __init__(self, reader: UploadReader, request: Request) -> None:
        self.reader, self.request, self.num_bytes = reader, request, 0

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body up to the limits, which also hold for a body without a declared length."""
        settings = self.reader.settings
        async for chunk in self.request.stream():
            self.num_bytes += len(chunk)
            self.reader.num_bytes += len(chunk)
            if self.num_bytes > settings.max_body_bytes:
                raise self.reader.body_too_large()
            if self.reader.num_bytes > settings.max_total_body_bytes:
                raise HTTPException(429, "The server is busy; try again in a moment.", {"Retry-After": "2"})
            yield chunk


def safe_name(name: str | None) -> str:
    """Return a file's name for messages and the index: the last part of the path, printable, of limited length."""
    last = PurePosixPath((name or "").replace("\\", "/")).name
    if not last.isprintable():
        last = "".join(character if character.isprintable() else " " for character in last)
    return re.sub(r"\s+", " ", last).strip(" .")[-MAX_NAME_LENGTH:] or DEFAULT_NAME
