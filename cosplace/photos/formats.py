"""Which photo formats are opened, and how the format of a file is detected: by its first bytes, not by its name.

Only these formats are decoded, each only by its own decoder.  Pillow supports many more, and for one of them,
PostScript, it starts another program.
"""

import os
import re
from collections.abc import Mapping

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # as Pillow names them
UPLOAD_FORMATS = ("JPEG", "PNG", "WEBP")  # from untrusted sources: those of browsers and phones
FORMAT_BYTES = 32  # the first bytes of a file, enough to detect its format
SUFFIXES = (b".jpg", b".jpeg", b".png", b".jpe", b".jfif", b".webp", b".tif", b".tiff", b".bmp", b".gif")
"""Files with these suffixes are photos; so are other files whose content has one of the formats."""

RAW_SUFFIXES = frozenset(
    b".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl .sr2 "
    b".srf .srw .x3f".split()
)
VIDEO_SUFFIXES = frozenset(
    b".3gp .avi .flv .insv .lrv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ts .vob .webm .wmv".split()
)
OTHER_SUFFIXES = frozenset(
    b".bin .csv .db .geojson .gpkg .gpx .gz .h5 .hdf5 .html .ini .json .jsonl .kml .kmz .log .mat .md .npy .npz .pdf "
    b".pkl .pt .pth .py .rst .safetensors .sh .sqlite .tar .txt .xml .xmp .yaml .yml .zip "
    b".bak .crdownload .download .old .orig .part .partial .swp .temp .tmp "  # unfinished files and backups
    b".arrow .idx .lance .manifest .txn "  # of an index, which may be in the folder of its photos
    b".thm".split()  # previews that cameras write
)
"""Files with these suffixes are not photos, and are not opened: a scan of millions of them stays fast."""

JPEG_START = b"\xff\xd8\xff"
PNG_START = b"\x89PNG\r\n\x1a\n"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BRANDS: Mapping[bytes, str] = {  # of files that start with a box `ftyp`
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"heim": "HEIC",
    b"heis": "HEIC",
    b"hevc": "HEIC",
    b"hevx": "HEIC",
    b"mif1": "HEIC",
    b"msf1": "HEIC",
    b"crx ": "raw",
}
OTHER_STARTS: Mapping[bytes, str] = {
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"%PDF": "PDF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"8BPS": "PSD",
    b"v/1\x01": "OpenEXR",
    b"qoif": "QOI",
    b"FUJIFILMCCD-RAW": "raw",
    b"IIRO": "raw",
    b"IIU\0": "raw",
    b"\x1aE\xdf\xa3": "video",
    b"II\xbc": "JPEG XR",
    b"#?RADIANCE": "HDR",
    b"#?RGBE": "HDR",
    b"DDS ": "DDS",
    b"SIMPLE  =": "FITS",
    b"SDPX": "DPX",
    b"XPDS": "DPX",
    b"\x01\xda": "SGI",
    b"gimp xcf": "XCF",
}
OTHER_PATTERNS: Mapping[str, re.Pattern[bytes]] = {
    "Netpbm": re.compile(rb"P[1-6]\s+[#\d]|P7\s+[#A-Z]|P[Ff]\s+\d"),
    "PCX": re.compile(rb"\n[\x00\x02-\x05]\x01[\x01\x02\x04\x08]"),
}
OTHER_IMAGE_SUFFIXES: Mapping[bytes, str] = {
    suffix: name
    for name, suffixes in {
        "AVIF": b".avif",
        "DDS": b".dds",
        "DPX": b".dpx",
        "FITS": b".fits",
        "HDR": b".hdr",
        "HEIC": b".heic .heif .hif",
        "JPEG 2000": b".j2c .j2k .jp2 .jpc .jpf .jpx",
        "JPEG XL": b".jxl",
        "JPEG XR": b".hdp .jxr .wdp",
        "Netpbm": b".pam .pbm .pfm .pgm .pnm .ppm",
        "OpenEXR": b".exr",
        "PCX": b".pcx",
        "PSD": b".psb .psd",
        "PostScript": b".eps",
        "QOI": b".qoi",
        "SGI": b".sgi",
        "TGA": b".tga",
        "XCF": b".xcf",
    }.items()
    for suffix in suffixes.split()
}
"""Formats of images that are not opened, by suffix; the content of a file counts more."""

AN_NAMES = ("AVIF", "HDR", "OpenEXR", "SGI", "XCF")  # that follow "an"


def detect_format(start: bytes | bytearray) -> str | None:
    """Pillow's name of a photo's format by its first FORMAT_BYTES; None for all but FORMATS."""
    if start[:3] == JPEG_START:
        return "JPEG"
    if start[:8] == PNG_START:
        return "PNG"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[:4] in TIFF_STARTS:
        return None if start[8:10] == b"CR" else "TIFF"  # CR: Canon's raw format
    if start[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    # "BM" alone is too common, so the size of the header that follows must be a known one.
    if start[:2] == b"BM" and int.from_bytes(start[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124):
        return "BMP"
    return None


def other_format(start: bytes | bytearray, name: bytes = b"") -> str:
    """The name of a format that is not opened, such as HEIC, raw or video; "" for one that is not known.

    name: of the file; its suffix decides where the content does not.
    """
    if start[4:8] == b"ftyp":
        return BRANDS.get(bytes(start[8:12]), "video")
    if start[:4] in TIFF_STARTS:
        return "raw"
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return "video"
    known = (kind for first, kind in OTHER_STARTS.items() if start[: len(first)] == first)
    matching = (kind for kind, pattern in OTHER_PATTERNS.items() if pattern.match(start))
    return next(known, None) or next(matching, None) or OTHER_IMAGE_SUFFIXES.get(suffix_of(name), "")


def suffix_of(name: bytes) -> bytes:
    """The suffix of a file name, in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - bytes, as file names may not be valid text


def refused_format(start: bytes | bytearray, name: bytes = b"") -> str:
    """Why a file is not opened, and what to do, for an error: `is an AVIF file. Export it as JPEG.`.

    name: of the file, as for `other_format`.
    """
    kind = other_format(start, name)
    if kind == "video":
        return "is a video. Extract its frames as JPEG."
    if kind == "raw":
        return "is a camera raw image. Export it as JPEG."
    if kind == "HEIC":
        return "is a HEIC file. Export it as JPEG, or convert it with `cosplace import`."
    return (
        f"is {'an' if kind in AN_NAMES else 'a'} {kind} file. Export it as JPEG."
        if kind
        else "is not an image or has an unknown format. Export it as JPEG."
    )
