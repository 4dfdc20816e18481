"""An index built on a Ray cluster: the same photos as one process, lost processes, killed runs, other versions."""

import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cosplace.cli import main
from cosplace.config.index import IndexSettings
from cosplace.engines.encoder import Encoder
from cosplace.errors import DatasetError
from cosplace.index import cluster_building, cluster_search
from cosplace.index.building import build_index
from cosplace.index.cluster_building import (
    Described,
    DescribePhotos,
    add_photos_on_cluster,
    store_parts,
    without_thumbnails,
)
from cosplace.index.cluster_search import PACKAGES, build_on_cluster
from cosplace.index.photo_index import PhotoIndex, create_index, open_index
from cosplace.index.records import ModelSpec, NewPhoto
from cosplace.index.verification import verify_index
from cosplace.photos.scanning import scan_images
from cosplace.ray_cluster import Cluster, open_cluster
from cosplace.retrieval.extraction import ExtractionSettings
from cosplace.retrieval.search import nearest
from tests import object_store
from tests.indexed_city import write_indexed_city
from tests.synthetic_dataset import write_place

MISSING = [name for name in PACKAGES if find_spec(name) is None]
needs_ray = pytest.mark.skipif(bool(MISSING), reason="Ray is missing: pip install 'cosplace[cluster]'")
ROOT = Path(__file__).parents[2]
LIMIT_S = 600.0  # a busy machine may take long


class Stripes(nn.Module):
    """A network that takes milliseconds: 24 mean colors, of unit length."""

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        colors = nn.functional.adaptive_avg_pool2d(photos, (1, 8)).flatten(1)
        return nn.functional.normalize(colors)


def stripes() -> Encoder:
    return Encoder(Stripes(), name="stripes", image_size=32, device="cpu")


@pytest.fixture(scope="module")
def cluster() -> Generator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with open_cluster(PACKAGES) as opened:
            yield opened


def write_photos(folder: Path, count: int) -> Path:
    """Photos of which one is a copy, and one is not a photo."""
    for place in range(count):
        write_place(folder, place, 0)
    (folder / "copy.jpg").write_bytes(sorted(folder.iterdir())[3].read_bytes())
    (folder / "damaged.jpg").write_bytes(b"not a photo")
    return folder


def build(folder: Path, address: Path | str, cluster: Cluster, photos_per_part: int = 8) -> Any:
    add = partial(add_photos_on_cluster, cluster=cluster, photos_per_part=photos_per_part)
    return build_index(folder, stripes(), address, settings=IndexSettings(thumbnail_size=16), add=add)


def assert_same_index(found: Path | str, expected: Path) -> None:
    """The same photos, with the same ids and the same values."""
    with open_index(found) as one, open_index(expected) as other:
        assert one.columns().paths() == other.columns().paths()
        ids = other.columns().ids
        np.testing.assert_array_equal(one.columns().ids, ids)
        for name in ("latitudes", "longitudes", "headings", "times", "accuracies_m"):
            np.testing.assert_array_equal(getattr(one.columns(), name), getattr(other.columns(), name))
        np.testing.assert_allclose(one.descriptors(ids), other.descriptors(ids), atol=1e-6)
        assert [one.thumbnail(photo_id) for photo_id in ids] == [other.thumbnail(photo_id) for photo_id in ids]
        assert [one.photo(photo_id).source for photo_id in ids] == [other.photo(photo_id).source for photo_id in ids]
    assert not verify_index(found).problems


@needs_ray
@pytest.mark.extras
@pytest.mark.slow
def test_it_holds_what_one_process_stores(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cluster_building, "PHOTOS_PER_FILE", 20)  # several files
    photos = write_photos(tmp_path / "photos", 40)
    alone = build_index(photos, stripes(), tmp_path / "alone", settings=IndexSettings(thumbnail_size=16))
    shared = build(photos, tmp_path / "shared", cluster)
    for name in ("num_given", "num_added", "num_known", "num_moved", "num_replaced", "num_without_position"):
        assert getattr(shared, name) == getattr(alone, name), name
    assert len(shared.unreadable) == len(alone.unreadable) == 1
    assert_same_index(tmp_path / "shared", tmp_path / "alone")

    assert build(photos, tmp_path / "shared", cluster).num_added == 0
    # A file that moves, one that changes, a new one; then small files are joined.
    first, second, *_ = sorted(photos.glob("@*"))
    (photos / "other").mkdir()
    first.rename(photos / "other" / first.name)
    second.write_bytes(sorted(photos.glob("@*"))[-1].read_bytes() + b" ")
    write_place(photos, 100, 0)
    monkeypatch.setattr(cluster_search, "MAX_FRAGMENTS", 2)
    with caplog.at_level(logging.INFO, "cosplace"):
        again = build(photos, tmp_path / "shared", cluster)
    expected = build_index(photos, stripes(), tmp_path / "alone", settings=IndexSettings(thumbnail_size=16))
    counts = [(one.num_added, one.num_moved, one.num_replaced) for one in (again, expected)]
    assert counts[0] == counts[1] == (2, 1, 1)
    assert_same_index(tmp_path / "shared", tmp_path / "alone")
    with open_index(tmp_path / "shared") as index:
        assert index.info()["pieces"] <= 2
    assert "join files of photos: memory of this process" in caplog.text


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeNumbers:
    """Synthetic photos, ten of each place, instead of files.  dying: the first process to see this file ends."""

    dimension: int
    dying: Path | None = None

    def photos(self, numbers: range) -> list[NewPhoto]:
        return [
            NewPhoto(path=f"/photos/{number}.jpg", key=f"key-{number}", latitude=1e-4 * number, longitude=20.0,
                     source="made", thumbnail=b"jpeg")
            for number in numbers
        ]  # fmt: skip

    def descriptors(self, numbers: range, seed: int = 0) -> np.ndarray:
        rows = np.empty((len(numbers), self.dimension), np.float32)
        for place in range(numbers.start // 10, (numbers.stop - 1) // 10 + 1):
            center = np.random.default_rng([1, place]).standard_normal(self.dimension, np.float32)
            noise = np.random.default_rng([2 + seed, place]).standard_normal((10, self.dimension), np.float32)
            inside = range(max(numbers.start, 10 * place), min(numbers.stop, 10 * place + 10))
            own = np.arange(inside.start, inside.stop) - 10 * place
            rows[inside.start - numbers.start : inside.stop - numbers.start] = center + 0.6 * noise[own]
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def __call__(self, numbers: range) -> Described:
        if self.dying is not None and self.dying.exists():
            self.dying.unlink()
            os._exit(9)
        photos, thumbnails = without_thumbnails(self.photos(numbers))
        return Described(photos=photos, descriptors=self.descriptors(numbers), thumbnails=thumbnails)


def store_numbers(index: PhotoIndex, cluster: Cluster, describe: DescribeNumbers, count: int, size: int) -> None:
    parts = [range(first, min(first + size, count)) for first in range(0, count, size)]

    def accept(described: Described) -> tuple[list[int], list[NewPhoto], Any]:
        photos = [photo for photo in described.photos if isinstance(photo, NewPhoto)]
        return list(range(len(photos))), photos, lambda added: None

    store_parts(index, cluster, describe, [len(part) for part in parts], parts.__getitem__, accept=accept)


@needs_ray
@pytest.mark.extras
@pytest.mark.long
def test_a_search_among_200_000_photos_is_like_an_exact_one(
    tmp_path: Path, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    count, describe = 200_000, DescribeNumbers(dimension=64)
    spec = ModelSpec(model="made", checksum="c" * 64, dimension=64)
    with create_index(tmp_path / "index", spec) as index:
        store_numbers(index, cluster, describe, count, 10_000)
        with caplog.at_level(logging.INFO, "cosplace"):
            assert index.update_search(build=partial(build_on_cluster, cluster=cluster))
    assert "build the search index: memory of this process" in caplog.text
    with open_index(tmp_path / "index") as reader:  # as LanceDB reads it, without lance-ray
        info = reader.info()
        assert info["search"]["kind"] == "approximate" and info["count"] == count
        queries = np.concatenate([describe.descriptors(range(at, at + 1), seed=7) for at in range(5, count, 400)])
        found, exact = (reader.search(queries, 20, exact=is_exact).ids[:, 0] for is_exact in (False, True))
    held = np.concatenate([describe.descriptors(range(at, at + 10_000)) for at in range(0, count, 10_000)])
    np.testing.assert_array_equal(exact, nearest(queries, held, 1)[0][:, 0])
    places = np.arange(5, count, 400) // 10
    recalls = [100 * float((ids // 10 == places).mean()) for ids in (found, exact)]
    assert recalls[1] > 90
    assert abs(recalls[0] - recalls[1]) <= 0.2
    assert (found == exact).mean() >= 0.99
    with open_index(tmp_path / "index", write=True) as index:  # one process continues
        photos = describe.photos(range(count, count + 10))
        assert index.add(photos, describe.descriptors(range(count, count + 10))).is_new.all()
        own = index.search(describe.descriptors(range(count, count + 10)), 1).ids[:, 0]
        np.testing.assert_array_equal(own, np.arange(count, count + 10))


@needs_ray
@pytest.mark.extras
@pytest.mark.slow
def test_a_process_that_dies_is_replaced(tmp_path: Path, cluster: Cluster) -> None:
    (tmp_path / "dying").touch()
    describe = DescribeNumbers(dimension=64, dying=tmp_path / "dying")
    spec = ModelSpec(model="made", checksum="c" * 64, dimension=64)
    with create_index(tmp_path / "index", spec) as index:
        store_numbers(index, cluster, describe, 200, 20)
        assert index.columns().paths() == [f"/photos/{number}.jpg" for number in range(200)]
        np.testing.assert_allclose(index.descriptors(np.arange(200)), describe.descriptors(range(200)), atol=1e-6)
    assert not (tmp_path / "dying").exists()


@needs_ray
@pytest.mark.extras
@pytest.mark.slow
@pytest.mark.skipif(bool(object_store.MISSING), reason=object_store.REASON)
def test_an_index_on_object_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> None:
    """The processes of the running cluster do not have the variables of the store, so it has its own cluster."""
    photos = write_photos(tmp_path / "photos", 20)
    build_index(photos, stripes(), tmp_path / "alone", settings=IndexSettings(thumbnail_size=16))
    code = (
        "import sys; from pathlib import Path; from cosplace.ray_cluster import open_cluster\n"
        "from tests.index.test_cluster import build\n"
        "with open_cluster() as cluster: build(Path(sys.argv[1]), sys.argv[2], cluster)"
    )
    with object_store.run_object_store(tmp_path) as server:
        address = f"s3://{object_store.BUCKET}/index"
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        subprocess.run([sys.executable, "-c", code, str(photos), address], check=True, cwd=ROOT)
        assert_same_index(address, tmp_path / "alone")


# --- the command -----------------------------------------------------------------------------------------------------


def command(folder: Path, *words: str) -> list[str]:
    dataset, model = str(folder / "city"), str(folder / "model.pth")
    return ["index", "build", dataset, "--model", model, "--image_size", "32", "--device", "cpu", *words]


@needs_ray
@pytest.mark.extras
@pytest.mark.long
def test_a_killed_build_continues(tmp_path: Path) -> None:
    folder = write_indexed_city(tmp_path)
    for place in range(3000, 3200):
        write_place(folder / "city" / "test" / "database", place, 0)
    assert main(command(folder, "--to", str(folder / "alone"), "--no_calibrate")) == 0
    words = command(folder, "--to", str(folder / "shared"), "--no_calibrate", "--engine", "ray")
    code = (
        "import sys; from cosplace.index import cluster_building; cluster_building.PHOTOS_PER_FILE = 40\n"
        "cluster_building.add_photos_on_cluster.__kwdefaults__['photos_per_part'] = 10\n"
        "from cosplace.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command_line = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command_line, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + LIMIT_S
        versions = folder / "shared" / "photos.lance" / "_versions"
        while time.monotonic() < deadline and process.poll() is None and not (len([*versions.glob("*")]) >= 3):
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    with open_index(folder / "shared") as index:
        num_stored = len(index)
    assert 0 < num_stored < 224
    finished = subprocess.run(command_line, cwd=ROOT, check=True, capture_output=True, text=True)
    assert f"{224 - num_stored} photos added" in finished.stdout
    assert_same_index(folder / "shared", folder / "alone")


@needs_ray
@pytest.mark.extras
@pytest.mark.slow
def test_a_cluster_of_another_version(tmp_path: Path) -> None:
    folder = write_indexed_city(tmp_path)
    words = command(folder, "--to", str(tmp_path / "new"), "--engine", "ray")
    short = tempfile.mkdtemp(prefix="ray")  # its sockets have short names
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--port=0", "--num-cpus=1", "--block",
             "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={short}"]  # fmt: skip
    code = "import sys, ray; ray.__version__ = '0.0.1'\nfrom cosplace.cli import main; sys.exit(main(sys.argv[1:]))"
    variables = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables) as head:
        try:
            assert head.stdout is not None
            address = ""
            for line in head.stdout:
                if "--address=" in line:
                    address = line.split("--address=")[1].strip().strip("'")
                    break
            assert address
            variables["RAY_ADDRESS"] = address
            refused = subprocess.run(
                [sys.executable, "-c", code, *words],
                cwd=ROOT,
                env=variables,
                capture_output=True,
                text=True,
                check=False,
            )
        finally:
            head.terminate()
            head.communicate()
            shutil.rmtree(short, ignore_errors=True)
    assert refused.returncode == 2, refused.stderr
    assert "has other versions than this machine" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "new").exists()


def test_a_machine_without_the_photos(tmp_path: Path) -> None:
    photos = scan_images(write_place(tmp_path / "photos", 0, 0).parent)
    describe = DescribePhotos(
        encoder=stripes(), extraction=ExtractionSettings(image_size=32, device="cpu"), source="", thumbnail_size=0
    )
    assert len(describe(photos).descriptors) == 1
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=r"photos is missing on .+ mount the folder there") as caught:
        describe(photos)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # it comes from another process


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("cosplace.index.cluster_search.PACKAGES", ("ray_that_is_missing",))
    folder = write_indexed_city(tmp_path)
    assert main(command(folder, "--to", str(tmp_path / "new"), "--engine", "ray")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: --engine ray needs ray_that_is_missing. Install with: pip install 'cosplace[cluster]'."
    assert not (tmp_path / "new").exists()
