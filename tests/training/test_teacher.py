"""The teacher of a distillation: its descriptors are computed once, and the map to fewer dimensions."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from cosplace.config.distillation import DistillConfig
from cosplace.config.values import from_values
from cosplace.errors import CheckpointError, ConfigError
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.reduction import fit
from cosplace.models.weight_files import write_weights
from cosplace.photos.scanning import scan_images
from cosplace.retrieval.shards import META
from cosplace.training.teacher import (
    Targets,
    Teacher,
    check_dimensions,
    fit_reduction_of_teacher,
    licence_of,
    open_teacher,
    usual_image_size,
)
from tests.synthetic_dataset import write_place


def write_network(path: Path, seed: int = 0, dimension: int = 8, card: dict[str, str] | None = None) -> Path:
    network = GeoLocalizationNet("ResNet18_Small", dimension, generator=torch.Generator().manual_seed(seed))
    write_weights(path, network.state_dict(), card)
    return path


def write_photos(folder: Path, count: int = 6) -> Path:
    for place in range(count):
        write_place(folder, place, 0, side=32)
    return folder


def teacher_of(model: Path, cache: Path, **changes) -> Teacher:
    values = {"photos": "x", "teacher": str(model), "teacher_cache": str(cache), "num_workers": 0, **changes}
    return open_teacher(from_values(DistillConfig, values), torch.device("cpu"), None)


def count_photos(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that any network of this kind gets from now on."""
    sizes: list[int] = []
    forward = GeoLocalizationNet.forward

    def counted(self: GeoLocalizationNet, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(GeoLocalizationNet, "forward", counted)
    return sizes


def test_descriptors_are_computed_once_for_each_teacher_and_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, cache = write_photos(tmp_path / "photos"), tmp_path / "cache"
    model = write_network(tmp_path / "a.pth")
    sizes = count_photos(teacher_of(model, cache), monkeypatch)
    first = teacher_of(model, cache).describe(scan_images(photos))
    assert sum(sizes) == 6
    assert first.descriptors.dtype == np.float16
    again = teacher_of(model, cache).describe(scan_images(photos))
    assert sum(sizes) == 6
    assert (again.descriptors[:] == first.descriptors[:]).all()
    # A copy under another name is the same teacher.
    teacher_of(write_network(tmp_path / "copy.safetensors"), cache).describe(scan_images(photos))
    assert sum(sizes) == 6
    other = teacher_of(write_network(tmp_path / "b.pth", seed=1), cache).describe(scan_images(photos))
    assert sum(sizes) == 12
    assert not (other.descriptors[:] == first.descriptors[:]).all()
    teacher_of(model, cache, teacher_image_size=48).describe(scan_images(photos))
    assert sum(sizes) == 18
    exact = teacher_of(model, cache, teacher_dtype="float32").describe(scan_images(photos))
    assert sum(sizes) == 24
    np.testing.assert_allclose(exact.descriptors[:], first.descriptors[:], atol=1e-3)


def test_photos_that_have_changed_are_described_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, model = write_photos(tmp_path / "photos"), write_network(tmp_path / "a.pth")
    teacher = teacher_of(model, tmp_path / "cache")
    sizes = count_photos(teacher, monkeypatch)
    before = teacher.describe(scan_images(photos)).descriptors[:].copy()
    # The same name and number of bytes, another time.
    one = next(photos.iterdir())
    status = one.stat()
    os.utime(one, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    after = teacher.describe(scan_images(photos)).descriptors[:]
    assert sum(sizes) == 12
    assert (before == after).all()
    write_place(photos, 99, 0, side=32)
    assert teacher.describe(scan_images(photos)).descriptors.shape == (7, 8)
    assert sum(sizes) == 19


@pytest.mark.parametrize("part", ["descriptors", "record"])
def test_a_damaged_cache_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    photos, model = scan_images(write_photos(tmp_path / "photos")), write_network(tmp_path / "a.pth")
    teacher = teacher_of(model, tmp_path / "cache")
    sizes = count_photos(teacher, monkeypatch)
    first = np.array(teacher.describe(photos).descriptors[:])
    (folder,) = (tmp_path / "cache").iterdir()
    if part == "record":
        (folder / META).write_text("{")
    else:
        (file,) = folder.glob("descriptors-*.npy")
        content = bytearray(file.read_bytes())
        content[-40:-8] = bytes(32)  # of the last descriptor
        file.write_bytes(content)
    again = teacher.describe(photos)
    assert (again.descriptors[:] == first).all()
    assert sum(sizes) == 12
    told = {"record": "the descriptors of the teacher are computed again", "descriptors": "Extracting it again"}
    assert told[part] in caplog.text


def test_a_stopped_description_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosplace.training.teacher.SHARD_ROWS", 2)
    photos, model = scan_images(write_photos(tmp_path / "photos")), write_network(tmp_path / "a.pth")
    teacher = teacher_of(model, tmp_path / "cache")
    sizes = count_photos(teacher, monkeypatch)

    def stop(task: str, done: int, *_: object) -> None:
        if done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teacher.describe(photos, stop)
    assert sum(sizes) in (4, 6)
    before = sum(sizes)
    teacher.describe(photos)
    assert sum(sizes) == before + 2  # only the last shard


def test_the_map_keeps_similarities_better_than_others() -> None:
    random = np.random.default_rng(0)
    # As descriptors are: a common direction, and variances that fall.
    rows = (random.standard_normal((400, 32)) * np.geomspace(1, 0.02, 32)) @ random.standard_normal((32, 64)) + 2
    teacher = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    rotation, _ = np.linalg.qr(random.standard_normal((64, 64)))
    reduction = fit_reduction_of_teacher(teacher, np.arange(300), 8)
    assert reduction is not None

    pairs = np.triu_indices(100, 1)
    before = (teacher[300:] @ teacher[300:].T)[pairs]

    def kept(mapped: np.ndarray) -> float:
        """Correlation of the similarities of new photos, before and after the map."""
        mapped = mapped / np.linalg.norm(mapped, axis=1, keepdims=True)
        return float(np.corrcoef((mapped @ mapped.T)[pairs], before)[0, 1])

    new = torch.from_numpy(teacher[300:])
    ours = kept(reduction(new).numpy())
    others = [kept(fit([teacher[:300]], 8, method)(new).numpy()) for method in ("pca", "pca_whitening", "truncation")]
    assert ours > max(*others, kept(new.numpy() @ rotation[:, :8])) + 0.02
    # Without the normalization after it, no map of rank 8 changes the similarities less (Eckart and Young).
    linear, similarities = teacher[:300] @ reduction.weight.numpy().T, teacher[:300] @ teacher[:300].T
    smallest = np.linalg.svd(teacher[:300], compute_uv=False)[8:] ** 2
    error = np.linalg.norm(linear @ linear.T - similarities)
    assert error == pytest.approx(np.linalg.norm(smallest), rel=1e-3)


def test_targets_are_those_of_the_rows() -> None:
    random = np.random.default_rng(0)
    stored = random.standard_normal((20, 6)).astype(np.float16)
    unit = stored.astype(np.float32) / np.linalg.norm(stored.astype(np.float32), axis=1, keepdims=True)
    rows = torch.tensor([4, 0, 19])
    teacher, target = Targets(descriptors=stored, reduction=None).batch(rows, torch.device("cpu"))
    assert teacher is target
    np.testing.assert_allclose(teacher, unit[[4, 0, 19]], rtol=1e-6)
    reduction = fit_reduction_of_teacher(stored, np.arange(20), 3)
    assert reduction is not None
    _, target = Targets(descriptors=stored, reduction=reduction).batch(rows, torch.device("cpu"))
    expected = unit[[4, 0, 19]] @ reduction.weight.numpy().T
    np.testing.assert_allclose(target, expected / np.linalg.norm(expected, axis=1, keepdims=True), rtol=1e-5)
    assert fit_reduction_of_teacher(stored, np.arange(20), 6) is None


def test_dimensions_that_do_not_fit_are_refused() -> None:
    check_dimensions(512, 512, 1.0)
    check_dimensions(64, 512, 1.0)
    check_dimensions(1024, 512, 0.0)
    with pytest.raises(ConfigError, match=r"--fc_output_dim 1024 is more than the 512 dimensions of the teacher"):
        check_dimensions(1024, 512, 1.0)
    with pytest.raises(ConfigError, match="8 photos are too few for a student of 8 dimensions"):
        fit_reduction_of_teacher(np.ones((8, 16), np.float32), np.arange(8), 8)


def test_size_and_license_of_teachers(tmp_path: Path) -> None:
    network = GeoLocalizationNet("ResNet18_Small", 8)
    plain = write_network(tmp_path / "plain.pth")
    assert usual_image_size(str(plain)) is None
    assert licence_of(str(plain), network) == "unknown"
    card = {"image_size": "96", "licence": "CC BY-NC 4.0"}
    carded = write_network(tmp_path / "carded.safetensors", card=card)
    assert usual_image_size(str(carded)) == 96
    assert licence_of(str(carded), network) == "CC BY-NC 4.0"
    # The teacher of a teacher counts.
    student = write_network(tmp_path / "student.safetensors", card={"teacher_licence": "GPL-3.0"})
    assert licence_of(str(student), network) == "GPL-3.0"
    assert usual_image_size("megaloc") == 322
    assert usual_image_size("cosplace_resnet18_512") is None


def test_a_teacher_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no weights file .*missing\.pth"):
        teacher_of(tmp_path / "missing.pth", tmp_path)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth"):
        teacher_of(tmp_path / "other.pth", tmp_path)
