"""The engines by name: which program runs the network, with which numbers, and the packages that it needs."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from cosplace.config.names import ENGINES
from cosplace.errors import ConfigError

TORCH, ONNX_RUNTIME, OPENVINO = "torch", "onnxruntime", "openvino"  # programs, and the names of their packages
MAKERS = ("torch", "onnx", "onnxscript", "onnxruntime")  # packages that write the file of an engine
EXTRAS = {ONNX_RUNTIME: "export", OPENVINO: "openvino"}
MIN_COSINES = {"fp32": 0.9999, "bf16": 0.9999, "fp16": 0.9999, "int8": 0.95, "int8_weights": 0.95}
"""By the numbers of an engine: the lowest accepted cosine similarity of its descriptors to those of PyTorch in fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """An engine: a program, and the numbers that it computes with."""

    name: str
    program: str  # TORCH, ONNX_RUNTIME or OPENVINO
    numbers: str  # fp32, bf16, fp16, int8 or int8_weights
    compiles: bool = False  # whether it compiles the network in each process, for a minute or more

    @property
    def needs_file(self) -> bool:
        """Whether it runs an exported file; such engines compute on the CPU, and need no torch."""
        return self.program != TORCH

    @property
    def is_int8(self) -> bool:
        """Whether its descriptors differ too much from those of other engines to be compared with them."""
        return self.numbers in ("int8", "int8_weights")

    @property
    def is_calibrated(self) -> bool:
        """Whether its file also depends on photos."""
        return self.numbers == "int8"

    @property
    def is_for_auto(self) -> bool:
        """Whether `auto` may choose it."""
        return not (self.is_int8 or self.compiles)

    @property
    def is_installed(self) -> bool:
        """Whether its program is installed."""
        return find_spec(self.program) is not None

    def require(self) -> None:
        """Raise ConfigError unless its program is installed."""
        if not self.is_installed:
            raise ConfigError(
                f"--engine {self.name} needs {self.program}. Install with: pip install "
                f"'cosplace[{EXTRAS[self.program]}]'."
            )


_KINDS = (
    EngineKind(name="torch", program=TORCH, numbers="fp32"),
    EngineKind(name="torch_bf16", program=TORCH, numbers="bf16"),
    EngineKind(name="torch_compile", program=TORCH, numbers="fp32", compiles=True),
    EngineKind(name="onnx", program=ONNX_RUNTIME, numbers="fp32"),
    EngineKind(name="onnx_int8", program=ONNX_RUNTIME, numbers="int8"),
    EngineKind(name="openvino", program=OPENVINO, numbers="fp32"),
    EngineKind(name="openvino_bf16", program=OPENVINO, numbers="bf16"),
    EngineKind(name="openvino_fp16", program=OPENVINO, numbers="fp16"),
    EngineKind(name="openvino_int8", program=OPENVINO, numbers="int8"),
    EngineKind(name="openvino_int8_weights", program=OPENVINO, numbers="int8_weights"),
)
KINDS = {kind.name: kind for kind in _KINDS}
assert tuple(KINDS) == ENGINES


def find_kind(name: str) -> EngineKind:
    """The engine of a name.  Raises ConfigError for an unknown name."""
    if name not in KINDS:
        raise ConfigError(f"Unknown engine '{name}'. Use auto, {', '.join(KINDS)}.")
    return KINDS[name]


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of packages, "" for those that are not installed; without importing them."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found
