"""cosplace city, demo."""

from cosplace.cli.console import LOGS, Bars, log_to_folder, on_interrupt, print_result, timestamp
from cosplace.cli.serve import serve_index
from cosplace.config.demo import CityConfig, DemoConfig
from cosplace.config.values import loading_workers

MAP_NAME = "Synthetic city"
DEMO_AGAIN = "Run the same command again: it keeps the images of the city, and starts training from the beginning."


def run_city(config: CityConfig) -> None:
    """Render a synthetic city."""
    from synthcity.capture import build_city
    from synthcity.settings import CitySettings

    settings = CitySettings(
        images=config.images,
        image_size=config.image_size,
        database_images=config.database_images,
        num_queries=config.num_queries,
        seed=config.seed,
        num_threads=loading_workers(config.num_workers),
    )
    with on_interrupt("Run the same command again to continue."):
        summary = build_city(config.folder, settings, Bars())
    existing = f" ({summary.num_found} of them existed before)" if summary.num_found else ""
    counts = ", ".join(f"{count} in {name}" for name, count in summary.counts.items())
    print_result(f"{config.folder}: images {counts}{existing}")


def run_demo(config: DemoConfig) -> None:
    """Run all steps on a synthetic city: train, evaluate, index, locate."""
    if config.serve:  # raises before minutes of training
        from cosplace.server import require_extra

        require_extra()

    from cosplace.demo import INDEX, city_folder, index_and_locate, train_on_city
    from cosplace.storage import run_folder

    folder, city = run_folder(LOGS, "demo", timestamp()), city_folder(config.folder, config.seed)
    with log_to_folder(folder), on_interrupt(DEMO_AGAIN):
        table = train_on_city(city, folder, config.seed, Bars())
        located = index_and_locate(city, folder, Bars())
    print_result(f"{table}\n\n{located}\n")
    print_result(f"report: {(folder / 'report.html').resolve()}")
    if config.serve:
        from cosplace.server import ServerSettings

        serve_index(folder / INDEX, ServerSettings(name=MAP_NAME, samples=str(city / "test" / "queries_v1")))
    else:
        print_result(f"map:    cosplace serve --index {folder / INDEX}")
