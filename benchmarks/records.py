"""What a benchmark is made of: sides, stages, what was measured of them, and what is told of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cosplace.errors import CosPlaceError

Work = Callable[[], Any]
"""What is measured; it takes nothing, so that everything it needs was made before."""


class BenchmarkError(CosPlaceError):
    """The sides of a stage have different results, or one of them could not be measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a stage's inputs depend on, beside their size."""

    quick: bool = False
    photos: Path | None = None
    """Folder of photos that take the place of made ones."""


@dataclass(frozen=True, slots=True)
class Less:
    """A result, with CPU seconds that were spent within the work but are not the side's own."""

    result: Any
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One way to do the work of a stage.  Its functions stand in a module, so that a fresh process finds them."""

    prepare: Callable[[Any], Work]
    """Inputs -> the work; unmeasured: reads inputs, warms up, builds what is there before the work begins."""
    reveal: Callable[[Any, Any], Any] | None = None
    """(inputs, the work's result) -> what is compared; unmeasured.  None compares the result itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One row of the table: what is done, by whom, on which inputs, and what is asked of the ratios."""

    name: str
    title: str
    unit: str  # of the sizes
    make_inputs: Callable[[Path, int, Options], Any]
    """(empty folder, size, options) -> inputs that pickle; runs in a process of its own, before all sides."""
    ours: Side
    plain: Side | None = None  # None: ours alone, against bounds
    compare: Callable[[Any, Any], str | None]
    """(plain's, ours) -> None when equal, else how they differ; plain's is None for a stage without it."""
    full_size: int
    quick_size: int | None  # None: not in quick mode
    targets: Mapping[str, float | bool]
    """Least ratios (cpu_ratio, wall_ratio, memory_ratio), most absolutes of ours (most_cpu_s, most_memory_mib), or
    findings that must hold."""
    quick_targets: Mapping[str, float | bool] | None = None  # None: as `targets`
    growth_sizes: tuple[int, ...] = ()  # of ours, in the full run; () means that there is nothing to grow
    imports: tuple[str, ...] = ()
    """Modules that the parent imports before it forks, so that neither side pays for them."""
    optional_imports: tuple[str, ...] = ()  # likewise, where they are installed
    warm: Callable[[], None] | None = None  # runs in the parent before it forks: compiles what is compiled once
    fresh: bool = False  # each side in a fresh interpreter, whose memory counts as a whole
    memory: str | None = "peak"  # "peak", "anonymous", or None where it means nothing
    most_turns: int | None = None  # for what takes minutes
    absent: Callable[[], str | None] = lambda: None  # why this machine cannot run it
    finding: Callable[[Any], Mapping[str, Any]] | None = None
    """Inputs -> more of what is told of ours; runs in a process of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one side took once."""

    cpu_s: float
    wall_s: float
    memory_mib: float | None
    revealed: Any = None

    def figures(self) -> dict[str, float | None]:
        """The numbers without what is compared."""
        return {"cpu_s": self.cpu_s, "wall_s": self.wall_s, "memory_mib": self.memory_mib}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is told of one stage; ratios are plain's divided by ours, medians over turns."""

    stage: str
    title: str
    size: int
    unit: str
    turns: int
    equal: bool
    cpu_ratio: float | None
    wall_ratio: float | None
    memory_ratio: float | None
    target: Mapping[str, float | bool]
    met: bool
    plain: Mapping[str, float | None] | None  # medians of cpu_s, wall_s and memory_mib
    ours: Mapping[str, float | None]
    findings: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How time and memory of ours grow with the size: exponents of least squares on logarithms."""

    stage: str
    unit: str
    sizes: Sequence[int]
    cpu_s: Sequence[float]
    memory_mib: Sequence[float | None]
    time_exponent: float
    memory_exponent: float | None
    met: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that a run of the benchmark found."""

    rows: list[Row] = field(default_factory=list)
    growth: list[Growth] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # stage -> why
    failures: list[str] = field(default_factory=list)  # one line each: different results, or a side that died
