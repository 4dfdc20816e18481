"""XMP sidecars: small files next to photos, in which an estimated position can be stored and removed again.

The position goes into one `rdf:Description` of its own, which is inserted before `</rdf:RDF>` of a sidecar, or into a
new sidecar.  All other bytes stay, so removing it restores the sidecar.  Properties: those of EXIF (GPSLatitude, ...)
for other programs, and four of ESTIMATE_NAMESPACE, which say that the position is an estimate.  Pure, except for
`sidecar_path`.  cosplace/web/downloads.js writes the same new sidecar.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

from cosplace.errors import ImageError
from cosplace.photos.xmp import EXIF_NAMESPACE, RDF_NAMESPACE, read_xmp

ESTIMATE_NAMESPACE = "urn:cosplace:estimate:1.0/"
SUFFIX = ".xmp"
NOT_A_PACKET = "its sidecar is not an XMP packet that can be extended"
METHOD = "Estimated from similar photos by CosPlace"
EMPTY_PACKET = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="CosPlace">
<rdf:RDF xmlns:rdf="{RDF_NAMESPACE}">
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""
PREFIX = r"(?:[\w.-]+:)?"
END_OF_RDF = re.compile(rf"([ \t]*)</({PREFIX})RDF\s*>")
ABOUT = re.compile(rf"<{PREFIX}Description\b[^<>]*\s{PREFIX}about\s*=\s*(\"[^\"]*\"|'[^']*')")
OWN = re.compile(
    rf'<{PREFIX}Description\b[^<>]*\sxmlns:cosplace="{re.escape(ESTIMATE_NAMESPACE)}"[^<>]*/>(\r?\n[ \t]*)?'
)


class SidecarError(ImageError):
    """A sidecar that is left as it is; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatedPosition:
    """A position to store in a sidecar."""

    latitude: float  # degrees
    longitude: float
    radius_m: float | None
    confidence: float  # from 0 to 1
    verdict: str


def sidecar_path(photo: Path) -> Path:
    """The sidecar of a photo: photo.jpg.xmp, or an existing photo.xmp if it cannot belong to another file."""
    full, short = photo.with_name(photo.name + SUFFIX), photo.with_suffix(SUFFIX)
    if full.exists() or not short.exists():
        return full
    same_stem = [path for path in photo.parent.glob(f"{_escaped(photo.stem)}.*") if path.stem == photo.stem]
    return short if {path.name for path in same_stem} == {photo.name, short.name} else full


def _escaped(name: str) -> str:
    return re.sub(r"([\[*?])", r"[\1]", name)


def add_position(old: bytes | None, position: EstimatedPosition) -> bytes:
    """A sidecar with a position, from its content; None: there is no sidecar yet.  Replaces an own earlier estimate.

    Raises SidecarError for a sidecar that has another position, or that is not an XMP packet in UTF-8.
    """
    text = EMPTY_PACKET if old is None else _decode(old)
    if not OWN.search(text) and has_position(read_xmp(text.encode())):
        raise SidecarError("its sidecar has a position")
    text = OWN.sub("", text)
    ends = list(END_OF_RDF.finditer(text))
    if not ends:
        raise SidecarError(NOT_A_PACKET)
    (indent, prefix), at = ends[-1].groups(), ends[-1].end(1)
    newline = "\r\n" if "\r\n" in text else "\n"
    about = ABOUT.search(text)  # the same in all descriptions of a packet
    block = _block(position, prefix, '""' if about is None else about[1], newline)
    new = f"{text[:at]}{block}{newline}{indent}{text[at:]}".encode()
    before, after = read_xmp(text.encode()), read_xmp(new)  # as another program reads it
    if not has_position(after) or before.items() - after.items():
        raise SidecarError(NOT_A_PACKET)
    return new


def _block(position: EstimatedPosition, prefix: str, about: str, newline: str) -> str:
    radius_m = position.radius_m
    values = {
        f"{prefix}about": about,
        "xmlns:exif": quoteattr(EXIF_NAMESPACE),
        "xmlns:cosplace": f'"{ESTIMATE_NAMESPACE}"',
        "exif:GPSVersionID": '"2.3.0.0"',
        "exif:GPSLatitude": f'"{degrees_text(position.latitude, "NS")}"',
        "exif:GPSLongitude": f'"{degrees_text(position.longitude, "EW")}"',
        "exif:GPSMapDatum": '"WGS-84"',
        **({} if radius_m is None else {"exif:GPSHPositioningError": f'"{round(10 * radius_m)}/10"'}),
        "exif:GPSProcessingMethod": f'"{METHOD}"',
        "cosplace:Estimated": '"True"',
        "cosplace:Verdict": quoteattr(position.verdict),
        "cosplace:Confidence": f'"{position.confidence:.4f}"',
        **({} if radius_m is None else {"cosplace:RadiusMeters": f'"{radius_m:.1f}"'}),
    }
    lines = f"{newline}  ".join(f"{name}={value}" for name, value in values.items())
    return f"<{prefix}Description {lines}/>"


def degrees_text(degrees: float, sides: str) -> str:
    """A latitude or longitude as XMP writes it: degrees, minutes and N, S, E or W, such as 37,46.49400N."""
    hundred_thousandths = round(abs(degrees) * 60 * 100_000)
    whole, rest = divmod(hundred_thousandths, 60 * 100_000)
    return f"{whole},{rest / 100_000:.5f}{sides[int(degrees < 0)]}"


def remove_position(old: bytes) -> bytes | None:
    """A sidecar without the estimated position; None: nothing else is in it.

    Raises SidecarError for a sidecar without an estimate, or that another program has written again since.
    """
    text = _decode(old)
    new = OWN.sub("", text)
    if new == text:
        if ESTIMATE_NAMESPACE in text:
            raise SidecarError("another program has written its sidecar again; remove the position with that program")
        raise SidecarError("its sidecar has no estimated position")
    return None if new == EMPTY_PACKET else new.encode()


def has_position(properties: dict[str, str]) -> bool:
    """Whether the properties of a packet have a latitude or a longitude."""
    return any(f"{{{EXIF_NAMESPACE}}}{name}" in properties for name in ("GPSLatitude", "GPSLongitude"))


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise SidecarError("its sidecar is not in UTF-8") from error
