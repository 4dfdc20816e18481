"""cosplace export."""

import dataclasses
from typing import Any

from cosplace.cli.console import Bars, print_result
from cosplace.config.export import ExportConfig


def run_export(config: ExportConfig) -> None:
    """Export a model, and print what was checked and written."""
    from cosplace.export.exporter import export_model
    from cosplace.export.settings import ExportSettings, format_of

    if config.check:
        from cosplace.export.parity import check_parity

        print_result(check_parity(config.model).summary())
        return
    assert config.to is not None
    options: dict[str, Any] = dataclasses.asdict(config.options)
    options["format"] = config.format or format_of(config.to)
    report = export_model(config.model, config.to, ExportSettings(**options), progress=Bars())
    for line in report.summary_lines():
        print_result(line)
