"""Training in several processes: the losses of one process, one writer, and the same end after any number of kills."""

import json
from pathlib import Path

import pytest
import torch

from cosplace.config.sections import TrainConfig
from cosplace.config.values import from_values
from cosplace.training.checkpoint import read_checkpoint
from cosplace.training.loop import train
from cosplace.training.metrics import read_metrics
from cosplace.training.setup import prepare
from tests.synthetic_dataset import SETTINGS, settings, write_dataset
from tests.training.jobs import TRAIN, Job, as_words, flags, only_run, run_job
from tests.training.test_eigenplaces_training import EIGENPLACES, write_road
from tests.training.test_training import all_weights, train_until

pytestmark = pytest.mark.slow

# The learning rate of the paper.  A larger one amplifies rounding sooner (docs/distributed-training.md).
SMALL = {"lr": 1e-5, "epochs_num": 2, "report_matches": 0}
TOLERANCE = 1e-4  # relative, of the loss of each iteration


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def run_of_one(dataset_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one process."""
    folder = tmp_path_factory.mktemp("one")
    train(prepare(settings(dataset_folder, **SMALL)), folder)
    return folder


def losses(run: Path) -> list[float]:
    """The mean loss of each interval; of each iteration, for epochs of at most 20."""
    return [row["loss"] for row in read_metrics(run) if row["kind"] == "loss"]


def assert_same_losses(run: Path, expected: Path, tolerance: float = TOLERANCE) -> None:
    assert losses(run) == pytest.approx(losses(expected), rel=tolerance)


def events(run: Path) -> set[str]:
    """The files of TensorBoard, whose names have the time and the process id."""
    return {path.name for path in run.glob("events.out.tfevents.*")}


def test_two_processes_train_as_one(dataset_folder: Path, run_of_one: Path, tmp_path: Path) -> None:
    outputs = run_job([*TRAIN, *flags(dataset_folder, **SMALL)], 2, tmp_path)
    run = only_run(tmp_path)
    assert len(losses(run)) == 10
    assert_same_losses(run, run_of_one)
    # Process 0 wrote all, once.
    assert len(events(run)) == 1
    assert {path.name for path in run.iterdir()} >= {path.name for path in run_of_one.glob("*.*")} - events(run_of_one)
    assert {path.name for path in tmp_path.iterdir()} == {"logs", "process-0.txt", "process-1.txt"}
    assert outputs[1] == ""
    assert outputs[0].count("2 processes; each trains on 3 of the 6 images of a batch") == 1
    assert (run / "info.log").read_text().count("epoch 1, group 0: loss") == 1
    assert len(read_metrics(run)) == len(read_metrics(run_of_one))
    assert json.loads((run / "config.json").read_text())["batch_size"] == 6


OTHER_VERSION = """
import sys
import cosplace
cosplace.__version__ = "0.0.9"
from cosplace.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_processes_that_differ_are_refused(dataset_folder: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", num_places=20)
    first = [*TRAIN, *flags(dataset_folder, **SMALL)]
    second = ["-c", OTHER_VERSION, "train", *flags(other, **SMALL, seed=3)]
    with Job([first, second], tmp_path / "job") as job:
        assert job.wait() == [2, 2]
        (line,) = job.errors()  # one process says it
        assert "Process 1 differs from process 0" in line
        assert "--seed 3, not 0" in line
        assert "cosplace 0.0.9, not " in line
        assert "classes of the training photos" in line
        assert "Traceback" not in "".join(job.texts())
    assert not list((tmp_path / "job").glob("logs/*/*/last_checkpoint.pth"))


# --- slow ------------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_four_processes_continue_a_run_of_one(dataset_folder: Path, run_of_one: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_until(settings(dataset_folder, **SMALL, checkpoint_minutes=0.0), run, 7)
    assert read_checkpoint(run)["counters"]["epoch"] == 1  # in the middle of it
    # Split by classes; the checkpoint holds them whole.
    words = [f"--resume_train={run}", "--split_classifiers_above=0", "--checkpoint_minutes=0"]
    run_job([*TRAIN, *words], 4, tmp_path)
    assert_same_losses(run, run_of_one)
    found, expected = read_checkpoint(run), read_checkpoint(run_of_one)
    assert found["counters"]["epoch"] == expected["counters"]["epoch"] == 2
    assert found["classifiers"][0]["weight"].shape == expected["classifiers"][0]["weight"].shape
    for one, other in zip(all_weights(run), all_weights(run_of_one), strict=True):
        assert one.shape == other.shape
        if one.is_floating_point():
            assert torch.allclose(one, other, atol=1e-3), (one - other).abs().max()


METHODS = {
    "bfloat16": (SETTINGS, {"use_amp16": True, "amp_dtype": "bf16"}, 0.02),  # it has 3 digits
    "nested": (SETTINGS, {"nested_dims": (4, 8)}, TOLERANCE),
    "eigenplaces": (EIGENPLACES, {}, TOLERANCE),
    "multi-similarity": (
        {name: value for name, value in SETTINGS.items() if name not in ("N", "L", "groups_num")},
        {"method": "multi_similarity", "photos_per_place": 3, "batch_size": 9, "M": 10},
        TOLERANCE,
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_as_in_one_process(method: str, dataset_folder: Path, tmp_path: Path) -> None:
    base, changes, tolerance = METHODS[method]
    if method == "multi-similarity":
        pytest.importorskip("pytorch_metric_learning")
    if method == "eigenplaces":
        dataset_folder = write_dataset(tmp_path / "road", num_places=1)
        (dataset_folder / "train").rename(dataset_folder / "unused")
        write_road(dataset_folder / "train")
    values = {**base, **SMALL, **changes, "dataset_folder": str(dataset_folder)}
    train(prepare(from_values(TrainConfig, values)), tmp_path / "one")
    run_job([*TRAIN, *as_words(values)], 2, tmp_path / "two")
    assert len(losses(tmp_path / "one")) == 10
    assert_same_losses(only_run(tmp_path / "two"), tmp_path / "one", tolerance)


LONG = {"batch_size": 8, "epochs_num": 10, "iterations_per_epoch": 20, "report_matches": 0}
RATES = {
    "those of the paper": {"lr": 1e-5, "classifiers_lr": 1e-2, "use_float64": True},
    "small": {"lr": 1e-6, "classifiers_lr": 1e-3},  # these amplify the rounding of float32 slowly
}


@pytest.mark.long
@pytest.mark.parametrize(
    ("rates", "world_sizes", "tolerance"), [("those of the paper", (2, 4), 1e-9), ("small", (2,), TOLERANCE)]
)
def test_several_processes_have_the_same_curve_over_200_iterations(
    rates: str, world_sizes: tuple[int, ...], tolerance: float, dataset_folder: Path, tmp_path: Path
) -> None:
    changes = LONG | RATES[rates]
    train(prepare(settings(dataset_folder, **changes)), tmp_path / "one")
    assert len(losses(tmp_path / "one")) == 200
    for world_size in world_sizes:
        words = ["--split_classifiers_above=0"] if world_size == 4 else []
        folder = tmp_path / str(world_size)
        run_job([*TRAIN, *flags(dataset_folder, **changes), *words], world_size, folder)
        assert_same_losses(only_run(folder), tmp_path / "one", tolerance)
