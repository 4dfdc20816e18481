"""All figures of a plan, by formula.  Pure, but for the weights file of a model.

A decimal GB has 1e9 bytes.  docs/scale.md explains the formulas, with three examples.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cosplace.config.planning import PlanConfig
from cosplace.errors import ConfigError
from cosplace.index.approximate import MAX_PARTITIONS, MIN_PARTITIONS, ROWS_PER_PARTITION
from cosplace.planning.constants import Constant
from cosplace.planning.quantities import Quantity, Sheet, at_least, clipped, rounded_down, rounded_up, smallest
from cosplace.planning.workload import (
    PAPER_IMAGES,
    Inputs,
    PlannedNetwork,
    enter_photos,
    enter_search,
    enter_speeds,
    enter_training_speed,
    find_network,
)
from cosplace.progress import format_count

SECONDS_PER_MONTH, HOURS_PER_MONTH = 2_628_000.0, 730.0
CODE_BITS = 4.0  # per dimension of the codes of an index
ROW_ID_BYTES = 8.0
LIST_ROW_BYTES = 9.0  # of a photo in a list, beyond its name: where it starts, and a newline
CODES_NEED = 8  # the dimension of codes is a multiple of this
MEASURED_ROWS = 1_000_000  # photos of the largest index whose search was measured

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Disk": (
        "photos_gb", "store_gb", "shards", "rows_gb", "thumbnails_gb", "search_index_gb", "index_gb", "index_peak_gb",
        "parts",
    ),
    "Train": ("training_machine_hours",),
    "Compute descriptors": (
        "decoded_photos_per_s", "network_photos_per_s", "extract_photos_per_s", "extract_machine_hours",
        "extract_machines", "extract_hours", "read_gb_per_s", "list_gb",
    ),
    "Build the index": ("partitions", "index_core_hours", "index_hours"),
    "Serve": (
        "replica_gb", "scanned_gb", "search_core_ms", "encode_core_ms", "query_core_ms", "query_total_core_ms",
        "replicas", "servers",
    ),
    "Cost": ("build_cost", "storage_month_cost", "servers_month_cost", "month_cost", "query_cost"),
}  # fmt: skip
"""The figures that answer the question; all others are their inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a number of photos needs."""

    sheet: Sheet
    network: PlannedNetwork
    notes: tuple[str, ...]  # what the figures do not say

    def section_of(self, name: str) -> str:
        """The heading of a figure; "" for inputs."""
        return next((title for title, names in SECTIONS.items() if name in names), "")


def make_plan(
    config: PlanConfig,
    given: Collection[str] = (),
    measured: Mapping[str, Constant] | None = None,
    network: PlannedNetwork | None = None,
) -> Plan:
    """Compute all figures.

    given: names of the flags that the user set.  measured: constants of this machine, from `measuring`.

    Raises ConfigError for dimensions that the model does not have, and for a network whose speed is not known.
    """
    network = network or find_network(config)
    sheet = Sheet()
    inputs = Inputs(sheet, given, measured or {}, config.image_size or network.side)
    enter_photos(inputs, config, network)
    enter_speeds(inputs, config, network)
    enter_search(inputs, config)
    _plan_disk(sheet, config, network)
    _plan_parts(inputs, config)
    _plan_training(inputs, config, network)
    _plan_extraction(inputs, config)
    _plan_index(sheet, config)
    _plan_servers(inputs, config)
    _plan_costs(inputs, config)
    return Plan(sheet=sheet, network=network, notes=tuple(_notes(sheet, config, network)))


def _plan_disk(sheet: Sheet, config: PlanConfig, network: PlannedNetwork) -> None:
    photos = sheet["photos"]
    sheet.compute("photos_gb", "files of the photos", photos * sheet["photo_kb"] / 1e6, "GB")
    in_store = sheet.compute(
        "descriptor_bytes", "descriptor in the store", rounded_up(sheet["dim"] * sheet["bits"] / 8.0), "bytes"
    )
    sheet.compute("store_gb", "descriptor store", photos * in_store / 1e9, "GB")
    sheet.compute("shards", "shards", rounded_up(photos / sheet["shard_rows"]))
    in_index = sheet.compute(
        "index_descriptor_bytes", "descriptor in the index", sheet["dim"] * sheet["index_bits"] / 8.0, "bytes"
    )
    rows = sheet.compute(
        "rows_gb", "index: descriptors and positions", photos * (in_index + sheet["row_bytes"]) / 1e9, "GB"
    )
    index = rows
    if config.thumbnail_size:
        index += sheet.compute("thumbnails_gb", "index: thumbnails", photos * sheet["thumbnail_kb"] / 1e6, "GB")
    if config.photos > config.exact_rows:
        # Without codes, the search index holds full descriptors and row ids.
        code = in_index + ROW_ID_BYTES
        if network.dimension % CODES_NEED == 0:
            code = sheet["dim"] * CODE_BITS / 8.0 + sheet["code_extra_bytes"]
        code = sheet.compute("code_bytes", "photo in the search index", code, "bytes")
        index += sheet.compute("search_index_gb", "index: search index", photos * code / 1e9, "GB")
    total = sheet.compute("index_gb", "index", index, "GB")
    sheet.compute("index_peak_gb", "index, with old versions before compaction", total * sheet["old_versions"], "GB")


def _plan_parts(inputs: Inputs, config: PlanConfig) -> None:
    """The number of indexes: a server holds codes, positions and names of all photos of its index in memory."""
    sheet = inputs.sheet
    inputs.flag("server_memory_gb", "memory of a server", config.machine.server_memory_gb, "GB")
    inputs.flag("memory_share", "share of the memory of servers to use", config.machine.memory_share)
    code = sheet["code_bytes"] if "code_bytes" in sheet.figures else sheet["dim"] * 4.0  # float32 in memory
    row = sheet["column_bytes"] + sheet["name_bytes"] + code
    held = sheet.compute("held_gb", "photos in the memory of servers", sheet["photos"] * row / 1e9, "GB")
    usable = sheet["server_memory_gb"] * sheet["memory_share"] - sheet["server_gb"]
    if usable.value <= 0:
        raise ConfigError(
            f"--server_memory_gb {config.machine.server_memory_gb:g} is too small: a server needs "
            f"{sheet['server_gb'].value:g} GB without photos. Use for example 16."
        )
    parts = sheet.compute("parts", "indexes, by area", at_least(1, rounded_up(held / usable)))
    sheet.compute("replica_gb", "memory that a server uses", sheet["server_gb"] + held / parts, "GB")


def _plan_training(inputs: Inputs, config: PlanConfig, network: PlannedNetwork) -> None:
    images = config.training_images
    if images is None:
        images = 0 if network.is_trained else PAPER_IMAGES
    if not images:
        return
    sheet = inputs.sheet
    enter_training_speed(inputs, config, network)
    inputs.flag("training_images", "images to train with", images)
    _enter_machine(inputs, config)
    if config.machine.gpus:
        speed = sheet["gpus"] * sheet["gpu_training_photos_per_s"]
    else:
        speed = sheet["cores"] * sheet["training_photos_per_s"]
    sheet.compute("training_machine_hours", "training, one machine", sheet["training_images"] / speed / 3600.0, "h")


def _enter_machine(inputs: Inputs, config: PlanConfig) -> None:
    if not inputs.has("cores"):
        inputs.flag("cores", "CPU cores of a machine", config.machine.cores)
        inputs.flag("gpus", "GPUs of a machine", config.machine.gpus)


def _plan_extraction(inputs: Inputs, config: PlanConfig) -> None:
    sheet = inputs.sheet
    _enter_machine(inputs, config)
    cores, gpus = sheet["cores"], sheet["gpus"]
    decoded = cores * sheet["decoded_mb_per_s"] * 1000.0 / sheet["photo_kb"]
    decoded = sheet.compute("decoded_photos_per_s", "photos decoded, one machine", decoded, "/s")
    network = gpus * sheet["gpu_photos_per_s"] if config.machine.gpus else cores * sheet["cpu_photos_per_s"]
    network = sheet.compute("network_photos_per_s", "photos in the network, one machine", network, "/s")
    written = sheet["write_mb_per_s"] * 1e6 / sheet["descriptor_bytes"]
    # With a GPU, decoding and the network work at the same time; without one, they share the cores.
    if config.machine.gpus:
        speed = smallest(decoded, network, written)
    else:
        speed = smallest(1.0 / (1.0 / decoded + 1.0 / network), written)
    speed = sheet.compute("extract_photos_per_s", "descriptors, one machine", speed, "/s")
    hours = sheet.compute(
        "extract_machine_hours", "machine hours for descriptors", sheet["photos"] / speed / 3600.0, "h"
    )
    _plan_machines(inputs, config, hours)
    machines = sheet["extract_machines"]
    sheet.compute("extract_hours", "time for descriptors", hours / machines, "h")
    sheet.compute("read_gb_per_s", "photos read by all machines", machines * speed * sheet["photo_kb"] / 1e6, "GB/s")
    names = sheet["photos"] * (sheet["name_bytes"] + LIST_ROW_BYTES) / sheet["parts"] / 1e9
    sheet.compute("list_gb", "list of the photos of an index, in each process", names, "GB")


def _plan_machines(inputs: Inputs, config: PlanConfig, hours: Quantity) -> None:
    """The number of machines: that of the flag, or as many as finish in time."""
    sheet, title = inputs.sheet, "machines"
    if config.machine.machines is not None:
        inputs.flag("machines", title, config.machine.machines)
        sheet.compute("extract_machines", "machines", sheet["machines"])
        return
    inputs.flag("within_hours", "time for descriptors and index", config.machine.within_hours, "h")
    machines = rounded_up((hours + _index_core_hours(sheet, config) / sheet["cores"]) / sheet["within_hours"])
    sheet.compute("extract_machines", title, at_least(1, machines))


def _index_core_hours(sheet: Sheet, config: PlanConfig) -> Quantity:
    """Hours of one core to build the index: adding rows, and comparing descriptors with the centers of partitions."""
    if "index_core_hours" not in sheet.figures:
        seconds = sheet["photos"] * sheet["dim"] * 4.0 / 1e6 / sheet["indexed_mb_per_s"]
        if config.photos > config.exact_rows:
            most, fewest = float(MAX_PARTITIONS), float(MIN_PARTITIONS)
            number = rounded_down(sheet["photos"] / sheet["parts"] / float(ROWS_PER_PARTITION))
            sheet.compute("partitions", "partitions of a search index", clipped(fewest, number, most))
            gflop = sheet["photos"] * sheet["partitions"] * sheet["dim"] * 2.0 / 1e9
            seconds += gflop / sheet["assigned_gflop_per_s"]
        sheet.compute("index_core_hours", "core hours for the index", seconds / 3600.0, "h")
    return sheet["index_core_hours"]


def _plan_index(sheet: Sheet, config: PlanConfig) -> None:
    hours = _index_core_hours(sheet, config)
    sheet.compute("index_hours", "time for the index", hours / (sheet["extract_machines"] * sheet["cores"]), "h")


def _plan_servers(inputs: Inputs, config: PlanConfig) -> None:
    sheet = inputs.sheet
    parts = sheet["parts"]
    inputs.flag("server_cores", "CPU cores of a server", config.machine.server_cores)
    inputs.flag("utilization", "share of the time of servers to use", config.machine.utilization)
    inputs.flag("min_replicas", "minimum number of replicas", config.machine.min_replicas)
    if "search_index_gb" in sheet.figures:
        searched, speed = sheet["search_index_gb"] * sheet["probed_share"], sheet["scan_gb_per_s"]
    else:
        searched, speed = (
            sheet["photos"] * sheet["index_descriptor_bytes"] / 1e9,
            inputs.constant("exact_gb_per_s", config.speeds.exact_gb_per_s),
        )
    scanned = sheet.compute("scanned_gb", "compared in a search, in one index", searched / parts, "GB")
    search = sheet["search_ms"] + scanned / speed * 1000.0
    search = sheet.compute("search_core_ms", "CPU time of a search, in one index", search, "ms")
    encode = sheet["photo_kb"] / sheet["decoded_mb_per_s"]
    if not config.machine.server_gpus:
        encode += 1000.0 / sheet["cpu_photos_per_s"]
    encode = sheet.compute("encode_core_ms", "CPU time to encode a photo", encode, "ms")
    query = sheet.compute("query_core_ms", "CPU time of a query, in one index", search + encode, "ms")
    asked = parts
    if config.indexes_per_query is not None:
        inputs.flag("indexes_per_query", "indexes that a query is sent to", config.indexes_per_query)
        asked = sheet.compute(
            "indexes_asked", "indexes that answer a query", smallest(sheet["indexes_per_query"], parts)
        )
    sheet.compute("query_total_core_ms", "CPU time of a query, in all of its indexes", query * asked, "ms")

    queries = sheet["queries_per_second"]
    if config.indexes_per_query is not None:
        queries = sheet.compute("part_queries_per_second", "queries of each index", queries * asked / parts, "/s")
    load = queries * query / 1000.0 / (sheet["server_cores"] * sheet["utilization"])
    needed = rounded_up(load)
    if config.machine.server_gpus:
        inputs.flag("server_gpus", "GPUs of a server", config.machine.server_gpus)
        on_gpus = sheet["server_gpus"] * sheet["gpu_photos_per_s"] * sheet["utilization"]
        needed = rounded_up(load + queries / on_gpus)
    replicas = sheet.compute("replicas", "replicas of each index", _larger(needed, sheet["min_replicas"]))
    sheet.compute("servers", "servers", parts * replicas)


def _larger(one: Quantity, other: Quantity) -> Quantity:
    names = tuple(dict.fromkeys((*one.names, *other.names)))
    return Quantity(max(one.value, other.value), f"max({one.formula}, {other.formula})", names=names)


def _plan_costs(inputs: Inputs, config: PlanConfig) -> None:
    sheet, prices = inputs.sheet, config.prices
    month = []
    if prices.machine_hour_price is not None:
        price = inputs.flag("machine_hour_price", "a machine for an hour", prices.machine_hour_price)
        hours = sheet["extract_machine_hours"] + sheet["index_core_hours"] / sheet["cores"]
        if "training_machine_hours" in sheet.figures:
            hours += sheet["training_machine_hours"]
        sheet.compute("build_cost", "training, descriptors and index, once", hours * price)
    if prices.gb_month_price is not None:
        price = inputs.flag("gb_month_price", "a GB for a month", prices.gb_month_price)
        stored = sheet["index_gb"] + sheet["store_gb"]
        month.append(sheet.compute("storage_month_cost", "storage of index and descriptors, a month", stored * price))
    if prices.server_hour_price is not None:
        price = inputs.flag("server_hour_price", "a server for an hour", prices.server_hour_price)
        servers = sheet["servers"] * HOURS_PER_MONTH * price
        month.append(sheet.compute("servers_month_cost", "servers, a month", servers))
    if month:
        total = sheet.compute("month_cost", "a month", month[0] + month[1] if len(month) > 1 else month[0])
        queries = sheet["queries_per_second"] * SECONDS_PER_MONTH
        sheet.compute("query_cost", "a query, if that number comes all the time", total / queries)


def _notes(sheet: Sheet, config: PlanConfig, network: PlannedNetwork) -> list[str]:
    """What the reader of the figures has to know."""
    notes = []
    parts = round(sheet["parts"].value)
    if parts > 1:
        notes.append(
            f"The photos do not fit into the memory of one server, so they are divided by area into {parts:,} indexes, "
            f"each with its own servers."
        )
        if config.indexes_per_query is None:
            notes.append(
                "The figures are for queries that are sent to all indexes. No command merges their answers. If the "
                "area of a query is known, use --indexes_per_query 1."
            )
    if config.photos > MEASURED_ROWS:
        notes.append(
            f"The search was measured with up to {MEASURED_ROWS:,} photos. For more, its time and recall are "
            f"extrapolated: measure them on a part of your photos with `cosplace index info`."
        )
    if config.photos > config.exact_rows and network.dimension % CODES_NEED:
        rounded = -(-network.dimension // CODES_NEED) * CODES_NEED
        notes.append(
            f"The search index stores full descriptors, because {network.dimension} is not a multiple of {CODES_NEED}. "
            f"Use --dim {rounded} for small codes."
        )
    if network.dimension < network.model_dimension:
        notes.append(
            f"{network.name} has {network.model_dimension:,} dimensions. Reduce it to {network.dimension} with "
            f"`cosplace reduce`."
        )
    partitions = sheet.figures.get("partitions")
    if partitions is not None and partitions.value >= MAX_PARTITIONS:
        rows = round(config.photos / parts / MAX_PARTITIONS)
        notes.append(
            f"A search index has at most {MAX_PARTITIONS:,} partitions, here with {format_count(rows, 'photo')} each."
        )
    return notes
