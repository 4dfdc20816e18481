"""cosplace zoo: released models by name."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cosplace.cli.console import on_interrupt, print_json, print_result
from cosplace.cli.text_table import text_table
from cosplace.config.models import ZooDownloadConfig, ZooInfoConfig, ZooListConfig, ZooVerifyConfig
from cosplace.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from cosplace.models.zoo import HubModel, ZooModel

COLUMNS = (
    ("pitts30k", "Pitts30k"),
    ("tokyo247", "Tokyo 24/7"),
    ("msls_val", "MSLS val (740)"),
    ("sf_xl_v1", "SF-XL v1"),
)  # of the table of recalls
USE = ("yes", "unclear", "no")  # commercially, in the order of --sort license
DATASETS = ("pitts30k", "tokyo247", "sf_xl_v1")  # whose recalls the list shows
# Columns of the list that only these orders show; the others have theirs in any case.
SORTED_BY = {"speed": "photos/s (CPU core)", "license": "commercial use", "size": "size, MB"}


def run_list(config: ZooListConfig) -> None:
    """Print the released models, and models of other projects that torch.hub loads."""
    from cosplace.models.zoo import MODELS, NATIVE_MODELS

    every = [*MODELS.values(), *NATIVE_MODELS.values()]
    models = sorted_models([model for model in every if config.method in (None, model.method)], config.sort)
    if config.json:
        print_json([_record(model) for model in models])
    elif config.html is not None:
        from cosplace.report.zoo_page import write_zoo_page

        write_zoo_page(config.html, models if config.sort else sorted_models(models, "recall"))
        print_result(f"{len(models)} models in {config.html}")
    elif config.markdown:
        print_result(markdown_table(models))
    else:
        _print_list(models, config.method, config.sort)


def _print_list(models: "Sequence[ZooModel]", method: str | None, sort: str | None) -> None:
    from cosplace.models.downloads import weights_folder
    from cosplace.models.zoo import HUB_MODELS, NATIVE_MODELS

    folder = weights_folder()
    title = SORTED_BY.get(sort or "", "")
    rows: list[tuple[str, ...]] = [("name", "backbone", "dims", *DATASETS, *([title] if title else []), "cached")]
    for model in models:
        recalls = [_percent(model.recalls.get(dataset)) for dataset in DATASETS]
        cached = "yes" if (folder / model.file_name).is_file() else ""
        shown = [_sorted_value(model, sort)] if title else []
        rows.append((model.name, model.backbone, str(model.fc_output_dim), *recalls, *shown, cached))
    for line in text_table(rows, numbers=range(2, len(rows[0]) - 1)):
        print_result(line)
    print_result(f"\ndims: dimension of the descriptors; {', '.join(DATASETS)}: published R@1, in percent")
    if method is None:
        print_result(
            "\nmodels from torch.hub, with --trust_remote_code: code of their repositories runs on this machine"
        )
        hub_models = [hub for hub in HUB_MODELS.values() if hub.name not in NATIVE_MODELS]
        for line in text_table([(hub.name, str(hub.fc_output_dim), hub.spec) for hub in hub_models], numbers=[1]):
            print_result(line)
    if method in (None, "cosplace"):
        print_result(
            "\nVGG16 with 32 dimensions is in the CosPlace paper but was never released. Train it with "
            "`cosplace train --backbone VGG16 --fc_output_dim 32`."
        )
    print_result(f"cache: {folder}")


def _sorted_value(model: "ZooModel", sort: str | None) -> str:
    """The text of a model in the column of SORTED_BY."""
    from cosplace.assessment.published import terms_of

    values: dict[str | None, Callable[[ZooModel], str]] = {
        "speed": _photos_per_s,
        "license": lambda model: terms_of(model.name).commercial,
        "size": _megabytes,
    }
    return values[sort](model)


def _photos_per_s(model: "ZooModel") -> str:
    from cosplace.models.speeds import speed_of

    speed = speed_of(model)
    return f"{speed.photos_per_s:.3g}" if speed else "-"


def _megabytes(model: "ZooModel") -> str:
    return str(round(4 * model.num_parameters / 1e6))


def sorted_models(models: "Sequence[ZooModel]", key: str | None) -> "list[ZooModel]":
    """Models in the order of --sort: the best recall, the fastest, the smallest dimension or size first."""
    from cosplace.assessment.published import terms_of
    from cosplace.models.speeds import speed_of

    def cpu_speed(model: "ZooModel") -> float:
        speed = speed_of(model)
        return speed.photos_per_s if speed else 0.0

    keys: dict[str | None, Callable[[ZooModel], Any]] = {
        "recall": lambda model: -model.recalls.get(DATASETS[0], 0.0),
        "dimension": lambda model: model.fc_output_dim,
        "speed": lambda model: -cpu_speed(model),
        "license": lambda model: USE.index(terms_of(model.name).commercial),
        "size": lambda model: model.num_parameters,
        "name": lambda model: model.name,
    }
    return sorted(models, key=keys[key]) if key else list(models)


def markdown_table(models: "Sequence[ZooModel]") -> str:
    """Table of the models with published recalls, for docs/zoo.md."""
    from cosplace.assessment.published import terms_of

    rows = [
        (
            "name",
            *(title for _, title in COLUMNS),
            "dimension",
            "MB",
            "photos/s",
            "code",
            "weights",
            "training data",
            "commercial use",
        ),
        ("---", *["---:"] * (len(COLUMNS) + 3), *["---"] * 4),
    ]
    for model in models:
        if not model.recalls:
            continue
        terms = terms_of(model.name)
        recalls = [_percent(model.recalls.get(dataset)) for dataset, _ in COLUMNS]
        licenses = (terms.code, terms.weights, terms.data, terms.commercial)
        numbers = (str(model.fc_output_dim), _megabytes(model), _photos_per_s(model))
        rows.append((f"`{model.name}`", *recalls, *numbers, *licenses))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def run_info(config: ZooInfoConfig) -> None:
    """Print the record of one model."""
    from cosplace.models.zoo import HubModel, find_model

    model = find_model(config.name)
    record = _record(model)
    if config.json:
        print_json(record)
        return
    for key, value in record.items():
        separator = "; " if key == "licenses" else ", "  # texts of licenses have commas
        text = separator.join(f"{data} {one}" for data, one in value.items()) if isinstance(value, dict) else value
        print_result(f"{key:15s}  {'-' if text in (None, '') else text}")
    if isinstance(model, HubModel):
        print_result(f"\nUse it with --model {model.name} --trust_remote_code, which runs code of its repository.")


def run_download(config: ZooDownloadConfig) -> None:
    """Download models into the cache, and print their paths."""
    from cosplace.models.opening import weights_path
    from cosplace.models.zoo import MODELS, find_model

    # All names are checked before the first download.
    names = [find_model(name).name for name in config.names] + [*(MODELS if config.all else ())]
    if not names:
        raise ConfigError("No models to download. Use names from `cosplace zoo list`, or --all.")
    with on_interrupt("Run the same command again to continue."):
        for name in names:
            print_result(str(weights_path(name, accept_license=config.accept_license)))


def run_verify(config: ZooVerifyConfig) -> None:
    """Check the models in the cache, and print the result of each."""
    from cosplace.models.cache import partial_downloads, verify_cache
    from cosplace.models.downloads import weights_folder

    files = verify_cache()
    if config.json:
        print_json([{**dataclasses.asdict(file), "path": str(file.path)} for file in files])
    else:
        for file in files:
            source = {"none": "no known checksum"}.get(file.digest_source, f"{file.digest_source} checksum")
            print_result(f"{file.name:28s}  {file.problem or f'good ({source}, {file.sha256[:16]}...)'}")
        for model, num_bytes in partial_downloads():
            advice = f"continue with `cosplace zoo download {model.name}`"
            print_result(f"{model.name:28s}  incomplete ({num_bytes / 1e6:.1f} MB): {advice}")
        print_result(f"{len(files)} models in {weights_folder()}")
    bad = [file.name for file in files if not file.is_good]
    if bad:
        raise CheckpointError(
            f"{len(bad)} of {len(files)} models in the cache are damaged: {', '.join(bad)}. Delete them and download "
            f"them again."
        )


def _record(model: "ZooModel | HubModel") -> dict[str, Any]:
    """Everything that is known about a model, for JSON: with its URL, its path in the cache and its checksum."""
    from cosplace.assessment.published import terms_of
    from cosplace.models.downloads import recorded_sha256, weights_folder
    from cosplace.models.zoo import ZooModel, released_url

    record = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    terms = terms_of(model.name)
    record["licenses"], record["commercial_use"] = terms.licenses, terms.commercial
    if "recalls" in record:
        record["recalls"] = dict(record["recalls"])
    if isinstance(model, ZooModel):
        path = weights_folder() / model.file_name
        record["url"] = released_url(model)
        record["path"] = str(path) if path.is_file() else None
        record["recorded_sha256"] = recorded_sha256(path) or None
    return record


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
