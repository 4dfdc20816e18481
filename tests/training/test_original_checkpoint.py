"""A run of the original code goes on here: its checkpoint is made by plain torch and Python, in its format."""

import io
import shutil
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from cosplace.cli import main
from cosplace.errors import CheckpointError, ConfigError
from cosplace.models.network import GeoLocalizationNet
from cosplace.training.best_model import BEST_MODEL, BEST_MODEL_SAFE
from cosplace.training.checkpoint import LAST_CHECKPOINT, read_checkpoint
from cosplace.training.loop import train
from cosplace.training.metrics import read_metrics
from cosplace.training.resume import resumed_config, resumed_folder
from cosplace.training.setup import prepare
from tests.synthetic_dataset import SETTINGS, write_dataset

pytestmark = pytest.mark.slow  # make check has a minute; make test runs all

GROUPS = {"M": 10, "N": 2, "L": 1, "alpha": 180, "groups_num": 2, "min_images_per_class": 4}
GIVEN = {**SETTINGS, **GROUPS, "epochs_num": 4}


def classes_as_there(folder: Path) -> list[list[tuple[int, int, int]]]:
    """The classes of each group in the original's order: a set of tuples, filled along the sorted paths."""
    paths = sorted(str(path) for path in (folder / "train").rglob("*.jpg"))
    fields = [path.split("@") for path in paths]
    M, N, alpha, L = (GROUPS[name] for name in ("M", "N", "alpha", "L"))
    ids = []
    for field in fields:
        east, north, heading = float(field[1]), float(field[2]), float(field[9])
        one = (int(east // M * M), int(north // M * M), int(heading // alpha * alpha))
        group = (one[0] % (M * N) // M, one[1] % (M * N) // M, one[2] % (alpha * L) // alpha)
        ids.append((one, group))
    counts = defaultdict(int)
    for one, _ in ids:
        counts[one] += 1
    groups = defaultdict(set)
    for one, group in ids:
        if counts[one] >= GROUPS["min_images_per_class"]:
            groups[group].add(one)
    return [list(classes) for classes in groups.values()][: GROUPS["groups_num"]]


class Original:
    """The state of such a run after two epochs of two iterations on noise."""

    def __init__(self, folder: Path, *, train_all_layers: bool = True, backbone: str = "ResNet18_Small") -> None:
        torch.manual_seed(0)
        self.classes = classes_as_there(folder)
        self.model = GeoLocalizationNet(backbone, 16, train_all_layers)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.weights = [torch.nn.Parameter(torch.randn(len(ids), 16) * 0.1) for ids in self.classes]
        self.optimizers = [torch.optim.Adam([weight], lr=0.01) for weight in self.weights]
        for epoch in range(2):
            for _ in range(2):
                self.step(epoch % 2)

    def step(self, group: int) -> None:
        weight = self.weights[group]
        self.optimizer.zero_grad()
        self.optimizers[group].zero_grad()
        found = self.model(torch.randn(4, 3, 32, 32))
        labels = torch.randint(len(weight), (4,))
        functional.cross_entropy(30 * found @ functional.normalize(weight).T, labels).backward()
        self.optimizer.step()
        self.optimizers[group].step()

    def save(self, folder: Path, **changes) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "epoch_num": 2,
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
            "classifiers_state_dict": [{"weight": weight.data} for weight in self.weights],
            "optimizers_state_dict": [optimizer.state_dict() for optimizer in self.optimizers],
            "best_val_recall1": np.float64(12.5),
        }
        torch.save({**content, **changes}, folder / LAST_CHECKPOINT)
        torch.save(self.model.state_dict(), folder / BEST_MODEL)
        return folder / LAST_CHECKPOINT


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"), num_places=24)


@pytest.fixture(scope="module")
def original(dataset_folder: Path) -> Original:
    return Original(dataset_folder)


@pytest.fixture
def checkpoint(original: Original, tmp_path: Path) -> Path:
    return original.save(tmp_path / "there")


def resumed(file: Path, dataset_folder: Path, **changes):
    return resumed_config(str(file), {**GIVEN, "dataset_folder": str(dataset_folder), **changes})


def test_the_made_checkpoint_needs_what_the_original_needs(checkpoint: Path, dataset_folder: Path) -> None:
    with pytest.raises(Exception, match="scalar"):
        torch.load(checkpoint, weights_only=True)
    assert len(classes_as_there(dataset_folder)[0]) == 12
    assert classes_as_there(dataset_folder)[0] != sorted(
        classes_as_there(dataset_folder)[0]
    )  # or the order would go untested


def test_weights_moments_and_counters_arrive(original: Original, checkpoint: Path, dataset_folder: Path) -> None:
    prepared = prepare(resumed(checkpoint, dataset_folder))
    state = prepared.state
    assert (state.epoch, state.iteration, state.best_recall1) == (2, 0, 12.5)
    for key, value in original.model.state_dict().items():
        assert torch.equal(state.model.state_dict()[key], value)
    for number, theirs in enumerate(original.classes):
        ours = [tuple(cell) for cell in prepared.data.groups[number].cells.tolist()]
        assert sorted(ours) == sorted(theirs)
        moments = state.classifier_optimizers[number].state_dict()["state"][0]
        their_moments = original.optimizers[number].state_dict()["state"][0]
        for row, cell in enumerate(ours):
            there = theirs.index(cell)
            assert torch.equal(state.classifiers[number].weight[row], original.weights[number][there])
            assert torch.equal(moments["exp_avg"][row], their_moments["exp_avg"][there])
            assert torch.equal(moments["exp_avg_sq"][row], their_moments["exp_avg_sq"][there])
        assert moments["step"] == 2
    assert state.optimizer.state_dict()["state"][0]["step"] == 4


@pytest.mark.parametrize("train_all_layers", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_next_step_is_the_one_the_original_would_take(
    dataset_folder: Path, tmp_path: Path, train_all_layers
) -> None:
    """ResNet-18 has frozen layers, which the original's optimizer lists too."""
    there = Original(dataset_folder, train_all_layers=train_all_layers, backbone="ResNet18")
    file = there.save(tmp_path / "there")
    state = prepare(resumed(file, dataset_folder, backbone="ResNet18", train_all_layers=train_all_layers)).state
    pairs = list(zip(there.model.parameters(), state.model.parameters(), strict=True))
    generator = torch.Generator().manual_seed(5)
    before = [ours.detach().clone() for _, ours in pairs]
    for theirs, ours in pairs:
        if ours.requires_grad:
            theirs.grad = torch.randn(ours.shape, generator=generator)
            ours.grad = torch.empty_like(ours).copy_(theirs.grad)  # in its layout, as autograd leaves it
        else:
            theirs.grad = None
    for optimizer in (there.optimizer, state.optimizer):
        optimizer.step()
    moved = 0
    for (theirs, ours), old in zip(pairs, before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
        moved += not torch.equal(ours, old)
    assert moved == sum(ours.requires_grad for _, ours in pairs)
    assert (moved < len(pairs)) == (not train_all_layers)


def test_it_trains_on_in_a_folder_of_its_own(
    checkpoint: Path, dataset_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = {path.name: path.read_bytes() for path in checkpoint.parent.iterdir()}
    flags = [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in GIVEN.items()
        if name != "recall_values"
    ]
    flags += ["--recall_values", "1", "2", f"--dataset_folder={dataset_folder}"]
    assert main(["train", f"--resume_train={checkpoint}", *flags]) == 0
    assert {path.name: path.read_bytes() for path in checkpoint.parent.iterdir()} == before
    (run,) = Path("logs/default").iterdir()
    epochs = [row for row in read_metrics(run) if row["kind"] == "epoch"]
    assert [(row["epoch"], row["group"]) for row in epochs] == [(2, 0), (3, 1)]
    assert (run / BEST_MODEL_SAFE).is_file()
    content = read_checkpoint(run)
    assert content["counters"]["epoch"] == 4
    assert content["optimizer"]["state"][0]["step"] == 4 + 2 * 5
    assert content["classifier_optimizers"][0]["state"][0]["step"] == 2 + 5
    assert content["counters"]["best_recall1"] >= 12.5
    # From here on it is a run of ours: no flags are needed.
    assert resumed_folder(str(run)) == run
    assert resumed_config(str(run), {}).grouping.groups_num == 2


def test_the_former_best_model_stays_where_no_epoch_is_better(
    original: Original, dataset_folder: Path, tmp_path: Path
) -> None:
    file = original.save(tmp_path / "there", best_val_recall1=np.float64(101.0))
    result = train(prepare(resumed(file, dataset_folder, epochs_num=3)), tmp_path / "run")
    assert result.best_epoch == -1
    for key, value in original.model.state_dict().items():
        assert torch.equal(torch.load(tmp_path / "run" / BEST_MODEL, weights_only=True)[key], value)


def test_without_the_best_model_the_next_epoch_sets_it(
    original: Original, dataset_folder: Path, tmp_path: Path
) -> None:
    file = original.save(tmp_path / "there", best_val_recall1=np.float64(101.0))
    (file.parent / BEST_MODEL).unlink()
    assert train(prepare(resumed(file, dataset_folder, epochs_num=3)), tmp_path / "run").best_epoch == 2
    with pytest.raises(CheckpointError, match=r"finished epoch 2 of 2, and there is no best_model\.pth next to it"):
        prepare(resumed(file, dataset_folder, epochs_num=2))


def test_numpy_1_and_old_torch_wrote_other_names_and_counters(
    original: Original, checkpoint: Path, dataset_folder: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old.pth"
    with zipfile.ZipFile(checkpoint) as there, zipfile.ZipFile(old, "w") as here:
        for name in there.namelist():
            raw = there.read(name)
            assert not name.endswith("data.pkl") or b"numpy._core.multiarray" in raw
            here.writestr(name, raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_checkpoint(old)["best_val_recall1"] == 12.5
    saved = original.optimizer.state_dict()
    plain = {number: {**moments, "step": int(moments["step"])} for number, moments in saved["state"].items()}
    file = original.save(tmp_path / "plain", optimizer_state_dict={**saved, "state": plain})
    assert prepare(resumed(file, dataset_folder)).state.optimizer.state_dict()["state"][0]["step"] == 4


def test_other_numpy_objects_are_no_numbers(original: Original, tmp_path: Path) -> None:
    for number, value in enumerate((np.array([1.0]), np.datetime64("2024-01-01"), np.int64(3))):
        file = original.save(tmp_path / str(number), best_val_recall1=value)
        with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
            read_checkpoint(file)


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_never_run(original: Original, tmp_path: Path) -> None:
    file = original.save(tmp_path / "bad", best_val_recall1=Harm(tmp_path / "harmed"))
    with pytest.raises(CheckpointError, match="truncated or not a checkpoint"):
        read_checkpoint(file)
    assert not (tmp_path / "harmed").exists()
    torch.load(io.BytesIO(file.read_bytes()), weights_only=False)
    assert (tmp_path / "harmed").exists()  # so it was harmful indeed


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"groups_num": 1}, CheckpointError, "has 2 classifiers for --groups_num 1. The file contains no settings"),
        ({"min_images_per_class": 3, "M": 20, "N": 1, "L": 2, "groups_num": 1}, CheckpointError, "--groups_num 2"),
        ({"M": 20}, CheckpointError, r"12 classes of 16 dimensions in group 0, but .* give .*--min_images_per_class"),
        ({"backbone": "ResNet50"}, ConfigError, "--backbone ResNet50 contradicts .* has ResNet18_Small"),
        ({"fc_output_dim": 32}, ConfigError, "--fc_output_dim 32 contradicts .* has 16"),
    ],
)
def test_settings_that_do_not_fit_are_told(checkpoint: Path, dataset_folder: Path, changes, kind, said) -> None:
    with pytest.raises(kind, match=said) as caught:
        prepare(resumed(checkpoint, dataset_folder, **changes))
    assert "\n" not in str(caught.value)


def test_frozen_layers_that_do_not_fit_are_told(dataset_folder: Path, tmp_path: Path) -> None:
    knobs = {"backbone": "ResNet18"}
    whole = Original(dataset_folder, backbone="ResNet18", train_all_layers=True).save(tmp_path / "whole")
    with pytest.raises(CheckpointError, match="Add --train_all_layers"):
        prepare(resumed(whole, dataset_folder, **knobs))
    frozen = Original(dataset_folder, backbone="ResNet18", train_all_layers=False).save(tmp_path / "frozen")
    with pytest.raises(CheckpointError, match="Omit --train_all_layers"):
        prepare(resumed(frozen, dataset_folder, train_all_layers=True, **knobs))


def test_damage_is_told(original: Original, checkpoint: Path, dataset_folder: Path, tmp_path: Path) -> None:
    shutil.copy(checkpoint, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="truncated"):
        resumed(tmp_path / "cut.pth", dataset_folder)
    file = original.save(tmp_path / "odd", model_state_dict={"weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="not the weights of a CosPlace model"):
        resumed(file, dataset_folder)
    file = original.save(tmp_path / "less", optimizers_state_dict=[])
    with pytest.raises(CheckpointError, match="belongs to another network or is damaged"):
        prepare(resumed(file, dataset_folder))
