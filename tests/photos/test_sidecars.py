"""XMP sidecars: an estimated position is added and removed, everything else stays.  ExifTool reads the results."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from cosplace.photos.sidecars import (
    EstimatedPosition,
    SidecarError,
    add_position,
    degrees_text,
    remove_position,
    sidecar_path,
)
from cosplace.photos.xmp import read_xmp

HERE = EstimatedPosition(latitude=37.7749, longitude=-122.41941234, radius_m=12.44, confidence=0.934, verdict="found")
THERE = EstimatedPosition(latitude=-33.5, longitude=151.25, radius_m=None, confidence=0.5, verdict="probable")
# Written in the ways of other programs: prefixes, quotes, line ends, values in elements, a packet that has no wrapper.
DARKTABLE = b"""<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
   xmp:Rating="4">
   <dc:subject>
    <rdf:Bag>
     <rdf:li>caf\xc3\xa9</rdf:li>
     <rdf:li>a &lt; b &amp; c</rdf:li>
    </rdf:Bag>
   </dc:subject>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
OTHER_WAYS = (
    b"\xef\xbb\xbf<R:RDF xmlns:R='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>\r\n"
    b"<!-- </rdf:RDF> --><R:Description R:about='uuid:12' xmlns:tiff='http://ns.adobe.com/tiff/1.0/'>\r\n"
    b"<tiff:Make>It's</tiff:Make></R:Description></R:RDF>"
)
# ExifTool recognizes XMP by the usual prefixes only.
WITH_UUID = OTHER_WAYS.replace(b"R:", b"rdf:").replace(b":R=", b":rdf=").replace(b"<!-- </rdf:RDF> -->", b"")


@pytest.mark.parametrize(
    "old", [DARKTABLE, OTHER_WAYS, WITH_UUID, DARKTABLE.replace(b"\n", b"\r\n"), DARKTABLE.replace(b"\n", b"")]
)
def test_all_bytes_of_an_existing_sidecar_stay(old: bytes) -> None:
    new = add_position(old, HERE)
    start = next(k for k in range(len(new)) if old[k : k + 1] != new[k : k + 1])
    kept = len(old) - start
    assert new.endswith(old[len(old) - kept :]) and remove_position(new) == old
    before, after = read_xmp(old), read_xmp(new)
    assert before.items() <= after.items() and len(after) > len(before)
    # Another estimate replaces the first one.
    again = add_position(new, THERE)
    assert again == add_position(old, THERE) and remove_position(again) == old


def test_a_new_sidecar_is_deleted_again() -> None:
    new = add_position(None, HERE)
    assert remove_position(new) is None
    assert add_position(new, HERE) == new


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
@pytest.mark.parametrize("old", [None, DARKTABLE, WITH_UUID])
def test_exiftool_reads_the_position_and_the_mark(old: bytes | None, tmp_path: Path) -> None:
    for position in (HERE, THERE):
        path = tmp_path / "photo.jpg.xmp"
        path.write_bytes(add_position(old, position))
        command = ["exiftool", "-n", "-j", "-validate", "-warning", str(path)]
        (checked,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        assert checked.get("Warning") is None
        command = ["exiftool", "-n", "-j", "-G1", "-XMP:all", str(path)]
        (found,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        assert found["XMP-exif:GPSLatitude"] == pytest.approx(position.latitude, abs=2e-7)
        assert found["XMP-exif:GPSLongitude"] == pytest.approx(position.longitude, abs=2e-7)
        assert found.get("XMP-exif:GPSHPositioningError") == (None if position.radius_m is None else 12.4)
        assert found["XMP-exif:GPSProcessingMethod"] == "Estimated from similar photos by CosPlace"
        assert found["XMP-cosplace:Estimated"] in (True, "True")
        assert found["XMP-cosplace:Confidence"] == position.confidence
        assert found["XMP-cosplace:Verdict"] == position.verdict
        if old == DARKTABLE:
            assert found["XMP-xmp:Rating"] == 4 and found["XMP-dc:Subject"] == ["café", "a < b & c"]
        if old == WITH_UUID:
            assert found["XMP-tiff:Make"] == "It's"


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed")
def test_a_sidecar_of_exiftool_keeps_all_its_tags(tmp_path: Path) -> None:
    path = tmp_path / "photo.xmp"
    subprocess.run(["exiftool", "-q", "-XMP:Title=Bahnhof", "-XMP:CreatorCity=Bonn", str(path)], check=True)
    old = path.read_bytes()
    path.write_bytes(add_position(old, HERE))
    command = ["exiftool", "-j", "-XMP:Title", "-XMP:CreatorCity", "-n", "-XMP:GPSLatitude", str(path)]
    (found,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert (found["Title"], found["CreatorCity"]) == ("Bahnhof", "Bonn")
    assert found["GPSLatitude"] == pytest.approx(37.7749, abs=2e-7)
    # Another program writes the file again: the estimate is then no longer in one piece, and nothing is removed.
    subprocess.run(["exiftool", "-q", "-overwrite_original", "-XMP:Rating=2", str(path)], check=True)
    with pytest.raises(SidecarError, match="written its sidecar again"):
        remove_position(path.read_bytes())
    with pytest.raises(SidecarError, match="has a position"):
        add_position(path.read_bytes(), THERE)


GPS = b'xmlns:exif="http://ns.adobe.com/exif/1.0/" exif:GPSLatitude="1,2.0N" xmp:Rating='


@pytest.mark.parametrize(
    ("old", "message"),
    [
        (DARKTABLE.replace(b"xmp:Rating=", GPS), "has a position"),
        (DARKTABLE.decode().encode("utf-16"), "not in UTF-8"),
        (DARKTABLE[:-60], "can be extended"),
        (b"not XML", "can be extended"),
        (b"<a></a>", "can be extended"),
        (b"<!DOCTYPE a>" + DARKTABLE, "can be extended"),
        (DARKTABLE + b"<!-- </rdf:RDF> -->", "can be extended"),
        (b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/>', "can be extended"),
    ],
)
def test_other_sidecars_are_left_as_they_are(old: bytes, message: str) -> None:
    with pytest.raises(SidecarError, match=message):
        add_position(old, HERE)
    with pytest.raises(SidecarError, match=r"no estimated position|not in UTF-8"):
        remove_position(old)


def test_degrees() -> None:
    assert degrees_text(37.7749, "NS") == "37,46.49400N"
    assert degrees_text(-0.5, "EW") == "0,30.00000W"
    assert degrees_text(9.9999999999, "NS") == "10,0.00000N"  # never 60 minutes
    assert degrees_text(-180.0, "EW") == "180,0.00000W"


def test_which_sidecar_belongs_to_a_photo(tmp_path: Path) -> None:
    photo = tmp_path / "a[1].jpg"
    photo.touch()
    assert sidecar_path(photo).name == "a[1].jpg.xmp"
    (tmp_path / "a[1].xmp").touch()
    assert sidecar_path(photo).name == "a[1].xmp"
    (tmp_path / "a[1].cr2").touch()  # then a[1].xmp may be that of the raw file
    assert sidecar_path(photo).name == "a[1].jpg.xmp"
    (tmp_path / "b.jpg").touch()
    (tmp_path / "b.xmp").touch()
    (tmp_path / "b.jpg.xmp").touch()
    assert sidecar_path(tmp_path / "b.jpg").name == "b.jpg.xmp"
