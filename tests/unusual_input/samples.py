"""Inputs that the tests of unusual input write themselves, and commands run on them."""

import io
import json
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyproj import Transformer

from cosplace import GeoLocalizationNet
from cosplace.cli import main

BYTE, ASCII, SHORT, LONG, RATIONAL, SBYTE, UNDEFINED, SSHORT, SLONG, SRATIONAL = range(1, 11)
Tags = Mapping[int, tuple[int, bytes]]
"""From the number of a tag to its type and its data, in the order of bytes of Intel."""

# --- pixels and metadata ---------------------------------------------------------------------------------------------


def place_pixels(place: int, variant: int = 0, side: int = 48) -> np.ndarray:
    """(side, side, 3) uint8: stripes in the colors of a place, with noise by variant."""
    colors = np.random.default_rng([1, place]).integers(30, 226, (6, 3))
    image = np.resize(np.repeat(colors, side // 6, axis=0), (side, 3))[None].repeat(side, 0)
    noise = np.random.default_rng([2, place, variant]).normal(0, 6, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def rationals(*pairs: tuple[int, int], signed: bool = False) -> tuple[int, bytes]:
    letters = "ii" if signed else "II"
    return SRATIONAL if signed else RATIONAL, b"".join(struct.pack("<" + letters, *pair) for pair in pairs)


def text(value: str) -> tuple[int, bytes]:
    return ASCII, value.encode() + b"\0"


def exif_block(gps: Tags | None = None, taken: Tags | None = None, first: Tags | None = None) -> bytes:
    """A TIFF block of a first directory and the directories of camera and GPS tags."""
    tags = dict(first or {})
    parts = [(pointer, part) for pointer, part in ((0x8769, taken), (0x8825, gps)) if part]
    tags |= {pointer: (LONG, bytes(4)) for pointer, _ in parts}
    offset = 8 + len(_directory(tags, 0))
    for pointer, part in parts:
        tags[pointer] = LONG, struct.pack("<I", offset)
        offset += len(_directory(part, 0))
    block, directories = b"II*\0" + struct.pack("<I", 8), [tags, *(part for _, part in parts)]
    for directory in directories:
        block += _directory(directory, len(block))
    return block


def _directory(tags: Tags, start: int) -> bytes:
    sizes = {
        BYTE: 1,
        ASCII: 1,
        SHORT: 2,
        LONG: 4,
        RATIONAL: 8,
        SBYTE: 1,
        UNDEFINED: 1,
        SSHORT: 2,
        SLONG: 4,
        10: 8,
        11: 4,
        12: 8,
    }
    entries, data = b"", b""
    data_start = start + 2 + 12 * len(tags) + 4
    for number, (kind, value) in sorted(tags.items()):
        field = value.ljust(4, b"\0")
        if len(value) > 4:
            field = struct.pack("<I", data_start + len(data))
            data += value + b"\0" * (len(value) % 2)
        entries += struct.pack("<HHI", number, kind, len(value) // sizes[kind]) + field
    return struct.pack("<H", len(tags)) + entries + bytes(4) + data


def xmp_packet(properties: str) -> bytes:
    """An XMP packet with attributes of the namespaces exif and tiff."""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:exif="http://ns.adobe.com/exif/1.0/" '
        f'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" {properties}/></rdf:RDF></x:xmpmeta>'
    ).encode()


def jpeg_with(*, exif: bytes | list[bytes] = b"", xmp: bytes = b"", pixels: np.ndarray | None = None) -> bytes:
    """A JPEG with EXIF blocks and an XMP packet."""
    raw = encoded(place_pixels(0) if pixels is None else pixels)
    parts = [b"Exif\0\0" + block for block in ([exif] if isinstance(exif, bytes) else exif) if block]
    parts += [b"http://ns.adobe.com/xap/1.0/\0" + xmp] if xmp else []
    return raw[:2] + b"".join(b"\xff\xe1" + struct.pack(">H", 2 + len(part)) + part for part in parts) + raw[2:]


def exiftool(raw: bytes, *tags: str) -> dict[str, Any] | None:
    """Values by exiftool; None where it is not installed."""
    if shutil.which("exiftool") is None:
        return None
    command = ["exiftool", "-n", "-j", "-a", *(f"-{tag}" for tag in tags), "-"]
    return json.loads(subprocess.run(command, input=raw, capture_output=True, check=True).stdout)[0]


# --- datasets and models ---------------------------------------------------------------------------------------------


def utm_name(
    latitude: float, longitude: float, *, zone: int, heading: int | str = 0, time: str = "", note: str = ""
) -> str:
    """The '@' name of a position; pyproj computes east and north."""
    east, north = Transformer.from_crs(4326, (32600 if latitude >= 0 else 32700) + zone).transform(latitude, longitude)
    letter = "CDEFGHJKLMNPQRSTUVWX"[int((latitude + 80) // 8)]
    return f"@{east:.2f}@{north:.2f}@{zone}@{letter}@{latitude:.7f}@{longitude:.7f}@@@{heading}@@@@{time}@{note}@.jpg"


def write_photo(folder: Path, name: str, place: int = 0, variant: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(encoded(place_pixels(place, variant)))
    return folder / name


def write_street(folder: Path, places: range, *, variant: int = 0) -> list[Path]:
    """Write one photo per place; places are about 30 m apart, and variants are of different days."""
    day = f"202001{variant + 1:02d}"
    names = [utm_name(37.7, -122.4 + 0.00034 * place, zone=10, time=day) for place in places]
    return [write_photo(folder, name, place, variant) for name, place in zip(names, places, strict=True)]


def write_model(path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(GeoLocalizationNet("ResNet18_Small", 16).state_dict(), path)
    return path


# --- commands --------------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    capsys.readouterr()
    code = main([*map(str, words)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


class HangError(BaseException):
    """Not an Exception, so that no code takes it for an error of a photo."""


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """End what hangs; the limit is far above the usual time."""

    def stop(_: int, __: FrameType | None) -> None:
        raise HangError(f"not finished after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


needs_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
