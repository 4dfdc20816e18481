"""Published figures of released models, with their sources, protocols and licenses, and how a result compares.

The figures are data, in published.toml.  Pure functions apart from reading that file.
"""

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cosplace.assessment.intervals import Estimate

ROUNDING = 0.05  # percent; published figures have one decimal
DATA = Path(__file__).with_name("published.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A published Recall@N."""

    model: str  # name in the zoo, or of a model that the zoo does not have
    protocol: str  # name@version
    n: int
    recall: float  # percent
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTerms:
    """Licenses of a model, and the size of the photos for its published figures."""

    code: str
    weights: str
    data: str
    commercial: str  # whether code and weights may be used commercially: yes, no or unclear
    image_size: str  # native, such as 322 x 322, or unknown

    @property
    def licenses(self) -> dict[str, str]:
        """The licenses by what they are for."""
        return {"code": self.code, "weights": self.weights, "data": self.data}


UNKNOWN_TERMS = ModelTerms(
    code="unknown", weights="unknown", data="unknown", commercial="unclear", image_size="unknown"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """A published figure beside the result of an evaluation."""

    figure: Figure
    ours: Estimate  # percent, with its 95% interval

    @property
    def difference(self) -> float:
        """Ours minus the published figure, in percentage points."""
        return self.ours.value - self.figure.recall

    @property
    def is_inside(self) -> bool:
        """Whether the published figure, which is rounded to 0.1, may lie in the interval."""
        return self.ours.low - ROUNDING <= self.figure.recall <= self.ours.high + ROUNDING

    def record(self) -> dict[str, Any]:
        """The entry of results.json."""
        return {
            "protocol": self.figure.protocol,
            "n": self.figure.n,
            "published": self.figure.recall,
            "source": self.figure.source,
            "ours": self.ours.value,
            "interval": [self.ours.low, self.ours.high],
            "approximate": self.ours.is_approximate,
            "difference": self.difference,
            "inside": self.is_inside,
        }


@cache
def all_figures() -> tuple[Figure, ...]:
    """All published figures, in the order of the file."""
    return tuple(_figures(_content()["table"]))


@cache
def _content() -> dict[str, Any]:
    return tomllib.loads(DATA.read_text("utf-8"))


def _figures(tables: Sequence[Mapping[str, Any]]) -> Iterator[Figure]:
    for table in tables:
        for model, recalls in table["recalls"].items():
            for protocol, recall in zip(table["protocols"], recalls, strict=True):
                if not math.isnan(recall):
                    yield Figure(model=model, protocol=protocol, n=table["n"], recall=recall, source=table["source"])


def figures_of(model: str, protocol: str | None = None, figures: Sequence[Figure] | None = None) -> list[Figure]:
    """The published figures of a model, for a protocol `name@version` or for all."""
    figures = all_figures() if figures is None else figures
    return [figure for figure in figures if figure.model == model and protocol in (None, figure.protocol)]


def terms_of(model: str) -> ModelTerms:
    """Licenses and image size of a model; all unknown for one that is not listed.

    The released models of a method, such as cosplace_resnet50_512, share those of the method.
    """
    models = _content()["models"]
    row = models.get(model) or models.get(model.partition("_")[0])
    return ModelTerms(**row) if row else UNKNOWN_TERMS
