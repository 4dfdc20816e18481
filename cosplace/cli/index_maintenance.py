"""cosplace index remove, info, verify, compact; what an index contains, in words."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cosplace.cli.console import Bars, print_json, print_result
from cosplace.config.index import IndexCompactConfig, IndexInfoConfig, IndexRemoveConfig, IndexVerifyConfig
from cosplace.errors import DamagedIndexError
from cosplace.photos.paths import path_from_text, printable
from cosplace.progress import format_count


def run_remove(config: IndexRemoveConfig) -> None:
    """Remove photos from an index."""
    from cosplace.index.building import find_ids
    from cosplace.index.photo_index import open_index

    with open_index(config.index, write=True, roots=config.root) as index:
        num_removed = index.remove(find_ids(index, config.photos))
        print_result(
            f"{format_count(num_removed, 'photo')} removed, {len(index):,} remain; "
            "`cosplace index compact` frees their disk space"
        )


def run_info(config: IndexInfoConfig) -> None:
    """Print what an index contains."""
    from cosplace.index.photo_index import open_index

    with open_index(config.index, roots=config.root) as index:
        info = index.info()
    if config.json:
        print_json(info)
    else:
        print_info(info)


def run_verify(config: IndexVerifyConfig) -> None:
    """Compare all files and photos of an index with their checksums, and repair what can be."""
    from cosplace.index.photo_index import open_index
    from cosplace.index.verification import repair_index, verify_index
    from cosplace.index.view_table import remove_views

    bars = Bars()
    found = verify_index(config.index, bars)
    bars.close()
    if config.json:
        print_json(dataclasses.asdict(found))
    else:
        files = f"{format_count(found.num_files, 'file')} and " if found.num_files else ""
        print_result(f"{config.index}: {files}{format_count(found.num_photos, 'photo')} compared with their checksums")
        if not found.num_files:
            print_result("  the files have no checksums: they are on object storage, or from an earlier version")
        if found.num_unchecked:
            print_result(
                f"  without checksums, from an earlier version: {format_count(found.num_unchecked, 'photo')} "
                f"(`cosplace index compact {config.index}` adds them)"
            )
        for line in (*found.problems, *found.notes):
            print_result(f"  {line}")
    if not found.problems:
        if config.repair and not found.num_files:
            repair_index(config.index, found, bars)
        elif config.repair and found.notes:
            with open_index(config.index, write=True) as index:  # the copy for readers is made when it is closed
                remove_views(index.store)
        return
    if config.repair:
        repair_index(config.index, found, bars)
        bars.close()
        again = "; `cosplace index add` or `cosplace index sync` adds them again" if found.damaged_ids else ""
        print_result(f"repaired: {format_count(len(found.damaged_ids), 'photo')} removed{again}")
        return
    raise DamagedIndexError(
        f"{config.index} is damaged ({format_count(len(found.problems), 'problem')}).",
        "Use a copy of the index, or build it again." if not found.can_repair else
        "use --repair to remove the damaged photos, then add them again" if found.damaged_ids else
        "use --repair to record checksums again and to rebuild the search index: no photo is damaged",
    )  # fmt: skip


def run_compact(config: IndexCompactConfig) -> None:
    """Free disk space, and prepare the search."""
    from cosplace.index.photo_index import open_index

    bars = Bars()
    with open_index(config.index, write=True) as index:
        before = index.info()["num_bytes"]
        index.compact(bars)
        bars.close()
        info = index.info()
    if before is not None:
        print_result(f"{(before - info['num_bytes']) / 1e6:,.1f} MB freed")
    print_info(info)


def _why_uncalibrated(info: dict[str, Any]) -> str:
    failed = info["calibration_failed"]
    if failed is None:
        return "not calibrated (`cosplace index calibrate`)"
    if failed["num_photos"] == info["count"]:
        return f"not calibrated. {failed['reason']}"
    photos = format_count(failed["num_photos"], "photo")
    return f"not calibrated: with {photos}, calibration failed; `cosplace index calibrate` tries again"


def print_info(info: dict[str, Any], *, with_reason: bool = True) -> None:
    """Print what an index contains.

    info: see `PhotoIndex.info`.  with_reason: also say why its confidence is not calibrated.
    """
    from cosplace.models.views import views_from_record
    from cosplace.report.calibration_page import capture_text, overconfidence_text, trained_text

    model, search = info["model"], info["search"]
    size = "at their own size" if model["image_size"] is None else f"resized to {model['image_size']} pixels"
    disk = "" if info["num_bytes"] is None else f", {info['num_bytes'] / 1e6:,.1f} MB on disk"
    print_result(f"{info['address']}: {format_count(info['count'], 'photo')}{disk}")
    known = [f"{info[f'with_{name}']:,} with {name}s" for name in ("position", "heading", "time")]
    print_result(f"  {', '.join(known)}")
    if info["bounds"] is not None:
        west, south, east, north = info["bounds"]
        print_result(f"  west {west:.5f}, south {south:.5f}, east {east:.5f}, north {north:.5f}")
    name = f"{printable(Path(model['model']).name)} ({printable(model['checksum'][:12])})"
    for root in info["roots"]:
        exists = path_from_text(root["found"]).is_dir()
        moved = f", now {printable(root['found'])}" if root["found"] != root["path"] else ""
        print_result(f"  photos in {printable(root['path'])}{moved}{'' if exists else ' (not found)'}")
    if info["without_checksums"]:
        photos = format_count(info["without_checksums"], "photo has", "photos have")
        print_result(f"  {photos} no checksums (`cosplace index compact` adds them)")
    views = views_from_record(model.get("views", {})).text()
    print_result(f"  model {name}, {model['dimension']} dimensions, photos {size}{f'; {views}' if views else ''}")
    if search["kind"] == "exact":
        print_result("  search: exact, every photo is compared")
    else:
        print_result(
            f"  search: approximate, {search['codes']} codes, {search['partitions_searched']} of "
            f"{search['partitions']} partitions; measured on {search['measured_on']} photos: recall@1 "
            f"{search['recall_at_1']:.4f}, recall@20 {search['recall_at_20']:.4f}"
        )
        print_result(
            f"  since then, added: {format_count(search['added_since'], 'photo')}; removed: {search['removed_since']:,}"
        )
    about = info["calibration"] or {}
    uncalibrated = _why_uncalibrated(info) if with_reason else "not calibrated"
    print_result(f"  confidence {calibration_text(about) if info['calibrated'] else uncalibrated}")
    capture = capture_text(about) if about.get("num_photos") == info["count"] else ""  # photos may have been added
    for text in filter(None, (overconfidence_text(about), trained_text(about), capture)):
        print_result(f"  {text}")


def calibration_text(about: Mapping[str, Any]) -> str:
    """What an index was calibrated on.  about: facts stored with the calibration."""
    if "queries" in about:
        return f"calibrated on {format_count(about.get('num_queries', 0), 'photo')} of {printable(about['queries'])}"
    num_seen, correction = about.get("num_training_photos", 0), about.get("correction")
    seen = f"{format_count(num_seen, 'photo')} that the model was trained on"
    queries = format_count(about.get("num_validation", 0), "validation query", "validation queries")
    if "share_like_index" in about:
        without = f" (without {seen})" if correction == "left out" else ""
        if "share_revisited" in about:
            once = round(100 - 100 * about["share_revisited"])
            places = "each place" if once == 100 else f"the places of {once}% of its photos"
            reason = f"it shows {places} in one year only"
        else:
            reason = "most capture times are unknown"
        return (
            f"calibrated on its own photos{without} and {queries}, because {reason}; `cosplace index calibrate "
            f"--queries FOLDER` with new photos improves it"
        )
    if correction == "left out":
        return f"calibrated on its own photos, without {seen}"
    if correction == "validation":
        text = f"calibrated on its own photos and {queries}, because it contains {seen}"
        if "unlabeled" in about:
            share = f"{100 * about.get('share_like_training', 0):.0f}%"
            new = f"{about.get('num_unlabeled', 0):,} photos of {printable(about['unlabeled'])}"
            return f"{text}; {share} of {new} resemble these"
        return f"{text}; 100 new photos without positions improve it: `cosplace index calibrate --unlabeled FOLDER`"
    if correction == "none":
        return f"calibrated on its own photos; confidence is too high for new photos, because it contains {seen}"
    if about.get("training_photos") == "unknown":
        return "calibrated on its own photos; whether its model was trained on some of them is unknown"
    return "calibrated on its own photos"
