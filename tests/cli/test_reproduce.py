"""cosplace protocols, eval --protocol, reproduce: what is refused, recorded and printed."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cosplace.assessment.protocols import Protocol, all_protocols
from cosplace.assessment.published import Figure
from cosplace.cli import main
from cosplace.cli.evaluating import evaluate_run
from cosplace.cli.reproduce import reproduce
from cosplace.config.evaluation import EvalConfig
from cosplace.config.reproduce import ReproduceConfig
from cosplace.config.values import from_values
from cosplace.errors import ConfigError, DatasetError
from cosplace.models.network import GeoLocalizationNet
from cosplace.models.weight_files import write_weights
from tests.importing import layout_samples

MODEL = "cosplace_resnet18_32"
EVALUATION = {"backbone": "ResNet18_Small", "fc_output_dim": 16, "device": "cpu", "num_workers": 0}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror of the released models that has one of them, with random weights."""
    folder = tmp_path_factory.mktemp("releases")
    with torch.device("meta"):  # the usual initialization takes seconds
        shapes = GeoLocalizationNet("ResNet18", 32, True, "none").state_dict()
    generator = torch.Generator().manual_seed(0)
    weights = {key: 0.05 * torch.rand(tensor.shape, generator=generator) for key, tensor in shapes.items()}
    write_weights(folder / "ResNet18_32_cosplace.pth", weights | {"aggregation.1.p": torch.full((1,), 3.0)})
    return folder


def small_protocols(**counts: tuple[int, int]) -> dict[str, Protocol]:
    """Protocols of the package with the counts (database, queries) of the samples."""
    found = {}
    for name, (num_database, num_queries) in counts.items():
        protocol = all_protocols()[f"{name.replace('_', '-')}@1"]
        found[protocol.id] = dataclasses.replace(protocol, num_database=num_database, num_queries=num_queries)
    return found


PITTS30K = small_protocols(pitts30k_test=(6, 3))


def results() -> dict[str, Any]:
    (path,) = Path("logs").glob("*/*/results.json")
    return json.loads(path.read_text("utf-8"))


def evaluated(folder: Path, protocols: dict[str, Protocol], **given: Any) -> dict[str, Any]:
    """results.json of `cosplace eval` with these flags."""
    values = {**EVALUATION, "test_set_folder": str(folder), "recall_values": [1], **given}
    evaluate_run(from_values(EvalConfig, values), values, protocols)
    return results()


# --- protocols -------------------------------------------------------------------------------------------------------


def test_protocols_are_listed(capsys: pytest.CaptureFixture) -> None:
    assert main(["protocols"]) == 0
    text = capsys.readouterr().out
    for protocol in all_protocols().values():
        assert re.search(rf"^{protocol.id} .*{re.escape(protocol.title)}", text, re.MULTILINE)
    assert re.search(r"^eynsham@1 +23,935 +23,935 +25 m ", text, re.MULTILINE)
    assert main(["protocols", "--json"]) == 0
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["nordland-10f@1"]["radius_frames"] == 10 and rows["nordland-10f@1"]["positions"] == "frames"
    assert rows["msls-val-all@1"]["num_queries"] == 11_084
    assert rows["msls-val-740@1"]["source"]


# --- eval ------------------------------------------------------------------------------------------------------------


def test_eval_by_a_protocol_records_it(tmp_path: Path) -> None:
    folder = layout_samples.pittsburgh(tmp_path / "pitts30k")
    record = evaluated(folder, PITTS30K, protocol="pitts30k-test")
    assert record["protocol"]["id"] == "pitts30k-test@1" and record["protocol"]["deviations"] == []
    assert record["positive_dist_threshold_m"] == 25 and record["image_size"] is None
    config = json.loads(next(Path("logs").glob("*/*/config.json")).read_text())
    assert config["protocol"] == "pitts30k-test"


def test_eval_without_a_protocol_is_custom_and_says_which_one_matches(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = layout_samples.pittsburgh(tmp_path / "pitts30k")
    with caplog.at_level("INFO", logger="cosplace"):
        record = evaluated(folder, PITTS30K)
    assert (record["protocol"]["name"], record["protocol"]["similar"]) == ("custom", "pitts30k-test@1")
    assert "recorded as custom; --protocol pitts30k-test@1 evaluates the same" in caplog.text


@pytest.mark.parametrize("given", [{"resize_test_imgs": True, "image_size": 32}, {"positive_dist_threshold": 20.0}])
def test_eval_with_another_size_or_radius_matches_no_protocol(tmp_path: Path, given: dict[str, Any]) -> None:
    folder = layout_samples.pittsburgh(tmp_path / "pitts30k")
    assert evaluated(folder, PITTS30K, **given)["protocol"]["similar"] is None
    (flag,) = {"resize_test_imgs", "positive_dist_threshold"} & given.keys()
    with pytest.raises(ConfigError, match=rf"--{flag}.* [Oo]mit .*--protocol to evaluate it as custom"):
        evaluated(folder, PITTS30K, protocol="pitts30k-test@1", **given)


def test_one_missing_query_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    folder = layout_samples.prepared(tmp_path, queries=("queries", "queries_night"))
    protocols = small_protocols(sf_xl_night=(4, 4))
    next((tmp_path / "test" / "queries_night").glob("*.jpg")).unlink()
    with pytest.raises(DatasetError, match=r"it has 3 queries, sf-xl-night@1 has 4\. Omit --protocol"):
        evaluated(folder, protocols, protocol="sf-xl-night")
    assert not Path("logs").exists()


def test_the_protocol_chooses_folder_and_radius(tmp_path: Path) -> None:
    folder = layout_samples.prepared(tmp_path / "sf", queries=("queries_v1", "queries_v2"))
    next((folder / "test" / "queries_v1").glob("*.jpg")).unlink()
    assert evaluated(folder, small_protocols(sf_xl_v2=(4, 4)), protocol="sf-xl-v2")["dataset"]["name"] == (
        "test/queries_v2"
    )


def test_frames_have_the_radius_of_their_protocol(tmp_path: Path) -> None:
    folder = layout_samples.nordland(tmp_path / "nordland")
    protocols = small_protocols(nordland_1f=(15, 15), nordland_10f=(15, 15))
    record = evaluated(folder, protocols, protocol="nordland-1f")
    assert record["positive_dist_threshold_m"] == pytest.approx(1.5 * 25 / 10.5, rel=1e-4)
    assert record["protocol"]["radius_frames"] == 1
    with pytest.raises(ConfigError, match=r"--positive_dist_threshold 25 contradicts nordland-1f@1, .* 1 frame"):
        evaluated(folder, protocols, protocol="nordland-1f", positive_dist_threshold=25.0)


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = layout_samples.pittsburgh(tmp_path / "pitts30k")
    assert main(["eval", "--test_set_folder", str(folder), "--protocol", "pitts30k-test"]) == 2
    error = capsys.readouterr().err
    assert "it has 3 queries, pitts30k-test@1 has 6,816; it has 6 database images, pitts30k-test@1 has 10,000" in error
    assert main(["eval", "--test_set_folder", str(folder), "--protocol", "pits30k"]) == 2
    assert "Did you mean pitts30k-test" in capsys.readouterr().err


# --- reproduce -------------------------------------------------------------------------------------------------------

FIGURES = [
    Figure(model=MODEL, protocol="pitts30k-test@1", n=1, recall=12.3, source="table 1"),
    Figure(model=MODEL, protocol="pitts30k-test@1", n=2, recall=99.9, source="table 2"),
    Figure(model=MODEL, protocol="tokyo247@1", n=1, recall=50.0, source="table 1"),
]


def config(dataset: Path, **options: Any) -> ReproduceConfig:
    return from_values(
        ReproduceConfig, {"dataset": str(dataset), "model": MODEL, "device": "cpu", "num_workers": 0} | options
    )


def test_a_model_is_evaluated_and_compared(
    tmp_path: Path, releases: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COSPLACE_RELEASES", str(releases))
    folder = layout_samples.pittsburgh(tmp_path / "pitts30k")
    # The largest N of Recall@N must not exceed the 6 database images: the others are left out with a warning.
    found = reproduce(config(folder), PITTS30K, FIGURES)
    assert [one.figure.n for one in found] == [1, 2]
    record = results()
    for one, published in zip(found, record["published"]["figures"], strict=True):
        assert one.ours.value == record["recalls"][str(one.figure.n)]
        assert published["difference"] == pytest.approx(one.ours.value - one.figure.recall)
        assert published["interval"][0] <= one.ours.value <= published["interval"][1]
        assert published["inside"] == (published["interval"][0] <= one.figure.recall <= published["interval"][1])
    assert record["protocol"]["id"] == "pitts30k-test@1"
    assert record["model"]["name"] == MODEL and len(record["model"]["sha256"]) == 64
    assert record["model"]["licenses"]["code"] == "MIT"
    out = capsys.readouterr().out
    assert re.search(r"^  1 +12\.3 .* table 1$", out, re.MULTILINE)
    assert "licenses: code MIT" in out
    assert "The intervals of R@1, R@2 are approximate." in out  # of 3 queries
    assert [one["approximate"] for one in record["published"]["figures"]] == [True, True]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"model": "cosplace_resnet18_64"}, ConfigError, "No figure of cosplace_resnet18_64 was published"),
        ({"protocol": "st-lucia"}, ConfigError, "It has figures for pitts30k-test@1, tokyo247@1"),
        ({"protocol": "tokyo247"}, DatasetError, "it has 3 queries, tokyo247@1 has 315"),
        ({"model": "best_model.pth"}, ConfigError, "Unknown model 'best_model.pth'"),
        ({"model": __file__}, ConfigError, "is a file, and figures are published for released models"),
    ],
)
def test_reproduce_refuses(tmp_path: Path, options: dict[str, str], error: type[Exception], words: str) -> None:
    folder = layout_samples.pittsburgh(tmp_path / "pitts30k")
    with pytest.raises(error, match=re.escape(words)) as found:
        reproduce(config(folder, **options), dict(all_protocols()), FIGURES)
    assert "Omit --protocol" not in str(found.value)
    assert not Path("logs").exists()


def test_a_dataset_that_matches_no_protocol_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = layout_samples.pittsburgh(tmp_path / "pitts30k")
    assert main(["reproduce", str(folder), "--model", "cosplace_resnet50_512"]) == 2
    assert "has 3 queries and 6 database images, and matches no protocol" in capsys.readouterr().err


def test_licenses_of_a_model(capsys: pytest.CaptureFixture) -> None:
    assert main(["zoo", "info", "megaloc"]) == 0
    assert re.search(r"^licenses +code MIT; weights MIT; data SF-XL", capsys.readouterr().out, re.MULTILINE)
