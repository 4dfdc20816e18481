"""Settings of serve."""

from dataclasses import dataclass

from cosplace.config.setting import Section, section, setting
from cosplace.config.shared import (
    ConfidenceSettings,
    DeviceSettings,
    index_engine_setting,
    index_setting,
    moved_model_setting,
    root_setting,
)

TOKEN_VARIABLE = "COSPLACE_TOKEN"
NO_TILES = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions(Section):
    """Server"""

    host: str = setting(
        "127.0.0.1", "address to listen on; 127.0.0.1 can be reached only from this machine", metavar="HOST"
    )
    port: int = setting(8000, "port to listen on; 0 for any free one", at_least=0, at_most=65_535)
    token: str | None = setting(
        None, "bearer token required to add or delete photos. Other users of this machine can read it from the command "
        f"line, so prefer the environment variable {TOKEN_VARIABLE}",
        default_text="photos cannot be added or deleted", metavar="TOKEN",
    )  # fmt: skip
    allowed_hosts: tuple[str, ...] = setting(
        (), "additional host names of this server, for example the name of a proxy in front of it", metavar="NAME"
    )
    tiles: str | None = setting(
        None, "URL of map tiles, with {z}, {x} and {y}. Without it, the map sends no requests to other servers before "
        "the user clicks the button for OpenStreetMap. `none`: no such button", metavar="URL",
        default_text="no tiles until the user turns on OpenStreetMap",
    )  # fmt: skip
    attribution: str = setting("", "attribution of the map tiles, shown on the map")
    name: str | None = setting(
        None, "name of the area, shown on the map", metavar="NAME", default_text="the name of the index"
    )  # fmt: skip
    samples: str | None = setting(
        None, "folder with photos that the map offers to try, three of them; photos of the index find themselves, so "
        "use others. `none`: no photos", metavar="FOLDER", default_text="three photos of the index, marked as such",
    )  # fmt: skip
    workers: int = setting(
        1, "number of processes that answer requests on the port (Linux), each with its own copy of the model and its "
        "share of the cores, of --max_queue, --max_connections and --decoding_threads", at_least=1, at_most=256,
    )  # fmt: skip
    max_upload_mb: int = setting(20, "maximum size of one photo, in MB", at_least=1, at_most=2_000)
    max_pixels: int = setting(
        64_000_000, "maximum number of pixels of one photo; larger photos are rejected before decoding", at_least=1,
        at_most=1_000_000_000,
    )  # fmt: skip
    max_files: int = setting(16, "maximum number of photos per request", at_least=1, at_most=1_000)
    max_side: int = setting(
        1_024, "for an index that was built without --image_size: resize larger photos to this number of pixels along "
        "the shorter side", at_least=16, at_most=8_192,
    )  # fmt: skip
    max_batch: int = setting(24, "maximum number of photos in one batch of the network", at_least=1, at_most=1_024)
    max_batch_pixels: int = setting(
        6_000_000, "maximum number of pixels in one batch of the network, after resizing, which limits the memory of a "
        "batch; the default is enough for 16 photos of 512 x 683 pixels", at_least=100_000, at_most=10_000_000_000,
    )  # fmt: skip
    batch_wait_ms: float | None = setting(
        None, "maximum time that a batch waits for more photos, in milliseconds", at_least=0, at_most=1_000,
        default_text="a tenth of the time that recent batches took",
    )  # fmt: skip
    max_queue: int = setting(
        128, "maximum number of photos that wait for an answer; a photo that takes more than 128 MB to decode counts "
        "several times. Further requests get status 429", at_least=1, at_most=100_000,
    )  # fmt: skip
    time_limit_s: float = setting(
        30.0, "maximum time for one request including its upload, in seconds", at_least=0.1, at_most=3_600
    )
    decoding_threads: int | None = setting(
        None, "number of threads that decode photos", at_least=1, at_most=64, default_text="one per core, at least 2"
    )
    max_connections: int = setting(
        1_024, "maximum number of open connections, lower if the system allows fewer open files; when it is reached, "
        "the connection that has been idle longest is closed", at_least=1, at_most=100_000,
    )  # fmt: skip
    refresh_s: float = setting(
        30.0, "time between two checks for changes of the index by other programs, in seconds; 0 never checks",
        at_least=0, at_most=86_400,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig(Section):
    """Settings of `cosplace serve`."""

    index: str = index_setting()
    model: str | None = moved_model_setting()
    root: tuple[str, ...] = root_setting()
    engine: str | None = index_engine_setting()
    confidence: ConfidenceSettings = section(ConfidenceSettings)
    server: ServerOptions = section(ServerOptions)
    device: DeviceSettings = section(DeviceSettings)
