"""cosplace plan."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cosplace.cli.console import Bars, print_json, print_result
from cosplace.config.planning import PlanConfig

if TYPE_CHECKING:
    from cosplace.planning.plan import Plan
    from cosplace.planning.quantities import Figure

TITLE_WIDTH, VALUE_WIDTH = 52, 18  # characters
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
    """The figures by section, then their inputs, then notes."""
    from cosplace.planning.plan import SECTIONS

    figures, lines = plan.sheet.figures, []
    for title, names in SECTIONS.items():
        present = [figures[name] for name in names if name in figures]
        if present:
            lines += [title, *(line for figure in present for line in _lines_of(plan, figure, explain)), ""]
    answers = {name for names in SECTIONS.values() for name in names}
    inputs = [figure for name, figure in figures.items() if name not in answers]
    lines += ["Computed from", *(line for figure in inputs for line in _lines_of(plan, figure, explain))]
    return [*lines, *([""] if plan.notes else []), *(f"note: {note}" for note in plan.notes)]


def _lines_of(plan: "Plan", figure: "Figure", explain: bool) -> list[str]:
    origin = f"computed from {', '.join(figure.inputs)}" if figure.origin == "computed" else figure.origin
    # Long sources are for --explain; a flag is short.
    detail = f" {figure.detail}" if figure.origin in ("given", "default") else ""
    value = format_value(figure.value, figure.unit)
    lines = [f"  {figure.title:{TITLE_WIDTH}s}{value:>{VALUE_WIDTH}s}   {origin}{detail}"]
    if explain and figure.origin == "computed":
        lines += [f"      {figure.name} = {figure.detail}"]
        lines += [f"      {'':{len(figure.name)}s} = {plan.sheet.with_numbers(figure.name)}"]
    elif explain and figure.origin == "measured":
        lines.append(f"      {figure.name}: {figure.detail}")
    return lines


def format_value(value: float, unit: str) -> str:
    """A number with three digits, or a whole number, with its unit."""
    if value == round(value) and abs(value) < 1e15:
        text = f"{value:,.0f}"
    elif abs(value) >= SMALLEST:
        text = f"{float(f'{value:.3g}'):,.9f}".rstrip("0").rstrip(".")
    else:
        text = f"{value:.2g}"
    return f"{text}{unit}" if unit.startswith("/") else f"{text} {unit}".rstrip()
