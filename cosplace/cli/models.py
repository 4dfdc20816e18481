"""cosplace convert, reduce."""

from typing import TYPE_CHECKING

from cosplace.cli.console import Bars, print_result
from cosplace.config.models import ConvertConfig, ReduceConfig
from cosplace.config.values import loading_workers

MAX_VALUE = 500  # characters of an entry of a model card to print

if TYPE_CHECKING:
    from cosplace.export.conversion import WrittenModel


def run_convert(config: ConvertConfig) -> None:
    """Write a model in another file format."""
    from cosplace.export.conversion import convert_model

    _print_written(convert_model(config.source, config.to, force=config.force))


def run_reduce(config: ReduceConfig) -> None:
    """Fit a reduction, and write the model with it."""
    from cosplace.device import choose_device
    from cosplace.export.conversion import reduce_model
    from cosplace.retrieval.extraction import ExtractionSettings

    reduction = config.reduction
    written = reduce_model(
        config.model,
        config.on,
        config.to,
        reduction.dims,
        method=reduction.method,
        max_photos=reduction.max_photos,
        force=config.force,
        follow_outside=config.follow_outside,
        trust_remote_code=config.device.trust_remote_code,
        accept_license=config.accept_license,
        settings=ExtractionSettings(
            image_size=reduction.image_size,
            batch_size=config.encoding.infer_batch_size,
            num_workers=loading_workers(config.encoding.num_workers),
            device=choose_device(config.device.device),
        ),
        progress=Bars(),
    )
    _print_written(written)


def _print_written(written: "WrittenModel") -> None:
    """Print the path and the model card of a file that was written."""
    print_result(f"wrote {written.path}, {written.num_bytes / 1e6:.1f} MB; read back and compared")
    for key, value in sorted(written.card.items()):
        print_result(f"  {key:18s} {value if len(value) <= MAX_VALUE else f'{len(value):,} characters'}")
    if written.path.suffix != ".safetensors":
        print_result(f"A {written.path.suffix} file stores only the tensors, not this model card.")
