"""Settings of the training methods: CosPlace, or EigenPlaces with its own defaults."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cosplace.config.setting import Section, own_settings, setting
from cosplace.errors import ConfigError

COSPLACE, EIGENPLACES = "cosplace", "eigenplaces"
METHOD_NAMES = {COSPLACE: "CosPlace", EIGENPLACES: "EigenPlaces"}
# Those of the published code.  Its paper trains on 64 images per iteration and group.
EIGENPLACES_DEFAULTS = {
    "M": 15, "alpha": 360, "N": 3, "L": 1, "groups_num": 9, "min_images_per_class": 5, "scale": 100.0,
    "epochs_num": 40, "iterations_per_epoch": 5000,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSettings(Section):
    """Method"""

    method: str = setting(
        COSPLACE,
        "how classes are formed. cosplace: photos of a cell that look in one direction. eigenplaces: photos of a cell "
        "that look at one point, next to the road (lateral) and along it (frontal); each iteration trains on "
        "--batch_size images of each kind. With eigenplaces, other defaults apply: --M 15 --N 3 --groups_num 9 "
        "--min_images_per_class 5 --scale 100 --epochs_num 40 --iterations_per_epoch 5000, and --alpha and --L do not "
        "apply",
        choices=(COSPLACE, EIGENPLACES),
    )
    focal_distance: float = setting(
        10.0,
        "eigenplaces: distance of these points from the center of the photos of a cell, in meters. In the ablation of "
        "the paper, 20 has the best mean recall",
        at_least=0,
    )
    max_view_error: float = setting(
        30.0,
        "eigenplaces: of the photos at one position, the one whose heading is nearest to the direction of the point is "
        "used; positions where the difference is larger than this, in degrees, are left out",
        at_least=0,
        at_most=180,
    )
    panoramas: bool = setting(
        False,
        "eigenplaces: the training photos are panoramas of 360 degrees, such as raw/train of SF-XL; views are cut out "
        "of them exactly in the directions of the points",
    )
    heading_offset: float = setting(
        0.0,
        "eigenplaces: degrees from the heading of a photo to its optical axis, clockwise. 27.7 for the photos of "
        "SF-XL, whose names have the heading of the leftmost column",
        at_least=-360,
        at_most=360,
    )

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if self.method == EIGENPLACES:
            return
        for one in own_settings(type(self)):
            if getattr(self, one.name) != one.default:
                raise ConfigError(f"{one.label} needs --method {EIGENPLACES}.")


def method_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of the method that these settings choose, by name, where they differ from those of CosPlace."""
    return dict(EIGENPLACES_DEFAULTS) if values.get("method") == EIGENPLACES else {}
