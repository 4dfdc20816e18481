"""HEIC photos to JPEG, for browsers that cannot show them: one at a time, as each takes much memory."""

from fastapi import FastAPI, Request, Response

from cosplace.errors import PhotoFormatError
from cosplace.importing.heic import can_read_heic, jpeg_of_heic
from cosplace.photos.formats import other_format
from cosplace.server.served_index import ServedIndex
from cosplace.server.single_worker import SingleWorker
from cosplace.server.uploads import Upload, UploadReader, files_body

MAX_WAITING_PHOTOS = 8
BYTES_PER_PIXEL = 8  # decoded, as an image of Pillow, and as JPEG


def can_convert() -> bool:
    """Whether HEIC photos can be converted here: pillow-heif is installed."""
    return can_read_heic()


def add_conversion_route(app: FastAPI, served: ServedIndex, reader: UploadReader) -> None:
    """Add POST /jpeg, if pillow-heif is installed."""
    if not can_convert():
        return
    worker = SingleWorker("cosplace-convert", MAX_WAITING_PHOTOS)

    @app.post(
        "/jpeg",
        openapi_extra=files_body(),
        response_class=Response,
        responses={
            200: {"description": "the photo, upright, with its EXIF data", "content": {"image/jpeg": {}}},
            413: {"description": "too many bytes"},
            415: {"description": "not a HEIC photo"},
            422: {"description": "a damaged photo, or more than one"},
            429: {"description": "the server is busy; try again after `Retry-After` seconds"},
        },
    )
    async def convert(request: Request) -> Response:
        """Convert a HEIC photo to JPEG, with its EXIF data, to locate it then."""
        async with worker.place(), reader.read(request) as form:
            return Response(await worker.run(_convert, served, form.only_upload()), media_type="image/jpeg")


def _convert(served: ServedIndex, upload: Upload) -> bytes:
    if other_format(upload.raw) != "HEIC":
        raise PhotoFormatError(f"{upload.name} is not a HEIC photo. Photos of other formats need no conversion.")
    # The size of a HEIC photo is known only when it is decoded.
    max_pixels = served.settings.max_pixels
    with served.memory.reserve(BYTES_PER_PIXEL * max_pixels):
        return jpeg_of_heic(upload.raw, upload.name, max_pixels)
