"""Training with multi-similarity: the formula of the loss; several datasets as one sum; exact resuming; learning."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cosplace.cli import main
from cosplace.config.sections import TrainConfig
from cosplace.config.values import from_values
from cosplace.errors import CheckpointError, ConfigError, DatasetError
from cosplace.training.checkpoint import read_checkpoint
from cosplace.training.cosface import MarginCosineProduct
from cosplace.training.data import epoch_batches
from cosplace.training.dry_run import estimate_training
from cosplace.training.loop import train
from cosplace.training.metric_losses import MultiSimilarity, near_places
from cosplace.training.metrics import read_metrics
from cosplace.training.place_batches import PlaceLocations
from cosplace.training.plan import describe_plan
from cosplace.training.resume import resumed_config
from cosplace.training.seen_photos import digest_training_photos
from cosplace.training.setup import prepare
from cosplace.training.step import TrainingStep, joint_step, nested_loss
from tests.synthetic_dataset import SETTINGS, write_dataset
from tests.training.test_eigenplaces_training import StoppedError, assert_same_run, train_with_kills

pytest.importorskip("pytorch_metric_learning")

MULTI_SIMILARITY = {
    **{name: value for name, value in SETTINGS.items() if name not in ("N", "L", "groups_num")},
    "method": "multi_similarity", "photos_per_place": 3, "batch_size": 9, "M": 10,
}  # fmt: skip
BATCH = MULTI_SIMILARITY["batch_size"]
NUM_DATASETS = [pytest.param(1, marks=pytest.mark.slow), 2]


def settings(dataset_folder: Path, **changes) -> TrainConfig:
    return from_values(TrainConfig, {**MULTI_SIMILARITY, "dataset_folder": str(dataset_folder), **changes})


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"), num_places=16)


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("other"), num_places=12, images_per_place=5)


# --- the loss --------------------------------------------------------------------------------------------------------


def formula(x: np.ndarray, labels: np.ndarray, near: np.ndarray) -> float:
    """Wang et al., CVPR 2019, equations 10 to 12, for unit vectors; pairs of near places are left out of negatives."""
    similarities, total = x @ x.T, 0.0
    for i in range(len(x)):
        same, other = (labels == labels[i]) & (np.arange(len(x)) != i), labels != labels[i]
        positives = [s for s in similarities[i, same] if s - 0.1 < similarities[i, other].max()]
        negatives = [s for s in similarities[i, other & ~near[i]] if s + 0.1 > similarities[i, same].min()]
        if positives:
            total += np.log(1 + sum(np.exp(-1.0 * (s - 0.0)) for s in positives)) / 1.0
        if negatives:
            total += np.log(1 + sum(np.exp(50.0 * (s - 0.0)) for s in negatives)) / 50.0
    return total / len(x)


def row(count: int, apart_m: float) -> PlaceLocations:
    centers = np.stack([apart_m * np.arange(count), np.zeros(count)], -1)
    return PlaceLocations(centers=centers, reaches_m=np.full(count, 2.0), radius_m=25.0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("apart_m", [500.0, 20.0])
def test_the_loss_is_the_formula_without_pairs_of_near_places(seed: int, apart_m: float) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(20, 8)) + 0.5
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    labels = np.repeat(random.permutation(9)[:5], 4)
    near = np.abs(labels[:, None] - labels) * apart_m < 25 + 2 + 2
    loss = MultiSimilarity(near_places(row(9, apart_m)), needed_by="This test")
    found = loss.loss(torch.from_numpy(x).float(), torch.from_numpy(labels))
    assert found.item() == pytest.approx(formula(x, labels, near), rel=1e-5)
    assert (formula(x, labels, near) != formula(x, labels, np.zeros_like(near))) == (apart_m < 29)
    parts = [formula(x[:, :d] / np.linalg.norm(x[:, :d], axis=1, keepdims=True), labels, near) for d in (8, 3)]
    nested = nested_loss(loss, torch.from_numpy(x).float(), torch.from_numpy(labels), (3,))
    assert nested.item() == pytest.approx(np.mean(parts), rel=1e-5)


def test_the_loss_of_16_bit_descriptors_is_computed_in_32_bits() -> None:
    loss = MultiSimilarity(near_places(row(4, 500.0)), needed_by="This test")
    x = torch.nn.functional.normalize(torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), dim=1).bfloat16()
    labels = torch.arange(4).repeat_interleave(3)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss.loss(x, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss.loss(x.float(), labels))


# --- several datasets ------------------------------------------------------------------------------------------------


def plain_multi_similarity(x: Tensor, labels: Tensor) -> Tensor:
    """As `formula`, with gradients; all places are apart."""
    similarities, total = x @ x.T, torch.zeros(())
    for i in range(len(x)):
        same, other = (labels == labels[i]) & (torch.arange(len(x)) != i), labels != labels[i]
        positives = [s for s in similarities[i, same] if s - 0.1 < similarities[i, other].max()]
        negatives = [s for s in similarities[i, other] if s + 0.1 > similarities[i, same].min()]
        if positives:
            total = total + torch.log(1 + sum(torch.exp(-s) for s in positives))
        if negatives:
            total = total + torch.log(1 + sum(torch.exp(50 * s) for s in negatives)) / 50
    return total / len(x)


def test_the_gradient_of_several_datasets_is_that_of_the_sum_of_their_losses() -> None:
    """Two of places and one of classes, against all three forwards at once and one backward."""
    random = torch.Generator().manual_seed(1)
    network = torch.nn.Linear(6, 5)
    plain = copy.deepcopy(network)
    classifier = MarginCosineProduct(5, 7, s=30, m=0.4)
    weight = classifier.weight.detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    losses = [MultiSimilarity(near_places(row(9, 500.0)), needed_by="This test") for _ in range(2)]
    steps = [
        TrainingStep(
            forward=lambda images: torch.nn.functional.normalize(network(images)),
            classifier=one,
            optimizers=(optimizer, None if one is not classifier else torch.optim.SGD(one.parameters(), lr=0.0)),
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            device=torch.device("cpu"),
            dtype=None,
        )
        for one in (*losses, classifier)
    ]
    labels = [torch.arange(4).repeat_interleave(3), torch.tensor([8, 8, 2, 2, 5, 5]), torch.tensor([6, 0, 3])]
    batches = [(torch.randn(len(one), 6, generator=random), one) for one in labels]
    loss = joint_step(steps, batches)
    descriptors = [torch.nn.functional.normalize(plain(images)) for images, _ in batches]
    cosines = descriptors[2] @ torch.nn.functional.normalize(weight).T
    logits = 30 * (cosines - 0.4 * torch.nn.functional.one_hot(labels[2], 7))
    total = sum(plain_multi_similarity(x, one) for x, one in zip(descriptors[:2], labels[:2], strict=True))
    total = total + torch.nn.functional.cross_entropy(logits, labels[2])
    total.backward()
    torch.testing.assert_close(loss, total.detach())
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)  # of up to 1, in single precision


def test_a_dataset_that_is_given_twice_is_refused(dataset_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(dataset_folder)
    for again in (dataset_folder, tmp_path / "link"):
        with pytest.raises(ConfigError, match="is given twice"):
            prepare(settings(dataset_folder, extra_datasets=(str(again),)))


@pytest.mark.parametrize("method", ["multi_similarity", "cosplace"])
def test_each_dataset_has_batches_and_losses_of_its_own(dataset_folder: Path, other_folder: Path, method: str) -> None:
    if method == "cosplace":
        values = {**SETTINGS, "dataset_folder": str(dataset_folder), "extra_datasets": (str(other_folder),)}
        config = from_values(TrainConfig, values)
    else:
        config = settings(dataset_folder, extra_datasets=(str(other_folder),))
    prepared = prepare(config)
    data = prepared.data
    assert data.groups_of_epoch(0) == data.groups_of_epoch(1) == [0, 1]
    assert [data.group(number).folder.parent for number in (0, 1)] == [dataset_folder, other_folder]
    assert len(prepared.state.classifiers) == 2
    batches = list(epoch_batches(config, data, torch.device("cpu"), epoch=0))
    assert len(batches) == 2 * config.training.iterations_per_epoch
    alone = prepare(without_extra(config, method)).data
    first = list(epoch_batches(config, alone, torch.device("cpu"), epoch=0))
    assert [batch.labels.tolist() for batch in first] == [batch.labels.tolist() for batch in batches[::2]]
    assert not torch.equal(batches[0].draws, batches[1].draws)
    assert data.digest() != alone.digest()
    plan = "\n".join(describe_plan(prepared))
    assert str(dataset_folder) in plan
    assert str(other_folder) in plan
    photos, its_own = digest_training_photos(data), digest_training_photos(alone)
    assert photos is not None
    assert its_own is not None


def without_extra(config: TrainConfig, method: str) -> TrainConfig:
    values = MULTI_SIMILARITY if method == "multi_similarity" else SETTINGS
    return from_values(TrainConfig, {**values, "dataset_folder": config.folders.dataset_folder})


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=NUM_DATASETS)
def run(
    request: pytest.FixtureRequest, dataset_folder: Path, other_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict, Path]:
    """Settings, and the folder of the whole run."""
    extra = {"extra_datasets": (str(other_folder),)} if request.param == 2 else {}
    folder = tmp_path_factory.mktemp("whole")
    train(prepare(settings(dataset_folder, **extra)), folder)
    return extra, folder


def test_a_run_trains_the_network_and_has_no_classifier(run: tuple[dict, Path]) -> None:
    extra, folder = run
    saved = read_checkpoint(folder)
    assert len(saved["classifiers"]) == 1 + len(extra)
    assert not any(saved["classifiers"])
    assert saved["classifier_optimizers"] == [None] * (1 + len(extra))
    losses = [one["loss"] for one in read_metrics(folder) if one["kind"] == "loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("minutes", [0.0, pytest.param(10.0, marks=pytest.mark.slow)])
def test_a_stopped_run_resumes_exactly(
    dataset_folder: Path, run: tuple[dict, Path], tmp_path: Path, minutes: float
) -> None:
    extra, folder = run
    config = settings(dataset_folder, checkpoint_minutes=minutes, **extra)
    for epoch, iteration in ((0, 3), (1, 2)):

        def stop(what: str, done: int, total: int, note: str, epoch: int = epoch, iteration: int = iteration) -> None:
            if what.startswith(f"epoch {epoch + 1}/") and done >= iteration * BATCH * (1 + len(extra)):
                raise StoppedError

        with pytest.raises(StoppedError):
            train(prepare(config), tmp_path, stop)
        loader = "threads" if epoch else "processes"
        config = resumed_config(str(tmp_path), {"num_workers": 1, "loader": loader, "checkpoint_minutes": minutes})
    train(prepare(config), tmp_path)
    assert_same_run(tmp_path, folder)


@pytest.mark.slow
@pytest.mark.long
def test_kill_minus_nine_at_any_moment_loses_nothing(
    dataset_folder: Path, run: tuple[dict, Path], tmp_path: Path
) -> None:
    extra, folder = run
    values = {**MULTI_SIMILARITY, "dataset_folder": dataset_folder, "checkpoint_minutes": 0}
    flags = [f"--{name}" if value is True else f"--{name}={value}" for name, value in values.items()]
    first = [flag for flag in flags if not flag.startswith("--recall_values")] + ["--recall_values", "1", "2"]
    first += ["--extra_datasets", *extra["extra_datasets"]] if extra else []
    assert_same_run(train_with_kills(first, tmp_path), folder)


def test_other_settings_and_photos_are_refused_on_resume(
    dataset_folder: Path, other_folder: Path, run: tuple[dict, Path], tmp_path: Path
) -> None:
    _, folder = run
    copy = shutil.copytree(other_folder, tmp_path / "copy")
    with pytest.raises(ConfigError, match=r"--photos_per_place 2 contradicts"):
        resumed_config(str(folder), {"method": "multi_similarity", "photos_per_place": 2})
    with pytest.raises(CheckpointError, match="other photos"):
        prepare(resumed_config(str(folder), {"extra_datasets": (str(other_folder), str(copy))}))
    if len(read_checkpoint(folder)["classifiers"]) == 2:
        prepare(resumed_config(str(folder), {"extra_datasets": (str(copy),)}))  # the same photos in another folder
        photo = next((copy / "train").rglob("*.jpg"))
        photo.rename(photo.with_name(photo.name.replace(".jpg", "other.jpg")))  # places of the same sizes
        with pytest.raises(CheckpointError, match=rf"other photos than those in .*train, {copy}"):
            prepare(resumed_config(str(folder), {"extra_datasets": (str(copy),)}))
        with pytest.raises(CheckpointError, match="other photos"):
            prepare(resumed_config(str(folder), {"extra_datasets": ()}))


@pytest.mark.long
def test_it_learns_the_places_of_a_synthetic_city(tmp_path: Path) -> None:
    city = tmp_path / "city"
    assert main(["city", str(city), "--images", "1500", "--image_size", "64", "--num_queries", "150"]) == 0
    knobs = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.0, "hue": 0.0, "random_resized_crop": 0.3}
    values = {"M": 15, "alpha": 45, "photos_per_place": 4, "batch_size": 32, "image_size": 64, "fc_output_dim": 64}
    steps = {"epochs_num": 1, "iterations_per_epoch": 240, "recall_values": (1, 20), "infer_batch_size": 64}
    train(prepare(settings(city, **knobs, **values, **steps)), tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    start, end = (next(one["recalls"]["20"] for one in rows if one["kind"] == kind) for kind in ("start", "epoch"))
    assert end > start + 10
    losses = [one["loss"] for one in rows if one["kind"] == "loss"]
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"use_amp16": True}, {"nested_dims": (4, 8)}, {"aggregation": "netvlad"}])
def test_it_works_with(dataset_folder: Path, tmp_path: Path, changes: dict) -> None:
    train(prepare(settings(dataset_folder, epochs_num=1, iterations_per_epoch=2, **changes)), tmp_path)
    assert all(np.isfinite(one["loss"]) for one in read_metrics(tmp_path) if one["kind"] == "loss")


def test_the_plan_and_the_estimate(dataset_folder: Path, tmp_path: Path) -> None:
    prepared = prepare(settings(dataset_folder))
    plan = "\n".join(describe_plan(prepared))
    assert "16 places, 96 images; batches of 3 places with 3 images each, each place seen about 2.81 times" in plan
    assert "15 of 9 images" in estimate_training(prepared, tmp_path / "run").lines[0]


def test_a_dataset_with_fewer_places_than_a_batch_is_refused(dataset_folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"has 16 places .* fewer than the 80 places of a batch"):
        prepare(settings(dataset_folder, batch_size=240))


def test_without_the_package_the_message_says_what_to_install(
    dataset_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pytorch_metric_learning.losses", None)
    with pytest.raises(
        ConfigError, match=r"--method multi_similarity needs .* `pip install 'cosplace\[finetune\]'`\.$"
    ):
        prepare(settings(dataset_folder))


def test_the_commands(
    dataset_folder: Path,
    other_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["groups", str(dataset_folder / "train"), "--method", "multi_similarity"]) == 0
    assert "16 places with 96 photos" in capsys.readouterr().out
    assert main(["groups", str(dataset_folder / "train"), "--method", "multi_similarity", "--json"]) == 0
    assert '"num_places": 16' in capsys.readouterr().out
    assert main(["groups", str(dataset_folder / "train"), "--method", "multi_similarity", "--gsv_csv", "out"]) == 2
    words = [f"--{name}={value}" for name, value in MULTI_SIMILARITY.items() if not isinstance(value, (bool, list))]
    words += ["--recall_values", "1", "2", "--epochs_num=1", "--iterations_per_epoch=2", "--report_matches=0"]
    assert main(["train", f"--dataset_folder={dataset_folder}", *words, "--extra_datasets", str(other_folder)]) == 0
    (report,) = tmp_path.glob("logs/default/*/report.html")
    text = report.read_text()
    assert "Multi-similarity trained on" in text
    assert "18 images each, on 16 places, and on 1 further dataset" in text


def test_groups_refuses_places_that_are_too_few(dataset_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["groups", str(dataset_folder / "train"), "--method", "multi_similarity", "--min_images_per_class"]
    assert main([*words, "6"]) == 0
    capsys.readouterr()
    assert main([*words, "7"]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert str(dataset_folder / "train") in error
