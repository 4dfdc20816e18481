"""cosplace export."""

import argparse
from pathlib import Path
from typing import Any

from cosplace.cli.arguments import Command
from cosplace.cli.console import Bars, say


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a file of weights, or a name of `cosplace zoo list`")
    parser.add_argument("--to", required=True, metavar="FILE", help="the file to write, .onnx or .pt2")
    parser.add_argument(
        "--format", default=None, metavar="FORMAT", help="onnx or torch_export (default: what FILE's suffix says)"
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        metavar="PRECISION",
        help="fp32, fp16 (half the size) or int8 (a quarter, faster on CPUs; ONNX only) (default: fp32)",
    )
    parser.add_argument(
        "--with_preprocessing",
        action="store_true",
        help="the file takes photos as uint8 pixels, (B, H, W, 3), and normalises them itself",
    )
    parser.add_argument(
        "--image_size",
        type=int,
        default=None,
        metavar="INT",
        help="pixels along the shorter side of photos in calibration and check, told in the file (default: their own)",
    )
    parser.add_argument("--force", action="store_true", help="write over a file that is there")

    int8 = parser.add_argument_group("int8")
    int8.add_argument(
        "--calibrate_on", default=None, metavar="FOLDER", help="photos like those to come, in any subfolders"
    )
    int8.add_argument(
        "--calibration_photos", type=int, default=128, metavar="INT", help="how many of them to take (default: 128)"
    )

    check = parser.add_argument_group("check: the file is there only when it passes")
    check.add_argument(
        "--check_dataset",
        default=None,
        metavar="FOLDER",
        help="a folder with database/ and queries/: also compare recalls, as `cosplace eval` takes them",
    )
    check.add_argument(
        "--queries_folder", default=None, metavar="NAME", help="folder of queries beside database/ (default: queries*)"
    )
    check.add_argument(
        "--max_difference",
        type=float,
        default=None,
        metavar="NUMBER",
        help="to PyTorch: of each number of a descriptor in fp32, else of 1 - cosine similarity of descriptors "
        "(default: 1e-5 for fp32, 1e-3 for fp16, 0.05 for int8)",
    )
    check.add_argument(
        "--max_recall_loss",
        type=float,
        default=None,
        metavar="POINTS",
        help="percentage points that a recall may fall; one query always may (default: 0.1, 1 and 3)",
    )
    parser.set_defaults(run=_export)


def _export(values: dict[str, Any]) -> None:
    from cosplace.export.exporter import export_model
    from cosplace.export.settings import ExportSettings, format_of

    model, to = values.pop("model"), Path(values.pop("to"))
    form = values.pop("format") or format_of(to)
    report = export_model(model, to, ExportSettings(format=form, **values), progress=Bars())
    for line in report.lines():
        say(line)


COMMANDS = (
    Command(
        name="export",
        text="Export a model to ONNX or torch.export, in fp32, fp16 or int8, and check the file against PyTorch.",
        add=_add_export,
    ),
)
