"""cosplace plan."""

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cosplace.cli.console import Bars, print_json, print_result
from cosplace.cli.help import help_width
from cosplace.config.planning import PlanConfig

if TYPE_CHECKING:
    from cosplace.planning.plan import Plan
    from cosplace.planning.quantities import Figure

INPUTS: Mapping[str, str] = {  # origin of figures that others are computed from -> heading
    "given": "Given",
    "default": "Defaults; a flag replaces each",
    "measured": "Measured; see --measure",
    "computed": "Intermediate results",
}
SMALLEST = 1e-7  # smaller numbers are printed with an exponent


def run_plan(config: PlanConfig, given: Mapping[str, Any]) -> None:
    """Print what a number of photos needs."""
    from cosplace.planning.plan import make_plan
    from cosplace.planning.workload import find_network

    network = find_network(config)
    measured = None
    if config.measure:
        from cosplace.planning.measuring import measure_machine

        measured = measure_machine(config, network, Bars())
    plan = make_plan(config, given, measured, network)
    if config.json:
        print_json(as_json(plan))
        return
    for line in plan_lines(plan, explain=config.explain):
        print_result(line)


def as_json(plan: "Plan") -> dict[str, Any]:
    """All figures, with where they come from."""
    figures = [
        {"section": plan.section_of(figure.name), **dataclasses.asdict(figure), "inputs": list(figure.inputs)}
        for figure in plan.sheet.figures.values()
    ]
    return {"model": plan.network.name, "figures": figures, "notes": list(plan.notes)}


def plan_lines(plan: "Plan", *, explain: bool) -> list[str]:
    """The figures by section, then what they are computed from, by origin, then notes; as wide as help texts."""
    from cosplace.planning.plan import SECTIONS

    figures = plan.sheet.figures
    answers = {name for names in SECTIONS.values() for name in names}
    inputs = [figure for name, figure in figures.items() if name not in answers]
    sections = {title: [figures[name] for name in names if name in figures] for title, names in SECTIONS.items()}
    sections |= {title: [one for one in inputs if one.origin == origin] for origin, title in INPUTS.items()}
    lines = []
    for title, members in sections.items():
        if members:
            lines += [title, *_section_lines(plan, members, explain), ""]
    for note in plan.notes:
        lines += textwrap.wrap(f"note: {note}", help_width(), subsequent_indent=" " * 6)
    return lines if plan.notes else lines[:-1]


def _section_lines(plan: "Plan", figures: Sequence["Figure"], explain: bool) -> Iterator[str]:
    """A line for each figure, aligned; with `explain`, its formula with numbers or its source below."""
    values = [format_value(figure.value, figure.unit) for figure in figures]
    title_width, value_width = max(len(figure.title) for figure in figures), max(map(len, values))
    for figure, value in zip(figures, values, strict=True):
        flag = f"   {figure.detail}" if figure.origin in ("given", "default") else ""
        yield f"  {figure.title:{title_width}s}  {value:>{value_width}s}{flag}"
        if explain and figure.origin == "computed":
            yield from _explanation(f"{figure.name} = ", figure.detail)
            yield from _explanation(f"{'':{len(figure.name)}s} = ", plan.sheet.with_numbers(figure.name))
        elif explain and figure.origin == "measured":
            yield from _explanation(f"{figure.name}: ", figure.detail)


def _explanation(start: str, text: str) -> list[str]:
    """A formula or a source, below its figure."""
    indent = " " * 6
    return textwrap.wrap(
        text, help_width(), initial_indent=indent + start, subsequent_indent=indent + " " * len(start),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def format_value(value: float, unit: str) -> str:
    """A number with three digits, or a whole number, with its unit."""
    if value == round(value) and abs(value) < 1e15:
        text = f"{value:,.0f}"
    elif abs(value) >= SMALLEST:
        text = f"{float(f'{value:.3g}'):,.9f}".rstrip("0").rstrip(".")
    else:
        text = f"{value:.2g}"
    return f"{text}{unit}" if unit.startswith("/") else f"{text} {unit}".rstrip()
