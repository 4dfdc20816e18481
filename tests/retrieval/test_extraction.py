"""Extraction of descriptors: photos of any size, batches, resuming, unreadable photos."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

from cosplace.errors import CheckpointError, ConfigError, DatasetError, DeviceError, ImageError, StorageError
from cosplace.models.inference import encode_batch
from cosplace.models.weight_files import model_checksum
from cosplace.photos.image_list import ImageList
from cosplace.photos.scanning import scan_images
from cosplace.retrieval.baselines import TinyImage
from cosplace.retrieval.extraction import Extraction, ExtractionSettings, extract
from cosplace.retrieval.shards import DescriptorShards, read_shards

SIZES = ((40, 32), (32, 40), (40, 32), (32, 32), (57, 33), (40, 32), (32, 40))  # width, height
CPU = torch.device("cpu")


class TinyNet(nn.Module):
    """A network with batch normalization, so that evaluation mode matters; counts the batches it was given."""

    def __init__(self, dimension: int = 8) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(3, 6, 5, stride=2)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, dimension)
        self.batches: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(tuple(images.shape))
        features = self.norm(self.conv(images)).clamp(min=0.01)
        return nn.functional.normalize(self.head(features.mean((2, 3)).float()))


def write_photos(folder: Path, sizes=SIZES, seed: int = 0) -> ImageList:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (width, height) in enumerate(sizes):
        # Blocks of color: JPEG keeps them apart, and each photo has its own.
        blocks = np.random.default_rng([seed, number]).integers(0, 256, (4, 4, 3), np.uint8)
        picture = Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
        picture.save(folder / f"{number:03}.jpg", quality=95)
    return scan_images(folder)


def expected(model: nn.Module, images: ImageList, image_size: int | None = None) -> np.ndarray:
    """Descriptors by the usual torchvision pipeline, one photo at a time: resized as a PIL image, then normalized."""
    steps = [ToTensor(), Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    pipeline = Compose(steps if image_size is None else [Resize(image_size), *steps])
    model = model.eval()
    with torch.inference_mode():
        opened = [Image.open(images.path(number)) for number in range(len(images))]
        return torch.cat([model(pipeline(picture)[None]) for picture in opened]).numpy()


@pytest.fixture
def images(tmp_path: Path) -> ImageList:
    return write_photos(tmp_path / "photos")


@pytest.mark.parametrize(("image_size", "atol"), [(None, 2e-6), (24, 3e-3)])  # resized pixels may differ by one level
def test_equals_one_photo_at_a_time(images: ImageList, image_size: int | None, atol: float) -> None:
    expected_rows = expected(TinyNet(), images, image_size)
    found = extract(TinyNet(), images, image_size=image_size, batch_size=3)
    assert found.descriptors.dtype == np.float32
    assert isinstance(found.descriptors, np.ndarray)
    np.testing.assert_allclose(found.descriptors, expected_rows, atol=atol)
    assert found.readable.all()
    assert found.unreadable == ()


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (2, 0), (7, 0), (100, 0), (3, 2)])
def test_batches_and_workers_do_not_matter(images: ImageList, batch_size: int, num_workers: int) -> None:
    expected_rows = extract(TinyNet(), images, batch_size=16).descriptors
    found = extract(TinyNet(), images, batch_size=batch_size, num_workers=num_workers).descriptors
    np.testing.assert_allclose(found, expected_rows, atol=1e-6)


def test_photos_of_one_shape_share_batches(tmp_path: Path) -> None:
    sizes = [(40, 32), (32, 40)] * 12
    model = TinyNet()
    extract(model, write_photos(tmp_path, sizes), batch_size=4)
    assert sorted(model.batches) == [(4, 3, 32, 40)] * 3 + [(4, 3, 40, 32)] * 3


def test_photos_of_rare_sizes_do_not_accumulate(tmp_path: Path) -> None:
    sizes = [(30 + number, 30) for number in range(20)]
    model, images = TinyNet(), write_photos(tmp_path, sizes)
    seen = []
    found = extract(model, images, batch_size=2, progress=lambda task, done, *_: seen.append(done - len(model.batches)))
    assert max(seen) <= 2 * 4 + 2
    np.testing.assert_allclose(found.descriptors, expected(TinyNet(), images), atol=2e-6)


def test_each_module_gets_its_former_mode_back(images: ImageList) -> None:
    model = TinyNet().train()
    model.norm.eval()
    statistics = model.norm.running_mean.clone()
    extract(model, images)
    assert (model.training, model.norm.training, model.conv.training) == (True, False, True)
    assert torch.equal(model.norm.running_mean, statistics)
    with pytest.raises(ConfigError):
        extract(nn.Sequential(model, nn.Flatten(0)), images)
    assert (model.training, model.norm.training) == (True, False)


def test_the_global_random_generator_is_not_used(images: ImageList) -> None:
    model = TinyNet()
    before = torch.get_rng_state()
    extract(model, images)
    assert torch.equal(torch.get_rng_state(), before)


def test_16_bit(images: ImageList) -> None:
    expected_rows = extract(TinyNet(), images).descriptors
    found = extract(TinyNet(), images, autocast=torch.bfloat16, stored_dtype="float16").descriptors
    assert found.dtype == np.float16
    assert not np.array_equal(found, expected_rows.astype(np.float16))
    np.testing.assert_allclose(found, expected_rows, atol=0.03)


def test_progress_counts_photos(images: ImageList) -> None:
    calls = []
    extract(TinyNet(), images, batch_size=3, progress=lambda *call: calls.append(call))
    assert calls == [("extracting descriptors", done, 7) for done in (3, 6, 7)]


def test_options_replace_fields_of_the_settings(images: ImageList) -> None:
    settings = ExtractionSettings(image_size=24, stored_dtype="float16")
    by_settings = extract(TinyNet(), images, settings).descriptors
    by_options = extract(TinyNet(), images, image_size=24, stored_dtype="float16").descriptors
    assert by_settings.dtype == np.float16
    assert np.array_equal(by_settings, by_options)
    assert extract(TinyNet(), images, settings, stored_dtype="float32").descriptors.dtype == np.float32
    with pytest.raises(TypeError, match="batchsize"):
        extract(TinyNet(), images, batchsize=4)


# --- folders ---------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_holds_shards(images: ImageList, tmp_path: Path) -> None:
    to = tmp_path / "deep" / "down"
    found = extract(TinyNet(), images, to=to, shard_rows=3, batch_size=2)
    assert sorted(contents(to)) == [*(f"descriptors-0000{number}.npy" for number in range(3)), "meta.json"]
    assert [len(np.load(to / f"descriptors-0000{number}.npy")) for number in range(3)] == [3, 3, 1]
    assert isinstance(found.descriptors, DescriptorShards)
    assert isinstance(found.descriptors.shards[0], np.memmap)
    np.testing.assert_allclose(found.descriptors[:], extract(TinyNet(), images).descriptors, atol=1e-6)
    assert np.array_equal(read_shards(to)[0][:], found.descriptors[:])


def stop_after(num_photos: int):
    def progress(task: str, done: int, total: int, note: str = "") -> None:
        if done > num_photos:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_extraction_continues_after_its_last_shard(images: ImageList, tmp_path: Path) -> None:
    to, whole = tmp_path / "stopped", tmp_path / "whole"
    extract(TinyNet(), images, to=whole, shard_rows=2, batch_size=1)
    with pytest.raises(KeyboardInterrupt):
        extract(TinyNet(), images, to=to, shard_rows=2, batch_size=1, progress=stop_after(4))
    assert sorted(contents(to)) == ["descriptors-00000.npy", "descriptors-00001.npy", "meta.json"]
    with pytest.raises(DatasetError, match=r"descriptors-00002\.npy is missing"):
        read_shards(to)
    model, calls = TinyNet(), []
    extract(model, images, to=to, shard_rows=2, batch_size=1, progress=lambda *call: calls.append(call))
    assert len(model.batches) == 3
    assert [done for _, done, _ in calls] == [4, 5, 6, 7]
    assert contents(to) == contents(whole)


def test_a_finished_folder_is_only_read(images: ImageList, tmp_path: Path) -> None:
    first = extract(TinyNet(), images, to=tmp_path / "to")
    model = TinyNet()
    second = extract(model, images, to=tmp_path / "to")
    assert model.batches == []
    assert np.array_equal(first.descriptors[:], second.descriptors[:])


@pytest.mark.parametrize("cut", [1, 40, 1000])
def test_a_truncated_shard_is_reported_and_extracted_again(images: ImageList, tmp_path: Path, cut: int, caplog) -> None:
    to = tmp_path / "to"
    extract(TinyNet(dimension=40), images, to=to, shard_rows=4)
    whole, shard = contents(to), to / "descriptors-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-cut])
    with pytest.raises(DatasetError, match=r"descriptors-00000\.npy is truncated, expected \(4, 40\) float32"):
        read_shards(to)
    model = TinyNet(dimension=40)
    extract(model, images, to=to, shard_rows=4)
    assert sum(batch[0] for batch in model.batches) == 4
    assert "descriptors-00000.npy" in caplog.text
    assert contents(to) == whole


def test_a_shard_of_another_shape_is_reported_and_extracted_again(images: ImageList, tmp_path: Path) -> None:
    to = tmp_path / "to"
    extract(TinyNet(), images, to=to, shard_rows=4)
    whole = contents(to)
    np.save(to / "descriptors-00001.npy", np.zeros((2, 8), np.float32))
    with pytest.raises(
        DatasetError, match=r"00001\.npy has shape \(2, 8\) and type float32, expected \(3, 8\) float32"
    ):
        read_shards(to)
    extract(TinyNet(), images, to=to, shard_rows=4)
    assert contents(to) == whole


def other_model(arguments: dict) -> None:
    with torch.no_grad():
        arguments["model"].head.bias[0] += 1e-6


def other_photos(arguments: dict) -> None:
    images = arguments["images"]
    images.path(0).rename(images.path(0).with_name("other.jpg"))
    arguments["images"] = scan_images(images.folder)


def same_names_at_another_size(arguments: dict) -> None:
    arguments["images"] = write_photos(arguments["images"].folder, [(64, 64)] * len(SIZES))


def fewer_photos(arguments: dict) -> None:
    arguments["images"].path(0).unlink()
    arguments["images"] = scan_images(arguments["images"].folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_model, "model was"),
        (other_photos, "photos was"),
        (same_names_at_another_size, "same names but other file sizes"),
        (fewer_photos, "count was 7, now it is 6"),
        (lambda arguments: arguments.update(image_size=24), "image_size was None, now it is 24"),
        (lambda arguments: arguments.update(stored_dtype="float16"), "dtype was float32, now it is float16"),
        (lambda arguments: arguments.update(autocast=torch.bfloat16), r"autocast was None, now it is torch\.bfloat16"),
        (lambda arguments: arguments.update(shard_rows=3), "shard_rows was 2, now it is 3"),
    ],
)
def test_descriptors_of_another_extraction_are_rejected(
    images: ImageList, tmp_path: Path, change, message: str
) -> None:
    arguments = {"model": TinyNet(), "images": images, "shard_rows": 2}
    extract(**arguments, to=tmp_path / "to")
    before = contents(tmp_path / "to")
    change(arguments)
    with pytest.raises(DatasetError, match=message) as error:
        extract(**arguments, to=tmp_path / "to")
    assert "\n" not in str(error.value)
    assert contents(tmp_path / "to") == before


def test_shards_without_valid_metadata_are_rejected(images: ImageList, tmp_path: Path) -> None:
    extract(TinyNet(), images, to=tmp_path / "to")
    meta = tmp_path / "to" / "meta.json"
    values = json.loads(meta.read_text())
    for text, message in (
        (json.dumps(values | {"format": 99}), "has format 99"),
        (meta.read_text()[:30], "is damaged"),
        (json.dumps({"format": 1, "dimension": 8}), "is damaged"),
    ):
        meta.write_text(text)
        with pytest.raises(DatasetError, match=message):
            extract(TinyNet(), images, to=tmp_path / "to")
    meta.unlink()
    with pytest.raises(DatasetError, match="is missing"):
        extract(TinyNet(), images, to=tmp_path / "to")


def test_checksums() -> None:
    model = TinyNet()
    checksum = model_checksum(model)
    assert model_checksum(TinyNet()) == checksum
    assert model_checksum(TinyNet(dimension=9)) != checksum
    model.norm.running_var[2] += 1e-3  # buffers count
    assert model_checksum(model) != checksum
    assert model_checksum(TinyImage(8)) != model_checksum(TinyImage(16))


def test_photos_may_move(images: ImageList, tmp_path: Path) -> None:
    extract(TinyNet(), images, to=tmp_path / "to")
    images.folder.rename(tmp_path / "moved")
    model = TinyNet()
    extract(model, scan_images(tmp_path / "moved"), to=tmp_path / "to")
    assert model.batches == []


def test_photos_with_changed_files_are_extracted_again(images: ImageList, tmp_path: Path, caplog) -> None:
    extract(TinyNet(), images, to=tmp_path / "to", shard_rows=2)
    small, *_, large = sorted(map(images.path, range(7)), key=lambda path: path.stat().st_size)
    status = large.stat()
    large.write_bytes(small.read_bytes().ljust(status.st_size, b"\0"))  # of the same size
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    model = TinyNet()
    found = extract(model, images, to=tmp_path / "to", shard_rows=2)
    assert sum(batch[0] for batch in model.batches) <= 2  # one shard
    assert "(1 of 4 shards). Extracting them again." in caplog.text
    np.testing.assert_allclose(found.descriptors[:], extract(TinyNet(), images).descriptors, atol=1e-6)


# --- photos that cannot be opened ------------------------------------------------------------------------------------


def damage(images: ImageList, *numbers: int) -> None:
    for number in numbers:
        path = images.path(number)
        path.write_bytes(path.read_bytes()[:20])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_photos_raise_an_error(images: ImageList, num_workers: int) -> None:
    damage(images, 5, 2)
    with pytest.raises(ImageError, match=r"Cannot open 2 of 7 photos\. The first: .*002\.jpg") as error:
        extract(TinyNet(), images, batch_size=2, num_workers=num_workers)
    # Without a photo, a dataset would no longer match its protocol.
    assert str(error.value).endswith(". Replace them, or continue without them (--skip_unreadable).")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("to_folder", [False, True])
def test_unreadable_photos_can_be_skipped(images: ImageList, tmp_path: Path, to_folder: bool) -> None:
    expected_rows = extract(TinyNet(), images).descriptors
    damage(images, 0, 4)
    to = tmp_path / "to" if to_folder else None

    def check(found: Extraction) -> None:
        readable = [False, True, True, True, False, True, True]
        assert found.readable.tolist() == readable
        assert [(entry.index, entry.name) for entry in found.unreadable] == [(0, "000.jpg"), (4, "004.jpg")]
        assert "000.jpg" in found.unreadable[0].message
        assert not found.descriptors[:][[0, 4]].any()
        np.testing.assert_allclose(found.descriptors[:][readable], expected_rows[readable], atol=1e-6)

    check(extract(TinyNet(), images, skip_unreadable=True, to=to, shard_rows=3, batch_size=2))
    if to is not None:
        model = TinyNet()
        check(extract(model, images, skip_unreadable=True, to=to, shard_rows=3))
        assert model.batches == []


def test_skipped_photos_raise_an_error_without_skip_unreadable_until_repaired(
    images: ImageList, tmp_path: Path
) -> None:
    good = images.path(4).read_bytes()
    damage(images, 4)
    extract(TinyNet(), images, skip_unreadable=True, to=tmp_path / "to", shard_rows=2)
    with pytest.raises(ImageError, match=r"Cannot open 1 of 2 photos\. The first: .*004\.jpg"):
        extract(TinyNet(), images, to=tmp_path / "to", shard_rows=2)
    images.path(4).write_bytes(good)
    model = TinyNet()
    found = extract(model, images, to=tmp_path / "to", shard_rows=2)
    assert sum(batch[0] for batch in model.batches) == 2
    assert found.readable.all()
    assert read_shards(tmp_path / "to")[1] == []


def test_finished_shards_remain_after_an_unreadable_photo(images: ImageList, tmp_path: Path) -> None:
    good = images.path(4).read_bytes()
    damage(images, 4)
    with pytest.raises(ImageError, match="Cannot open 1 of 2 photos"):
        extract(TinyNet(), images, to=tmp_path / "to", shard_rows=2)
    images.path(4).write_bytes(good)
    model = TinyNet()
    found = extract(model, images, to=tmp_path / "to", shard_rows=2)
    assert sum(batch[0] for batch in model.batches) == 3
    np.testing.assert_allclose(found.descriptors[:], extract(TinyNet(), images).descriptors, atol=1e-6)


def test_a_shard_of_unreadable_photos_among_others(images: ImageList) -> None:
    damage(images, 6)
    found = extract(TinyNet(), images, skip_unreadable=True, shard_rows=2)
    assert found.readable.tolist() == [True] * 6 + [False]
    damage(images, *range(6))
    with pytest.raises(ImageError, match="Cannot open any of 7 photos"):
        extract(TinyNet(), images, skip_unreadable=True)


# --- errors -------------------------------------------------------------------------------------------------


def test_invalid_settings_are_rejected(images: ImageList) -> None:
    for name, value in (("image_size", 0), ("batch_size", 0), ("num_workers", -1), ("stored_dtype", "float8")):
        with pytest.raises(ConfigError, match=f"{name} must be .*, got '?{value}"):
            extract(TinyNet(), images, **{name: value})
    with pytest.raises(DatasetError, match="list of photos is empty"):
        extract(TinyNet(), replace(images, names=images.names[:0], starts=images.starts[:1]))
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError):
            extract(TinyNet(), images, device="cuda")


def test_models_without_valid_descriptors_are_rejected(images: ImageList) -> None:
    with pytest.raises(ConfigError, match=r"\(1, 6, 14, 18\).* must return \(B, D\)"):
        extract(TinyNet().conv, images, batch_size=1)
    model = TinyNet()
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    with pytest.raises(CheckpointError, match=r"000\.jpg, 001\.jpg, 002\.jpg and 4 more are not finite"):
        extract(model, images)


def test_one_batch_of_photos() -> None:
    photos = torch.randint(0, 256, (3, 3, 20, 20), dtype=torch.uint8)
    model = TinyNet().eval()
    with torch.inference_mode():
        assert encode_batch(model, photos, device=CPU).shape == (3, 8)


def test_a_folder_that_is_not_writable(images: ImageList, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="Choose another folder"):
        extract(TinyNet(), images, to=tmp_path / "file" / "to", num_workers=1)


# --- tiny images -----------------------------------------------------------------------------------------------------


def test_tiny_images_by_formula(tmp_path: Path) -> None:
    images = write_photos(tmp_path, [(64, 64), (64, 64)])
    found = extract(TinyImage(side=4), images).descriptors
    assert found.shape == (2, 16)
    for row in range(2):
        pixels = np.asarray(Image.open(images.path(row)), np.float64)
        # Far fewer pixels than before: bilinear antialiasing weighs them by a triangle of twice the cell's width.
        cells = np.arange(4)[:, None] * 16 + 8 - (np.arange(64) + 0.5)
        weights = np.clip(1 - np.abs(cells) / 16, 0, None)
        weights /= weights.sum(1, keepdims=True)
        gray = pixels @ [0.299, 0.587, 0.114]
        tiny = (weights @ gray @ weights.T).ravel()
        tiny -= tiny.mean()
        np.testing.assert_allclose(found[row], tiny / np.linalg.norm(tiny), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_a_photo_of_one_color_has_a_finite_tiny_image(tmp_path: Path) -> None:
    Image.new("RGB", (50, 40), (10, 200, 30)).save(tmp_path / "plain.png")
    found = extract(TinyImage(), scan_images(tmp_path)).descriptors
    assert found.shape == (1, 256)
    assert np.abs(found).max() <= 1


def test_long_photos_are_skipped_or_get_smaller_batches(images: ImageList) -> None:
    Image.new("RGB", (5_000, 10)).save(images.folder / "003.jpg")
    found = extract(TinyNet(), images, image_size=512, skip_unreadable=True)
    assert [entry.name for entry in found.unreadable] == ["003.jpg"]
    assert "too long and narrow" in found.unreadable[0].message and found.readable.sum() == len(images) - 1
    others = images.subset([row for row in range(len(images)) if row != 3])
    assert np.array_equal(found.descriptors[found.readable], extract(TinyNet(), others, image_size=512).descriptors)
    model = TinyNet()
    folder = images.folder / "long"
    extract(model, write_photos(folder, sizes=[(400, 25)] * 9), batch_size=8)
    assert [shape[0] for shape in model.batches] == [2, 2, 2, 2, 1]  # 16 : 1, four times as long as a panorama


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_files_that_become_pipes_after_the_scan_do_not_stop_the_extraction(images: ImageList) -> None:
    images.path(2).unlink()
    os.mkfifo(images.path(2))
    found = extract(TinyNet(), images, skip_unreadable=True)
    assert [entry.name for entry in found.unreadable] == ["002.jpg"] and "a pipe" in found.unreadable[0].message
