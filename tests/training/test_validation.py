"""The start of a run is judged like an epoch; doubts about a validation set; queries won and lost."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cosplace.assessment.provenance import RunInfo
from cosplace.cli import main
from cosplace.errors import DatasetError
from cosplace.models.downloads import file_sha256
from cosplace.models.network import new_network
from cosplace.models.weight_files import read_card
from cosplace.report.training_results import write_training_results
from cosplace.retrieval.evaluation import Evaluation, evaluate, evaluation_settings
from cosplace.training.best_model import BEST_MODEL, BEST_MODEL_SAFE, START
from cosplace.training.checkpoint import LAST_CHECKPOINT, read_checkpoint
from cosplace.training.data import open_training_data
from cosplace.training.loop import train
from cosplace.training.metrics import read_metrics
from cosplace.training.resume import resumed_config
from cosplace.training.setup import prepare
from cosplace.training.validation import can_be_chance, doubts_about, is_copy
from tests.synthetic_dataset import SETTINGS, settings, write_dataset


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


def first_correct(model: torch.nn.Module, dataset_folder: Path, config) -> list[bool]:
    """Whether the first prediction of each validation query is within 25 m, from distances."""
    evaluation = evaluate(model, dataset_folder / "val", evaluation_settings(config, torch.device("cpu")))
    return (evaluation.distances_m[:, 0] <= 25).tolist()


def recalls_by_epoch(folder: Path) -> list[float]:
    return [row["recalls"]["1"] for row in read_metrics(folder) if row["kind"] in ("start", "epoch")]


@pytest.fixture(scope="module")
def worse_run(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """A run that makes the network worse: the learning rate is far too high."""
    folder = tmp_path_factory.mktemp("worse")
    return train(prepare(settings(dataset_folder, lr=0.1, epochs_num=2)), folder)


def test_training_that_makes_the_network_worse_keeps_the_start(dataset_folder: Path, worse_run) -> None:
    folder, config = worse_run.folder, settings(dataset_folder)
    start, *epochs = recalls_by_epoch(folder)
    assert max(epochs) < start
    untrained = new_network(
        backbone="ResNet18_Small", fc_output_dim=16, train_all_layers=False, imagenet_weights=None, seed=0
    )
    best = torch.load(folder / BEST_MODEL, weights_only=True)
    assert all(torch.equal(best[key], value) for key, value in untrained.state_dict().items())
    assert worse_run.best_epoch == START
    assert worse_run.test.recalls == evaluate(
        untrained, dataset_folder / "test", evaluation_settings(config, torch.device("cpu"))
    ).recalls  # fmt: skip
    card = read_card(folder / BEST_MODEL_SAFE)
    assert card["source"] == "cosplace train, the network before training"
    assert json.loads(card["recalls"])["val"]["1"] == round(start, 2)


def test_the_results_contain_the_start_and_queries_won_and_lost(dataset_folder: Path, worse_run) -> None:
    config = settings(dataset_folder)
    run = RunInfo(command="cosplace train", seed=0, device=torch.device("cpu"))
    write_training_results(worse_run, config, run=run)
    results = json.loads((worse_run.folder / "results.json").read_text())
    assert results["num_queries"] == 12  # as before
    assert (results["protocol"]["id"], results["command"]) == ("custom", "cosplace train")
    assert results["model"]["sha256"] == file_sha256(worse_run.folder / BEST_MODEL)
    assert results["model"]["card"]["source"] == "cosplace train, the network before training"
    assert results["validation"]["best_epoch"] == 0
    assert results["validation"]["num_queries"] == 12
    assert results["validation"]["start_recalls"]["1"] == recalls_by_epoch(worse_run.folder)[0]
    assert "No epoch was better than the start" in (worse_run.folder / "report.html").read_text()

    before = first_correct(prepare(config).state.model, dataset_folder, config)
    last = prepare(resumed_config(str(worse_run.folder), {})).state.model
    after = first_correct(last, dataset_folder, config)
    row = [row for row in read_metrics(worse_run.folder) if row["kind"] == "epoch"][-1]
    assert row["won"] == sum(now and not then for then, now in zip(before, after, strict=True))
    assert row["lost"] == sum(then and not now for then, now in zip(before, after, strict=True))
    assert row["lost"] > 0


@pytest.mark.slow
def test_training_that_makes_the_network_better_keeps_the_epoch(
    dataset_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="cosplace"):
        result = train(prepare(settings(dataset_folder, fc_output_dim=2, seed=2)), tmp_path)
    start, *epochs = recalls_by_epoch(tmp_path)
    assert max(epochs) > start
    assert result.best_epoch == int(np.argmax(epochs))
    won, lost = result.validation["won"], result.validation["lost"]
    assert won - lost == round((max(epochs) - start) * 12 / 100)
    assert f"compared with the start: {won} {'query' if won == 1 else 'queries'} won, {lost} lost" in caplog.text
    assert caplog.text.count("The validation set has only 12 queries: one query is 8.3 points of R@1") == 1


@pytest.mark.slow
def test_a_start_that_is_already_good_stays_the_best(dataset_folder: Path, worse_run, tmp_path: Path) -> None:
    """Fine-tuning from a model never ends with a worse one."""
    good = worse_run.folder / BEST_MODEL
    result = train(prepare(settings(dataset_folder, resume_model=str(good), lr=0.1, epochs_num=1)), tmp_path)
    assert result.best_epoch == START
    assert (tmp_path / BEST_MODEL).read_bytes() == good.read_bytes()


@pytest.mark.slow
def test_an_epoch_that_is_as_good_as_the_start_does_not_replace_it(
    dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def evaluate_alike(*arguments: Any, **options: Any) -> Evaluation:
        evaluation = evaluate(*arguments, **options)
        return replace(evaluation, recalls=dict.fromkeys(evaluation.recalls, 50.0))

    monkeypatch.setattr("cosplace.training.loop.evaluate", evaluate_alike)
    result = train(prepare(settings(dataset_folder, epochs_num=1)), tmp_path)
    assert recalls_by_epoch(tmp_path) == [50.0, 50.0]
    assert result.best_epoch == START
    assert "No epoch has a higher R@1" in caplog.text and "the best model is the one before training" in caplog.text
    assert read_card(tmp_path / BEST_MODEL_SAFE)["source"] == "cosplace train, the network before training"


@pytest.mark.slow
def test_a_run_of_a_former_version_resumes_without_its_start(dataset_folder: Path, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def progress(task: str, done: int, *_: object) -> None:
        if task.startswith("epoch 2/") and done >= 12:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(prepare(settings(dataset_folder, checkpoint_minutes=0.0)), tmp_path, progress)
    content = read_checkpoint(tmp_path)
    del content["start_hits"]  # as former versions write checkpoints, which judged the first epoch first
    content["counters"] |= {"best_epoch": 0, "best_recall1": 0.0}
    torch.save(content, tmp_path / LAST_CHECKPOINT)
    result = train(prepare(resumed_config(str(tmp_path), {})), tmp_path)
    assert result.best_epoch >= 0
    assert "won" not in [row for row in read_metrics(tmp_path) if row["kind"] == "epoch"][-1]


# --- doubts ----------------------------------------------------------------------------------------------------------


def test_a_small_validation_set_and_one_that_is_the_test_set_are_doubted(dataset_folder: Path, tmp_path: Path) -> None:
    def doubts(**folders: Path) -> list[str]:
        names = {name: str(folder) for name, folder in folders.items()}
        return doubts_about(open_training_data(settings(dataset_folder, **names)))

    few = "The validation set has only 12 queries: one query is 8.3 points of R@1. Differences below 50 points"
    (only,) = doubts()
    assert only.startswith(few)
    same, again = doubts(val_set_folder=dataset_folder / "test")
    assert same.startswith("12 of 12 validation queries are also test queries")
    assert again == only
    # A copy under other folders, and one photo that is another one of the same name.
    shutil.copytree(dataset_folder / "test", tmp_path / "copy")
    photo = sorted((tmp_path / "copy" / "queries_v1").iterdir())[0]
    photo.write_bytes(b"another photo")
    assert doubts(val_set_folder=tmp_path / "copy")[0].startswith("11 of 12 validation queries are also test queries")


def test_queries_that_are_trained_on_are_refused(dataset_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset_folder, tmp_path / "data")
    photos = sorted((tmp_path / "data" / "train").rglob("*.jpg"))
    for photo, folder in ((photos[0], "test/queries_v1"), (photos[1], "test/queries_v1"), (photos[2], "val/queries")):
        shutil.copy(photo, tmp_path / "data" / folder)
    (tmp_path / "data" / "val" / "queries" / photos[3].name).write_bytes(b"the same '@' name, with other content")
    config = settings(tmp_path / "data", N=1, L=1, M=10, min_images_per_class=1)
    with pytest.raises(DatasetError) as error:
        prepare(config)
    assert str(error.value) == (
        f"2 of 14 validation queries and 2 of 14 test queries are also training photos, such as "
        f"{tmp_path / 'data' / 'val' / 'queries' / photos[2].name} = {photos[2]}: recalls would be too high. Remove "
        f"them from the queries or from the training photos."
    )
    # A copy in a database changes nothing, as in SF-XL.
    for folder in ("test/queries_v1", "val/queries"):
        for photo in photos[:4]:
            (tmp_path / "data" / folder / photo.name).unlink(missing_ok=True)
    shutil.copy(photos[0], tmp_path / "data" / "test" / "database")
    prepare(config)


def test_copies_under_other_names_are_refused(dataset_folder: Path, tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(dataset_folder, tmp_path / "data")
    photos = sorted((tmp_path / "data" / "train").rglob("*.jpg"))
    query = tmp_path / "data" / "test" / "queries_v1" / photos[0].name.replace("2020", "2021")
    assert query.name != photos[0].name
    shutil.copy(photos[0], query)
    config = settings(tmp_path / "data", N=1, L=1, M=10, min_images_per_class=1)
    with pytest.raises(DatasetError) as error:
        prepare(config)
    assert str(error.value).startswith(
        f"1 of 13 test queries is also a training photo, such as {query} = {photos[0]}: recalls would be too high."
    )
    monkeypatch.setattr("cosplace.training.validation.MOST_PHOTOS", len(photos) - 1)
    prepare(config)  # a larger training set: its sizes are not compared


def test_equal_names_and_sizes_without_labels_are_compared_by_content(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    photos = sorted((tmp_path / "train").rglob("*.jpg"))
    photo, copy = photos[0].with_name("a.jpg"), tmp_path / "test" / "queries_v1" / "a.jpg"
    photo.write_bytes(photos[0].read_bytes())
    copy.write_bytes(photos[0].read_bytes()[:-1] + b"x")
    assert not is_copy(photo, copy)
    copy.write_bytes(photos[0].read_bytes())
    assert is_copy(photo, copy)


def test_a_run_that_is_resumed_is_refused_too(dataset_folder: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(dataset_folder, tmp_path / "data")
    train(prepare(settings(tmp_path / "data", epochs_num=1)), tmp_path / "run")
    photo = sorted((tmp_path / "data" / "train").rglob("*.jpg"))[0]
    shutil.copy(photo, tmp_path / "data" / "test" / "queries_v1")
    assert main(["train", "--resume_train", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "1 of 13 test queries is also a training photo, such as " in error and "Remove it from" in error


@pytest.mark.slow
def test_reused_photos_are_in_the_results(dataset_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [f"--{name}={value}" for name, value in SETTINGS.items() if not isinstance(value, bool | list)]
    flags += ["--resize_test_imgs", "--recall_values", "1", "2", "--epochs_num=1", "--iterations_per_epoch=1"]
    test = shutil.copytree(dataset_folder / "test", tmp_path / "test")
    shutil.copy(sorted((test / "queries_v1").iterdir())[0], test / "database")
    folders = {"dataset": dataset_folder, "val_set": dataset_folder / "test", "test_set": test}
    assert main(["train", *(f"--{name}_folder={folder}" for name, folder in folders.items()), *flags]) == 0
    (run,) = (tmp_path / "logs" / "default").iterdir()
    found = json.loads((run / "results.json").read_text("utf-8"))["protocol"]["deviations"]
    page = (run / "report.html").read_text("utf-8")
    assert len(found) == 2 and ". 1 of 12 queries is in the database too" in page
    for text in ("1 of 12 queries is in the database too", "12 of 12 validation queries are also test queries"):
        assert any(one.startswith(text) for one in found) and text in page
    lines = (run / "info.log").read_text("utf-8").splitlines()
    said = [number for number, line in enumerate(lines) if "12 of 12 validation queries are also test queries" in line]
    tested = next(number for number, line in enumerate(lines) if "test/queries_v1: R@1" in line)
    assert len(said) == 2 and said[0] < tested < said[1]


def test_enough_other_queries_raise_no_doubt(dataset_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset_folder / "val", tmp_path / "val")
    photos = list((tmp_path / "val" / "queries").iterdir())
    for number in range(100 - len(photos)):
        name = photos[0].name.replace("v5@@0", f"v{6 + number}@@0")
        shutil.copyfile(photos[0], tmp_path / "val" / "queries" / name)
    assert not doubts_about(open_training_data(settings(dataset_folder, val_set_folder=str(tmp_path / "val"))))


@pytest.mark.parametrize(
    ("won", "lost", "chance"),
    [(0, 0, True), (5, 0, True), (6, 0, False), (0, 6, False), (7, 1, True), (8, 1, False), (100, 70, False)],
)
def test_the_sign_test(won: int, lost: int, chance: bool) -> None:
    from scipy.stats import binomtest

    assert can_be_chance(won, lost) is chance
    if won + lost:
        assert chance is bool(binomtest(won, won + lost).pvalue >= 0.05)
