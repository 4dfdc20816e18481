"""`cosplace plan`: figures computed by hand, where each comes from, and refusals."""

import json
import math
import re
from pathlib import Path

import pytest

from cosplace.cli import main
from cosplace.cli.planning import format_value
from cosplace.config.planning import MachineSettings, PlanConfig, PriceSettings, SpeedSettings
from cosplace.planning.constants import Constant, constants
from cosplace.planning.plan import SECTIONS, Plan, make_plan
from cosplace.planning.quantities import ORIGINS, Sheet, at_least, clipped, rounded_up, smallest

ROOT = Path(__file__).resolve().parents[2]
SPEEDS = SpeedSettings(  # round numbers, so that the plan can be computed by hand
    photo_kb=50,
    thumbnail_kb=10,
    decoded_mb_per_s=50,  # 1,000 photos/s on a core
    cpu_photos_per_s=5,
    gpu_photos_per_s=2_000,
    gpu_training_photos_per_s=1_000,
    write_mb_per_s=100,
    indexed_mb_per_s=20,
    assigned_gflop_per_s=50,
    search_ms=10,
    scan_gb_per_s=10,
    probed_share=0.25,
)


def values(plan: Plan) -> dict[str, float]:
    return {name: figure.value for name, figure in plan.sheet.figures.items()}


def by_hand(**changes: object) -> PlanConfig:
    """A billion photos, 128 dimensions, int8, 50 queries/s, machines of 10 cores with one GPU."""
    settings = {
        "photos": 1e9,
        "dim": 128,
        "dtype": "int8",
        "queries_per_second": 50.0,
        "machine": MachineSettings(machines=10, cores=10, server_cores=10, server_memory_gb=1000, utilization=0.5),
        "speeds": SPEEDS,
    }
    return PlanConfig(**settings | changes)  # ty: ignore[invalid-argument-type]


# --- figures ---------------------------------------------------------------------------------------------------------


def test_disk_of_a_billion_photos() -> None:
    found = values(make_plan(by_hand()))
    assert found["photos_gb"] == 50_000  # 1e9 x 50 KB
    assert found["store_gb"] == 128  # 128 bytes
    assert found["shards"] == math.ceil(1e9 / 4096) == 244_141
    assert found["rows_gb"] == pytest.approx(512 + 146)  # 128 float32, and the other columns
    assert found["thumbnails_gb"] == 10_000
    assert found["search_index_gb"] == pytest.approx(64 + 25)  # 128 x 4 bits, and 25 bytes
    assert found["index_gb"] == pytest.approx(658 + 10_000 + 89)
    assert found["index_peak_gb"] == pytest.approx(2.1 * 10_747)


@pytest.mark.parametrize(
    ("dtype", "dim", "expected"),
    [("float32", 100, 400), ("float16", 100, 200), ("int8", 100, 100), ("binary", 100, 13), ("binary", 128, 16)],
)
def test_bytes_of_a_descriptor(dtype: str, dim: int, expected: int) -> None:
    assert values(make_plan(by_hand(dtype=dtype, dim=dim)))["descriptor_bytes"] == expected


def test_hours() -> None:
    found = values(make_plan(by_hand(training_images=7.2e6)))
    assert found["training_machine_hours"] == pytest.approx(2)  # 7.2 M at 1,000/s
    assert found["decoded_photos_per_s"] == 10_000 and found["extract_photos_per_s"] == 2_000  # the GPU limits
    assert found["extract_machine_hours"] == pytest.approx(1e9 / 2_000 / 3600)
    assert found["extract_hours"] == pytest.approx(1e9 / 2_000 / 3600 / 10)
    assert found["read_gb_per_s"] == pytest.approx(10 * 2_000 * 50e3 / 1e9)
    assert found["list_gb"] == pytest.approx(96 + 9)  # a billion names of 96 bytes
    assert found["parts"] == 1 and found["partitions"] == 16_384
    adding_s, assigning_s = 1e9 * 512 / 20e6, 1e9 * 16_384 * 128 * 2 / 50e9
    assert found["index_core_hours"] == pytest.approx((adding_s + assigning_s) / 3600)
    assert found["index_hours"] == pytest.approx((adding_s + assigning_s) / 3600 / 100)  # on 10 x 10 cores


def test_without_gpus_decoding_and_network_share_the_cores() -> None:
    machine = MachineSettings(machines=1, cores=10, gpus=0)
    found = values(make_plan(by_hand(machine=machine, training_images=3600.0)))
    assert found["extract_photos_per_s"] == pytest.approx(1 / (1 / 10_000 + 1 / 50))
    assert found["training_photos_per_s"] == pytest.approx(5 / 1.87)  # ResNet-18, a step is 1.87 forward passes
    assert found["training_machine_hours"] == pytest.approx(1 / (10 * 5 / 1.87))


def test_a_slow_storage_limits() -> None:
    speeds = SpeedSettings(gpu_photos_per_s=1e6, decoded_mb_per_s=1e6, write_mb_per_s=1.28)
    assert values(make_plan(by_hand(speeds=speeds)))["extract_photos_per_s"] == pytest.approx(10_000)  # of 128 bytes


def test_machines_that_finish_in_time() -> None:
    machine = MachineSettings(within_hours=24, cores=10)
    found = values(make_plan(by_hand(machine=machine)))
    hours = 1e9 / 2_000 / 3600 + found["index_core_hours"] / 10
    assert found["extract_machines"] == math.ceil(hours / 24) == 6
    assert found["extract_hours"] + found["index_hours"] <= 24


def test_servers() -> None:
    found = values(make_plan(by_hand()))
    assert found["held_gb"] == pytest.approx(249 + 96 + 89)
    assert found["replica_gb"] == pytest.approx(434 + 1.65)
    assert found["scanned_gb"] == pytest.approx(89 / 4)
    assert found["search_core_ms"] == pytest.approx(10 + 89 / 4 / 10 * 1000)
    assert found["encode_core_ms"] == pytest.approx(1 + 200)  # decoding 50 KB, and the network at 5 photos/s
    assert found["query_total_core_ms"] == pytest.approx(2235 + 201)
    assert found["replicas"] == math.ceil(50 * (2.235 + 0.201) / 5) == 25  # 10 cores, half used
    assert found["servers"] == 25


def test_memory_of_one_server_is_not_enough() -> None:
    machine = MachineSettings(machines=10, cores=10, server_cores=10, server_memory_gb=100, memory_share=0.8)
    plan = make_plan(by_hand(machine=machine))
    found = values(plan)
    assert found["parts"] == math.ceil(434 / (80 - 1.65)) == 6
    assert found["replica_gb"] == pytest.approx(1.65 + 434 / 6) and found["replica_gb"] <= 80
    assert found["scanned_gb"] == pytest.approx(89 / 4 / 6)
    assert found["servers"] == 6 * found["replicas"]
    assert "6 indexes" in plan.notes[0] and "No command merges" in plan.notes[1]


def test_queries_for_one_of_several_indexes() -> None:
    machine = MachineSettings(machines=10, cores=10, server_cores=10, server_memory_gb=100, memory_share=0.8)
    every = values(make_plan(by_hand(queries_per_second=500.0, machine=machine)))
    plan = make_plan(by_hand(queries_per_second=500.0, machine=machine, indexes_per_query=1))
    one = values(plan)
    assert one["query_total_core_ms"] == one["query_core_ms"] == every["query_total_core_ms"] / 6
    assert one["replicas"] == math.ceil(500 / 6 * one["query_core_ms"] / 1000 / 5) < every["replicas"]
    assert not any("No command merges" in note for note in plan.notes)
    several = values(
        make_plan(by_hand(queries_per_second=500.0, machine=machine, indexes_per_query=100))
    )  # there are only 6
    assert several["replicas"] == every["replicas"] and several["indexes_asked"] == 6


def test_servers_with_gpus_encode_on_them() -> None:
    machine = MachineSettings(machines=10, cores=10, server_cores=10, server_memory_gb=1000, server_gpus=1)
    found = values(make_plan(by_hand(machine=machine)))
    assert found["encode_core_ms"] == pytest.approx(1)
    assert found["replicas"] == math.ceil(50 * 2.236 / 5 + 50 / (2_000 * 0.5))


def test_costs() -> None:
    prices = PriceSettings(machine_hour_price=4, server_hour_price=1, gb_month_price=0.02)
    found = values(make_plan(by_hand(prices=prices, training_images=0.0)))
    hours = found["extract_machine_hours"] + found["index_core_hours"] / 10
    assert found["build_cost"] == pytest.approx(4 * hours)
    assert found["storage_month_cost"] == pytest.approx(0.02 * (10_747 + 128))
    assert found["servers_month_cost"] == pytest.approx(25 * 730)
    assert found["query_cost"] == pytest.approx((0.02 * 10_875 + 25 * 730) / (50 * 730 * 3600))
    only_servers = values(make_plan(by_hand(prices=PriceSettings(server_hour_price=2))))
    assert only_servers["month_cost"] == pytest.approx(25 * 730 * 2) and "build_cost" not in only_servers
    assert "month_cost" not in values(make_plan(by_hand()))


def test_few_photos_are_compared_exactly() -> None:
    found = values(make_plan(by_hand(photos=50_000.0)))
    assert "search_index_gb" not in found and "partitions" not in found
    assert found["held_gb"] == pytest.approx(50_000 * (249 + 96 + 512) / 1e9)
    assert found["search_core_ms"] == pytest.approx(10 + 1000 * 50_000 * 512 / 7e9)
    assert "search_index_gb" in values(make_plan(by_hand(photos=50_001.0)))
    assert "search_index_gb" in values(make_plan(by_hand(photos=50_000.0, exact_rows=10)))


def test_dimensions_without_codes() -> None:
    plan = make_plan(by_hand(dim=100))  # RaBitQ needs a multiple of 8
    assert values(plan)["code_bytes"] == 400 + 8
    assert any("--dim 104" in note for note in plan.notes)
    half = make_plan(by_hand(dim=100, stored_dtype="float16"))
    assert values(half)["code_bytes"] == 200 + 8


def test_thumbnails_scale_with_their_area_and_may_be_absent() -> None:
    assert "thumbnails_gb" not in values(make_plan(by_hand(thumbnail_size=0)))
    small = make_plan(PlanConfig(photos=1e6, thumbnail_size=96))
    assert values(small)["thumbnail_kb"] == pytest.approx(constants()["thumbnail_kb"].value / 4)


def test_speeds_scale_with_pixels() -> None:
    full, half = (values(make_plan(PlanConfig(photos=1e6, image_size=size))) for size in (None, 256))
    for name in ("cpu_photos_per_s", "gpu_photos_per_s", "gpu_training_photos_per_s"):
        assert half[name] == pytest.approx(4 * full[name])


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_released_model_is_not_trained() -> None:
    plan = make_plan(PlanConfig(photos=1e6, model="cosplace_resnet50_128"))
    assert values(plan)["dim"] == 128 and "training_machine_hours" not in plan.sheet.figures
    assert plan.sheet.figures["gpu_photos_per_s"].value == constants()["gpu_photos_per_s.ResNet50"].value


def test_a_model_without_a_known_speed_on_a_gpu_gets_it_by_the_speeds_on_a_cpu() -> None:
    plan = make_plan(PlanConfig(photos=1e6, model="megaloc", dim=512))
    figure = plan.sheet.figures["gpu_photos_per_s"]
    assert figure.origin == "computed" and figure.value == pytest.approx(3481 * 1.08 / 6.61)
    assert any("8,448 dimensions" in note and "cosplace reduce" in note for note in plan.notes)


def test_a_weights_file(tmp_path: Path) -> None:
    import torch

    from cosplace.models.network import GeoLocalizationNet

    torch.save(GeoLocalizationNet("ResNet18", 64).state_dict(), tmp_path / "model.pth")
    plan = make_plan(PlanConfig(photos=1e6, model=str(tmp_path / "model.pth")))
    assert values(plan)["dim"] == 64 and values(plan)["cpu_photos_per_s"] == pytest.approx(6.61)


# --- where figures come from -----------------------------------------------------------------------------------------


def test_each_figure_says_where_it_comes_from() -> None:
    measured = {"search_ms": Constant(value=3, unit="ms", title="search", source="here", date="today", machine="mine")}
    plan = make_plan(by_hand(speeds=SpeedSettings(photo_kb=50)), {"photos", "dim", "photo_kb", "dtype"}, measured)
    figures = plan.sheet.figures
    assert {figure.origin for figure in figures.values()} == set(ORIGINS)
    assert (figures["photos"].origin, figures["photos"].detail) == ("given", "--photos")
    assert (figures["cores"].origin, figures["cores"].detail) == ("default", "--cores")
    assert (figures["search_ms"].value, figures["search_ms"].detail) == (3, "here; today; mine")
    assert figures["store_gb"].detail == "photos × descriptor_bytes ÷ 1e9"
    assert plan.sheet.with_numbers("store_gb") == "1e9 × 128 ÷ 1e9"
    assert figures["photos_gb"].inputs == ("photos", "photo_kb")


def test_formulas_give_the_values() -> None:
    """Each printed formula, read as arithmetic with the values of its inputs, gives the printed value."""
    prices = PriceSettings(machine_hour_price=4, server_hour_price=1, gb_month_price=0.02)
    machine = MachineSettings(server_gpus=1)
    for config in (by_hand(prices=prices), by_hand(machine=machine, dim=100), PlanConfig(photos=3e4, image_size=200),
                   by_hand(machine=MachineSettings(server_memory_gb=50), indexes_per_query=2)):  # fmt: skip
        found = make_plan(config).sheet.figures
        for figure in found.values():
            if figure.origin == "computed":
                assert arithmetic(figure.detail, {name: found[name].value for name in figure.inputs}) == pytest.approx(
                    figure.value, rel=1e-9
                ), figure.name


def arithmetic(formula: str, inputs: dict[str, float]) -> float:
    """The value of a formula, by a parser of its own: recursive descent over + - × ÷ and functions."""
    words = re.findall(r"[A-Za-z_]\w*|\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?|[-+×÷(),]", formula)
    functions = {"max": max, "min": min, "ceil": lambda x: math.ceil(x - 1e-9), "floor": math.floor}

    def expression() -> float:
        value = product()
        while words and words[0] in "+-":
            value = value + product() if words.pop(0) == "+" else value - product()
        return value

    def product() -> float:
        value = atom()
        while words and words[0] in "×÷":
            value = value * atom() if words.pop(0) == "×" else value / atom()
        return value

    def atom() -> float:
        word = words.pop(0)
        if word == "(":
            value = expression()
            assert words.pop(0) == ")"
            return value
        if word in functions:
            assert words.pop(0) == "("
            values = [expression()]
            while words.pop(0) == ",":
                values.append(expression())
            return functions[word](*values)
        return inputs[word] if word in inputs else float(word.replace(",", ""))

    value = expression()
    assert not words
    return value


def test_quantities() -> None:
    sheet = Sheet()
    for name, value in (("a", 7.0), ("b", 2.0)):
        sheet.enter(name, name, value, "", "given", "")
    a, b = sheet["a"], sheet["b"]
    assert ((a + b) * b).formula == "(a + b) × b" and ((a + b) * b).value == 18
    assert (a - (b + 1)).formula == "a - (b + 1)" and (a / (b * b)).formula == "a ÷ (b × b)"
    assert (1.0 / a).formula == "1 ÷ a" and (a * b + b).formula == "a × b + b"
    assert rounded_up(a / b).value == 4 and rounded_up(a * 0.1 / 0.7).value == 1  # not 2 for 1.0000000000000002
    assert (at_least(10, a).value, smallest(a, b).value, clipped(3, b, 5).value) == (10, 2, 3)
    assert (a * b + a).names == ("a", "b")


def test_constants_have_sources_that_exist() -> None:
    lab = (ROOT / "docs" / "lab.md").read_text()
    entries = set(re.findall(r"^## [\d-]+ · (.*)$", lab, re.MULTILINE))
    assert "Constants of `cosplace plan`" in entries
    for name, constant in constants().items():
        assert constant.source and re.fullmatch(r"2026-\d\d-\d\d", constant.date), name
        assert constant.value > 0, name
        if "docs/lab.md, " in constant.source:
            assert constant.source.rpartition("docs/lab.md, ")[2] in entries, name
        for path in re.findall(r"\b(?:docs|cosplace|benchmarks)/[\w/.-]+\w", constant.source):
            assert (ROOT / path).is_file(), name


# --- the command -----------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture, *words: str) -> str:
    assert main(["plan", *words]) == 0
    return capsys.readouterr().out


def test_text_and_explanation(capsys: pytest.CaptureFixture) -> None:
    text = run(capsys, "--photos", "1e9", "--dim", "128", "--dtype", "int8")
    assert re.search(r"^  descriptor store +128 GB$", text, re.MULTILINE)
    assert re.search(r"^  photos +1,000,000,000   --photos$", text, re.MULTILINE)
    assert re.search(r"^  bits of a number in the index +32   --stored_dtype float32$", text, re.MULTILINE)
    assert re.search(r"^  size of a photo +38.8 KB$", text, re.MULTILINE)
    explained = run(capsys, "--photos", "1e9", "--dim", "128", "--dtype", "int8", "--explain")
    assert "      store_gb = photos × descriptor_bytes ÷ 1e9\n               = 1e9 × 128 ÷ 1e9\n" in explained
    assert "photo_kb: mean of the 2,834 photos" in explained
    assert all(line in explained for line in text.splitlines())


@pytest.mark.parametrize("columns", [80, 100])
def test_figures_are_aligned_and_fit_into_the_terminal(
    columns: int, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    words = ["--photos", "1e9", "--dim", "128", "--stored_dtype", "float16", "--machine_hour_price", "3"]
    text = run(capsys, *words)
    assert max(map(len, text.splitlines())) <= columns
    for section in text.split("\n\n"):
        title, *lines = section.splitlines()
        ends = {len(line.partition("   --")[0]) for line in lines}  # values are aligned on the right
        assert len(ends) == 1 or title.startswith("note"), section
    explained = run(capsys, *words, "--explain")
    assert max(map(len, explained.splitlines())) <= columns


def test_json(capsys: pytest.CaptureFixture) -> None:
    found = json.loads(run(capsys, "--photos", "1e6", "--json"))
    figures = {one["name"]: one for one in found["figures"]}
    assert figures["shards"]["value"] == 245 and figures["shards"]["section"] == "Disk"
    assert figures["store_gb"] | {"value": 0} == {
        "section": "Disk", "name": "store_gb", "title": "descriptor store", "value": 0, "unit": "GB",
        "origin": "computed", "detail": "photos × descriptor_bytes ÷ 1e9", "inputs": ["photos", "descriptor_bytes"],
    }  # fmt: skip
    assert found["model"] == "ResNet18" and found["notes"] == []
    assert {name for names in SECTIONS.values() for name in names} >= set(figures) - {
        name for name, one in figures.items() if not one["section"]
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--photos", "0"], "--photos must be between 1 and 1e+13, got 0"),
        (["--photos", "-5"], "got -5"),
        (["--photos", "nan"], "got nan"),
        (["--photos", "inf"], "got inf"),
        (["--photos", "1.5"], "whole number"),
        (["--photos", "many"], "must be a number, got 'many'"),
        ([], "--photos is required"),
        (["--photos", "1e6", "--dim", "0"], "--dim must be between 1 and 65,536, got 0"),
        (["--photos", "1e6", "--dim", "1024", "--model", "cosplace_resnet18_512"], "more than the 512 dimensions"),
        (["--photos", "1e6", "--dtype", "int4"], "--dtype must be float32, float16, int8 or binary"),
        (["--photos", "1e6", "--queries_per_second", "0"], "--queries_per_second must be above 0"),
        (["--photos", "1e6", "--model", "resnet"], "zoo list"),
        (["--photos", "1e6", "--backbone", "EfficientNet_B0"], "--measure"),
        (["--photos", "1e6", "--model", "megaloc", "--backbone", "ResNet18"], "contradict"),
        (["--photos", "1e6", "--server_memory_gb", "2"], "--server_memory_gb 2 is too small"),
        (["--photos", "1e6", "--probed_share", "1.5"], "--probed_share"),
        (["--photos", "1e6", "--machine_hour_price", "-1"], "--machine_hour_price must be 0 or more"),
        (["--photos", "1e6", "--measured_photos", "x"], "only with --measure"),
        (["--photos", "1e6", "--training_images", "0.5"], "--training_images must be a whole number"),
    ],
)
def test_refusals(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_speeds_that_flags_give_make_any_backbone_possible(capsys: pytest.CaptureFixture) -> None:
    words = ["--photos", "1e6", "--backbone", "EfficientNet_B0", "--cpu_photos_per_s", "9", "--gpus", "0", "--json"]
    figures = {one["name"]: one for one in json.loads(run(capsys, *words))["figures"]}
    assert figures["cpu_photos_per_s"]["value"] == 9 and figures["cpu_photos_per_s"]["origin"] == "given"
    assert figures["training_passes"]["value"] == 3


@pytest.mark.parametrize(("value", "unit", "text"), [(1e9, "", "1,000,000,000"), (0.0000849, "", "0.0000849"),
                         (3e-9, "", "3e-09"), (1234.56, "GB", "1,230 GB"), (2.0, "h", "2 h"), (0.5, "/s", "0.5/s"),
                         (0.0, "GB", "0 GB")])  # fmt: skip
def test_numbers(value: float, unit: str, text: str) -> None:
    assert format_value(value, unit) == text


@pytest.mark.parametrize("photos", [1.0, 16.0, 49_999.0, 1e7, 1e11, 1e13])
def test_any_number_of_photos(photos: float) -> None:
    found = values(make_plan(PlanConfig(photos=photos, queries_per_second=1000)))
    assert all(math.isfinite(value) and value >= 0 for value in found.values())
    assert found["servers"] >= 2 and found["extract_machines"] >= 1 and found["shards"] >= 1
