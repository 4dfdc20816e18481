"""Progress of parts, and sizes and durations in words."""

import pytest

from cosplace.progress import Stopwatch, format_bytes, format_count, format_duration, no_progress, part_of


def test_a_part_is_reported_as_progress_of_the_whole() -> None:
    seen = []
    report = part_of(lambda *values: seen.append(values), "encoding", start=10, total=15)
    report("queries", 2, 5, "note")
    report("queries", 5, 5)
    assert seen == [("encoding", 12, 15, "note"), ("encoding", 15, 15, "")]


def test_a_part_may_only_be_renamed() -> None:
    seen = []
    part_of(lambda *values: seen.append(values), "test")("encoding", 2, 5)
    assert seen == [("test", 2, 5, "")]
    no_progress("nothing", 1, 1)


@pytest.mark.parametrize(("count", "words"), [(0, "0 photos"), (1, "1 photo"), (1000, "1,000 photos")])
def test_counts_in_words(count: int, words: str) -> None:
    assert format_count(count, "photo") == words
    assert format_count(count, "query", "queries").endswith("query" if count == 1 else "queries")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "under a second"), (42.4, "42 s"), (400, "7 min"), (12_000, "3 h 20 min"), (188_000, "2 days 4 h")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


@pytest.mark.parametrize(("count", "words"), [(1, "1 MB"), (3 << 20, "3 MB"), (3 << 29, "1.5 GB")])
def test_bytes_in_words(count: int, words: str) -> None:
    assert format_bytes(count) == words


def test_the_time_of_parts_is_added_up_also_when_they_fail() -> None:
    watch = Stopwatch()
    watch.add("reading", 2.0)
    with pytest.raises(ValueError, match="damaged"), watch.of("network"):
        raise ValueError("damaged")
    with watch.of("reading"):
        pass
    assert list(watch.seconds) == ["reading", "network"]
    assert watch.seconds["reading"] >= 2.0 and watch.seconds["network"] >= 0.0
