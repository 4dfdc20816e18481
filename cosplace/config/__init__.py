"""Every knob once: its default, its meaning and its --help, on one line.

A command's settings are a frozen dataclass of sections; a section is a frozen dataclass of knobs.  The command line
is derived from them, `config.json` is written from them, and Python callers build them by name.  Importing this
module imports nothing heavy, so that --help answers at once.  Defaults are those of the CosPlace paper.
"""

from cosplace.config.knobs import (
    BACKBONES,
    DATASET_VARIABLE,
    canonical_backbone,
    knob,
    nearest_names,
)
from cosplace.config.sections import (
    Augmenting,
    Caching,
    Departures,
    EvalConfig,
    Folders,
    Grouping,
    GroupsConfig,
    Model,
    ReduceConfig,
    Reducing,
    Running,
    Testing,
    TestSize,
    TrainConfig,
    Training,
    Weights,
)
from cosplace.config.values import (
    LEFT_OUT,
    from_values,
    knobs,
    loading_workers,
    set_folder,
    to_values,
)

__all__ = [
    "BACKBONES",
    "DATASET_VARIABLE",
    "LEFT_OUT",
    "Augmenting",
    "Caching",
    "Departures",
    "EvalConfig",
    "Folders",
    "Grouping",
    "GroupsConfig",
    "Model",
    "ReduceConfig",
    "Reducing",
    "Running",
    "TestSize",
    "Testing",
    "TrainConfig",
    "Training",
    "Weights",
    "canonical_backbone",
    "from_values",
    "knob",
    "knobs",
    "loading_workers",
    "nearest_names",
    "set_folder",
    "to_values",
]
