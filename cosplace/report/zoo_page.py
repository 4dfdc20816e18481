"""The released models as one HTML page: a table that can be sorted and filtered."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cosplace.assessment.published import terms_of
from cosplace.models.speeds import machine, speed_of
from cosplace.models.zoo import ZooModel
from cosplace.report.render import render, script
from cosplace.storage import write_text

RECALLS = (("pitts30k", "Pitts30k"), ("tokyo247", "Tokyo 24/7"), ("msls_val", "MSLS val"), ("sf_xl_v1", "SF-XL v1"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the table."""

    title: str
    meaning: str = ""  # shown when the mouse is over the title
    falls: bool = False  # whether the first click puts the largest value first
    is_number: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell: its text, and what it is sorted by; "" is always last."""

    text: str
    key: str


COLUMNS = (
    Column(title="model", is_number=False),
    *(Column(title=title, meaning=f"Recall@1 in percent on {title}", falls=True) for _, title in RECALLS),
    Column(title="dimension", meaning="numbers in a descriptor"),
    Column(title="MB", meaning="size of the weights in 32 bits"),
    Column(title="photos/s", meaning="on one CPU core, without loading", falls=True),
    Column(title="commercial use", meaning="whether the licenses of code and weights allow it", is_number=False),
    Column(title="code", meaning="license of the code", is_number=False),
    Column(title="weights", meaning="license of the weights", is_number=False),
    Column(title="training data", is_number=False),
)


def write_zoo_page(path: Path, models: Sequence[ZooModel]) -> None:
    """Write the page atomically.  Raises StorageError."""
    write_text(path, zoo_page(models))


def zoo_page(models: Sequence[ZooModel]) -> str:
    """The page as text, with the models in this order."""
    return render(
        "zoo.html",
        title="Models for visual place recognition",
        columns=COLUMNS,
        rows=[_row(model) for model in models],
        answers=sorted({terms_of(model.name).commercial for model in models}),
        machine=machine(),
        script=script("zoo.js"),
    )


def _row(model: ZooModel) -> list[Cell]:
    terms = terms_of(model.name)
    recalls = [model.recalls.get(dataset) for dataset, _ in RECALLS]
    speed = speed_of(model)
    return [
        _text(model.name),
        *(_number(recall, "{:.1f}") for recall in recalls),
        _number(model.fc_output_dim, "{:,}"),
        _number(4 * model.num_parameters / 1e6, "{:,.0f}"),
        _number(speed.photos_per_s if speed else None, "{:,.3g}"),
        *(_text(text) for text in (terms.commercial, terms.code, terms.weights, terms.data)),
    ]


def _text(text: str) -> Cell:
    return Cell(text=text, key="" if text == "unknown" else text.lower())


def _number(value: float | None, form: str) -> Cell:
    return Cell(text="–", key="") if value is None else Cell(text=form.format(value), key=repr(float(value)))
