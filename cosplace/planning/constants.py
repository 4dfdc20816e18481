"""Measured constants of a plan.  They are data, in constants.toml, each with its source."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DATA = Path(__file__).with_name("constants.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A measured speed or size."""

    value: float
    unit: str
    title: str
    source: str  # what was measured, where it is recorded, or what was run
    date: str = ""  # of the measurement
    machine: str = ""

    @property
    def detail(self) -> str:
        """Source, date and machine in one line."""
        return "; ".join(part for part in (self.source, self.date, self.machine) if part)


@cache
def constants() -> dict[str, Constant]:
    """The constants by name; of those that depend on a backbone, `name.backbone`."""
    content = tomllib.loads(DATA.read_text("utf-8"))
    machines, found = content.pop("machines"), {}
    for name, record in content.items():
        values = record.pop("values", None) or {"": record.pop("value")}
        for key, value in values.items():
            machine = machines[record["machine"]]
            found[f"{name}.{key}" if key else name] = Constant(**record | {"value": value, "machine": machine})
    return found
