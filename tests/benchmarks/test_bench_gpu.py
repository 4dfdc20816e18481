"""The benchmark of training on a GPU: on a CPU, its parts compute the same as the plain recipe."""

import pytest
import torch

from benchmarks.gpu import GpuOptions, gpu_table, measure_gpu
from cosplace.cli import main

TINY = {
    "image_size": 64, "batch_size": 4, "num_workers": 1, "num_classes": 20, "num_photos": 16, "iterations": 1,
    "turns": 1, "backbones": ("ResNet18",), "loader": "threads",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
def test_parts_equal_the_plain_recipe(compiled: bool) -> None:
    rows = measure_gpu(GpuOptions(device="cpu", dtype=None, compiled=compiled, **TINY))
    assert [row.stage for row in rows] == ["loader", "augmentation", "step ResNet18", "loop ResNet18"]
    assert all(row.equal and row.findings["images_per_second"] > 0 for row in rows)
    assert all(0 < row.findings["of_ceiling"] < 1.5 for row in rows[2:])
    assert not rows[3].met  # a CPU
    text = gpu_table(rows)
    assert "paper schedule" in text
    assert "missed" in text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_parts_equal_the_plain_recipe_on_a_gpu() -> None:
    rows = measure_gpu(GpuOptions(**{**TINY, "loader": "processes"}))
    assert all(row.equal for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_a_gpu_one_line_says_so(capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "--gpu"]) == 2
    assert "--device cuda" in capsys.readouterr().err
    assert main(["bench", "--gpu", "--quick"]) == 2
    assert "leave out" in capsys.readouterr().err
    assert main(["bench", "--compile"]) == 2
    assert "bench --gpu" in capsys.readouterr().err
