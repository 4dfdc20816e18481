"""XMP packets: descriptions in XML that JPEG, PNG, WebP and TIFF files may contain in addition to EXIF.

A property is found by its namespace, whatever prefix the file uses for it, as an attribute or as an element.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # few photos have a packet that is parsed
    from xml.etree import ElementTree

EXIF_NAMESPACE = "http://ns.adobe.com/exif/1.0/"
TIFF_NAMESPACE = "http://ns.adobe.com/tiff/1.0/"
PHOTOSHOP_NAMESPACE = "http://ns.adobe.com/photoshop/1.0/"
XMP_NAMESPACE = "http://ns.adobe.com/xap/1.0/"
DJI_NAMESPACE = "http://www.dji.com/drone-dji/1.0/"
GPANO_NAMESPACE = "http://ns.google.com/photos/1.0/panorama/"
CAMERA_NAMESPACE = "http://pix4d.com/camera/1.0"
RDF_NAMESPACE = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
MAX_XMP_BYTES = 8_000_000


def contains(packet: bytes, word: str) -> bool:
    """Whether a packet contains an ASCII word, in UTF-8, UTF-16 or UTF-32.  Fast: the XML is not parsed."""
    plain = word.encode("ascii")
    return plain in packet or (b"\0" in packet[:16] and plain in packet.translate(None, b"\0"))


def read_xmp(packet: bytes) -> dict[str, str]:
    """Simple properties of a packet, by `{namespace}name`; the first value where there are several.

    Empty for a packet that is damaged, larger than MAX_XMP_BYTES, or contains a document type: XMP has none, and
    entities could expand without limit.
    """
    from xml.etree import ElementTree

    if len(packet) > MAX_XMP_BYTES:
        return {}
    text = _decode(packet)
    if "<!DOCTYPE" in text.upper():
        return {}
    start, end = text.find("<"), text.rfind(">")  # a packet is often padded, and followed by a zero byte
    try:
        root = ElementTree.fromstring(text[start : end + 1])
    except (ElementTree.ParseError, ValueError):
        return {}
    properties: dict[str, str] = {}
    for name, value in _simple_properties(root):
        if value:
            properties.setdefault(name, value)
    return properties


def _simple_properties(root: "ElementTree.Element") -> Iterator[tuple[str, str]]:
    """Names and texts of the photo's own properties: those of structures inside describe other places and photos."""
    for rdf in root.iter(f"{{{RDF_NAMESPACE}}}RDF"):
        for description in rdf:
            for name, value in description.attrib.items():
                yield name, value.strip()
            for element in description:
                if not len(element):
                    yield element.tag, (element.text or "").strip()


def _decode(packet: bytes) -> str:
    """The text of a packet.  XMP is UTF-8, UTF-16 or UTF-32; without a byte order mark, the zero bytes show which."""
    if packet.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        encoding = "utf-32"
    elif packet.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    else:
        zeros = tuple(byte == 0 for byte in packet[:4])
        encoding = {
            (False, True, True, True): "utf-32-le",
            (True, True, True, False): "utf-32-be",
            (False, True, False, True): "utf-16-le",
            (True, False, True, False): "utf-16-be",
        }.get(zeros, "utf-8-sig")
    return packet.decode(encoding, errors="replace")
