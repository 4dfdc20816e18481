"""How fast the released models are on one CPU core.  The measurements are data, in speeds.toml."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cosplace.models.zoo import ZooModel

DATA = Path(__file__).with_name("speeds.toml")
SAME_NETWORK = {"image_merged": "image_gsv"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Speed of a model for square photos, without loading them."""

    side: int  # pixels
    photos_per_s: float  # in a batch
    one_photo_ms: float


@cache
def _content() -> dict[str, Any]:
    return tomllib.loads(DATA.read_text("utf-8"))["cpu"]


def machine() -> str:
    """The machine that was measured."""
    return _content()["machine"]


def speed_of(model: ZooModel) -> Speed | None:
    """Speed of a released model; None if it was not measured."""
    return measured_speed(model.name) or measured_speed(model.backbone)


def measured_speed(key: str) -> Speed | None:
    """Speed of a backbone, or of a model with a network of its own, by name; None if it was not measured."""
    row = _content().get(SAME_NETWORK.get(key, key))
    if key == "machine" or row is None:
        return None
    side, photos_per_s, one_photo_ms = row
    return Speed(side=side, photos_per_s=photos_per_s, one_photo_ms=one_photo_ms)
