"""Convert a Pillow image of any mode to RGB: the only place where this is done.

Pillow's own conversion clips values at 255, so nearly all of a 16-bit gray image becomes white.  Here the whole range
of the mode is scaled to 0 ... 255:

    I;16 and its variants       0 ... 65535, in a TIFF of 12 bits 0 ... 4095
    I, 32 bits                  0 ... 65535 in a PNG, else by the largest value: 255, 65535, 2^31 - 1 or 2^32 - 1
    F, floats                   by the largest value: 0 ... 1 (up to 2), 0 ... 255, 0 ... 65535, or 0 ... that value
    LAB                         through the color profile of CIE L*a*b* (D50)
    all other modes             as Pillow converts them

Values below 0, and NaN, are black.  In a TIFF where 0 is white, values are inverted.  Transparency is ignored.
"""

import numpy as np
from PIL import Image

MAX_7_BITS, MAX_16_BITS, MAX_31_BITS, MAX_32_BITS = 0x7F, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF
PHOTOMETRIC, WHITE_IS_ZERO, BLACK_IS_ZERO = 262, 0, 1  # a tag of TIFF and its values for gray images
SAMPLE_FORMAT, UNSIGNED, SIGNED = 339, 1, 2
BITS_PER_SAMPLE = 258
PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}  # Pillow converts these to RGB by way of another mode


def to_rgb(image: Image.Image) -> np.ndarray:
    """Pixels of an image of any mode, (H, W, 3) uint8, contiguous and writable.

    Raises nearly anything for a damaged image, as Pillow's decoders do.
    """
    if image.mode == "RGB":
        return np.array(image)
    if image.mode == "I" or image.mode.startswith("I;"):
        values = _integers(image)
        maximum = _integer_maximum(image, values)
        return _repeated(maximum - values if _is_negative(image) else values, maximum)
    if image.mode == "L" and _tiff_tag(image, SAMPLE_FORMAT, UNSIGNED) == SIGNED:  # Pillow opens -1 as 255
        return _repeated(np.maximum(np.asarray(image).view(np.int8), 0), MAX_7_BITS)
    if image.mode == "F":
        return _float_to_rgb(np.asarray(image), is_negative=_is_negative(image))
    if image.mode == "LAB":
        image = _lab_to_rgb(image)
    if image.mode in PREMULTIPLIED:
        image = image.convert(PREMULTIPLIED[image.mode])
    return np.array(image.convert("RGB"))


def to_rgb_image(image: Image.Image) -> Image.Image:
    """The same as a Pillow image of mode RGB."""
    return image if image.mode == "RGB" else Image.fromarray(to_rgb(image))


def _integers(image: Image.Image) -> np.ndarray:
    """Gray values (H, W).  Pillow opens a TIFF with unsigned numbers of 32 bits as signed ones."""
    values = np.asarray(image)
    is_unsigned = image.mode == "I" and _tiff_tag(image, SAMPLE_FORMAT, UNSIGNED) == UNSIGNED
    return values.view(np.uint32) if is_unsigned and values.dtype == np.int32 else values


def _integer_maximum(image: Image.Image, values: np.ndarray) -> int:
    if image.mode != "I" or image.format == "PNG":  # older versions of Pillow open a PNG with 16 bits as I
        bits = _tiff_tag(image, BITS_PER_SAMPLE, 16) if image.mode.startswith("I;16") else None
        return MAX_16_BITS if bits is None else min(MAX_16_BITS, 2**bits - 1)
    largest = values.max(initial=0)
    return next(maximum for maximum in (255, MAX_7_BITS, MAX_16_BITS, MAX_31_BITS, MAX_32_BITS) if largest <= maximum)


def _is_negative(image: Image.Image) -> bool:
    """Whether 0 is white: Pillow inverts such a TIFF only if it has 8 bits."""
    return _tiff_tag(image, PHOTOMETRIC, BLACK_IS_ZERO) == WHITE_IS_ZERO


def _tiff_tag(image: Image.Image, tag: int, default: int) -> int | None:
    """A number in the first directory of a TIFF; None for other formats."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return None
    value = tags.get(tag, default)
    return value[0] if isinstance(value, tuple) else value


def _float_to_rgb(values: np.ndarray, *, is_negative: bool) -> np.ndarray:
    finite = np.nan_to_num(values, nan=0, posinf=np.inf, neginf=0)
    largest = float(finite.max(initial=0, where=np.isfinite(finite)))
    # Sharpened images in 0 ... 1 have a few values above 1.
    maximum = 1 if largest <= 2 else 255 if largest <= 255 else MAX_16_BITS if largest <= MAX_16_BITS else largest
    return _repeated(maximum - finite if is_negative else finite, maximum)


def _repeated(values: np.ndarray, maximum: float) -> np.ndarray:
    """(H, W) in 0 ... maximum to (H, W, 3) uint8."""
    if values.dtype == np.uint16 or values.dtype == np.dtype(">u2"):  # a table needs no memory for floats
        scaled = np.rint(np.arange(maximum + 1) * (255 / maximum)).astype(np.uint8)[values]
    else:
        scaled = np.rint(np.clip(values, 0, maximum) * (255 / maximum)).astype(np.uint8)
    return np.repeat(scaled[..., None], 3, axis=2)


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # it is None only with inPlace=True
    return converted
