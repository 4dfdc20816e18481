"""OpenVINO with 16-bit floats: refused by name, and left out by `auto`, where the processor lacks them."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cosplace.engines import kinds, opening
from cosplace.engines.engine import Engine, _openvino_core, open_session
from cosplace.engines.kinds import KINDS
from cosplace.engines.opening import open_engine
from cosplace.errors import ConfigError
from cosplace.models.network import GeoLocalizationNet


def has_fp16() -> bool:
    """Whether OpenVINO computes with 16-bit floats on this processor."""
    return "FP16" in _openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.mark.slow
@pytest.mark.extras
def test_auto_leaves_out_fp16_on_a_processor_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("openvino", reason="pip install 'cosplace[openvino]'")
    if has_fp16():
        pytest.skip("this processor has fp16")
    monkeypatch.setenv("COSPLACE_HOME", str(tmp_path))
    network = GeoLocalizationNet("ResNet18_Small", 16, generator=torch.Generator().manual_seed(0)).eval()
    timed: list[str] = []

    def speedups(engines: dict[str, Engine], *_: Any) -> Any:
        timed.extend(engines)
        return dict.fromkeys(engines, 1.0), 0.1

    monkeypatch.setattr(opening, "measure_speedups", speedups)
    with caplog.at_level(logging.INFO, "cosplace"):
        open_engine("auto", network, image_size=64, device="cpu")
    line = "engine: not openvino_fp16. --engine openvino_fp16 needs a processor with 16-bit floats (fp16); here "
    assert "openvino" in timed and "openvino_fp16" not in timed
    assert any(message.startswith(line) for message in caplog.messages)


@pytest.mark.parametrize(("used", "name"), [("bf16", "bf16"), ("f32", "fp32"), ("f16", "")])
def test_fp16_needs_a_processor_that_computes_with_it(
    used: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO computes with other numbers instead, without a warning, and says so only when asked."""
    asked: dict[str, Any] = {}

    def compile_model(_: str, __: str, options: dict[str, Any]) -> Any:
        asked.update(options)
        return SimpleNamespace(get_property=lambda _: SimpleNamespace(to_string=lambda: used))

    monkeypatch.setattr(kinds, "find_spec", lambda name: object())
    monkeypatch.setattr("cosplace.engines.engine._openvino_core", lambda: SimpleNamespace(compile_model=compile_model))
    if name:
        error = f"--engine openvino_fp16 needs .* would compute with {name}. Use --engine openvino_bf16 or --engine"
        with pytest.raises(ConfigError, match=error):
            open_session(KINDS["openvino_fp16"], tmp_path)
    else:
        assert callable(open_session(KINDS["openvino_fp16"], tmp_path))
    assert asked["INFERENCE_PRECISION_HINT"] == "f16"
    assert callable(open_session(KINDS["openvino_bf16"], tmp_path))
