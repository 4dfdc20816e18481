"""How fast the released models are.  The measurements are data, in speeds.toml."""

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
    """Speed of a model on one machine, for square photos."""

    side: int  # pixels
    photos_per_s: float  # in a batch
    one_photo_ms: float


@cache
def _content() -> dict[str, Any]:
    return tomllib.loads(DATA.read_text("utf-8"))


def machine(device: str) -> str:
    """The machine that was measured.  device: cpu or cuda."""
    return _content()[device]["machine"]


def speed_of(model: ZooModel, device: str) -> Speed | None:
    """Speed of a released model on the machine of this device, cpu or cuda; None if it was not measured."""
    rows = _content()[device]
    row = rows.get(SAME_NETWORK.get(model.name, model.name)) or rows.get(model.backbone)
    if row is None:
        return None
    side, photos_per_s, one_photo_ms = row
    return Speed(side=side, photos_per_s=photos_per_s, one_photo_ms=one_photo_ms)
