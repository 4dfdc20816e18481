"""Random EXIF blocks, compared with exiftool: no exception, and never a wrong position."""

import json
import math
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cosplace.geo import geodesic_distances_m
from cosplace.photos.blocks import find_blocks
from cosplace.photos.metadata import PhotoMetadata, metadata_from_exif
from tests.photos.exif_blocks import (
    ASCII,
    BYTE,
    DOUBLE,
    FLOAT,
    LONG,
    RATIONAL,
    SBYTE,
    SHORT,
    SLONG,
    SRATIONAL,
    SSHORT,
    UNDEFINED,
    Tag,
    ascii_tag,
    degrees,
    exif_block,
    exif_segment,
    jpeg,
    png,
    tiff,
    webp,
    xmp_packet,
    xmp_segment,
)

NUM_EXAMPLES = 1000
LIMITS = {BYTE: (0, 255), SHORT: (0, 65535), LONG: (0, 2**32 - 1), SBYTE: (-128, 127), SSHORT: (-32768, 32767),
          SLONG: (-(2**31), 2**31 - 1)}  # fmt: skip
DATES = ["2020:06:01 12:00:00", "0000:00:00 00:00:00", "    :  :     :  :  ", "2020:06:01 12:00:00+02:00", "2020:02:30",
         "2020-06-01T12:00:00.25Z", "x" * 200, "9999:12:31 23:59:59+14:00", "0001:01:01 00:00:00"]  # fmt: skip
DAYS = [date[:10] for date in DATES]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("exiftool") is None, reason="exiftool is not installed"),
]


# --- tags ------------------------------------------------------------------------------------------------------------


def integers(kind: int) -> st.SearchStrategy[int]:
    low, high = LIMITS[kind]
    return st.integers(max(low, -90), min(high, 180)) | st.integers(low, high) | st.sampled_from([low, 0, high])


def tags_of(kind: int) -> st.SearchStrategy[Tag]:
    if kind in (ASCII, UNDEFINED):
        return st.binary(max_size=6).map(lambda values: Tag(kind, values))
    if kind in (RATIONAL, SRATIONAL):
        number = integers(LONG if kind == RATIONAL else SLONG)
        return st.lists(st.tuples(number, number), max_size=4).map(lambda values: Tag(kind, values))
    number = st.floats(width=32 if kind == FLOAT else 64) if kind in (FLOAT, DOUBLE) else integers(kind)
    return st.lists(number, max_size=4).map(lambda values: Tag(kind, values))


def one_of(*strategies: st.SearchStrategy[Tag]) -> st.SearchStrategy[Tag]:
    """One of the strategies, all equally often: `st.one_of` would choose among all their alternatives."""
    return st.sampled_from(strategies).flatmap(lambda strategy: strategy)


any_tag = st.one_of([tags_of(kind) for kind in range(1, 13)])


@st.composite
def angles(draw: st.DrawFn, limit: float) -> Tag:
    """An angle in one of the notations that occur."""
    angle = draw(st.floats(-limit, limit))
    size, minutes, seconds = abs(angle), int(abs(angle) * 60 % 60), draw(st.integers(-60, 60))
    signed = [(int(angle), 1), (minutes, 1), (seconds, 1)]
    notations = [
        Tag(RATIONAL, [(int(size * 1e6), 10**6)]),
        Tag(SRATIONAL, [(int(angle * 1e6), 10**6)]),
        Tag(RATIONAL, [(int(size), 1), (int(size * 6e5 % 6e5), 10**4)]),
        Tag(SRATIONAL, signed),
        Tag(SRATIONAL, [(-abs(numerator), one) for numerator, one in signed]),
        Tag(DOUBLE, [size]),
        ascii_tag(f"{size:.6f}"),
        ascii_tag(f"{int(size)} {minutes} {abs(seconds)}"),
    ]
    return draw(one_of(st.just(degrees(angle)), st.sampled_from(notations), st.sampled_from(notations), any_tag))


def references(letters: str) -> st.SearchStrategy[Tag]:
    letter = st.sampled_from(letters)
    plain = letter.map(ascii_tag)
    odd = st.one_of(
        st.sampled_from(["N", "S", "E", "W", "n", "south", "West", "", "?", " S", "S\0N", "83"]).map(ascii_tag),
        letter.map(lambda text: Tag(BYTE, text.encode() + b"\0")),
        letter.map(lambda text: Tag(UNDEFINED, text.encode() + b"\0")),
        letter.map(lambda text: Tag(SHORT, [ord(text)])),
        any_tag,
    )
    return one_of(plain, plain, plain, plain, odd)


# --- files -----------------------------------------------------------------------------------------------------------

gps_tags = st.fixed_dictionaries(
    {1: references("NS"), 2: angles(100), 3: references("EW"), 4: angles(190)},
    optional={
        7: any_tag, 9: st.sampled_from("AV").map(ascii_tag),
        16: st.just(ascii_tag("M")) | any_tag, 17: any_tag, 29: st.sampled_from(DAYS).map(ascii_tag),
        31: any_tag,
    },
)  # fmt: skip
date_tags = st.fixed_dictionaries(
    {}, optional=dict.fromkeys((0x9003, 0x9004, 0x9010, 0x9011, 0x9012, 0x9291),
                               st.sampled_from(DATES).map(ascii_tag) | any_tag),
)  # fmt: skip
blocks = st.fixed_dictionaries({"gps": gps_tags, "taken": date_tags, "order": st.sampled_from("<>")})
positions = st.tuples(st.floats(-90, 90), st.floats(-180, 180))


def packet(position: tuple[float, float]) -> bytes:
    texts = [f"{int(abs(angle))},{abs(angle) * 60 % 60:.5f}{letters[angle < 0]}"
             for angle, letters in zip(position, ("NS", "EW"), strict=True)]  # fmt: skip
    return xmp_packet({"exif:GPSLatitude": texts[0], "exif:GPSLongitude": texts[1]})


@st.composite
def files(draw: st.DrawFn) -> bytes:
    block = draw(blocks)
    for number in draw(st.sets(st.sampled_from([1, 2, 3, 4]), max_size=1)):
        del block["gps"][number]
    data = exif_block(**block)
    kind = draw(st.sampled_from(["JPEG", "JPEG", "JPEG", "PNG", "WebP", "TIFF", "damaged", "two blocks", "XMP"]))
    if kind == "PNG":
        return png((b"eXIf", data))
    if kind == "WebP":
        return webp([(b"EXIF", data)])
    if kind == "TIFF":
        return tiff(**block)
    if kind == "damaged":
        data = data[: draw(st.integers(0, len(data)))]
    segments = [exif_segment(data)]
    if kind == "two blocks":
        segments.append(exif_segment(exif_block(**draw(blocks))))
    elif kind == "XMP":
        segments.append(xmp_segment(packet(draw(positions))))
    return jpeg(*segments)


# --- the judge -------------------------------------------------------------------------------------------------------


class Exiftool:
    """One process that answers for many files."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "photo.jpg"  # exiftool looks at the content
        command = ["exiftool", "-stay_open", "True", "-@", "-"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def values(self, raw: bytes) -> dict[str, Any]:
        """The GPS values of a photo, with the block that each is from."""
        self.path.write_bytes(raw)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n".join(["-n", "-j", "-a", "-G1", "-GPS*", str(self.path), "-execute\n"]))
        self.process.stdin.flush()
        lines = list(iter(self.process.stdout.readline, "{ready}\n"))
        return json.loads("".join(lines))[0]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("-stay_open\nFalse\n")
        self.process.communicate(timeout=60)


@pytest.fixture(scope="module")
def exiftool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exiftool]:
    judge = Exiftool(tmp_path_factory.mktemp("exiftool"))
    yield judge
    judge.close()


def judged_position(raw: bytes, values: dict[str, Any]) -> tuple[float, float] | None:
    """Exiftool's position, if it can be compared.

    Not with two blocks, of which exiftool may combine values, and not if one of its references is not a letter: it
    takes all but S and W for north and east.
    """
    texts = [str(values.get("GPS:" + name, "")) for name in ("GPSLatitudeRef", "GPSLongitudeRef")]
    known = all(text[:1] and text[:1].upper() in letters for text, letters in zip(texts, ("NS", "EW"), strict=True))
    if not known or len(find_blocks(raw).exif) != 1 or "Composite:GPSPosition" not in values:
        return None
    numbers = values["Composite:GPSPosition"].split()
    return (float(numbers[0]), float(numbers[1])) if len(numbers) == 2 else None


num_compared: Counter[bool] = Counter()


@settings(max_examples=NUM_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(files())
def test_random_blocks_never_give_a_wrong_position(exiftool: Exiftool, raw: bytes) -> None:
    ours = metadata_from_exif(raw)
    assert isinstance(ours, PhotoMetadata)
    assert math.isnan(ours.heading) or 0 <= ours.heading < 360
    assert math.isnan(ours.accuracy_m) or 0 < ours.accuracy_m < math.inf
    if not ours.has_position:
        return
    assert abs(ours.latitude) <= 90 and abs(ours.longitude) <= 180 and (ours.latitude, ours.longitude) != (0, 0)
    values = exiftool.values(raw)
    in_xmp = any(name.startswith("XMP") for name in values)
    assert in_xmp or {"GPS:GPSLatitudeRef", "GPS:GPSLongitudeRef"} <= set(values), "a position without references"
    judged = judged_position(raw, values)
    if judged is not None and not in_xmp:
        assert geodesic_distances_m(ours.latitude, ours.longitude, *judged) < 1, values
        num_compared[True] += 1


def test_many_positions_were_compared() -> None:
    assert num_compared[True] > NUM_EXAMPLES / 20
