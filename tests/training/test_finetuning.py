"""Fine-tuning from end to end: the command, its files, stopping and resuming, and that it keeps the better model."""

import json
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from cosplace.cli import main
from cosplace.config.finetuning import FinetuneConfig
from cosplace.config.values import from_values
from cosplace.errors import CheckpointError, ConfigError, DatasetError
from cosplace.index.photo_index import open_index
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.opening import open_model
from cosplace.models.training_card import read_training_card
from cosplace.models.weight_files import read_card
from cosplace.photos.names import optional_fields
from cosplace.photos.scanning import scan_images
from cosplace.photos.tables import TABLE_NAME, PhotoRecord, to_table, write_table
from cosplace.progress import StopRequest
from cosplace.report.training_results import write_finetuning_results
from cosplace.training.finetuning import FinetuneResult, finetune
from cosplace.training.finetuning_setup import prepare_finetuning
from cosplace.training.metrics import read_metrics
from cosplace.training.run import LOCK, lock_run
from tests.synthetic_dataset import write_dataset
from tests.table_samples import write_records

pytest.importorskip("pytorch_metric_learning")
QUICK = {
    "image_size": 32, "epochs_num": 2, "iterations_per_epoch": 3, "num_seeds": 2, "batch_size": 8, "num_workers": 0,
    "device": "cpu", "lr": 1e-3, "force": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("city"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("start") / "start.pth"
    torch.save(GeoLocalizationNet("ResNet18_Small", 8).state_dict(), path)
    return path


def run(dataset: Path, start: Path, folder: Path, progress=lambda *_: None, **changes) -> FinetuneResult:
    config = from_values(FinetuneConfig, {**QUICK, "dataset": str(dataset), "model": str(start), **changes})
    return finetune(prepare_finetuning(config), folder, progress)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def same(a: Path, b: Path) -> bool:
    ours, theirs = tensors(a), tensors(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.slow
def test_a_folder_in_use_is_refused(dataset: Path, start: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with ThreadPoolExecutor(1) as pool, lock_run(folder):
        with pytest.raises(ConfigError, match="in use by another training run"):
            pool.submit(run, dataset, start, folder).result()
        assert {path.name for path in folder.iterdir()} == {LOCK}


@pytest.mark.slow
@pytest.mark.parametrize("split", ["val/queries", "test/queries_v1"])
def test_queries_that_are_training_photos_are_refused(dataset: Path, start: Path, tmp_path: Path, split: str) -> None:
    city = shutil.copytree(dataset, tmp_path / "city")
    photo = next(path for path in sorted((city / "train").rglob("*.jpg")))
    (city / split / photo.name.replace("@.jpg", "again@.jpg")).write_bytes(photo.read_bytes())
    with pytest.raises(DatasetError, match=rf"1 of \d+ {'validation' if 'val' in split else 'test'} queries is also a"):
        run(city, start, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_start_from_imagenet_weights_has_seen_no_photos(dataset: Path, tmp_path: Path) -> None:
    import torchvision

    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    folder = tmp_path / "run"
    run(dataset, tmp_path / "resnet18.pth", folder, force=False)  # too few places: the start is kept
    card = read_training_card(folder / "best_model.pth")
    assert card is not None and card.photos.num_photos == 0
    assert not (folder / "trained_model.pth").exists()


@pytest.mark.slow
def test_the_command_writes_the_files_of_a_run(
    dataset: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [f"--{name}={value}" for name, value in QUICK.items() if name != "force"]
    assert main(["finetune", str(dataset), f"--model={start}", "--force", *flags]) == 0
    (folder,) = (tmp_path / "logs" / "default").iterdir()
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "best_model.pth", "best_model.safetensors", "trained_model.pth", "trained_model.safetensors",
        "config.json", "results.json",
        "metrics.jsonl", "info.log", "debug.log", "report.html", "last_checkpoint.pth",
    }  # fmt: skip
    results = json.loads((folder / "results.json").read_text())
    assert results["trained"]
    assert results["evaluated_on"] == "test/queries_v1"
    assert results["comparison"]["low"] <= results["comparison"]["difference"] <= results["comparison"]["high"]
    assert results["kept"] == ("trained" if results["comparison"]["low"] > 0 else "start")
    assert same(folder / "best_model.pth", folder / "trained_model.pth" if results["kept"] == "trained" else start)
    # The card of the trained model lists its photos, also where the start is kept.
    assert read_training_card(folder / "trained_model.pth") is not None
    assert (read_training_card(folder / "best_model.pth") is None) == (results["kept"] == "start")
    rows = read_metrics(folder)
    assert [row["seed"] for row in rows if row["kind"] == "epoch"] == [0, 0, 1, 1]
    assert open_model(folder / "best_model.safetensors").fc_output_dim == 8
    output = capsys.readouterr().out
    assert results["verdict"] in output
    assert f"--model {folder.relative_to(tmp_path) / 'best_model.pth'}" in output
    assert main(["eval", f"--dataset_folder={dataset}", f"--model={folder / 'best_model.pth'}", "--num_workers=0",
                 "--image_size=32", "--resize_test_imgs", "--save_dir=eval"]) == 0  # fmt: skip
    (again,) = (tmp_path / "logs" / "eval").iterdir()
    assert json.loads((again / "results.json").read_text())["recalls"] == results["recalls"]


@pytest.mark.slow
def test_few_places_are_not_trained_on(dataset: Path, start: Path, tmp_path: Path) -> None:
    result = run(dataset, start, tmp_path, force=False)
    write_finetuning_results(result)
    assert "24 places" in result.verdict
    assert "too few" in result.verdict
    assert same(tmp_path / "best_model.pth", start)
    assert not (tmp_path / "trained_model.pth").exists()
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["trained"], results["kept"]) == (False, "start")
    assert results["recalls"] == results["start_recalls"]


@pytest.mark.slow
def test_a_small_dataset_that_is_split_is_indexed_as_a_whole(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = ["train"] * 8 + ["val/database", "val/queries"] * 2 + ["test/database"] * 2 + ["test/queries"]
    records = [
        PhotoRecord(path=f"photos/{row}.jpg", latitude=45 + row // 2 / 1000, longitude=7.0, split=split)
        for row, split in enumerate(splits)
    ]
    folder = write_records(tmp_path / "city", records)
    write_table(folder / TABLE_NAME, to_table(records), own_splits=True)
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", str(folder), f"--model={start}", "--image_size=32", "--num_workers=0"]) == 0
    (run_folder,) = (tmp_path / "logs" / "default").iterdir()
    out, err = capsys.readouterr()
    assert "test is not used: The 2 database images" in err  # one place measures nothing
    assert "Training would not help: only 2 queries of its validation set" in out
    assert f"index build {folder} --model {run_folder.relative_to(tmp_path) / 'best_model.pth'}" in out
    with open_index(run_folder / "index") as index:
        assert len(index) == 15


@pytest.mark.slow
def test_photos_of_few_places_are_indexed_with_the_start(
    dataset: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["finetune", str(dataset), f"--model={start}", "--image_size=32", "--num_workers=0"]) == 0
    (folder,) = (tmp_path / "logs" / "default").iterdir()
    out = capsys.readouterr().out
    assert "too few" in out and "--image_size" not in out  # the start is unchanged: it was not trained at this size
    assert "image_size" not in read_card(folder / "best_model.safetensors")
    with open_index(folder / "index") as index:
        assert len(index) > 0
    photo = next((dataset / "test" / "queries_v1").rglob("*.jpg"))
    assert main(["locate", str(photo), "--index", str(folder / "index")]) == 0
    assert photo.name in capsys.readouterr().out


class _StopAfter:
    """A progress function that asks to stop once, at the n-th report of training."""

    def __init__(self, num_reports: int) -> None:
        self.left = num_reports

    def __call__(self, task: str, *_: object) -> None:
        self.left -= "epoch" in task
        if not self.left:
            raise StopRequest("stop", signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [pytest.param("multi_similarity", marks=pytest.mark.long), "cosface"])
def test_a_stopped_run_resumes_to_the_same_weights(dataset: Path, start: Path, tmp_path: Path, loss: str) -> None:
    whole = run(dataset, start, tmp_path / "whole", loss=loss)
    for stop in (1, 2, 4, 9, 11):  # within an epoch, in a validation, in the second trial
        folder = tmp_path / f"stopped {stop}"
        with pytest.raises(StopRequest):
            run(dataset, start, folder, _StopAfter(stop), loss=loss)
        result = run(dataset, start, folder, loss=loss, resume_train=str(folder))
        assert same(folder / "trained_model.pth", whole.folder / "trained_model.pth")
        assert same(folder / "best_model.pth", whole.folder / "best_model.pth")
        assert result.evaluation.recalls == whole.evaluation.recalls
        kinds = [[row["kind"] for row in read_metrics(one)] for one in (folder, whole.folder)]
        assert kinds[0] == kinds[1]


def files_of(folder: Path) -> dict[str, bytes]:
    """Paths and contents of all files below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.mark.slow
def test_a_run_resumes_only_with_its_own_settings(dataset: Path, start: Path, tmp_path: Path) -> None:
    with pytest.raises(StopRequest):
        run(dataset, start, tmp_path / "run", _StopAfter(1))
    (tmp_path / "run" / "best_model.pth").write_bytes(b"the best so far")
    before = files_of(tmp_path / "run")
    with pytest.raises(CheckpointError, match="--lr"):
        run(dataset, start, tmp_path / "run", resume_train=str(tmp_path / "run"), lr=0.1)
    other = write_dataset(tmp_path / "other", num_places=10)
    with pytest.raises(CheckpointError, match="other photos"):
        run(other, start, tmp_path / "run", resume_train=str(tmp_path / "run"))
    with pytest.raises(CheckpointError, match="no last_checkpoint"):
        run(dataset, start, tmp_path / "new", resume_train=str(tmp_path))
    (tmp_path / "run" / "last_checkpoint.pth").write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(CheckpointError, match="damaged"):
        run(dataset, start, tmp_path / "run", resume_train=str(tmp_path / "run"))
    (tmp_path / "run" / "last_checkpoint.pth").unlink()
    (tmp_path / "run" / "last_checkpoint.pth").write_bytes(before["last_checkpoint.pth"])
    assert files_of(tmp_path / "run") == before


@pytest.mark.slow
def test_a_refused_command_does_not_touch_the_run(
    dataset: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    own = shutil.copytree(dataset, tmp_path / "own")
    with pytest.raises(StopRequest):
        run(own, start, folder, _StopAfter(1))
    (folder / "info.log").write_text("what the run has done\n")
    before = files_of(folder)
    flags = {**QUICK, "resume_train": folder}
    words = [f"--{name}={value}" for name, value in flags.items() if name != "force"]
    assert main(["finetune", str(own), f"--model={start}", "--force", *words, "--lr=0.1"]) == 2
    assert "--lr" in capsys.readouterr().err
    photo = next((own / "train").rglob("*.jpg"))
    photo.write_bytes(photo.read_bytes() + b"edited")
    assert main(["finetune", str(own), f"--model={start}", "--force", *words]) == 2
    assert "photos with the same names, but other contents" in capsys.readouterr().err
    assert files_of(folder) == before


@pytest.mark.slow
def test_runs_of_other_commands_are_not_touched(
    dataset: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "results.json").write_text("{}")
    for name in ("eval", "nowhere"):
        words = ["finetune", str(dataset), f"--model={start}", "--image_size=32", "--num_workers=0", "--resume_train"]
        assert main([*words, str(tmp_path / name)]) == 2
        assert "no last_checkpoint" in capsys.readouterr().err
    assert files_of(tmp_path) == {"eval/results.json": b"{}"}


@pytest.mark.slow
def test_a_resumed_run_keeps_its_best_model_until_it_knows_a_better_one(
    dataset: Path, start: Path, tmp_path: Path
) -> None:
    run(dataset, start, tmp_path, num_seeds=1)
    (tmp_path / "best_model.pth").write_bytes(b"trained for a week")
    found = []

    def watch(task: str, *_: object) -> None:
        if "validation" in task or "comparison" in task:
            found.append((tmp_path / "best_model.pth").read_bytes())

    result = run(dataset, start, tmp_path, watch, num_seeds=1, resume_train=str(tmp_path))
    assert set(found) == {b"trained for a week"}
    assert same(tmp_path / "best_model.pth", tmp_path / "trained_model.pth" if result.is_better else start)


@pytest.mark.slow
def test_batches_are_the_same_for_any_number_of_workers(dataset: Path, start: Path, tmp_path: Path) -> None:
    run(dataset, start, tmp_path / "one", num_seeds=1)
    for name, changes in (("threads", {"loader": "threads"}), ("processes", {"loader": "processes"})):
        run(dataset, start, tmp_path / name, num_seeds=1, num_workers=2, **changes)
        assert same(tmp_path / name / "trained_model.pth", tmp_path / "one" / "trained_model.pth")


@pytest.mark.slow
def test_photos_that_cannot_be_opened_are_replaced(
    dataset: Path, start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    city = shutil.copytree(dataset, tmp_path / "city")
    for path in sorted((city / "train").rglob("*.jpg"))[::5]:
        path.write_bytes(path.read_bytes()[:200])
    with caplog.at_level("WARNING", "cosplace"):
        run(city, start, tmp_path / "run", num_seeds=1, iterations_per_epoch=6)
    assert "skipped" in caplog.text


# --- wrong headings --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few_places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """250 photos of 60 places of the synthetic city, with random headings in their names."""
    from cosplace.training.places import Viewpoints, form_places
    from synthcity.capture import build_city
    from synthcity.settings import CitySettings

    city, made = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("made")
    build_city(city, CitySettings(images=3000, database_images=400, num_queries=60, image_size=64, seed=21))
    random, images = np.random.default_rng(0), scan_images(city / "train")
    east, north, headings = optional_fields(images, ("utm_east", "utm_north", "heading"))
    places = form_places(Viewpoints(points=np.stack([east, north], 1), headings=headings), 10)
    chosen = [places.rows[places.starts[p] : places.starts[p + 1]][:4] for p in np.flatnonzero(places.sizes >= 4)[:60]]
    rows = np.concatenate([*chosen, random.permutation(len(images))])
    for number, row in enumerate(list(dict.fromkeys(rows.tolist()))[:250]):
        fields = images.name(row).rpartition("/")[2].split("@")
        fields[7], fields[9] = f"n{number}", str(random.integers(0, 360))
        (made / "train").mkdir(exist_ok=True)
        shutil.copy(images.path(row), made / "train" / "@".join(fields))
    for split in ("val", "test"):
        shutil.copytree(city / split, made / split)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("force", [False, True])
def test_wrong_headings_of_few_places_do_no_harm(few_places: Path, tmp_path: Path, force: bool) -> None:
    assert len(scan_images(few_places / "train")) == 250
    torch.manual_seed(0)
    torch.save(GeoLocalizationNet("ResNet18_Small", 32).state_dict(), tmp_path / "start.pth")
    result = run(
        few_places, tmp_path / "start.pth", tmp_path / "run", image_size=64, force=force, num_seeds=1,
        iterations_per_epoch=10, batch_size=16,
    )  # fmt: skip
    assert result.evaluation.recalls[1] >= result.start_evaluation.recalls[1]
    assert (result.comparison is not None) == force
