"""Any two folders: with positions, with positions of the database only, without; and photos that are in both."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cosplace.assessment.run_list import summarize
from cosplace.cli import main
from cosplace.errors import DatasetError
from cosplace.photos.image_list import image_list
from cosplace.retrieval.baselines import TinyImage
from cosplace.retrieval.capture_times import TableColumns, table_rows
from cosplace.retrieval.dataset import open_retrieval_dataset, queries_place, two_folder_lists, with_known_positions
from cosplace.retrieval.evaluation import EvaluationSettings, evaluate, evaluate_descriptors
from cosplace.retrieval.two_folders import check_copies, find_copies, find_neighbors
from tests.retrieval.test_evaluation import dataset_without_photos
from tests.synthetic_dataset import place_image, write_dataset, write_place

NETWORK = ["--backbone", "ResNet18_Small", "--fc_output_dim", "16", "--num_workers", "0", "--device", "cpu"]


@pytest.fixture
def city(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A test set with 24 database images and 12 queries; and queries elsewhere, without positions: plain/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SF_XL_PROCESSED_FOLDER", raising=False)
    folder = write_dataset(tmp_path / "city", num_places=0) / "test"
    (tmp_path / "plain").mkdir()
    for number in range(3):
        Image.fromarray(place_image(2000 + 3 * number, 4)).save(tmp_path / "plain" / f"{number}.jpg")
    return folder


def run(*words: object) -> int:
    return main(["eval", *map(str, words), *NETWORK])


def only_run(logs: Path = Path("logs/default")) -> Path:
    (folder,) = logs.iterdir()
    return folder


# --- which folder ----------------------------------------------------------------------------------------------------


def test_queries_are_a_name_next_to_the_database_or_a_path(city: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert queries_place(city) == city / "queries_v1"
    assert queries_place(city, "queries_v1") == city / "queries_v1"
    assert queries_place(city, "plain") == Path("plain")
    assert queries_place(city, str(Path("plain").resolve())).samefile("plain")
    monkeypatch.chdir(city)  # the name and the path are the same folder
    assert queries_place(city, "queries_v1").samefile(city / "queries_v1")
    with pytest.raises(DatasetError, match=r"no subfolder of queries \(queries_night\).*--queries_folder: queries_v1"):
        queries_place(city, "queries_night")


def test_a_hint_names_folders_of_queries_and_a_file_is_called_one(city: Path) -> None:
    (city / "database").rename(city / "db")
    with pytest.raises(DatasetError, match=r"--queries_folder: queries_v1\.$"):
        two_folder_lists(city / "db", "nowhere")
    photo = next((city / "queries_v1").iterdir())
    for name in (f"queries_v1/{photo.name}", str(photo)):
        with pytest.raises(DatasetError, match=r"is a file, not a folder\. Use the folder of the queries\.$"):
            two_folder_lists(city / "db", name)


def test_a_path_that_could_mean_two_folders_is_refused(city: Path) -> None:
    (city / "plain").mkdir()
    with pytest.raises(DatasetError, match=r"may be .*test/plain or .*/plain\. Use the absolute path"):
        queries_place(city, "plain")
    assert queries_place(city, str(Path("plain").absolute())) == Path("plain").absolute()


@pytest.mark.slow
def test_two_folders_with_positions_give_the_recalls_of_the_test_set(city: Path) -> None:
    city.rename("other")
    Path("other/queries_v1").rename("photos")
    lists = two_folder_lists("other/database", "photos")
    assert (lists.name, len(lists.database), len(lists.queries)) == ("database+photos", 24, 12)
    dataset = open_retrieval_dataset("other", "photos")
    assert dataset.name == "other+photos"
    same = evaluate(TinyImage(), dataset, recall_values=(1, 5))
    assert evaluate(TinyImage(), with_known_positions(lists), recall_values=(1, 5)).recalls == same.recalls
    assert run("--database_folder", "other/database", "--queries_folder", "photos", "--recall_values", 1, 5) == 0
    results = json.loads((only_run() / "results.json").read_text())
    assert (results["num_queries"], results["num_database"], results["dataset"]["name"]) == (12, 24, lists.name)


# --- without positions -----------------------------------------------------------------------------------------------


def test_labels_on_the_database_only_give_coordinates(city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--database_folder", city / "database", "--queries_folder", "plain") == 0
    out, folder = capsys.readouterr().out, only_run()
    assert "R@1" not in out and "nothing was measured: the queries have no positions" in out
    assert not (folder / "results.json").exists()
    assert summarize(folder).state == "finished" and summarize(folder).recalls is None
    assert sorted(path.name for path in (folder / "preds").iterdir()) == ["000.jpg", "001.jpg", "002.jpg"]
    content = json.loads((folder / "answers.json").read_text())
    assert content["measured"] is False and (content["num_queries"], content["num_database"]) == (3, 24)
    assert (content["query_policy"], content["model"]["backbone"]) == ("native", "ResNet18_Small")
    with (folder / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    database = image_list(city / "database", sorted(path.name for path in (city / "database").iterdir()))
    names = {database.name(row): row for row in range(len(database))}
    for row, answer in zip(rows, content["answers"], strict=True):
        first = answer["neighbors"][0]
        assert Path(row["photo"]).name == first["photo"] in names and Path(row["query"]).name == answer["query"]
        # The position in the file name is that of the answer.
        assert float(row["utm_east"]) == answer["utm_east"] == float(first["photo"].split("@")[1])
        assert float(row["latitude"]) == answer["latitude"] == float(first["photo"].split("@")[5])
        assert row["utm_zone"] == "10"
        distances = [one["descriptor_distance"] for one in answer["neighbors"]]
        assert distances == sorted(distances) and float(row["descriptor_distance"]) == distances[0]


def test_no_labels_gives_neighbors_only(city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--queries_folder", "plain", "--no_labels", "--num_preds_to_save", 0, "--recall_values", 2]
    assert run("--database_folder", city / "database", *words) == 0
    folder = only_run()
    assert "--no_labels ignores all positions" in capsys.readouterr().out
    assert not (folder / "preds").exists() and not (folder / "answers.csv").exists()
    content = json.loads((folder / "neighbors.json").read_text())["neighbors"]
    assert [set(one) for one in content] == 3 * [{"query", "neighbors"}]  # no coordinates
    with (folder / "neighbors.csv").open(newline="") as file:
        assert [row["rank"] for row in csv.DictReader(file)] == 3 * ["1", "2"]
    # The database needs no positions, and may be a test set.
    assert run("--database_folder", "plain", "--queries_folder", city / "queries_v1", "--no_labels") == 0
    assert run("--test_set_folder", city, "--no_labels") == 0


@pytest.mark.parametrize("words", [("--no_labels",), ()])
def test_photos_that_cannot_be_opened_are_reported(
    words: tuple[str, ...], city: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    damaged = sorted((city / "database").iterdir())[2:6]
    for photo in damaged:
        photo.write_text("a text")
    Path("plain/1.jpg").write_bytes(Path("plain/1.jpg").read_bytes()[:200])
    folders = ["--database_folder", city / "database", "--queries_folder", "plain"]
    assert run(*folders, "--skip_unreadable", *words) == 0
    (warning,) = [text for text in caplog.messages if "could not be opened" in text]
    names = ", ".join(photo.name for photo in damaged[:3])
    assert warning.startswith(f"5 photos could not be opened ({names} and 2 more): queries have no neighbors, database")
    assert f"{damaged[0]} is not an image" in warning
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("1.jpg: ")]
    assert line.startswith("1.jpg: cannot be opened. plain/1.jpg ")
    unreadable = json.loads((only_run() / f"{'neighbors' if words else 'answers'}.json").read_text())["unreadable"]
    assert [one["name"] for one in unreadable["database"]["photos"]] == [photo.name for photo in damaged]
    assert unreadable["database"]["count"] == 4 and "not an image" in unreadable["database"]["photos"][0]["reason"]
    (query,) = unreadable["queries"]["photos"]
    assert (query["name"], line) == ("1.jpg", f"1.jpg: cannot be opened. {query['reason']}")


def test_a_name_that_only_starts_with_an_at_sign_is_no_copy(city: Path) -> None:
    for number, folder in enumerate(("plain", "more")):
        Path(folder).mkdir(exist_ok=True)
        Image.fromarray(place_image(number, 0)).save(Path(folder) / "@anna_2020.jpg")
    lists = two_folder_lists("more", "plain")
    assert check_copies(lists.database, lists.queries) == ""


def test_tables_are_utf_8_whatever_the_names(city: Path) -> None:
    photo = next(Path("plain").iterdir())
    shutil.copy(photo, os.fsencode(photo.parent) + b"/caf\xe9.jpg")
    assert run("--database_folder", city / "database", "--queries_folder", "plain", "--no_labels") == 0
    assert "plain/caf\\xe9.jpg" in (only_run() / "neighbors.csv").read_text("utf-8")


def test_photos_without_a_position_are_reported_once(city: Path, caplog: pytest.LogCaptureFixture) -> None:
    queries = city / "queries_v1"
    shutil.copy(next(queries.iterdir()), queries / "@0@0@.jpg")
    assert run("--database_folder", city / "database", "--queries_folder", queries) == 0
    assert sum("unknown" in text for text in caplog.messages) == 1
    results = json.loads((only_run() / "results.json").read_text())
    assert results["dataset"]["unknown_positions"] == {"database": 0, "queries": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--database_folder", "plain", "--queries_folder", "QUERIES"], "--no_labels to list the nearest neighbors"),
        (["--test_set_folder", "CITY", "--queries_folder", "plain"], "--no_labels to list the nearest neighbors"),
        (["--database_folder", "DATABASE", "--queries_folder", "DATABASE"], "24 of 24 queries in .* own copy"),
        (["--database_folder", "DATABASE", "--test_set_folder", "CITY"], "contradict each other"),
        (
            ["--database_folder", "DATABASE", "--queries_folder", "plain", "--compare", "x"],
            "have no positions, which --compare needs",
        ),
        (["--test_set_folder", "CITY", "--no_labels", "--protocol", "tokyo247"], "not go with --protocol"),
        (
            ["--test_set_folder", "CITY", "--no_labels", "--positive_dist_threshold", "30"],
            "go with --positive_dist_threshold",
        ),
        (["--database_folder", "DATABASE", "--queries_folder", "plain", "--dry_run"], "--dry_run estimates"),
        (["--test_set_folder", "CITY", "--scales", "1", "1"], "--scales must be different numbers, got 1 1"),
        (["--test_set_folder", "CITY", "--scales", "0"], "--scales must be"),
        (["--test_set_folder", "CITY", "--flip", "--protocol", "tokyo247"], "--flip cannot be used with the protocol"),
        (
            ["--test_set_folder=CITY", "--descriptors_folder=d", "--descriptors_dtype=float16", "--protocol=tokyo247"],
            "float16 cannot be used with the protocol tokyo247: it may swap predictions",
        ),
        (["--test_set_folder", "CITY", "--query_policy", "native", "--image_size", "64"], "no effect on .* native"),
        (["--test_set_folder", "CITY", "--positive_dist_threshold", "1000"], "are a single place, within 1000 m"),
    ],
)
def test_what_is_refused(words: list[str], message: str, city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"CITY": city, "DATABASE": city / "database", "QUERIES": city / "queries_v1"}
    assert run(*(places.get(word, word) for word in words)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(message, error), error


def test_a_run_that_is_refused_while_it_runs_is_listed_with_the_reason(
    city: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--positive_dist_threshold", "1000"], ["--reduce_to", "8"]):
        assert run("--test_set_folder", city, *words) == 2
        error = capsys.readouterr().err.splitlines()[-1].removeprefix("error: ")
        assert main(["runs", "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)
        assert (found["state"], found["reason"]) == ("failed", error)
        shutil.rmtree("logs")


def test_neighbors_are_those_of_an_evaluation(city: Path) -> None:
    found = evaluate(TinyImage(), open_retrieval_dataset(city), recall_values=(5,))
    lists = two_folder_lists(city / "database", "queries_v1")
    neighbors = find_neighbors(TinyImage(), lists, EvaluationSettings(recall_values=(5,)))
    assert np.array_equal(neighbors.predictions, found.predictions)
    np.testing.assert_allclose(neighbors.descriptor_distances**2, found.squared_distances, rtol=1e-6)


def test_queries_outside_a_dataset_with_a_table(city: Path) -> None:
    """Their conditions are unknown, as the table does not have them."""
    columns = TableColumns(
        folder=city,
        row_of={},
        seconds=np.zeros(0),
        sequences=np.zeros(0, np.int64),
        splits=np.zeros(0, object),
        checksums=[],
        are_local=np.zeros(0, bool),
    )
    images = two_folder_lists(city / "database", "plain").queries
    assert table_rows(images, columns).tolist() == [-1, -1, -1]


# --- copies ----------------------------------------------------------------------------------------------------------


def test_copies_are_found_by_content(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for place in range(4):
        write_place(tmp_path / "database", place, 0)
    twin = write_place(tmp_path / "queries", 9, 1)
    original = sorted((tmp_path / "database").iterdir())[2]
    twin.write_bytes(original.read_bytes())  # another name, another position
    other = write_place(tmp_path / "queries", 9, 2)
    other.write_bytes(original.read_bytes()[:-1] + b"x")  # the same size, other content
    lists = two_folder_lists(tmp_path / "database", str(tmp_path / "queries"))
    database, queries = lists.database, lists.queries
    assert find_copies(database, queries) == [(0, 2)]
    assert check_copies(database, queries) == "1 of 2 queries is in the database too"
    assert f"is in the database too ({twin.name} = {original.name})" in caplog.text


def test_of_many_files_of_equal_size_some_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = []
    for folder, numbers in (("database", range(100)), ("queries", range(90, 100))):
        (tmp_path / folder).mkdir()
        for number in numbers:
            (tmp_path / folder / f"{folder}{number:02}.jpg").write_bytes(b"%02d" % number)
        lists.append(image_list(tmp_path / folder, [f"{folder}{number:02}.jpg" for number in numbers]))
    assert find_copies(*lists) == [(row, 90 + row) for row in range(10)]
    read: list[str] = []
    monkeypatch.setattr(
        "cosplace.retrieval.two_folders._checksum", lambda images, _: read.append(images.folder.name) or b""
    )
    find_copies(*lists, most_read=30)
    assert read.count("database") == 25 and read.count("queries") == 10


def test_copies_with_the_same_name_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for place in range(4):
        write_place(tmp_path / "database", place, 0)
    write_place(tmp_path / "queries", 9, 1)
    original = sorted((tmp_path / "database").iterdir())[2]
    (tmp_path / "queries" / original.name).write_bytes(original.read_bytes())
    lists = two_folder_lists(tmp_path / "database", str(tmp_path / "queries"))
    with pytest.raises(DatasetError, match="1 of 2 queries") as error:
        check_copies(lists.database, lists.queries)
    assert f"is in the database too ({original.name} = {original.name})" in str(error.value)
    assert check_copies(lists.database, lists.queries, refuse=False) == "1 of 2 queries is in the database too"
    assert len(caplog.messages) == 1


def test_equal_names_with_other_content_are_refused(tmp_path: Path) -> None:
    for place in range(4):
        write_place(tmp_path / "database", place, 0)
    write_place(tmp_path / "queries", 9, 1)
    originals = sorted((tmp_path / "database").iterdir())
    (tmp_path / "queries" / originals[2].name).write_bytes(originals[1].read_bytes()[:-1])
    lists = two_folder_lists(tmp_path / "database", str(tmp_path / "queries"))
    with pytest.raises(DatasetError, match=f"1 of 2 queries .* has the '@' name .*{originals[2].name}"):
        check_copies(lists.database, lists.queries)
    text = check_copies(lists.database, lists.queries, refuse=False)
    assert text == "1 of 2 queries is in the database too, going by '@' names"
    # All names are equal where they are numbers of frames.
    next(path for path in (tmp_path / "queries").iterdir() if path.name != originals[2].name).unlink()
    lists = two_folder_lists(tmp_path / "database", str(tmp_path / "queries"))
    assert check_copies(lists.database, lists.queries) == ""


def test_equal_names_are_seen_where_others_are_copies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for place in range(4):
        write_place(tmp_path / "database", place, 0)
    originals = sorted((tmp_path / "database").iterdir())
    for take in (1, 2):
        write_place(tmp_path / "queries", 9, take)
    twin = write_place(tmp_path / "queries", 9, 3)
    twin.write_bytes(originals[0].read_bytes())  # another name
    for original in originals[2:]:
        (tmp_path / "queries" / original.name).write_bytes(original.read_bytes() + b"x")  # other content
    lists = two_folder_lists(tmp_path / "database", str(tmp_path / "queries"))
    with pytest.raises(DatasetError, match=r"2 of 5 queries .* have the '@' name .* Remove them from one"):
        check_copies(lists.database, lists.queries)
    text = check_copies(lists.database, lists.queries, refuse=False)
    assert text == ("1 of 5 queries is in the database too; 2 of 5 queries are in the database too, going by '@' names")
    assert (
        "A query must not find its own copy" in caplog.text and "have the '@' name of a database image" in caplog.text
    )


def test_copies_in_a_published_dataset_are_a_warning(city: Path, caplog: pytest.LogCaptureFixture) -> None:
    lists = two_folder_lists(city / "database", str(city / "database"))
    assert check_copies(lists.database, lists.queries, refuse=False) == "24 of 24 queries are in the database too"
    assert "24 of 24 queries" in caplog.text and "and 21 more" in caplog.text


# --- descriptors -----------------------------------------------------------------------------------------------------


def test_descriptors_that_are_not_finite_name_their_images(city: Path, tmp_path: Path) -> None:
    dataset = open_retrieval_dataset(city)
    database, queries = np.eye(24, dtype=np.float32), np.eye(24, dtype=np.float32)[:12]
    bad = database.copy()
    bad[5, 3], bad[7, 0] = np.nan, np.inf
    names = f"{dataset.database.name(5)} and {dataset.database.name(7)} are not finite (database)"
    with pytest.raises(DatasetError) as error:
        evaluate_descriptors(bad, queries, dataset)
    assert names in str(error.value)
    with pytest.raises(DatasetError, match=r"photo 0, photo 1, photo 2 and 9 more are not finite \(queries\)"):
        places = np.arange(48.0).reshape(24, 2)
        evaluate_descriptors(database, queries * np.nan, dataset_without_photos(places, places[:12]))
    # A folder of finished descriptors that is damaged.
    evaluate(TinyImage(), dataset, descriptors_folder=tmp_path / "kept")
    path = tmp_path / "kept" / "queries" / "descriptors-00000.npy"
    stored = np.load(path, mmap_mode="r+")  # what follows the array stays
    stored[2] = np.nan
    stored.flush()
    with pytest.raises(DatasetError, match="not finite"):
        evaluate(TinyImage(), dataset, descriptors_folder=tmp_path / "kept")


def test_equal_descriptors_are_a_warning(city: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = open_retrieval_dataset(city)
    descriptors = np.full((24, 4), 0.5, np.float32)
    evaluate_descriptors(descriptors, descriptors[:12], dataset)
    assert "The descriptors of all 24 database photos are equal" in caplog.text
    caplog.clear()
    descriptors[23, 0] = 0.51
    evaluate_descriptors(descriptors, descriptors[:12], dataset)
    assert "equal" not in caplog.text


def test_descriptors_of_other_photos_or_views_are_refused(city: Path, tmp_path: Path) -> None:
    dataset, kept = open_retrieval_dataset(city), tmp_path / "kept"
    evaluate(TinyImage(), dataset, descriptors_folder=kept)
    changes = (({"flip": True}, "views was not set, now it is flip"), ({"scales": (0.5, 1)}, "scales 0.5 1"))
    for options, what in changes:
        with pytest.raises(DatasetError, match=f"another extraction .*{what}"):
            evaluate(TinyImage(), dataset, descriptors_folder=kept, **options)
    other = open_retrieval_dataset(city.parent / "val")
    with pytest.raises(DatasetError, match=r"another extraction \(photos was"):
        evaluate(TinyImage(), other, descriptors_folder=kept)
