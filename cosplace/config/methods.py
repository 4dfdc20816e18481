"""Settings of the training methods: CosPlace, or EigenPlaces and multi-similarity with their own defaults."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cosplace.config.setting import Section, own_settings, setting
from cosplace.errors import ConfigError

COSPLACE, EIGENPLACES, MULTI_SIMILARITY = "cosplace", "eigenplaces", "multi_similarity"
METHOD_NAMES = {COSPLACE: "CosPlace", EIGENPLACES: "EigenPlaces", MULTI_SIMILARITY: "Multi-similarity"}
# Those of the published code.  Its paper trains on 64 images per iteration and group.
EIGENPLACES_DEFAULTS = {
    "M": 15, "alpha": 360, "N": 3, "L": 1, "groups_num": 9, "min_images_per_class": 5, "scale": 100.0,
    "epochs_num": 40, "iterations_per_epoch": 5000,
}  # fmt: skip
# Places, photos and image size in the range that training on GSV-Cities usually has: 60 to 120 places of 4 photos.
MULTI_SIMILARITY_DEFAULTS = {
    "N": 1, "L": 1, "groups_num": 1, "min_images_per_class": 4, "batch_size": 240, "image_size": 320, "lr": 1e-4,
    "epochs_num": 20, "iterations_per_epoch": 1000,
}  # fmt: skip
METHOD_DEFAULTS = {EIGENPLACES: EIGENPLACES_DEFAULTS, MULTI_SIMILARITY: MULTI_SIMILARITY_DEFAULTS}
OF_MULTI_SIMILARITY = ("photos_per_place",)  # the other settings of a method are those of EigenPlaces


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSettings(Section):
    """Method"""

    method: str = setting(
        COSPLACE,
        "how classes are formed. cosplace: photos of a cell that look in one direction. eigenplaces: photos of a cell "
        "that look at one point, next to the road (lateral) and along it (frontal); each iteration trains on "
        "--batch_size images of each kind. With eigenplaces, other defaults apply: --M 15 --N 3 --groups_num 9 "
        "--min_images_per_class 5 --scale 100 --epochs_num 40 --iterations_per_epoch 5000, and --alpha and --L do not "
        "apply. multi_similarity: no classes; the photos of a batch, several of each place, are compared with each "
        "other. Places are those of a table (column place) or of GSV-Cities, else the cells of --M and --alpha. "
        "Defaults: --batch_size 240 --image_size 320 --lr 0.0001 --min_images_per_class 4 --epochs_num 20 "
        "--iterations_per_epoch 1000; --N, --L, --groups_num and the settings of CosFace do not apply",
        choices=(COSPLACE, EIGENPLACES, MULTI_SIMILARITY),
    )
    photos_per_place: int = setting(
        4,
        "multi_similarity: photos of each place in a batch, which has --batch_size / --photos_per_place places",
        at_least=2,
    )
    focal_distance: float = setting(
        10.0,
        "eigenplaces: distance of these points from the center of the photos of a cell, in meters. In the ablation of "
        "the paper, 20 has the best mean recall",
        at_least=0,
        metavar="METERS",
    )
    max_view_error: float = setting(
        30.0,
        "eigenplaces: of the photos at one position, the one whose heading is nearest to the direction of the point is "
        "used; positions where the difference is larger than this, in degrees, are left out",
        at_least=0,
        at_most=180,
        metavar="DEGREES",
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
        metavar="DEGREES",
    )

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        for one in own_settings(type(self)):
            if one.name == "method" or getattr(self, one.name) == one.default:
                continue
            needed = MULTI_SIMILARITY if one.name in OF_MULTI_SIMILARITY else EIGENPLACES
            if self.method != needed:
                raise ConfigError(f"{one.label} needs --method {needed}.")


def method_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of the method that these settings choose, by name, where they differ from those of CosPlace."""
    return dict(METHOD_DEFAULTS.get(values.get("method", ""), {}))
