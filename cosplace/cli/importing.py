"""cosplace import."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from cosplace.cli.console import Bars, on_interrupt, print_result
from cosplace.config.importing import ImportConfig
from cosplace.errors import DatasetError
from cosplace.photos.paths import printable
from cosplace.progress import format_count

if TYPE_CHECKING:
    from cosplace.importing.import_run import ImportResult
    from cosplace.photos.tables import PhotoRecord


def run_import(config: ImportConfig) -> None:
    """Import photos into a dataset, and print what was done.  Raises DatasetError if it has no photos."""
    from cosplace.importing import import_run

    bars = Bars()
    with on_interrupt("The photos imported so far are in the dataset. Run the same command again to continue."):
        result = import_run.run_import(
            tuple(map(Path, config.sources)),
            config.to,
            config,
            formats=config.format,
            keep_unplaced=config.keep_unplaced,
            dry_run=config.dry_run,
            progress=bars,
        )
        bars.close()
    for line in summary_lines(result, dry_run=config.dry_run):
        print_result(line)
    if not result.num_photos:
        raise DatasetError(_nothing_imported(result, dry_run=config.dry_run))


def summary_lines(result: "ImportResult", *, dry_run: bool) -> list[str]:
    """What an import has done, with advice."""
    from cosplace.importing.report import REPORT_NAME, report_counts, report_lines

    report, folder = result.report, printable(result.folder)
    done = "would be added" if dry_run else "added"
    counts = [f"{format_count(result.num_added, 'photo')} {done}"]
    counts += [f"{result.num_updated:,} updated"] if result.num_updated else []
    counts += [f"{result.num_unchanged:,} unchanged"] if result.num_unchanged else []
    problems = report_counts(report)
    where = "" if dry_run or not problems else f"; see {folder}/{REPORT_NAME}"
    lines = [f"{folder}: {', '.join(counts + problems)}{where}"]
    lines += report_lines(report)
    for camera, count in (result.zero_headings or {}).items():
        photos = "the only photo that has one" if count == 1 else f"all {format_count(count, 'photo')}"
        lines.append(f"  headings of {camera or 'the source'} were exactly 0 for {photos}: they are unknown")
    if result.num_symbolic_links:
        photos = format_count(result.num_symbolic_links, "photo is", "photos are")
        lines.append(f"  {photos} on another disk and linked symbolically. Use --follow_outside with other commands.")
    lines += [f"  {_row(record)}" for record in result.first] if dry_run else []
    if result.num_photos and result.counts is not None:
        known = ", ".join(f"{count:,} with {name}" for name, count in result.counts.items())
        have = "The dataset would have" if dry_run else "The dataset has"
        lines.append(f"{have} {format_count(result.num_photos, 'photo')}: {known}")
        if result.bounds:
            west, south, east, north = result.bounds
            lines.append(f"Its area: latitude {south:.4f} to {north:.4f}, longitude {west:.4f} to {east:.4f}")
        if not dry_run:
            dataset = shlex.quote(str(folder))
            lines.append(f"Next: cosplace validate {dataset}")
            lines.append(f"To locate photos: cosplace index build {dataset} --model MODEL --to INDEX")
    return lines


def _row(record: "PhotoRecord") -> str:
    """A photo of the table in one line."""
    heading = "" if record.heading != record.heading else f", heading {record.heading:.1f} ({record.heading_source})"
    return f"{printable(record.path)}: {record.latitude:.6f}, {record.longitude:.6f}{heading}"


def _nothing_imported(result: "ImportResult", *, dry_run: bool) -> str:
    from cosplace.importing.import_run import UNPLACED
    from cosplace.importing.report import REPORT_NAME

    unplaced, has_positions = result.report.left_out[UNPLACED], result.has_positions
    advice = (
        "See the reasons above, or keep the photos with --keep_unplaced."
        if unplaced and has_positions
        else "Add a table or a track with positions as SOURCE, or keep the photos with --keep_unplaced."
        if unplaced
        else "Check the sources."
        if dry_run
        else f"{printable(result.folder)}/{REPORT_NAME} has the reasons."
    )
    return (
        f"No photo was imported: {unplaced:,} {'has' if unplaced == 1 else 'have'} no position. {advice}"
        if unplaced
        else (f"No photo was imported. {advice}")
    )
