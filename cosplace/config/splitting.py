"""Settings of split."""

from dataclasses import dataclass

from cosplace.config.defaults import RADIUS_M
from cosplace.config.setting import Section, required, setting
from cosplace.config.shared import json_setting, seed_setting
from cosplace.errors import ConfigError

SPLIT_METHODS = ("blocks", "time", "sequence")


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig(Section):
    """Settings of `cosplace split`."""

    dataset: str = required("dataset written by `cosplace import`: a folder with photos.parquet", positional=True,
                            metavar="DATASET")  # fmt: skip
    by: str = setting(
        "blocks",
        "blocks: assign square areas to train, val or test; time: the same, but with queries that were taken later "
        "than all training and database photos; sequence: assign whole sequences, such as drives",
        choices=SPLIT_METHODS,
    )
    val: float = setting(
        0.1, "approximate share of the photos for the validation set", at_least=0, at_most=0.9, metavar="SHARE"
    )
    test: float = setting(
        0.2, "approximate share of the photos for the test set", at_least=0, at_most=0.9, metavar="SHARE"
    )
    buffer_m: float = setting(
        2 * RADIUS_M,
        "minimum distance between photos of different splits, in meters; photos that are closer are in no split; use "
        f"more than the {RADIUS_M:g} m within which a match is correct",
        at_least=0,
    )
    block_m: float | None = setting(
        None, "side of the square areas, in meters", parse=float, above=0,
        default_text="the largest of 1000, 500, 250, 120 and 60 that gives 30 blocks",
    )  # fmt: skip
    query_share: float = setting(
        0.2, "approximate share of the photos of val and test that become queries", above=0, at_most=0.9
    )
    seed: int = seed_setting("seed of all random choices; the same seed gives the same splits")
    dry_run: bool = setting(False, "print the splits without writing them")
    json: bool = json_setting("the splits")

    def __post_init__(self) -> None:
        Section.__post_init__(self)
        if self.val + self.test > 0.95:
            raise ConfigError(
                f"--val {self.val:g} and --test {self.test:g} leave less than 5% of the photos for training. Use "
                f"smaller shares."
            )
