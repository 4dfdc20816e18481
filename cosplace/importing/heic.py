"""HEIC, the format of iPhones, to JPEG.  Needs pillow-heif."""

import io
from importlib.util import find_spec

from cosplace.errors import ImageError
from cosplace.importing.packages import optional_module
from cosplace.photos.modes import to_rgb_image
from cosplace.photos.opening import MAX_FILE_BYTES, MAX_PIXELS

JPEG_QUALITY = 95


def can_read_heic() -> bool:
    """Whether pillow-heif is installed."""
    return find_spec("pillow_heif") is not None


def jpeg_of_heic(raw: bytes, name: str, max_pixels: int = MAX_PIXELS) -> bytes:
    """A HEIC photo as an upright JPEG with its EXIF block.  Raises ImageError; DatasetError without pillow-heif."""
    pillow_heif = optional_module("pillow_heif", "Reading HEIC")
    if len(raw) > MAX_FILE_BYTES:
        raise ImageError(f"{name} is larger than {MAX_FILE_BYTES // 1_000_000} MB.")
    try:
        found = pillow_heif.open_heif(raw, convert_hdr_to_8bit=True)
        if found.size[0] * found.size[1] > max_pixels:
            raise ImageError(f"{name} has {found.size[0]} x {found.size[1]} pixels. Resize it.")
        image = found.to_pillow()  # upright: the decoder turns it, and resets the orientation in its EXIF block
        options = {name: image.info[name] for name in ("exif", "xmp", "icc_profile") if image.info.get(name)}
        if "exif" not in options:  # else an orientation in XMP would turn the upright image
            options["exif"] = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x01\0\0\0\0\0\0\0"
        target = io.BytesIO()
        to_rgb_image(image).save(target, "JPEG", quality=JPEG_QUALITY, **options)
    except ImageError:
        raise
    except Exception as error:  # the decoder and Pillow raise many kinds of errors on damaged files
        raise ImageError(f"{name} is damaged ({type(error).__name__}). Export it as JPEG.") from error
    return target.getvalue()
