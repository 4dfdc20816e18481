"""cosplace protocols, reproduce: published protocols, and published figures beside ours."""

import dataclasses
import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosplace.cli.console import Bars, print_json, print_result, write_json
from cosplace.cli.help import help_width
from cosplace.cli.text_table import text_table
from cosplace.config.evaluation import EvalConfig
from cosplace.config.reproduce import ProtocolsConfig, ReproduceConfig
from cosplace.config.values import from_values
from cosplace.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cosplace.assessment.protocols import Protocol, Protocols
    from cosplace.assessment.published import Figure, ModelTerms, Reproduction
    from cosplace.retrieval.dataset import RetrievalDataset
    from cosplace.retrieval.evaluation import Evaluation

INDENT = " " * 4  # of a note


def run_protocols(config: ProtocolsConfig) -> None:
    """Print the protocols."""
    from cosplace.assessment.protocols import all_protocols

    protocols = all_protocols().values()
    if config.json:
        print_json([{"id": one.id, **dataclasses.asdict(one)} for one in protocols])
        return
    rows = [("protocol", "database", "queries", "radius", "dataset")]
    for one in protocols:
        rows.append((one.id, f"{one.num_database:,}", f"{one.num_queries:,}", one.radius_text, one.title))
    heading, *lines = text_table(rows, numbers=[1, 2])
    print_result(heading)
    for one, line in zip(protocols, lines, strict=True):
        print_result(line)
        for note in textwrap.wrap(one.note, help_width(), initial_indent=INDENT, subsequent_indent=INDENT):
            print_result(note)


def run_reproduce(config: ReproduceConfig) -> None:
    """Evaluate a released model by a protocol, and print its published figures beside ours."""
    reproduce(config)


def reproduce(
    config: ReproduceConfig, protocols: "Protocols | None" = None, figures: "Sequence[Figure] | None" = None
) -> "list[Reproduction]":
    """Evaluate a released model by a protocol, print its published figures beside ours, and store them in results.json.

    protocols, figures: None for those of the package.
    Raises ConfigError for an unknown model or one without published figures, DatasetError for a dataset that differs.
    """
    from cosplace.assessment.published import figures_of, terms_of
    from cosplace.cli.evaluating import evaluate_run
    from cosplace.models.zoo import find_model

    if Path(config.model).is_file():
        raise ConfigError(
            f"{config.model} is a file, and figures are published for released models. Use a name from `cosplace zoo "
            f"list`, or `cosplace eval --model {config.model}`."
        )
    name = find_model(config.model).name
    known = figures_of(name, figures=figures)
    if not known:
        raise ConfigError(f"No figure of {name} was published as a number. Use `cosplace eval --model {name}`.")
    protocol = _choose_protocol(config, name, known, protocols)
    known = [figure for figure in known if figure.protocol == protocol.id]
    evaluation_config = from_values(
        EvalConfig,
        {
            "test_set_folder": config.dataset,
            "resume_model": name,
            "protocol": protocol.id,
            "queries_folder": config.queries_folder,
            "recall_values": sorted({1, 5, 10, 20} | {figure.n for figure in known}),
            "descriptors_folder": config.descriptors_folder,
            "save_dir": config.save_dir,
            "skip_unreadable": config.skip_unreadable,
            "follow_outside": config.follow_outside,
            "device": config.device,
            "trust_remote_code": config.trust_remote_code,
            "infer_batch_size": config.encoding.infer_batch_size,
            "num_workers": config.encoding.num_workers,
        },
    )
    done = evaluate_run(evaluation_config, {}, protocols, remedy="use `cosplace eval` to evaluate it as custom")
    assert done is not None  # this is not a dry run
    folder, evaluation, dataset = done
    found = compare(evaluation, dataset, known)
    _add_to_results(folder / "results.json", found, terms_of(name))
    for line in _table(found, evaluation, terms_of(name)):
        print_result(line)
    return found


def _choose_protocol(
    config: ReproduceConfig, name: str, known: "Sequence[Figure]", protocols: "Protocols | None"
) -> "Protocol":
    """The protocol that is asked for, or that the dataset matches; it has a published figure of the model."""
    from cosplace.assessment.protocols import find_protocol

    published = list(dict.fromkeys(figure.protocol for figure in known))
    if config.protocol is None:
        matching = _matching(config, protocols)
        found = next((one for one in matching if one.id in published), None)
        if found is not None:
            return found
        names = " and ".join(one.id for one in matching)
        raise ConfigError(
            f"{config.dataset} matches {names}, but {name} has published figures for {', '.join(published)} only."
        )
    protocol = find_protocol(config.protocol, protocols)
    if protocol.id not in published:
        raise ConfigError(
            f"No figure of {name} was published for {protocol.id}. It has figures for {', '.join(published)}."
        )
    return protocol


def _matching(config: ReproduceConfig, protocols: "Protocols | None") -> "list[Protocol]":
    """The protocols that the dataset matches.  Raises DatasetError if there are none."""
    from cosplace.assessment.protocols import matching_protocols
    from cosplace.retrieval.dataset import open_retrieval_dataset

    bars = Bars()
    dataset = open_retrieval_dataset(
        config.dataset, config.queries_folder, follow_outside=config.follow_outside, progress=bars
    )
    bars.close()
    matching = matching_protocols(dataset, protocols=protocols)
    if not matching:
        raise DatasetError(
            f"{dataset.folder} has {len(dataset.queries):,} queries and {len(dataset.database):,} database images, "
            f"and matches no protocol. Use --protocol to see the differences, or --queries_folder for other queries."
        )
    return matching


def compare(evaluation: "Evaluation", dataset: "RetrievalDataset", figures: "Sequence[Figure]") -> "list[Reproduction]":
    """Published figures beside the recalls of an evaluation with their 95% intervals, for queries drawn by place."""
    import numpy as np

    from cosplace.assessment.intervals import clustered_share
    from cosplace.assessment.metrics import query_clusters
    from cosplace.assessment.published import Reproduction

    hits, clusters = evaluation.hits, query_clusters(evaluation, dataset)
    return [
        Reproduction(figure=one, ours=clustered_share(np.asarray(hits[:, : one.n].any(axis=1)), clusters))
        for one in figures
        if one.n in evaluation.recalls
    ]


def _add_to_results(path: Path, found: "Sequence[Reproduction]", terms: "ModelTerms") -> None:
    results: dict[str, Any] = json.loads(path.read_text("utf-8"))
    results["published"] = {"image_size": terms.image_size, "figures": [one.record() for one in found]}
    write_json(path, results)


def _table(found: "Sequence[Reproduction]", evaluation: "Evaluation", terms: "ModelTerms") -> list[str]:
    lines = ["R@N   published   ours  95% interval   difference   inside   source"]
    for one in found:
        interval = f"[{one.ours.low:.1f}, {one.ours.high:.1f}]"
        lines.append(
            f"{one.figure.n:3d}   {one.figure.recall:9.1f}  {one.ours.value:5.1f}  {interval:>13s}  "
            f"{one.difference:+10.1f}   {'yes' if one.is_inside else 'no':>6s}   {one.figure.source}"
        )
    if marked := [f"R@{one.figure.n}" for one in found if one.ours.is_approximate]:
        lines.append(f"The intervals of {', '.join(dict.fromkeys(marked))} are approximate.")
    size = "their own size" if evaluation.image_size is None else f"{evaluation.image_size} pixels, shorter side"
    if terms.image_size not in ("native", "unknown"):
        lines.append(f"Published at {terms.image_size} pixels; evaluated at {size}.")
    elif terms.image_size == "unknown":
        lines.append(f"The image size of the published figures is unknown; evaluated at {size}.")
    lines.append(f"licenses: code {terms.code}; weights {terms.weights}; training data {terms.data}")
    return lines
