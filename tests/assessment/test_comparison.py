"""Comparison of runs: differences, verdicts, and what is refused."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosplace.assessment.comparison import (
    NO_DIFFERENCE,
    check_same_queries,
    compare,
    open_run,
    open_runs,
    recall_difference,
)
from cosplace.assessment.run_files import query_list
from cosplace.errors import ConfigError
from cosplace.report.comparison_tables import facts
from tests.assessment.comparison_samples import city_dataset, write_run

# Query by query: rank of the first correct prediction in A and in B.
RANKS_A = [1] * 20 + [3] * 10 + [0] * 10
RANKS_B = [1] * 18 + [2] * 2 + [1] * 10 + [1] * 6 + [0] * 4


def test_recalls_and_queries_won_and_lost(tmp_path: Path) -> None:
    dataset = city_dataset(tmp_path / "city")
    runs = open_runs([write_run(tmp_path / "a", dataset, RANKS_A), write_run(tmp_path / "b", dataset, RANKS_B)])
    found = compare(*runs)
    first, fifth = found.rows
    assert (first.n, fifth.n) == (1, 5)
    assert (first.recall_a, first.recall_b) == (50.0, 85.0)  # 20 and 34 of 40
    assert (fifth.recall_a, fifth.recall_b) == (75.0, 90.0)
    assert (first.won, first.lost) == (16, 2)
    assert found.won.tolist() == list(range(20, 36))
    assert found.lost.tolist() == [18, 19]
    # McNemar's exact test: both tails of Binomial(18, 1/2) from 2 on.
    assert first.p == pytest.approx(2 * sum(math.comb(18, k) for k in range(3)) / 2**18)
    assert first.difference.value == pytest.approx(35.0)
    assert 0 < first.difference.low < 35.0 < first.difference.high < 60.0
    assert found.verdict(first) == "B is better"
    assert found.verdict(fifth) == "B is better"  # 6 won, none lost

    swapped = compare(replace(runs[1], letter="A"), replace(runs[0], letter="B"))
    assert swapped.verdict(swapped.rows[0]) == "A is better"


def test_a_run_compared_with_its_repetition_shows_no_difference(tmp_path: Path) -> None:
    dataset = city_dataset(tmp_path / "city")
    folders = [write_run(tmp_path / name, dataset, RANKS_A, model={"sha256": "1"}) for name in "ab"]
    found = compare(*open_runs(folders))
    for row in found.rows:
        assert (row.won, row.lost, row.p) == (0, 0, 1.0)
        assert row.difference.value == 0.0
        assert row.difference.low < 0 < row.difference.high
        assert found.verdict(row) == NO_DIFFERENCE
    assert "A and B have the same weights file." in found.notes


def test_distances_of_frames_have_no_unit_of_length(tmp_path: Path) -> None:
    dataset = replace(city_dataset(tmp_path / "city"), note="positions are numbers of frames")
    runs = open_runs([write_run(tmp_path / name, dataset, RANKS_A) for name in "ab"])
    assert not runs[0].queries.are_meters
    assert "correct = within 25 units." in facts(runs)[0]


def test_deviations_of_a_run_are_noted(tmp_path: Path) -> None:
    dataset = city_dataset(tmp_path / "city")
    protocol = {"id": "custom", "deviations": ["6 queries could not be opened"]}
    folders = [
        write_run(tmp_path / "a", dataset, RANKS_A),
        write_run(tmp_path / "b", dataset, RANKS_A, protocol=protocol),
    ]
    assert "B deviates: 6 queries could not be opened." in compare(*open_runs(folders)).notes
    for number, other in enumerate((3, True, float("nan"), {"a": 1}, "text")):  # as no version writes them
        folders[1] = write_run(tmp_path / f"c{number}", dataset, RANKS_A, protocol=protocol | {"deviations": other})
        assert not any("deviates" in note for note in compare(*open_runs(folders)).notes)


def test_equal_models_are_called_different_in_at_most_five_percent_of_cases() -> None:
    """Queries of one place are right or wrong together: tests that ignore this would fail here."""
    generator = np.random.default_rng(0)
    num_trials, num_places, per_place = 400, 40, 8
    clusters = np.repeat(np.arange(num_places), per_place)
    false_verdicts = unclustered = 0
    for _ in range(num_trials):
        # Each model gets a share of the places right, independently; queries of one place mostly agree.
        correct = []
        for _ in "ab":
            place = generator.random(num_places)[clusters] < 0.6
            flipped = generator.random(len(clusters)) < 0.05
            correct.append(place ^ flipped)
        row = recall_difference(1, *correct, clusters)
        false_verdicts += row.sign != 0
        unclustered += row.p < 0.05
    # Three standard deviations of Binomial(400, 0.05) above its mean.
    assert false_verdicts / num_trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / num_trials)
    assert unclustered / num_trials > 0.2  # McNemar alone would call them different in many more cases


def test_a_real_difference_is_found() -> None:
    generator = np.random.default_rng(1)
    clusters = np.repeat(np.arange(100), 5)
    found = 0
    for _ in range(50):
        a = generator.random(500) < 0.6
        b = generator.random(500) < 0.75
        found += recall_difference(1, a, b, clusters).sign == 1
    assert found >= 45


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 4)), min_size=1, max_size=40))
def test_differences_are_consistent(rows: list[tuple[bool, bool, int]]) -> None:
    a, b, clusters = (np.array(column) for column in zip(*rows, strict=True))
    clusters = np.unique(clusters, return_inverse=True)[1]
    row, back = recall_difference(1, a, b, clusters), recall_difference(1, b, a, clusters)
    assert row.won - row.lost == b.sum() - a.sum()
    assert row.difference.value == pytest.approx(row.recall_b - row.recall_a)
    assert row.sign == -back.sign
    assert row.p == back.p


def test_by_condition(tmp_path: Path) -> None:
    dataset = city_dataset(tmp_path / "city")
    conditions = {"time of day": ["night"] * 20 + ["day"] * 17 + ["", "dusk", "dusk"]}
    runs = open_runs(
        [
            write_run(tmp_path / name, dataset, ranks, conditions=conditions)
            for name, ranks in (("a", RANKS_A), ("b", RANKS_B))
        ]
    )
    found = {row.value: row.row for row in compare(*runs).conditions}
    assert set(found) == {"night", "day"}  # dusk has too few queries
    assert (found["night"].won, found["night"].lost, found["night"].num_queries) == (0, 2, 20)
    assert (found["day"].won, found["day"].lost) == (16, 0)


# --- refused ---------------------------------------------------------------------------------------------------------


def test_runs_that_cannot_be_compared_are_refused_with_the_reason(tmp_path: Path) -> None:
    dataset = city_dataset(tmp_path / "city")
    a = write_run(tmp_path / "a", dataset, RANKS_A, protocol={"id": "pitts30k-test@1", "similar": None})
    other = write_run(tmp_path / "other", dataset, RANKS_A, protocol={"id": "tokyo247@1", "similar": None})
    custom = write_run(tmp_path / "custom", dataset, RANKS_A)
    similar = write_run(tmp_path / "similar", dataset, RANKS_A, protocol={"id": "custom", "similar": "pitts30k-test@1"})
    radius = write_run(tmp_path / "radius", dataset, RANKS_A, radius_m=10.0)
    small = write_run(tmp_path / "small", city_dataset(tmp_path / "city", 39), RANKS_A[:39])
    with pytest.raises(ConfigError, match="different protocols, pitts30k-test@1 and tokyo247@1"):
        open_runs([a, other])
    with pytest.raises(ConfigError, match="different protocols, pitts30k-test@1 and custom"):
        open_runs([a, custom])
    assert len(open_runs([a, similar])) == 2  # it follows the protocol, although it was not named
    assert len(open_runs([custom, similar])) == 2
    with pytest.raises(ConfigError, match=r"within 25 m in .*custom, within 10 m in .*radius"):
        open_runs([custom, radius])
    with pytest.raises(ConfigError, match=r"40 queries and 39 queries; q0039\.jpg is only in .*custom"):
        open_runs([custom, small])
    with pytest.raises(ConfigError, match="is given 2 times"):
        open_runs([a, a])
    with pytest.raises(ConfigError, match="two or more runs"):
        open_runs([a])
    with pytest.raises(ConfigError, match="is not a folder"):
        open_runs([a, tmp_path / "nowhere"])
    (custom / "queries.parquet").unlink()
    with pytest.raises(ConfigError, match=r"no queries\.parquet.*Evaluate the model again"):
        open_runs([similar, custom])


def test_other_positions_and_databases_are_refused(tmp_path: Path) -> None:
    dataset = city_dataset(tmp_path)
    base = query_list(dataset, 25.0)
    moved = dataset.query_positions.copy()
    moved[4, 1] = 0.5
    earth = np.zeros((len(dataset.queries), 3))
    for change, message in (
        ({"positions": moved}, r"q0004\.jpg has another position"),
        ({"positions": earth}, "in one UTM zone in one of them"),
        ({"num_database": 44}, "45 database images and 44 database images"),
        ({"database_sha256": "0" * 64}, "with other names or positions"),
        ({"names": ["x.jpg", *base.names[1:]]}, r"different queries; q0000\.jpg is only in first"),
        ({"names": [base.names[1], base.names[0], *base.names[2:]]}, "order or the number"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_same_queries(base, replace(base, **change), "first", "second")
    check_same_queries(base, query_list(dataset, 25.0), "first", "second")


def test_files_of_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    dataset = city_dataset(tmp_path / "city")
    run = write_run(tmp_path / "a", dataset, RANKS_A, recalls={"1": 70.0})
    with pytest.raises(ConfigError, match=r"R@1 is 70\.00 in results\.json, but 50\.00"):
        open_run(run)


def test_other_sizes_and_copies_of_photos_are_noted(tmp_path: Path) -> None:
    dataset = city_dataset(tmp_path / "city", 8)
    views = {"query_policy": "five_crops", "query_size": 480, "scales": [1.0], "flip": False}
    others = {"query_policy": "square", "query_size": 320, "scales": [0.7, 1.0], "flip": True}
    folders = [write_run(tmp_path / name, dataset, [1] * 8, **values) for name, values in (("a", views), ("b", others))]
    notes = compare(*open_runs(folders)).notes
    assert list(notes) == [
        "Query policies are five_crops in A, square in B.",
        "Scales are 1.0 in A, 0.7 1.0 in B.",
        "Mirror images: no in A, yes in B.",
        "Sizes of queries are 480 in A, 320 in B.",
    ]


def test_texts_of_results_are_printed_without_control_characters(tmp_path: Path) -> None:
    dataset = city_dataset(tmp_path / "city", 8)
    sizes = [None, "\x1b[31m9\n"]
    folders = [write_run(tmp_path / str(size is None), dataset, [1] * 8, image_size=size) for size in sizes]
    (note,) = compare(*open_runs(folders)).notes
    assert note.startswith("Photos have their own size in A, ") and note.isprintable()


def test_other_dimensions_of_descriptors_are_noted(tmp_path: Path) -> None:
    dataset = city_dataset(tmp_path / "city", 8)
    models = [{"descriptor_dim": 512}, {"descriptor_dim": 64, "reduced_to": 64}]
    folders = [write_run(tmp_path / str(number), dataset, [1] * 8, model=one) for number, one in enumerate(models)]
    assert list(compare(*open_runs(folders)).notes) == ["Descriptors have 512 dimensions in A, 64 in B."]
