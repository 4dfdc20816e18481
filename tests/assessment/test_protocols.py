"""Protocols: a dataset that differs in a single photo is refused, with both numbers."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from cosplace.assessment.protocols import (
    Protocol,
    all_protocols,
    check_dataset,
    check_image_size,
    find_protocol,
    has_radius,
    matching_protocols,
    positions_kind,
    protocol_image_size,
    protocol_record,
)
from cosplace.errors import ConfigError, DatasetError
from cosplace.retrieval.dataset import open_retrieval_dataset
from tests.importing import layout_samples

DOCS = Path(__file__).resolve().parents[2] / "docs" / "protocols.md"


def small(name: str, num_database: int, num_queries: int) -> Protocol:
    """A protocol of the package with the counts of a small sample."""
    protocol = all_protocols()[f"{name}@1"]
    return dataclasses.replace(protocol, num_database=num_database, num_queries=num_queries)


# --- the data --------------------------------------------------------------------------------------------------------


def test_every_protocol_has_a_radius_and_a_source() -> None:
    protocols = all_protocols()
    assert len(protocols) >= 20
    for key, protocol in protocols.items():
        assert key == f"{protocol.name}@{protocol.version}"
        assert (protocol.radius_m is None) != (protocol.radius_frames is None)
        assert protocol.source and protocol.title
        assert protocol.positions in ("ground", "frames", "pairs")
        assert protocol.without_positives in ("miss", "dropped")
        assert protocol.num_database > 0 and protocol.num_queries > 0


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("pitts30k-test", (10_000, 6_816)), ("pitts250k-test", (83_952, 8_280)), ("tokyo247", (75_984, 315)),
        ("msls-val-740", (18_871, 740)), ("msls-val-all", (18_871, 11_084)), ("eynsham", (23_935, 23_935)),
        ("nordland-10f", (27_592, 27_592)), ("nordland-2760", (27_592, 2_760)),
        ("sf-xl-v1", (2_805_840, 1_000)), ("sf-xl-occlusion", (2_805_840, 76)), ("svox-rain", (17_166, 937)),
        ("st-lucia", (1_549, 1_464)), ("amstertime", (1_231, 1_231)), ("sped", (607, 607)),
    ],
)  # fmt: skip
def test_counts_are_those_of_the_field(name: str, counts: tuple[int, int]) -> None:
    protocol = find_protocol(name)
    assert (protocol.num_database, protocol.num_queries) == counts


def test_the_documentation_lists_every_protocol() -> None:
    text = DOCS.read_text("utf-8")
    for protocol in all_protocols().values():
        row = next((line for line in text.splitlines() if line.startswith(f"| `{protocol.id}`")), "")
        for text_of_count in (f"{protocol.num_database:,}", f"{protocol.num_queries:,}"):
            assert f"| {text_of_count} |" in row, f"{protocol.id} in {DOCS.name}: {row}"


# --- names -----------------------------------------------------------------------------------------------------------


def test_a_name_without_version_is_the_newest() -> None:
    first = all_protocols()["tokyo247@1"]
    protocols = {first.id: first} | {
        f"tokyo247@{version}": dataclasses.replace(first, version=version) for version in (2, 10)
    }
    assert find_protocol("Tokyo247", protocols).id == "tokyo247@10"
    assert find_protocol("tokyo247@2", protocols).id == "tokyo247@2"
    with pytest.raises(ConfigError, match=r"no version '3'\. Choose from tokyo247@1, tokyo247@2, tokyo247@10\."):
        find_protocol("tokyo247@3", protocols)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pits30k-test", "Did you mean pitts30k-test"), ("", "Unknown protocol ''"), ("@1", "Unknown protocol '@1'"),
    ],
)  # fmt: skip
def test_unknown_names_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        find_protocol(text)


# --- datasets --------------------------------------------------------------------------------------------------------


def test_a_dataset_that_matches(tmp_path: Path) -> None:
    dataset = open_retrieval_dataset(layout_samples.pittsburgh(tmp_path / "pitts30k"))
    protocol = small("pitts30k-test", 6, 3)
    assert check_dataset(protocol, dataset) == 25.0
    assert [one.id for one in matching_protocols(dataset, 25.0, {protocol.id: protocol})] == ["pitts30k-test@1"]
    assert not matching_protocols(dataset, 24.0, {protocol.id: protocol})


def test_one_missing_query_is_refused_and_both_counts_are_named(tmp_path: Path) -> None:
    layout_samples.prepared(tmp_path, queries=("queries", "queries_v2"))
    next((tmp_path / "test" / "queries_v2").glob("*.jpg")).unlink()
    dataset = open_retrieval_dataset(tmp_path, "queries_v2")
    protocol = small("sf-xl-v2", 4, 4)
    with pytest.raises(DatasetError) as error:
        check_dataset(protocol, dataset, "omit --protocol to evaluate it as custom")
    assert str(error.value) == (
        f"{tmp_path / 'test'} does not match sf-xl-v2@1: it has 3 queries, sf-xl-v2@1 has 4. Omit --protocol to "
        f"evaluate it as custom."
    )
    assert not matching_protocols(dataset, 25.0, {protocol.id: protocol})


def test_all_differences_are_named_and_the_usual_folder(tmp_path: Path) -> None:
    layout_samples.prepared(tmp_path)
    (tmp_path / "test" / "queries" / "@0@0@.jpg").write_bytes(b"")  # a query whose position is unknown
    dataset = open_retrieval_dataset(tmp_path)
    with pytest.raises(DatasetError) as error:
        check_dataset(small("sf-xl-night", 1_000, 466), dataset)
    for words in (
        "it has 4 queries without 1 whose position is unknown, sf-xl-night@1 has 466",
        "it has 4 database images, sf-xl-night@1 has 1,000",
        "--queries_folder queries_night",
    ):
        assert words in str(error.value)
    assert "\n" not in str(error.value)


# --- frames and pairs ------------------------------------------------------------------------------------------------


def frames(folder: Path, spacing_m: float, queries: Sequence[int] = range(20)) -> Path:
    for part, numbers in (("database", range(20)), ("queries", queries)):
        for number in numbers:
            north = f"{number * spacing_m:07.1f}"
            layout_samples.photo(folder / "images" / "test" / part / f"@0@{north}@@@@@{number}@@@@@@@@.jpg")
    return folder


@pytest.mark.parametrize("spacing_m", [25 / 10.5, 25 / 1.5])
@pytest.mark.parametrize(("name", "num_frames"), [("nordland-1f", 1), ("nordland-10f", 10)])
def test_the_radius_of_frames_does_not_depend_on_their_spacing(
    tmp_path: Path, spacing_m: float, name: str, num_frames: int
) -> None:
    dataset = open_retrieval_dataset(frames(tmp_path, spacing_m))
    protocol = small(name, 20, 20)
    radius_m = check_dataset(protocol, dataset)
    # Names round to 0.1 m, so frame n may be that much nearer or farther.
    assert num_frames * spacing_m + 0.1 < radius_m < (num_frames + 1) * spacing_m - 0.1
    assert has_radius(protocol, dataset, radius_m)
    assert has_radius(protocol, dataset, 25.0) == (abs(25 / spacing_m - num_frames - 0.5) < 0.1)


def test_the_radius_tells_protocols_with_equal_counts_apart(tmp_path: Path) -> None:
    dataset = open_retrieval_dataset(layout_samples.nordland(tmp_path))
    protocols = {one.id: one for one in (small("nordland-1f", 15, 15), small("nordland-10f", 15, 15))}
    assert [one.id for one in matching_protocols(dataset, 25.0, protocols)] == ["nordland-10f@1"]
    assert [one.id for one in matching_protocols(dataset, 3.6, protocols)] == ["nordland-1f@1"]
    assert len(matching_protocols(dataset, None, protocols)) == 2


def test_pairs_are_neither_frames_nor_positions(tmp_path: Path) -> None:
    dataset = open_retrieval_dataset(layout_samples.amstertime(tmp_path))
    assert positions_kind(dataset) == "pairs"
    assert check_dataset(small("amstertime", 4, 4), dataset) == 25.0
    with pytest.raises(DatasetError, match="it has pairs without positions, st-lucia@1 has positions on the ground"):
        check_dataset(small("st-lucia", 4, 4), dataset)
    with pytest.raises(DatasetError, match="it has pairs without positions, nordland-10f@1 has frame numbers"):
        check_dataset(small("nordland-10f", 4, 4), dataset)


def test_queries_without_positives_are_a_difference_where_all_have_one(tmp_path: Path) -> None:
    dataset = open_retrieval_dataset(frames(tmp_path, 25 / 10.5, queries=[*range(18), 300, 301]))
    with pytest.raises(DatasetError, match="2 queries have no database image within 10 frames, but all queries"):
        check_dataset(small("nordland-10f", 20, 20), dataset)


# --- settings --------------------------------------------------------------------------------------------------------


def test_image_size_is_that_of_the_photos_or_of_the_model() -> None:
    protocol = find_protocol("pitts30k-test")
    assert protocol_image_size("cosplace_resnet50_512") is None and protocol_image_size("models/best.pth") is None
    assert protocol_image_size("megaloc") == protocol_image_size("hub:gmberton/MegaLoc:get_trained_model()") == 322
    check_image_size(protocol, "cosplace_resnet50_512", None)
    check_image_size(protocol, "megaloc", 322)
    with pytest.raises(ConfigError, match=r"pitts30k-test@1 evaluates photos at their own size, got 224 pixels\."):
        check_image_size(protocol, None, 224)
    with pytest.raises(ConfigError, match=r"at 322 pixels, the input size of megaloc, got their own size\."):
        check_image_size(protocol, "megaloc", None)


def test_the_record_names_what_was_evaluated() -> None:
    protocol = find_protocol("nordland-10f")
    record = protocol_record(protocol, 25.0, deviations=["1 photo could not be opened"])
    assert (record["id"], record["radius_m"], record["radius_frames"]) == ("nordland-10f@1", 25.0, 10)
    assert record["deviations"] == ["1 photo could not be opened"]
    custom = protocol_record(None, 30.0, similar=protocol)
    assert (custom["name"], custom["id"], custom["radius_m"]) == ("custom", "custom", 30.0)
    assert (custom["similar"], protocol_record(None, 25.0)["similar"]) == ("nordland-10f@1", None)
