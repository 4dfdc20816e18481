"""cosplace convert, reduce."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from cosplace.cli.arguments import Command, add_knobs
from cosplace.cli.console import Bars, say
from cosplace.config.sections import ReduceConfig
from cosplace.config.values import from_values, loading_workers


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FROM", help="a file of weights, or a name of `cosplace zoo list`")
    parser.add_argument("to", metavar="TO", help="the file to write: .safetensors, or .pth for the original code")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    parser.set_defaults(run=_convert)


def _add_reduce(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a file of weights, a name of `cosplace zoo list`, or hub:owner/repo:entry(args)"
    )
    parser.add_argument("--on", required=True, metavar="FOLDER", help="photos to fit on, in any subfolders")
    parser.add_argument("--to", required=True, metavar="FILE", help="the model to write, a .safetensors")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    add_knobs(parser, ReduceConfig)
    parser.set_defaults(run=_reduce)


def _convert(values: dict[str, Any]) -> None:
    from cosplace.export.conversion import convert

    _tell(convert(values["source"], values["to"], force=values["force"]))


def _reduce(values: dict[str, Any]) -> None:
    places = {name: values.pop(name) for name in ("model", "on", "to", "force")}
    config = from_values(ReduceConfig, values).reducing

    from cosplace.device import choose_device
    from cosplace.export.conversion import reduce

    bars = Bars()
    written = reduce(
        places["model"],
        places["on"],
        places["to"],
        config.dims,
        method=config.method,
        max_photos=config.max_photos,
        force=places["force"],
        trust_remote_code=config.trust_remote_code,
        image_size=config.image_size,
        batch_size=config.infer_batch_size,
        num_workers=loading_workers(config.num_workers),
        device=choose_device(config.device),
        progress=lambda done, total: bars("describing photos", done, total),
    )
    _tell(written)


def _tell(written: Any) -> None:
    """What was written, and its card."""
    assert dataclasses.is_dataclass(written)
    path, num_bytes, card = Path(written.path), written.num_bytes, written.card
    say(f"wrote {path}, {num_bytes / 1e6:.1f} MB, read back and equal")
    for key, value in sorted(card.items()):
        say(f"  {key:18s} {value}")
    if path.suffix != ".safetensors":
        say(f"A {path.suffix} has no place for this card: it holds the tensors alone.")


COMMANDS = (
    Command(
        name="convert",
        text="Write a model as .safetensors (with a card that says what it is) or .pth, bit for bit.",
        add=_add_convert,
    ),
    Command(
        name="reduce",
        text="Make descriptors smaller: fit PCA-whitening, PCA or a truncation on photos, and keep it with the model.",
        add=_add_reduce,
    ),
)
