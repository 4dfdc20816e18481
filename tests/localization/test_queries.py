"""Photos to calibrate with."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from cosplace.engines.encoder import Encoder
from cosplace.localization import queries
from cosplace.localization.queries import queries_of_folder
from cosplace.photos.metadata import PhotoMetadata, read_metadata
from cosplace.progress import no_progress
from tests.synthetic_dataset import write_place

DIMENSION = 4
STUB = cast(Encoder, SimpleNamespace(dimension=DIMENSION, encode=lambda _: np.full((1, DIMENSION), 0.5, np.float32)))


def test_photos_of_uncertain_position_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = sorted(write_place(tmp_path, place, 0).name for place in range(12))

    def metadata(path: Path, raw: bytes, label: str | None) -> PhotoMetadata:
        known = read_metadata(path, raw, label)
        return replace(known, accuracy_m=1500.0) if path.name == names[0] else replace(known, accuracy_m=5.0)

    monkeypatch.setattr(queries, "read_metadata", metadata)
    rng: Any = np.random.default_rng(0)
    found = queries_of_folder(tmp_path, STUB, 100, rng, no_progress)
    assert len(found.rows) == 11
    assert found.descriptors.shape == (11, DIMENSION)
