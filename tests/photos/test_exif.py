"""What EXIF blocks and XMP packets say, in all the ways that cameras and programs write it."""

import json
import math
import shutil
import struct
import subprocess
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cosplace.photos.blocks import MAX_BLOCKS, find_blocks
from cosplace.photos.exif import time_of_date
from cosplace.photos.metadata import PhotoMetadata, metadata_from_exif, read_metadata
from cosplace.photos.xmp import contains
from tests.photos.exif_blocks import (
    BYTE,
    DOUBLE,
    FLOAT,
    LONG,
    RATIONAL,
    SHORT,
    SLONG,
    SRATIONAL,
    UNDEFINED,
    Tag,
    Tags,
    ascii_tag,
    degrees,
    exif_block,
    exif_segment,
    extended_xmp_segments,
    jpeg,
    png,
    png_xmp,
    segment,
    tiff,
    webp,
    xmp_packet,
    xmp_segment,
)

LATITUDE, LONGITUDE = -33.8568, 151.2153  # Sydney
SYDNEY: Tags = {1: ascii_tag("S"), 2: degrees(LATITUDE), 3: ascii_tag("E"), 4: degrees(LONGITUDE)}
NOON = "2020:06:01 12:00:00"
NOON_UTC = datetime(2020, 6, 1, 12, tzinfo=UTC).timestamp()
XMP = {"exif:GPSLatitude": "33,51.408S", "exif:GPSLongitude": "151,12.918E"}


def photo(gps: dict[int, Tag | None] | None = None, taken: Tags | None = None, image: Tags | None = None) -> bytes:
    """A JPEG in Sydney with some GPS tags changed, or left out where they are None."""
    tags = {number: tag for number, tag in {**SYDNEY, **(gps or {})}.items() if tag is not None}
    return jpeg(exif_segment(exif_block(tags, taken, image)))


def is_in_sydney(facts: PhotoMetadata) -> bool:
    return facts.latitude == pytest.approx(LATITUDE, abs=1e-5) and facts.longitude == pytest.approx(LONGITUDE, abs=1e-5)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("other", "is_known"), [("S", True), ("N", False)])
def test_a_tag_of_the_position_that_stands_twice_with_different_values_makes_it_unknown(
    order: str, other: str, is_known: bool
) -> None:
    """Pillow takes the first one, exiftool the last."""
    block = exif_block({**SYDNEY, 5: ascii_tag(other)}, order=order)
    entries = [struct.pack(order + "HHI", number, 2, 2) for number in (5, 1)]
    facts = metadata_from_exif(jpeg(exif_segment(block.replace(*entries))))
    assert is_in_sydney(facts) if is_known else has_no_position(facts)


def has_no_position(facts: PhotoMetadata) -> bool:
    return math.isnan(facts.latitude) and math.isnan(facts.longitude)


# --- position --------------------------------------------------------------------------------------------------------

RATIONALS = [(33, 1), (51, 1), (2448, 100)]
NEGATIVE = [(-33, 1), (-51, 1), (-2448, 100)]
READ = {
    "one rational": {2: Tag(RATIONAL, [(338568, 10_000)]), 4: Tag(RATIONAL, [(1512153, 10_000)])},
    "degrees and minutes": {2: Tag(RATIONAL, [(33, 1), (51408, 1000)])},
    "a fourth value": {2: Tag(RATIONAL, [*RATIONALS, (7, 1)])},
    "signed and S": {2: Tag(SRATIONAL, NEGATIVE)},
    "signed, one value, and S": {2: Tag(SRATIONAL, [(-338568, 10_000)])},
    "doubles": {2: Tag(DOUBLE, [33.0, 51.0, 24.48])},
    "float": {2: Tag(FLOAT, [33.8568])},
    "text": {2: ascii_tag("33 51 24.48")},
    "text without a digit before the point": {2: ascii_tag("33. 51.4 .48")},
    "reference of bytes": {1: Tag(BYTE, b"S\0")},
    "reference of one byte": {1: Tag(BYTE, b"S"), 3: Tag(BYTE, b"E")},
    "undefined reference": {1: Tag(UNDEFINED, b"S\0")},
    "undefined reference of one byte": {1: Tag(UNDEFINED, b"S")},
    "reference of a short": {1: Tag(SHORT, [ord("S")])},
    "reference of two shorts": {1: Tag(SHORT, [ord("S"), 0])},
    "reference in small letters": {1: ascii_tag("south"), 3: ascii_tag("east")},
    "reference after a space": {1: ascii_tag(" S")},
    "reference without a zero": {1: Tag(2, b"S")},
    "status void": {9: ascii_tag("V")},
}
UNREAD = {
    "no references": {1: None, 3: None},
    "no reference of the latitude": {1: None},
    "no reference of the longitude": {3: None},
    "empty reference": {1: ascii_tag("")},
    "reference of zeros": {1: Tag(2, b"\0\0")},
    "foreign reference": {1: ascii_tag("E")},
    "signed and N": {1: ascii_tag("N"), 2: Tag(SRATIONAL, NEGATIVE)},
    "signs that differ": {2: Tag(SRATIONAL, [(-33, 1), (51, 1), (2448, 100)])},
    "seconds of 0/0": {2: Tag(RATIONAL, [(33, 1), (51, 1), (0, 0)])},
    "a fourth value of 0/0": {2: Tag(RATIONAL, [*RATIONALS, (0, 0)])},
    "only 0/0": {2: Tag(RATIONAL, [(0, 0)] * 3)},
    "zeros": {2: degrees(0), 4: degrees(0)},
    "beyond the pole": {2: degrees(95)},
    "a byte, which may be a digit or a number": {4: Tag(BYTE, b"9")},
    "no longitude": {4: None},
}


@pytest.mark.parametrize("gps", READ.values(), ids=READ)
def test_positions_in_all_notations(gps: dict[int, Tag | None]) -> None:
    assert is_in_sydney(metadata_from_exif(photo(gps)))


@pytest.mark.parametrize("gps", UNREAD.values(), ids=UNREAD)
def test_ambiguous_positions_are_unknown(gps: dict[int, Tag | None]) -> None:
    assert has_no_position(metadata_from_exif(photo(gps)))


def test_files_of_all_formats() -> None:
    for order in "<>":
        block = exif_block(SYDNEY, {0x9003: ascii_tag(NOON)}, order=order)
        for raw in (
            jpeg(exif_segment(block)),
            png((b"eXIf", block)),
            png((b"eXIf", b"Exif\0\0" + block)),
            webp([(b"EXIF", block)]),
            webp([(b"EXIF", b"Exif\0\0" + block)]),
            tiff(SYDNEY, {0x9003: ascii_tag(NOON)}, order=order),
            png(
                (
                    b"tEXt",
                    b"Raw profile type exif\0\nexif\n%8d\n%s" % (6 + len(block), (b"Exif\0\0" + block).hex().encode()),
                )
            ),
        ):
            facts = metadata_from_exif(raw)
            assert is_in_sydney(facts) and facts.time == NOON_UTC


def test_positions_in_a_second_block() -> None:
    first = exif_segment(exif_block(taken={0x9003: ascii_tag(NOON)}))
    facts = metadata_from_exif(jpeg(first, exif_segment(exif_block(SYDNEY))))
    assert is_in_sydney(facts) and facts.time == NOON_UTC
    assert is_in_sydney(metadata_from_exif(jpeg(exif_segment(exif_block(SYDNEY)), exif_segment(exif_block(SYDNEY)))))
    north = exif_segment(exif_block({**SYDNEY, 1: ascii_tag("N")}))
    for others in ([], [xmp_segment(xmp_packet(XMP))]):
        assert has_no_position(metadata_from_exif(jpeg(north, exif_segment(exif_block(SYDNEY)), *others)))


def test_heading_accuracy_and_time_in_a_second_block() -> None:
    """exiftool reads every block."""
    gps = {16: ascii_tag("T"), 17: Tag(RATIONAL, [(2705, 10)]), 31: Tag(RATIONAL, [(12, 1)])}
    facts = metadata_from_exif(
        jpeg(exif_segment(exif_block(SYDNEY)), exif_segment(exif_block(gps, {0x9003: ascii_tag(NOON)})))
    )
    assert (facts.heading, facts.accuracy_m, facts.time) == (270.5, 12.0, NOON_UTC) and is_in_sydney(facts)


def test_a_block_of_two_segments() -> None:
    block = exif_block({**SYDNEY, 27: Tag(UNDEFINED, bytes(80_000))})
    first, second = block[:60_000], block[60_000:]
    assert is_in_sydney(metadata_from_exif(jpeg(exif_segment(first), exif_segment(second))))


# --- XMP -------------------------------------------------------------------------------------------------------------

GUID = b"0123456789ABCDEF0123456789ABCDEF"
BIG = extended_xmp_segments(xmp_packet(XMP, elements=True) + b" " * 100_000, GUID)
PACKETS = {
    "attributes": jpeg(xmp_segment(xmp_packet(XMP))),
    "elements": jpeg(xmp_segment(xmp_packet(XMP, elements=True))),
    "GIF": b"GIF89a"
    + bytes(7)
    + b"\x21\xff\x0bXMP DataXMP"
    + xmp_packet(XMP)
    + b"\1"
    + bytes(range(255, -1, -1))
    + b"\0;",
    "other prefix": jpeg(xmp_segment(xmp_packet(XMP, prefixes={"exif": "e"}))),
    "UTF-16": jpeg(xmp_segment(xmp_packet(XMP).decode().encode("utf-16-le"))),
    "UTF-16, big-endian": jpeg(xmp_segment(xmp_packet(XMP).decode().encode("utf-16-be"))),
    "seconds": jpeg(
        xmp_segment(xmp_packet({"exif:GPSLatitude": "33,51,24.48S", "exif:GPSLongitude": "151,12,55.08E"}))
    ),
    "decimal": jpeg(xmp_segment(xmp_packet({"exif:GPSLatitude": "33.8568s", "exif:GPSLongitude": "151.2153e"}))),
    "signed": jpeg(xmp_segment(xmp_packet({"exif:GPSLatitude": "-33.8568", "exif:GPSLongitude": "151.2153"}))),
    "exponents": jpeg(
        xmp_segment(xmp_packet({"exif:GPSLatitude": "3.38568e+01S", "exif:GPSLongitude": "1.512153e+02E"}))
    ),
    "above 64 KB": jpeg(xmp_segment(xmp_packet({"xmpNote:HasExtendedXMP": GUID.decode()})), *reversed(BIG)),
    "PNG": png(png_xmp(xmp_packet(XMP))),
    "compressed PNG": png(png_xmp(xmp_packet(XMP), compressed=True)),
    "WebP": webp([(b"XMP ", xmp_packet(XMP))]),
    "TIFF": tiff(image={700: Tag(BYTE, xmp_packet(XMP))}),
    "after EXIF of zeros": jpeg(
        exif_segment(exif_block({**SYDNEY, 2: degrees(0), 4: degrees(0)})), xmp_segment(xmp_packet(XMP))
    ),
}


@pytest.mark.parametrize("raw", PACKETS.values(), ids=PACKETS)
def test_positions_in_xmp(raw: bytes) -> None:
    assert is_in_sydney(metadata_from_exif(raw))


@pytest.mark.parametrize(
    ("latitude", "longitude"),
    [
        ("33,51.408", "151,12.918"),
        ("33.8568", "151.2153"),
        ("-33,51.408N", "151,12.918E"),
        ("0,0N", "0,0E"),
        ("S", "E"),
    ],
)
def test_xmp_without_hemispheres_is_unknown(latitude: str, longitude: str) -> None:
    packet = xmp_packet({"exif:GPSLatitude": latitude, "exif:GPSLongitude": longitude})
    assert has_no_position(metadata_from_exif(jpeg(xmp_segment(packet))))


def test_xmp_of_other_places_is_not_the_position_of_the_photo() -> None:
    # A structure as of IPTC's "location shown", with a position inside.
    shown = (
        '<Iptc4xmpExt:LocationShown xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"><rdf:Bag>'
        '<rdf:li rdf:parseType="Resource"><exif:GPSLatitude>10,0N</exif:GPSLatitude><exif:GPSLongitude>20,0E'
        "</exif:GPSLongitude></rdf:li><rdf:li><rdf:Description exif:GPSLatitude='10,0N' exif:GPSLongitude='20,0E'/>"
        "</rdf:li></rdf:Bag></Iptc4xmpExt:LocationShown></rdf:Description>"
    )
    for properties, known in (({}, False), (XMP, True)):
        for elements in (False, True):
            packet = xmp_packet(properties, elements=elements).decode().replace("</rdf:Description>", shown)
            metadata = metadata_from_exif(jpeg(xmp_segment(packet.encode())))
            assert is_in_sydney(metadata) if known else has_no_position(metadata)


def test_positions_of_drones() -> None:
    for name in ("GpsLongitude", "GpsLongtitude"):
        packet = xmp_packet({"drone-dji:GpsLatitude": "-33.8568", f"drone-dji:{name}": "+151.2153"})
        assert is_in_sydney(metadata_from_exif(jpeg(xmp_segment(packet))))


def test_positions_in_texts_of_png_files() -> None:
    packet = xmp_packet(XMP)
    profile = b"\ngeneric profile\n%8d\n%s\n"
    exif = b"Exif\0\0" + exif_block(SYDNEY)
    for raw in (
        png((b"tEXt", b"XML:com.adobe.xmp\0" + packet)),
        png((b"tEXt", b"Raw profile type xmp\0\nxmp\n%8d\n%s\n" % (len(packet), packet.hex().encode()))),
        png((b"tEXt", b"Raw profile type APP1\0" + profile % (len(exif), exif.hex().encode()))),
    ):
        assert is_in_sydney(metadata_from_exif(raw))
    unpadded = segment(b"Exif\0\xff" + exif_block(SYDNEY))
    assert is_in_sydney(metadata_from_exif(jpeg(unpadded)))


def test_times_of_clocks_that_were_never_set_are_passed_over() -> None:
    taken = {0x9003: ascii_tag("2020:06:01 12:00:00")}
    expected = datetime(2020, 6, 1, 12, tzinfo=UTC).timestamp()
    clock = Tag(RATIONAL, [(0, 1), (0, 1), (0, 1)])
    for date in ("1980:01:06", "0001:01:01", "9999:12:31"):
        raw = jpeg(exif_segment(exif_block({29: ascii_tag(date), 7: clock}, taken)))
        assert metadata_from_exif(raw).time == expected
    for date in ("0001:01:01", "9999:12:31", "1904:01:01", "1970:01:01", "1980:01:01", "1980:01:06"):
        wrong = {0x9003: ascii_tag(f"{date} 00:03:07"), 0x9004: taken[0x9003]}
        assert metadata_from_exif(jpeg(exif_segment(exif_block({}, wrong)))).time == expected
        assert math.isnan(metadata_from_exif(jpeg(exif_segment(exif_block({}, {0x9003: wrong[0x9003]})))).time)


def test_an_impossible_position_error_is_unknown() -> None:
    raw = jpeg(exif_segment(exif_block({**SYDNEY, 31: Tag(RATIONAL, [(2**32 - 1, 1)])})))
    assert is_in_sydney(metadata_from_exif(raw)) and math.isnan(metadata_from_exif(raw).accuracy_m)


def test_exif_gives_a_heading_that_the_name_lacks() -> None:
    raw = jpeg(exif_segment(exif_block({**SYDNEY, 16: ascii_tag("T"), 17: Tag(RATIONAL, [(2705, 10)])})))
    name = "@549750@4173303@10@S@37.70562@-122.43560@id@@@@@@202001@@.jpg"
    metadata = read_metadata(Path(name), raw)
    assert (round(metadata.latitude, 3), metadata.heading) == (37.706, 270.5)


def test_exif_decides_over_xmp() -> None:
    packet = xmp_packet({"exif:GPSLatitude": "10,0N", "exif:GPSLongitude": "20,0E"})
    assert is_in_sydney(metadata_from_exif(jpeg(exif_segment(exif_block(SYDNEY)), xmp_segment(packet))))


def test_xmp_gives_heading_accuracy_and_time() -> None:
    packet = xmp_packet(
        {
            "exif:GPSImgDirection": "5410/20", "exif:GPSImgDirectionRef": "T", "exif:GPSHPositioningError": "12/1",
            "exif:DateTimeOriginal": "2020-06-01T14:00:00.5+02:00",
        }
    )  # fmt: skip
    facts = metadata_from_exif(jpeg(xmp_segment(packet)))
    assert (facts.heading, facts.accuracy_m, facts.time) == (270.5, 12.0, NOON_UTC + 0.5)


# --- heading and accuracy --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "heading"),
    [
        (Tag(RATIONAL, [(2705, 10)]), 270.5),
        (Tag(RATIONAL, [(0, 1)]), 0.0),
        (Tag(RATIONAL, [(360, 1)]), 0.0),
        (Tag(SHORT, [270]), 270.0),
        (Tag(DOUBLE, [270.5]), 270.5),
        (ascii_tag("270.5"), 270.5),
        (Tag(SRATIONAL, [(-10, 1)]), 350.0),
        (Tag(RATIONAL, [(2**32 - 10, 1)]), math.nan),
        (Tag(RATIONAL, [(65535, 1)]), math.nan),
        (Tag(SHORT, [65535]), math.nan),
        (Tag(RATIONAL, [(0, 0)]), math.nan),
        (Tag(RATIONAL, [(1, 0)]), math.nan),
        (Tag(RATIONAL, [(361, 1)]), math.nan),
    ],
)
def test_impossible_headings_are_unknown(tag: Tag, heading: float) -> None:
    assert metadata_from_exif(photo({17: tag})).heading == pytest.approx(heading, nan_ok=True)


@pytest.mark.parametrize(("value", "accuracy_m"), [((1500, 1), 1500.0), ((0, 0), math.nan), ((0, 1), math.nan)])
def test_accuracy(value: tuple[int, int], accuracy_m: float) -> None:
    assert metadata_from_exif(photo({31: Tag(RATIONAL, [value])})).accuracy_m == pytest.approx(accuracy_m, nan_ok=True)


# --- time ------------------------------------------------------------------------------------------------------------

DATES = {
    "plain": ({0x9003: NOON}, 0.0),
    "offset in the date": ({0x9003: NOON + "+0200"}, -7200.0),
    "offset of zero in the date": ({0x9003: NOON + "+0000"}, 0.0),
    "Z in the date": ({0x9003: NOON + "Z", 0x9011: "+02:00"}, 0.0),
    "ISO": ({0x9003: "2020-06-01T12:00:00"}, 0.0),
    "fraction in the date": ({0x9003: NOON + ".25"}, 0.25),
    "zeros": ({0x9003: "0000:00:00 00:00:00", 0x9004: NOON}, 0.0),
    "blanks": ({0x9003: "    :  :     :  :  ", 0x9004: NOON}, 0.0),
    "no such day": ({0x9003: "2020:02:30 10:00:00", 0x9004: NOON}, 0.0),
    "no such hour": ({0x9003: "2020:02:03 25:00:00", 0x9004: NOON}, 0.0),
    "date of the change": ({0x9003: "0000:00:00 00:00:00", 0x0132: NOON}, 0.0),
    "date of the change, with its offset": ({0x0132: NOON, 0x9010: "+02:00"}, -7200.0),
    "own offset": ({0x9003: NOON, 0x9010: "+09:00", 0x9011: "+02:00", 0x9012: "+08:00"}, -7200.0),
    "offset of the change": ({0x9003: NOON, 0x9010: "+02:00"}, -7200.0),
    "offset of a change at once": ({0x9003: NOON, 0x0132: NOON, 0x9010: "+02:00"}, -7200.0),
    "offset of a later change": ({0x9003: NOON, 0x0132: "2020:06:02 08:00:00", 0x9010: "+09:00"}, 0.0),
    "offset of digitizing": ({0x9003: NOON, 0x9012: "-05:30"}, 19_800.0),
    "digitized, with its offset": ({0x9004: NOON, 0x9011: "+02:00", 0x9012: "-05:00"}, 18_000.0),
    "offset without colon": ({0x9003: NOON, 0x9011: "+0200"}, -7200.0),
    "offset with seconds": ({0x9003: NOON, 0x9011: "+02:00:00"}, -7200.0),
    "offset of blanks": ({0x9003: NOON, 0x9011: "   :  "}, 0.0),
    "impossible offset": ({0x9003: NOON, 0x9011: "+99:00"}, 0.0),
    "fraction": ({0x9003: NOON, 0x9291: "70"}, 0.7),
    "fraction with blanks": ({0x9003: NOON, 0x9291: "7  "}, 0.7),
    "fraction of digitizing": ({0x9004: NOON, 0x9291: "9", 0x9292: "125"}, 0.125),
    "fraction of the change": ({0x0132: NOON, 0x9290: "5"}, 0.5),
    "fraction of another date": ({0x9003: NOON, 0x9290: "5"}, 0.0),
    "leap second": ({0x9003: "2020:06:01 11:59:60"}, 0.0),
}


@pytest.mark.parametrize(("texts", "seconds"), DATES.values(), ids=DATES)
def test_dates_of_the_camera(texts: dict[int, str], seconds: float) -> None:
    tags = {number: ascii_tag(text) for number, text in texts.items()}
    image = {number: tag for number, tag in tags.items() if number == 0x0132}
    taken = {number: tag for number, tag in tags.items() if number != 0x0132}
    assert metadata_from_exif(photo(None, taken, image)).time == pytest.approx(NOON_UTC + seconds, abs=1e-5)


@pytest.mark.parametrize(
    ("fraction", "seconds"),
    [
        (Tag(SHORT, [50]), 0.5),
        (Tag(LONG, [50]), 0.5),
        (Tag(SLONG, [51]), 0.51),
        (Tag(RATIONAL, [(123, 1)]), 0.123),
        (Tag(UNDEFINED, b"50"), 0.5),
        (Tag(BYTE, [50]), 0.0),  # exiftool: .50, but Pillow gives bytes: the number, or the character 2?
        (Tag(SLONG, [-5]), 0.0),
        (Tag(RATIONAL, [(1, 2)]), 0.0),
    ],
    ids=["short", "long", "slong", "rational", "undefined", "byte", "negative", "half"],
)
def test_fractions_of_a_second_may_be_numbers(fraction: Tag, seconds: float) -> None:
    """exiftool writes the number after the point."""
    raw = photo(None, {0x9003: ascii_tag(NOON), 0x9291: fraction})
    assert metadata_from_exif(raw).time == pytest.approx(NOON_UTC + seconds, abs=1e-5)


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the time zone of a process cannot be changed")
def test_the_time_zone_of_the_machine_does_not_change_times(monkeypatch: pytest.MonkeyPatch) -> None:
    raws = [photo(None, {0x9003: ascii_tag(NOON), 0x9011: ascii_tag(offset)}) for offset in ("", "+02:00")]
    with monkeypatch.context() as changed:
        changed.setenv("TZ", "America/Los_Angeles")
        time.tzset()
        found = [metadata_from_exif(raw).time for raw in raws]
        named = read_metadata(Path("@1@1@10@S@37.7@-122.4@@@@@@@20200601120000@@.jpg"), b"").time
    time.tzset()
    assert [*found, named] == [NOON_UTC, NOON_UTC - 7200, NOON_UTC]


GPS_NOON = datetime(2021, 5, 4, 12, 0, 30, tzinfo=UTC).timestamp()


def clock(*parts: tuple[int, int]) -> Tag:
    return Tag(RATIONAL, list(parts))


@pytest.mark.parametrize(
    ("date", "time", "expected"),
    [
        ("2021:05:04", clock((12, 1), (0, 1), (30, 1)), GPS_NOON),
        ("2021-05-04", clock((12, 1), (0, 1), (30_500, 1000)), GPS_NOON + 0.5),
        ("0000:00:00", clock((0, 1), (0, 1), (0, 1)), NOON_UTC),
        ("2020:02:30", clock((10, 1), (0, 1), (0, 1)), NOON_UTC),
        ("2021:05:04", clock((0, 0), (0, 0), (0, 0)), NOON_UTC),
        ("2021:05:04", clock((99, 1), (0, 1), (0, 1)), NOON_UTC),
    ],
)  # fmt: skip
def test_gps_times_come_first_if_they_are_valid(date: str, time: Tag, expected: float) -> None:
    raw = photo({7: time, 29: ascii_tag(date)}, {0x9003: ascii_tag(NOON)})
    assert metadata_from_exif(raw).time == pytest.approx(expected, abs=1e-5)


def test_the_camera_gives_fractions_to_whole_gps_seconds() -> None:
    gps = {7: clock((10, 1), (0, 1), (0, 1)), 29: ascii_tag("2020:06:01")}
    ten = NOON_UTC - 7200  # the camera's clock is two hours ahead, and says so or not
    for seconds, fraction, expected in (("00", "25", ten + 0.25), ("01", "5", ten + 1.5), ("31", "5", ten)):
        taken = {0x9003: ascii_tag(f"2020:06:01 12:00:{seconds}"), 0x9291: ascii_tag(fraction)}
        assert metadata_from_exif(photo(gps, taken)).time == pytest.approx(expected, abs=1e-5)


# --- damage, threads, and the judge ----------------------------------------------------------------------------------


def test_damaged_files_have_no_facts_or_some() -> None:
    for raw in (photo(), png((b"eXIf", exif_block(SYDNEY))), webp([(b"EXIF", exif_block(SYDNEY))]), tiff(SYDNEY)):
        for end in range(0, len(raw), 7):
            facts = metadata_from_exif(raw[:end])
            assert is_in_sydney(facts) or has_no_position(facts)
    assert has_no_position(metadata_from_exif(jpeg(segment(b"Exif\0\0"), segment(b"Exif\0\0II*\0"))))


def test_a_directory_that_contains_itself() -> None:
    entries = b"".join(struct.pack("<HHII", tag, LONG, 1, 8) for tag in (0x8769, 0x8825))
    block = b"II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 8)
    assert has_no_position(metadata_from_exif(jpeg(exif_segment(block))))


def test_threads_read_the_same_facts() -> None:
    raws = [photo(gps) for gps in READ.values()] * 4
    with ThreadPoolExecutor(8) as pool:
        assert all(map(is_in_sydney, pool.map(metadata_from_exif, raws)))


def test_positions_are_those_of_exiftool(tmp_path: Path) -> None:
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool is not installed")
    raws = {name: photo(gps) for name, gps in READ.items() if not name.startswith(("reference", "undefined"))} | PACKETS
    paths = []
    for number, raw in enumerate(raws.values()):
        paths.append(tmp_path / f"{number:03}.jpg")  # exiftool looks at the content
        paths[-1].write_bytes(raw)
    output = subprocess.run(["exiftool", "-n", "-j", "-GPSPosition", *paths], capture_output=True, check=True).stdout
    judged = [[float(text) for text in row["GPSPosition"].split()] for row in json.loads(output)]
    assert len(judged) == len(raws)
    for name, raw, (latitude, longitude) in zip(raws, raws.values(), judged, strict=True):
        facts = metadata_from_exif(raw)
        if name != "after EXIF of zeros":  # exiftool reports zeros
            assert (facts.latitude, facts.longitude) == pytest.approx((latitude, longitude), abs=1e-6), name


# --- files that are made to waste time and memory ---------------------------------------------------------------------


def test_only_some_blocks_of_a_file_are_used() -> None:
    block, packet = exif_block(SYDNEY), xmp_packet(XMP)
    assert len(find_blocks(jpeg(*[exif_segment(block)] * 50)).exif) == MAX_BLOCKS
    assert len(find_blocks(jpeg(*[xmp_segment(packet)] * 50)).xmp) == MAX_BLOCKS
    assert len(find_blocks(webp([(b"EXIF", block)] * 50)).exif) == MAX_BLOCKS
    assert is_in_sydney(metadata_from_exif(jpeg(*[exif_segment(block)] * 50)))


@pytest.mark.parametrize(
    "chunk",
    [
        png_xmp(bytes(4_000_000), compressed=True),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%8d\n" % 400_000 + b"00" * 400_000)),
    ],
    ids=["XMP", "EXIF"],
)
def test_compressed_metadata_take_little_memory(chunk: tuple[bytes, bytes]) -> None:
    raw = png(*[chunk] * 100)
    tracemalloc.start()
    try:
        metadata_from_exif(raw)
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()


def test_a_block_in_many_segments_is_joined_once() -> None:
    block = exif_block({**SYDNEY, 27: Tag(UNDEFINED, bytes(5_000))})
    parts = [exif_segment(block[start : start + 2]) for start in range(0, len(block), 2)]
    raw = jpeg(*parts)
    assert is_in_sydney(metadata_from_exif(raw))
    assert find_blocks(raw).exif == (block,)


@pytest.mark.parametrize("word", ["GPSLatitude", "Date"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_words_are_found_in_every_encoding_of_xmp(word: str, encoding: str) -> None:
    assert contains(f"<x {word}='1'/>".encode(encoding), word)
    assert not contains(f"<x {word[1:]}='1'/>".encode(encoding), word)


def test_an_impossible_offset_in_a_date_is_none() -> None:
    assert time_of_date("2020:07:01 12:00:00+99:00") == time_of_date("2020:07:01 12:00:00") == (1593604800, True)
    assert time_of_date("2020:07:01 12:00:00+99:00", 7200.0) == (1593604800 - 7200, False)
