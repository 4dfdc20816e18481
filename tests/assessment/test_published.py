"""Published figures: every one has a source and a protocol, and agrees with the records of the zoo."""

import re

import pytest

from cosplace.assessment.intervals import Estimate
from cosplace.assessment.protocols import all_protocols
from cosplace.assessment.published import Figure, Reproduction, all_figures, figures_of, terms_of
from cosplace.models.zoo import HUB_MODELS, MODELS, NATIVE_MODELS

PROTOCOLS = {  # dataset of a zoo record -> protocol
    "pitts30k": "pitts30k-test@1", "pitts250k": "pitts250k-test@1", "tokyo247": "tokyo247@1",
    "msls_val": "msls-val-740@1", "st_lucia": "st-lucia@1", "sf_xl_v1": "sf-xl-v1@1", "sf_xl_v2": "sf-xl-v2@1",
}  # fmt: skip


def test_every_figure_has_a_known_protocol_and_a_source() -> None:
    keys = set()
    for figure in all_figures():
        assert figure.protocol in all_protocols()
        assert figure.source and 0 < figure.recall <= 100 and figure.n >= 1
        keys.add((figure.model, figure.protocol, figure.n, figure.source))
    assert len(keys) == len(all_figures())


def test_recalls_grow_with_n() -> None:
    for one in all_figures():
        for other in all_figures():
            if (one.model, one.protocol, one.source) == (other.model, other.protocol, other.source) and one.n < other.n:
                assert one.recall <= other.recall


RELEASED = {**MODELS, **NATIVE_MODELS}


@pytest.mark.parametrize("name", sorted(name for name, model in RELEASED.items() if model.recalls))
def test_zoo_records_are_published_figures(name: str) -> None:
    for dataset, recall in RELEASED[name].recalls.items():
        if dataset == "msls_val" and "may have other queries" in RELEASED[name].recalls_source:
            continue
        figures = figures_of(name, PROTOCOLS[dataset])
        assert recall in [figure.recall for figure in figures if figure.n == 1], dataset


def test_every_released_model_has_licenses() -> None:
    for name in (*MODELS, *HUB_MODELS, *NATIVE_MODELS):
        terms = terms_of(name)
        assert terms.commercial in ("yes", "no", "unclear")
        assert set(terms.licenses) == {"code", "weights", "data"} and all(terms.licenses.values())
        assert re.fullmatch(r"native|unknown|\d+ x \d+", terms.image_size)
    assert terms_of("megaloc").licenses["code"] == "MIT" and terms_of("salad").code == "GPL-3.0"
    assert terms_of("cosplace_resnet18_32") == terms_of("cosplace_vgg16_512")
    assert terms_of("somebody_else").licenses == {"code": "unknown", "weights": "unknown", "data": "unknown"}


@pytest.mark.parametrize(
    ("published", "inside"), [(65.94, False), (65.95, True), (66.4, True), (70.04, True), (70.1, False)]
)
def test_a_figure_is_inside_an_interval_up_to_its_rounding(published: float, inside: bool) -> None:
    figure = Figure(model="m", protocol="p@1", n=1, recall=published, source="s")
    reproduction = Reproduction(figure=figure, ours=Estimate(68.0, 66.0, 70.0))
    assert reproduction.is_inside == inside
    record = reproduction.record()
    assert record["interval"] == [66.0, 70.0] and record["inside"] == inside
    assert record["difference"] == pytest.approx(68.0 - published)
