"""What defines a stage, what is measured, and what is reported.  The fields of Row and Growth are keys of the JSON."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cosplace.errors import CosPlaceError

Work = Callable[[], Any]
"""The measured function.  It takes no arguments: everything that it needs is prepared before."""


class BenchmarkError(CosPlaceError):
    """The two sides of a stage have different results, or one of them could not be measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the inputs of a stage depend on, besides their size."""

    quick: bool = False
    photos: Path | None = None
    """Folder of photos to use instead of generated ones."""


@dataclass(frozen=True, slots=True)
class ExcludedTime:
    """A result of the work, and CPU seconds within the work that are not counted."""

    result: Any
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One implementation of a stage.  For stages with `fresh`, its functions must be importable, to be pickled."""

    prepare: Callable[[Any], Work]
    """Inputs -> the work.  Not measured: reads inputs, warms up."""
    output: Callable[[Any, Any], Any] | None = None
    """(inputs, result of the work) -> what is compared.  Not measured.  None compares the result itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One row of the table: two implementations, their inputs, and targets for the ratios."""

    name: str
    title: str
    unit: str  # of the sizes
    make_inputs: Callable[[Path, int, Options], Any]
    """(empty folder, size, options) -> inputs that can be pickled.  Runs in a child process, before both sides."""
    ours: Side
    plain: Side | None = None  # None: ours is compared with bounds only
    compare: Callable[[Any, Any], str | None]
    """(plain output, our output) -> None if they are equal, else the difference.  Without `plain` the first is None."""
    full_size: int
    quick_size: int | None  # None: not part of a quick run
    targets: Mapping[str, float | bool]
    """Minimum ratios (cpu_ratio, wall_ratio, memory_ratio), maximum figures of ours (most_cpu_s, most_memory_mib), or
    findings that must be true."""
    quick_targets: Mapping[str, float | bool] | None = None  # None: the same as `targets`
    growth_sizes: tuple[int, ...] = ()  # sizes of ours in a full run; () if there is no growth to measure
    imports: tuple[str, ...] = ()
    """Modules that the parent process imports before it forks, so that their import is not measured."""
    optional_imports: tuple[str, ...] = ()  # likewise, if they are installed
    warm_up: Callable[[], None] | None = None  # runs in the parent before it forks, to compile functions once
    fresh: bool = False  # run each side in a new interpreter and count the memory of the whole process
    memory: str | None = "peak"  # "peak", "anonymous", or None if memory means nothing for this stage
    max_turns: int | None = None  # for stages that take minutes
    unavailable: Callable[[], str | None] = lambda: None  # why this machine cannot run the stage; None if it can
    find: Callable[[Any], Mapping[str, Any]] | None = None
    """Inputs -> further findings about ours.  Runs in a child process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Time and memory of one side in one turn."""

    cpu_s: float
    wall_s: float
    memory_mib: float | None
    output: Any = None  # what is compared

    def figures(self) -> dict[str, float | None]:
        """The numbers without the output."""
        return {"cpu_s": self.cpu_s, "wall_s": self.wall_s, "memory_mib": self.memory_mib}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Results of one stage.  Ratios are plain divided by ours, medians over turns."""

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
    """How time and memory of ours grow with the size: exponents of a power law, fitted by least squares."""

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
    """All results of one run."""

    rows: list[Row] = field(default_factory=list)
    growth: list[Growth] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # stage -> reason
    failures: list[str] = field(default_factory=list)  # one line each: different results, or a side that failed
