"""A calibration that was stopped continues with the photos that it has encoded, and has the same result."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosplace.cli import main
from cosplace.engines.encoder import Encoder, load_model
from cosplace.errors import ConfigError
from cosplace.index.photo_index import create_index, open_index
from cosplace.index.records import ModelSpec
from cosplace.index.view_table import EncodedBatch, append_views, read_views
from cosplace.localization import calibration, queries, stored_views
from cosplace.localization.calibration import calibrate
from cosplace.models.views import PhotoViews
from tests.index.test_damage import cut, flip
from tests.indexed_city import SIDE, write_indexed_city

NUM_ALTERED = 16
VIEWS = "views.lance"
BATCHES = NUM_ALTERED // 4


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_indexed_city(tmp_path_factory.mktemp("city"))


@pytest.fixture(scope="module")
def encoder(city: Path) -> Encoder:
    return load_model(city / "model.pth", image_size=SIDE, device="cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few photos are enough, and each batch of four is stored."""
    monkeypatch.setattr(calibration, "MIN_PHOTOS", 10)
    monkeypatch.setattr(queries, "BATCH_SIZE", 4)
    monkeypatch.setattr(stored_views, "STORE_EVERY_S", 0.0)


@pytest.fixture
def address(city: Path, tmp_path: Path) -> Path:
    """An index that is not calibrated."""
    return shutil.copytree(city / "bare", tmp_path / "index")


class StoppedError(Exception):
    """The calibration is stopped."""


def counting(encoder: Encoder, monkeypatch: pytest.MonkeyPatch, stop_after: int = 1000) -> list[int]:
    """The number of photos of each batch that the encoder gets; afterwards StoppedError is raised."""
    counts: list[int] = []

    def encode(photos: Any, **options: Any) -> np.ndarray:
        if len(counts) == stop_after:
            raise StoppedError
        counts.append(len(photos))
        return original(photos, **options)

    original = Encoder.encode.__get__(encoder)
    monkeypatch.setattr(encoder, "encode", encode)
    return counts


def calibrated(address: Path, encoder: Encoder, **options: Any) -> dict[str, Any]:
    """The record of a calibration, without its time."""
    with open_index(address, write=True) as index:
        calibrate(index, encoder=encoder, num_altered=NUM_ALTERED, **options)
        record = index.read_record("calibration")
    assert record is not None and not (address / VIEWS).exists()
    return {**record, "about": {**record["about"], "seconds": 0}}


def stop(address: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, after: int = 3) -> None:
    """Stop a calibration after some batches."""
    with monkeypatch.context() as patched:
        counting(encoder, patched, stop_after=after)
        with open_index(address, write=True) as index, pytest.raises(StoppedError):
            calibrate(index, encoder=encoder, num_altered=NUM_ALTERED)
    assert (address / VIEWS).is_dir()


def test_it_continues_with_the_same_result(
    address: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = calibrated(shutil.copytree(address, address.with_name("whole")), encoder)
    stop(address, encoder, monkeypatch)
    stop(address, encoder, monkeypatch, after=0)  # nothing is lost if it is stopped again
    with caplog.at_level(logging.INFO), monkeypatch.context() as patched:
        counts = counting(encoder, patched)
        assert json.dumps(calibrated(address, encoder)) == json.dumps(whole)
    assert counts == [4, queries.NUM_WITHOUT_PLACE]
    assert "12 of 16 photos that calibration encodes again are already encoded" in caplog.text


def test_crops_are_stored_too(city: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views = PhotoViews(query_policy="nearest_crop", query_size=SIDE)
    encoder = load_model(city / "model.pth", image_size=SIDE, device="cpu", views=views)
    for name in ("index", "whole"):
        shutil.copytree(city / "bare", tmp_path / name)
        with open_index(tmp_path / name, write=True) as index:
            index.spec = replace(index.spec, views=views)
            index._write_spec(model=index.spec.record())
    whole = calibrated(tmp_path / "whole", encoder)
    stop(tmp_path / "index", encoder, monkeypatch, after=7)  # 24 photos as they are, 4 altered
    counts = counting(encoder, monkeypatch)
    assert json.dumps(calibrated(tmp_path / "index", encoder)) == json.dumps(whole)
    assert counts == [4, 4, 4, queries.NUM_WITHOUT_PLACE]


def change_the_seed(address: Path, encoder: Encoder) -> tuple[Encoder, dict[str, int]]:
    return encoder, {"seed": 1}


def change_a_photo(address: Path, encoder: Encoder) -> tuple[Encoder, dict[str, int]]:
    with open_index(address) as index:
        for path in map(Path, index.columns().paths()):
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    return encoder, {}


def change_the_model(address: Path, encoder: Encoder) -> tuple[Encoder, dict[str, int]]:
    other = load_model(encoder.name, image_size=SIDE, device="cpu")
    other.checksum = "0" * 64
    return other, {}


def damage(address: Path, encoder: Encoder) -> tuple[Encoder, dict[str, int]]:
    for path in (address / VIEWS / "data").iterdir():
        cut(path)
    return encoder, {}


def remove_its_files(address: Path, encoder: Encoder) -> tuple[Encoder, dict[str, int]]:
    shutil.rmtree(address / VIEWS / "data")
    return encoder, {}


@pytest.mark.parametrize("change", [change_the_seed, change_a_photo, change_the_model, damage, remove_its_files])
def test_what_does_not_fit_is_encoded_again(
    address: Path,
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path, Encoder], tuple[Encoder, dict[str, int]]],
) -> None:
    stop(address, encoder, monkeypatch)
    used, options = change(address, encoder)
    counts = counting(used, monkeypatch)
    calibrated(address, used, **options)
    assert counts == [4] * BATCHES + [queries.NUM_WITHOUT_PLACE]


def test_a_flipped_bit_is_never_used(tmp_path: Path) -> None:
    batch = EncodedBatch(rows=np.array([3, 5]), descriptors=np.arange(8, dtype=np.float32).reshape(2, 4))
    with create_index(tmp_path / "index", ModelSpec(model="m", checksum="c", dimension=4)) as index:
        append_views(index.store, {"a": batch, "b": batch}, is_first=True)
        assert read_views(index.store, {"a", "c"}, (4,)).keys() == {"a"}
        assert read_views(index.store, {"a", "b"}, (4,)).keys() == {"a", "b"}
        for path in [path for path in (tmp_path / "index" / VIEWS).rglob("*") if path.is_file()]:
            raw = path.read_bytes()
            for place in range(0, len(raw), 41):
                flip(path, place)
                assert read_views(index.store, {"a", "b"}, (4,)) == {}
            path.write_bytes(raw)
        assert read_views(index.store, {"a", "b"}, (4,)).keys() == {"a", "b"}


def test_a_short_calibration_stores_nothing(address: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_views, "STORE_EVERY_S", 30.0)
    monkeypatch.setattr(stored_views, "append_views", lambda *_, **__: pytest.fail("nothing is stored"))
    calibrated(address, encoder)


def test_one_that_fails_leaves_nothing(address: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConfigError("There are too few correct answers.")

    monkeypatch.setattr(calibration, "fit_calibration", fail)
    with open_index(address, write=True) as index, pytest.raises(ConfigError):
        calibrate(index, encoder=encoder, num_altered=NUM_ALTERED)
    assert not (address / VIEWS).exists()


@pytest.mark.parametrize("command", [["compact"], ["verify", "--repair"]])
def test_leftovers_are_removed(
    address: Path,
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    command: list[str],
) -> None:
    stop(address, encoder, monkeypatch)
    assert main(["index", "verify", str(address)]) == 0
    assert "views.lance is of a calibration that has not ended: `cosplace index calibrate`" in capsys.readouterr().out
    assert (address / VIEWS).is_dir()
    assert main(["index", *command, str(address)]) == 0
    assert not (address / VIEWS).exists()
    capsys.readouterr()
    assert main(["index", "verify", str(address)]) == 0
    assert VIEWS not in capsys.readouterr().out


# --- kill -9 ---------------------------------------------------------------------------------------------------------

CALIBRATING = f"""
import sys, time
from cosplace.engines.encoder import Encoder, load_model
from cosplace.index.photo_index import create_index, open_index
from cosplace.index.records import ModelSpec
from cosplace.index.view_table import EncodedBatch, append_views, read_views
from cosplace.localization import calibration, queries, stored_views

calibration.MIN_PHOTOS, queries.BATCH_SIZE, stored_views.STORE_EVERY_S = 10, 4, 0.0
add = stored_views.StoredViews.add

def add_slowly(self, key, batch):
    add(self, key, batch)
    print("stored", flush=True)
    time.sleep(0.2)

stored_views.StoredViews.add = add_slowly
encoder = load_model(sys.argv[2], image_size={SIDE}, device="cpu")
with open_index(sys.argv[1], write=True) as index:
    calibration.calibrate(index, encoder=encoder, num_altered={NUM_ALTERED})
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill_after", [2, *(pytest.param(after, marks=pytest.mark.long) for after in (1, 3))])
def test_a_killed_calibration_continues(
    address: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, kill_after: int
) -> None:
    whole = calibrated(shutil.copytree(address, address.with_name("whole")), encoder)
    process = subprocess.Popen(
        [sys.executable, "-c", CALIBRATING, str(address), encoder.name],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    for _ in range(kill_after):
        assert process.stdout.readline() == "stored\n"
    time.sleep(0.2 * kill_after / 3)  # while the next batch is encoded or stored
    process.kill()
    process.stdout.close()
    process.wait()
    counts = counting(encoder, monkeypatch)
    assert json.dumps(calibrated(address, encoder)) == json.dumps(whole)
    assert sum(counts[:-1]) <= NUM_ALTERED - 4 * kill_after
