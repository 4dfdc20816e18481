"""cosplace panoramas."""

from typing import TYPE_CHECKING

from cosplace.cli.console import Bars, on_interrupt, print_result
from cosplace.config.panoramas import PanoramasConfig
from cosplace.config.values import loading_workers
from cosplace.errors import DatasetError
from cosplace.photos.paths import printable
from cosplace.progress import format_count

if TYPE_CHECKING:
    from cosplace.importing.cropping import CropResult


def run_panoramas(config: PanoramasConfig) -> None:
    """Cut perspective crops from panoramas, and print what was done.  Raises DatasetError if there are none."""
    from cosplace.importing import cropping

    device = None
    if config.device != "cpu":
        from cosplace.device import choose_device

        device = choose_device(config.device)
        device = None if device.type == "cpu" else device  # compiled functions are faster there
    bars = Bars()
    with on_interrupt("The crops written so far are in the dataset. Run the same command again to continue."):
        result = cropping.run_panoramas(
            config.source,
            config.to,
            config.crop,
            device=device,
            num_workers=loading_workers(config.num_workers),
            timezone=config.timezone,
            keep_unplaced=config.keep_unplaced,
            follow_outside=config.follow_outside,
            dry_run=config.dry_run,
            progress=bars,
        )
        bars.close()
    for line in summary_lines(result, dry_run=config.dry_run):
        print_result(line)
    if not result.num_panoramas:
        raise DatasetError(f"No panorama of {config.source} was used. The reasons are above.")


def summary_lines(result: "CropResult", *, dry_run: bool) -> list[str]:
    """What was done, and what to do next."""
    from cosplace.importing.report import REPORT_NAME, report_counts, report_lines

    folder, report = printable(result.folder), result.report
    problems = report_counts(report)
    where = "" if dry_run or not problems else f"; see {folder}/{REPORT_NAME}"
    written = f"{format_count(result.num_written, 'crop')} {'would be written' if dry_run else 'written'}"
    existing = f", {result.num_found:,} existed before" if result.num_found else ""
    counts = [f"{written}{existing}, of {format_count(result.num_panoramas, 'panorama')}", *problems]
    lines = [f"{folder}: {', '.join(counts)}{where}"]
    lines += report_lines(report)
    if result.num_outside:
        crops = format_count(result.num_outside, "crop was", "crops were")
        lines.append(f"  {crops} skipped: not all of the view is in a partial panorama")
    if result.headings_were_zero:
        lines.append("  the headings of all panoramas were exactly 0: those of the crops are unknown")
    if result.num_panoramas and not dry_run:
        lines.append(f"The dataset has {format_count(result.num_photos, 'photo')}. Next: cosplace validate {folder}")
    return lines
