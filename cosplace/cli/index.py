"""cosplace index build, add, remove, info, compact, calibrate."""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from cosplace.cli.arguments import Command, Formatter
from cosplace.cli.console import Bars, say
from cosplace.config.values import loading_workers
from cosplace.errors import ConfigError

SHOWN_PROBLEMS = 10  # photos that cannot be opened, told one by one

log = logging.getLogger("cosplace")


# --- flags -----------------------------------------------------------------------------------------------------------


def _add_index(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="WHAT", dest="verb", required=True)
    for name, (text, add, _) in VERBS.items():
        add(verbs.add_parser(name, help=text, description=text, formatter_class=Formatter))
    parser.set_defaults(run=_index)


def _add_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="folder of photos; of a dataset, its database/ is taken")
    parser.add_argument("--model", required=True, help="a name of `cosplace zoo list`, or a file of weights")
    parser.add_argument("--to", required=True, metavar="INDEX", help="a new folder, or object storage (s3://...)")
    parser.add_argument(
        "--image_size", type=int, default=None, help="pixels of the shorter side (default: each photo's own size)"
    )
    parser.add_argument(
        "--reduce_to", type=int, default=None, metavar="D", help="first D dimensions of a model by `cosplace reduce`"
    )
    parser.add_argument(
        "--stored_dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of descriptors; float16 halves the disk and may turn near ties around (default: float32)",
    )
    parser.add_argument(
        "--thumbnail_size", type=int, default=192, help="pixels of the longer side; 0 keeps none (default: 192)"
    )
    parser.add_argument(
        "--exact_rows",
        type=int,
        default=50_000,
        help="more photos than that are searched by lists, whose recall is measured (default: 50000)",
    )
    _add_describing(parser)
    parser.add_argument("--no_calibrate", action="store_true", help="leave the confidences uncalibrated")


def _add_add(parser: argparse.ArgumentParser) -> None:
    _add_address(parser)
    parser.add_argument("photos", metavar="FOLDER", help="photos, by '@' names or with EXIF positions")
    _add_describing(parser)


def _add_describing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", default="", help="a word on where the photos come from (default: their folder)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument("--infer_batch_size", type=int, default=16, help="photos per batch (default: 16)")
    parser.add_argument("--num_workers", type=int, default=None, help="what loads photos (default: up to 8)")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code of a model from a hub")


def _add_remove(parser: argparse.ArgumentParser) -> None:
    _add_address(parser)
    parser.add_argument("photos", metavar="PHOTO", nargs="+", help="ids, paths, or folders of photos")


def _add_info(parser: argparse.ArgumentParser) -> None:
    _add_address(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", metavar="INDEX", help="a folder, or object storage, that holds an index")


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    _add_address(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument("--trust_remote_code", action="store_true", help="run the code of a model from a hub")
    parser.add_argument("--seed", type=int, default=0, help="of the photos that are held out (default: 0)")


# --- what they do ----------------------------------------------------------------------------------------------------


def _index(values: dict[str, Any]) -> None:
    _, _, run = VERBS[values.pop("verb")]
    run(values)


def _build(values: dict[str, Any]) -> None:
    for name, least in (("thumbnail_size", 0), ("exact_rows", 1), ("infer_batch_size", 1)):
        if values[name] < least:
            raise ConfigError(f"--{name} is {values[name]}: it must be at least {least}.")

    from cosplace.index.building import build_index, find_photos
    from cosplace.index.records import Settings
    from cosplace.models.encoder import load_model

    find_photos(values["dataset"])  # before a model is loaded: a wrong folder is told at once
    encoder = load_model(
        values["model"],
        image_size=values["image_size"],
        device=values["device"],
        reduce_to=values["reduce_to"],
        trust_remote_code=values["trust_remote_code"],
    )
    settings = Settings(
        stored_dtype=values["stored_dtype"],
        thumbnail_size=values["thumbnail_size"],
        exact_rows=values["exact_rows"],
    )
    bars = Bars()
    growth = build_index(
        values["dataset"],
        encoder,
        values["to"],
        settings=settings,
        source=values["source"],
        batch_size=values["infer_batch_size"],
        num_workers=loading_workers(values["num_workers"]),
        progress=lambda done, total: bars("describing", done, total),
    )
    bars.close()
    _tell(growth)
    _finish(values["to"], encoder, bars, calibrate=not values["no_calibrate"])


def _add(values: dict[str, Any]) -> None:
    from cosplace.index.building import add_photos, find_photos
    from cosplace.index.photo_index import open_index
    from cosplace.localization.localizer import open_index_encoder

    photos = find_photos(values["photos"])
    bars = Bars()
    with open_index(values["index"], write=True) as index:
        encoder = open_index_encoder(index, values["device"], trust_remote_code=values["trust_remote_code"])
        growth = add_photos(
            index,
            encoder,
            photos,
            source=values["source"] or str(photos.folder),
            batch_size=values["infer_batch_size"],
            num_workers=loading_workers(values["num_workers"]),
            progress=lambda done, total: bars("describing", done, total),
        )
        bars.close()
        _tell(growth)
    _finish(values["index"], encoder, bars, calibrate=False)


def _tell(growth: Any) -> None:
    """What became of the photos."""
    speed = growth.num_added / max(growth.seconds, 1e-9)
    known = f", {growth.num_known} were there already" if growth.num_known else ""
    replaced = f", {growth.num_replaced} took the place of their former selves" if growth.num_replaced else ""
    say(f"{growth.num_added} photos added ({speed:.1f} a second){known}{replaced}")
    if growth.num_without_position:
        say(f"{growth.num_without_position} of them have no position: they are evidence only")
    if growth.unreadable:
        say(f"{len(growth.unreadable)} photos could not be opened and were left out:")
        for line in growth.unreadable[:SHOWN_PROBLEMS]:
            say(f"  {line}")
        if len(growth.unreadable) > SHOWN_PROBLEMS:
            say(f"  ... and {len(growth.unreadable) - SHOWN_PROBLEMS} more")


def _finish(address: str, encoder: Any, bars: Bars, *, calibrate: bool) -> None:
    """Prepare the search, calibrate, say what there is."""
    from cosplace.index.photo_index import open_index
    from cosplace.localization.localizer import is_outgrown

    with open_index(address, write=True) as index:
        index.update_search(lambda done, total: bars("preparing the search", done, total))
        bars.close()
        if calibrate and len(index):
            _calibrate_open(index, encoder=encoder, bars=bars)
        elif is_outgrown(index):
            say("the index has grown much since its confidences were calibrated: run `cosplace index calibrate` again")
        _say_info(index.info())


def _calibrate_open(index: Any, *, encoder: Any, bars: Bars) -> None:
    """Calibrate; an index too small for it stays as it is, with a word on why."""
    from cosplace.errors import CosPlaceError
    from cosplace.localization.calibration import calibrate
    from cosplace.report.calibration_page import write_calibration_page

    try:
        calibration = calibrate(index, encoder=encoder, progress=lambda done, total: bars("calibrating", done, total))
        write_calibration_page(calibration, index.address)
    except CosPlaceError as error:
        log.warning("The index is whole but its confidences are not calibrated: %s", error)
    finally:
        bars.close()


def _calibrate(values: dict[str, Any]) -> None:
    from cosplace.index.photo_index import open_index
    from cosplace.localization.calibration import calibrate
    from cosplace.localization.localizer import open_index_encoder
    from cosplace.report.calibration_page import write_calibration_page

    bars = Bars()
    with open_index(values["index"], write=True) as index:
        encoder = open_index_encoder(index, values["device"], trust_remote_code=values["trust_remote_code"])
        calibration = calibrate(
            index,
            encoder=encoder,
            seed=values["seed"],
            progress=lambda done, total: bars("calibrating", done, total),
        )
        bars.close()
        error = calibration.calibration_error
        say(f"{index.address}: calibrated on photos of the index itself; expected calibration error {error:.3f}")
        if page := write_calibration_page(calibration, index.address):
            say(f"report: {page}")


def _remove(values: dict[str, Any]) -> None:
    from cosplace.index.building import find_ids
    from cosplace.index.photo_index import open_index

    with open_index(values["index"], write=True) as index:
        removed = index.remove(find_ids(index, values["photos"]))
        say(f"{removed} photos removed, {len(index)} remain; `cosplace index compact` gives their disk back")


def _info(values: dict[str, Any]) -> None:
    from cosplace.index.photo_index import open_index

    with open_index(values["index"]) as index:
        info = index.info()
    if values["json"]:
        say(json.dumps(info, indent=2))
    else:
        _say_info(info)


def _say_info(info: dict[str, Any]) -> None:
    model, search = info["model"], info["search"]
    size = "their own size" if model["image_size"] is None else f"{model['image_size']} pixels"
    disk = "" if info["num_bytes"] is None else f", {info['num_bytes'] / 1e6:,.1f} MB on disk"
    say(f"{info['address']}: {info['count']:,} photos{disk}")
    say(f"  with position {info['with_position']:,}, heading {info['with_heading']:,}, time {info['with_time']:,}")
    if info["bounds"] is not None:
        west, south, east, north = info["bounds"]
        say(f"  west {west:.5f}, south {south:.5f}, east {east:.5f}, north {north:.5f}")
    say(f"  model {Path(model['model']).name} ({model['checksum'][:12]}), {model['dimension']}-D, photos at {size}")
    if search["kind"] == "exact":
        say("  search: exact, every photo is compared")
    else:
        say(
            f"  search: {search['lists_looked_at']} of {search['lists']} lists; measured on {search['measured_on']} "
            f"held-out photos: recall@1 {search['recall_at_1']:.4f}, recall@20 {search['recall_at_20']:.4f}"
        )
        say(f"  since these lists were made: {search['added_since']:,} added, {search['removed_since']:,} removed")
    say("  confidences " + ("calibrated" if info["calibrated"] else "not calibrated (`cosplace index calibrate`)"))


def _compact(values: dict[str, Any]) -> None:
    from cosplace.index.photo_index import open_index

    bars = Bars()
    with open_index(values["index"], write=True) as index:
        before = index.info()["num_bytes"]
        index.compact(lambda done, total: bars("preparing the search", done, total))
        bars.close()
        info = index.info()
    if before is not None:
        say(f"{(before - info['num_bytes']) / 1e6:,.1f} MB given back")
    _say_info(info)


VERBS = {
    "build": ("Describe the photos of a folder and make an index of them, or go on with it.", _add_build, _build),
    "add": ("Add the photos of another folder; each photo is kept once.", _add_add, _add),
    "remove": ("Remove photos by id, path or folder.", _add_remove, _remove),
    "info": ("Say what an index holds and how well its search finds.", _add_info, _info),
    "compact": ("Join small pieces, give disk back, prepare the search anew.", _add_address, _compact),
    "calibrate": ("Learn from the index itself how sure its answers are.", _add_calibrate, _calibrate),
}

COMMANDS = (
    Command(
        name="index",
        text="Make and keep a searchable index of photos with their coordinates: build, add, remove, info, compact.",
        add=_add_index,
    ),
)
