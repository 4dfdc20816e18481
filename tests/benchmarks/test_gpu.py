"""The benchmark of training on a GPU: its parts have the same results as the plain side, also on a CPU."""

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.gpu import GpuOptions, gpu_table, measure_gpu

TINY = {
    "image_size": 64, "batch_size": 4, "num_workers": 1, "num_classes": 20, "num_photos": 16, "iterations": 1,
    "turns": 1, "backbones": ("ResNet18",), "loader": "threads",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.long)])
def test_results_equal_the_plain_side(compiled: bool) -> None:
    rows = measure_gpu(GpuOptions(device="cpu", dtype=None, compiled=compiled, **TINY))
    assert [row.stage for row in rows] == ["loader", "augmentation", "step ResNet18", "loop ResNet18"]
    assert all(row.equal and row.findings["images_per_second"] > 0 for row in rows)
    assert all(row.findings["of_ceiling"] > 0 for row in rows[2:])
    text = gpu_table(rows)
    assert all(row.stage in text for row in rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_results_equal_the_plain_side_on_a_gpu() -> None:
    rows = measure_gpu(GpuOptions(**{**TINY, "loader": "processes"}))
    assert all(row.equal for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_a_gpu_the_error_is_one_line(capsys: pytest.CaptureFixture) -> None:
    assert main(["--gpu"]) == 2
    assert "--device cuda" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--gpu", "--quick"], "Leave out"), (["scan", "--gpu"], "Leave out"), (["--compile"], "--gpu")],
)
def test_flags_that_do_not_fit_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
