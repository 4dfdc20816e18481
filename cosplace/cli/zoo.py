"""cosplace zoo: released models by name."""

import argparse
import dataclasses
import json
from typing import Any

from cosplace.cli.arguments import Command, Formatter
from cosplace.cli.console import say
from cosplace.errors import CheckpointError, ConfigError

ACTIONS = {
    "list": "all released models, and known ones through torch.hub",
    "info": "what is known of one model",
    "download": "fetch models into the cache, so that they work without network",
    "verify": "check the cached models: digests, readable, right architecture",
}
METHOD_WORDS = ("cosplace", "eigenplaces")


def _add_zoo(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_zoo, action="list", json=False, method=None)
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=False)
    parsers = {
        name: actions.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", formatter_class=Formatter
        )
        for name, text in ACTIONS.items()
    }
    parsers["list"].add_argument("--method", choices=METHOD_WORDS, default=None, help="only models of this method")
    parsers["info"].add_argument("name", metavar="NAME", help="of `cosplace zoo list`")
    parsers["download"].add_argument("names", metavar="NAME", nargs="*", help="of `cosplace zoo list`")
    parsers["download"].add_argument("--all", action="store_true", help="all released models: some 5 GB")
    for name in ("list", "info", "verify"):
        parsers[name].add_argument("--json", action="store_true", help="print JSON")


def _zoo(values: dict[str, Any]) -> None:
    action = values["action"] or "list"
    {"list": _list, "info": _info, "download": _download, "verify": _verify}[action](values)


def _list(values: dict[str, Any]) -> None:
    from cosplace.models.downloads import weights_folder
    from cosplace.models.zoo import HUB_MODELS, MODELS

    models = [model for model in MODELS.values() if values["method"] in (None, model.method)]
    folder = weights_folder()
    if values["json"]:
        say(json.dumps([_record(model) for model in models], indent=2))
        return
    say("name                          backbone    dimension   R@1 pitts30k   tokyo247   sf_xl_v1   cached")
    for model in models:
        recalls = [_percent(model.recalls.get(data)) for data in ("pitts30k", "tokyo247", "sf_xl_v1")]
        cached = "yes" if (folder / model.file_name).is_file() else ""
        row = f"{model.name:28s}  {model.backbone:10s}  {model.fc_output_dim:9d}"
        say(f"{row}   {recalls[0]:>12s}   {recalls[1]:>8s}   {recalls[2]:>8s}   {cached}".rstrip())
    if values["method"] is None:
        say("\nthrough torch.hub, with --trust_remote_code: their repositories' code runs on this machine")
        for hub in HUB_MODELS.values():
            say(f"{hub.name:16s}  {hub.fc_output_dim:9d}   {hub.spec}")
    if values["method"] in (None, "cosplace"):
        say(
            "\nVGG16 with 32 dimensions stands in the CosPlace paper too but was never released: train it with "
            "`cosplace train --backbone VGG16 --fc_output_dim 32`."
        )
    say(f"cache: {folder}")


def _info(values: dict[str, Any]) -> None:
    from cosplace.models.zoo import HubModel, find_model

    model = find_model(values["name"])
    record = _record(model)
    if values["json"]:
        say(json.dumps(record, indent=2))
        return
    for key, value in record.items():
        shown = ", ".join(f"{data} {recall}" for data, recall in value.items()) if isinstance(value, dict) else value
        say(f"{key:15s}  {'-' if shown in (None, '') else shown}")
    if isinstance(model, HubModel):
        say(f"\nuse it as --model {model.name} --trust_remote_code, which runs code from its repository")


def _download(values: dict[str, Any]) -> None:
    from cosplace.models.opening import model_file
    from cosplace.models.zoo import MODELS, find_model

    # All names are looked up before the first is fetched.
    names = [find_model(name).name for name in values["names"]] + [*(MODELS if values["all"] else ())]
    if not names:
        raise ConfigError("Nothing to download: give names of `cosplace zoo list`, or --all.")
    for name in names:
        say(str(model_file(name)))


def _verify(values: dict[str, Any]) -> None:
    from cosplace.models.cache import begun, verify
    from cosplace.models.downloads import weights_folder

    found = verify()
    if values["json"]:
        say(json.dumps([{**dataclasses.asdict(file), "path": str(file.path)} for file in found], indent=2))
    else:
        for file in found:
            source = {"none": "no digest known"}.get(file.digest_source, f"{file.digest_source} digest")
            say(f"{file.name:28s}  {file.problem or f'good ({source}, {file.sha256[:16]}...)'}")
        for model, size in begun():
            say(f"{model.name:28s}  begun ({size / 1e6:.1f} MB): `cosplace zoo download {model.name}` goes on")
        say(f"{len(found)} models in {weights_folder()}")
    bad = [file.name for file in found if not file.is_good]
    if bad:
        raise CheckpointError(
            f"{len(bad)} of {len(found)} cached models are not what they should be: {', '.join(bad)}."
        )


def _record(model: Any) -> dict[str, Any]:
    """A model's record as JSON takes it, with where it is and what is recorded of it."""
    from cosplace.models.downloads import recorded_digest, weights_folder
    from cosplace.models.zoo import ZooModel, released_url

    record = {
        key: dict(value) if key == "recalls" else value for key in model.__slots__ for value in (getattr(model, key),)
    }
    if isinstance(model, ZooModel):
        path = weights_folder() / model.file_name
        record["url"] = released_url(model)
        record["path"] = str(path) if path.is_file() else None
        record["recorded_sha256"] = recorded_digest(path) or None
    return record


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


COMMANDS = (
    Command(
        name="zoo",
        text="Released models by name: list them, look one up, download, verify what is cached.",
        add=_add_zoo,
    ),
)
