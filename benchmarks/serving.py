"""Throughput of `cosplace serve` beside the engine's own, a plain FastAPI server and LitServe, results compared first.

    python -m benchmarks.serving --index INDEX --photos FOLDER [--turns 3] [--seconds 20] [--json FILE]

The index must have a ResNet-18 and an image size.  Each side runs in processes of its own, in turns: the engine (the
network of the index on decoded photos in memory, its best batch size), then the servers with 1, 16 and 64 clients.
Clients are a process of their own on the same cores; its share of the CPU is reported.  Each answer of cosplace must
equal that of the Python API; the best matches of the other servers must be the same, except for near ties.

    photos/s           answers within the last nine tenths of the time, divided by it
    of the engine      photos/s divided by those of the engine in the same turn; the median of all turns
    CPU ms             CPU time of all processes of a server for one photo.  Where other programs use the same cores,
                       its ratio to that of the engine says more than photos/s
"""

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.load_server import TOLERANCE, difference
from cosplace.memory import keep_freed_memory

ENVIRONMENT = {"OMP_WAIT_POLICY": "passive"}  # of all sides: threads that wait do not spin
NUM_CLIENTS = (1, 16, 64)
BATCH_SIZES = (1, 4, 8, 16, 32)
NUM_REPEATS = 3  # of the best of them
START_S, STOP_S = 300, 60
WARM_UP_REQUESTS = 16

Figures = dict[str, Any]


# --- processes -------------------------------------------------------------------------------------------------------


def usage_of(session: int) -> tuple[float, float]:
    """CPU seconds and resident MB of all processes of a session, shared memory counted once (Linux)."""
    ticks, kilobytes = 0, 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) != session:
                continue
            ticks += sum(map(int, fields[11:15]))  # utime, stime, and those of children that have ended
            rollup = (folder / "smaps_rollup").read_text()
            kilobytes += int(rollup.partition("\nPss:")[2].split()[0])
        except (OSError, ValueError, IndexError):  # it has just ended
            continue
    return ticks / os.sysconf("SC_CLK_TCK"), kilobytes / 1024


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class RunningServer:
    """A server in a session of its own."""

    def __init__(self, name: str, process: subprocess.Popen, port: int) -> None:
        self.name, self.process, self.port = name, process, port

    def usage(self) -> tuple[float, float]:
        """CPU seconds and MB of memory of all its processes."""
        return usage_of(self.process.pid)

    def send(self, photos: Path, clients: int, seconds: float, requests: int | None = None) -> Figures:
        """Run clients; return their report with the server's CPU seconds meanwhile and its memory."""
        before, _ = self.usage()
        script = str(Path(__file__).with_name("http_clients.py"))
        command = [sys.executable, script, "127.0.0.1", str(self.port), "/locate", "--photos", str(photos)]
        command += ["--clients", str(clients), "--seconds", str(seconds)]
        command += [] if requests is None else ["--requests", str(requests)]
        report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        if report["errors"] or report["statuses"] != [200]:
            raise SystemExit(f"{self.name}: statuses {report['statuses']}, {report['errors'][:3]}")
        after, memory_mb = self.usage()
        return report | {"server_cpu_s": after - before, "memory_mb": memory_mb}


@contextmanager
def running(name: str, command: list[str], port: int, log: Path) -> Generator[RunningServer]:
    """Start a server; wait until it accepts connections; afterwards end all its processes."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=os.environ | ENVIRONMENT, start_new_session=True
        )
    try:
        until = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    lines = log.read_text(errors="replace").splitlines()[-1:]
                    raise SystemExit(f"The server {name} did not start. {' '.join(lines)}") from None
                time.sleep(0.1)
        yield RunningServer(name, process, port)
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        with suppress(ProcessLookupError):  # what is left of its session
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def command_of(name: str, index: str, inputs: Path, port: int, flags: list[str]) -> list[str]:
    """Return the command that starts a server."""
    if name == "cosplace":
        return [sys.executable, "-m", "cosplace", "serve", "--index", index, "--port", str(port), *flags]
    module = {"FastAPI": "plain_server", "LitServe": "litserve_server"}[name]
    return [sys.executable, "-m", f"benchmarks.{module}", str(inputs), str(port)]


# --- the engine ------------------------------------------------------------------------------------------------------


def measure_engine(index: str, photos: Path, seconds: float) -> Figures:
    """Photos per second of the encoder alone, at its best: batch size, and one batch by all cores or one per core."""
    import torch

    from cosplace.index.photo_index import open_index
    from cosplace.localization.localizer import open_index_encoder
    from cosplace.photos.opening import open_image
    from cosplace.photos.resizing import resize_shorter_side

    encoder = open_index_encoder(open_index(index), "cpu")
    paths = sorted(path for path in photos.iterdir() if path.suffix == ".jpg")[: max(BATCH_SIZES)]
    decoded = [resize_shorter_side(open_image(path), encoder.image_size) for path in paths]
    num_cores = torch.get_num_threads()

    def measure(num_batches: int, batch_size: int) -> Figures:
        counts, until = [0] * num_batches, time.perf_counter() + seconds

        def compute(number: int) -> None:
            torch.set_num_threads(num_cores // num_batches)
            while time.perf_counter() < until:
                encoder.encode(decoded[:batch_size], batch_size=batch_size)
                counts[number] += batch_size

        started, cpu = time.perf_counter(), time.process_time()
        threads = [threading.Thread(target=compute, args=(number,)) for number in range(num_batches)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        num_photos = sum(counts)
        return {
            "batches": num_batches,
            "batch_size": batch_size,
            "photos_per_s": num_photos / (time.perf_counter() - started),
            "cpu_ms": 1_000 * (time.process_time() - cpu) / num_photos,
        }

    encoder.encode(decoded, batch_size=max(BATCH_SIZES))
    tried = [measure(count, size) for size in BATCH_SIZES for count in sorted({1, num_cores})]
    best = max(tried, key=lambda figures: figures["photos_per_s"])
    # Measured again: the highest of several measurements is too high by chance.
    again = [measure(best["batches"], best["batch_size"]) for _ in range(NUM_REPEATS)]
    return (
        best
        | {name: statistics.median(figures[name] for figures in again) for name in ("photos_per_s", "cpu_ms")}
        | {"tried": tried}
    )


# --- comparison of results -------------------------------------------------------------------------------------------


def expected_answers(index: str, photos: Path, flags: list[str]) -> dict[str, Figures]:
    """Answers of the Python API, by file name."""
    from cosplace.localization.answers import as_json
    from cosplace.localization.localizer import Localizer

    localizer = Localizer(index, device="cpu", uncalibrated="--uncalibrated" in flags)
    paths = sorted(path for path in photos.iterdir() if path.suffix == ".jpg")
    found = localizer.locate_many(paths)
    return {path.name: as_json(location) for path, location in zip(paths, found, strict=True)}


def check_answers(name: str, answers: list[tuple[str, str]], expected: dict[str, Figures]) -> None:
    """Compare answers with those of the Python API.  Raises SystemExit where they differ.

    Of the other servers, the best match is compared; it may be any with nearly the highest similarity.
    """
    for photo, body in answers:
        content = json.loads(body)
        if name == "cosplace":
            problem = difference(content["results"][0], expected[photo])
        else:
            best, matches = content["matches"][0], expected[photo]["neighbours"]
            similarities = {row["id"]: row["similarity"] for row in matches}
            highest = matches[0]["similarity"]
            is_near = abs(best["similarity"] - highest) <= TOLERANCE
            is_best = similarities.get(best["id"], -1.0) >= highest - TOLERANCE
            problem = None if is_near and is_best else f"{best}, expected {matches[0]['id']} with {highest}"
        if problem is not None:
            raise SystemExit(f"{name} answers differently for {photo}: {problem}")


# --- turns -----------------------------------------------------------------------------------------------------------


def measure_server(
    server: RunningServer, photos: Path, expected: dict[str, Figures], counts: list[int], seconds: float
) -> list[Figures]:
    """Figures of one server with each number of clients, after its answers have been compared."""
    warm_up = server.send(photos, 4, START_S, max(WARM_UP_REQUESTS, len(expected)))
    check_answers(server.name, warm_up["answers"], expected)
    rows = []
    for clients in counts:
        report = server.send(photos, clients, seconds)
        check_answers(server.name, report["answers"], expected)
        milliseconds = [1_000 * value for value in report["latencies_s"]]
        rows.append({
            "server": server.name, "clients": clients,
            "photos_per_s": report["num_in_time"] / report["seconds"],
            "p50_ms": float(np.percentile(milliseconds, 50)), "p95_ms": float(np.percentile(milliseconds, 95)),
            "cpu_ms": 1_000 * report["server_cpu_s"] / report["num_answers"],
            "client_cpu_ms": 1_000 * report["cpu_s"] / report["num_answers"],
            "memory_mb": report["memory_mb"],
        })  # fmt: skip
    return rows


def run_turn(arguments: argparse.Namespace, flags: list[str], inputs: Path, expected: dict[str, Figures]) -> Figures:
    """Measure the engine, then each server."""
    command = [sys.executable, "-m", "benchmarks.serving", "--index", arguments.index, "--photos",
               str(arguments.photos), "--engine_only", "--seconds", str(arguments.engine_seconds)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | ENVIRONMENT)
    engine = json.loads(done.stdout)
    rows = []
    for name in arguments.servers:
        port = free_port()
        with running(
            name, command_of(name, arguments.index, inputs, port, flags), port, inputs.with_name("log")
        ) as one:
            rows += measure_server(one, arguments.photos, expected, arguments.clients, arguments.seconds)
    for row in rows:
        row["of_engine"] = row["photos_per_s"] / engine["photos_per_s"]
        row["cpu_of_engine"] = engine["cpu_ms"] / row["cpu_ms"]
        row["of_ideal_queue"] = row["p50_ms"] / (1_000 * row["clients"] / engine["photos_per_s"])
    return {"engine": engine, "rows": rows, "load_average": os.getloadavg()[0]}


def medians(turns: list[Figures]) -> list[Figures]:
    """Medians over the turns of all figures of each server and number of clients."""
    rows = []
    for number, first in enumerate(turns[0]["rows"]):
        same = [turn["rows"][number] for turn in turns]
        rows.append({
            key: value if isinstance(value, (str, int)) else statistics.median(row[key] for row in same)
            for key, value in first.items()
        })  # fmt: skip
    return rows


def print_table(turns: list[Figures]) -> None:
    """Print the medians as a Markdown table."""
    engine = statistics.median(turn["engine"]["photos_per_s"] for turn in turns)
    cpu_ms = statistics.median(turn["engine"]["cpu_ms"] for turn in turns)
    best = turns[-1]["engine"]
    print(f"engine: {engine:.1f} photos/s, {cpu_ms:.1f} CPU ms per photo, best with batches of {best['batch_size']}, "
          f"{best['batches']} at a time; {os.cpu_count()} cores, load {turns[-1]['load_average']:.0f}")  # fmt: skip
    columns = ("photos_per_s", "of_engine", "cpu_ms", "cpu_of_engine", "p50_ms", "of_ideal_queue", "p95_ms",
               "client_cpu_ms", "memory_mb")  # fmt: skip
    titles = ("photos/s", "of the engine", "CPU ms", "engine's CPU", "p50 ms", "of an ideal queue", "p95 ms",
              "CPU ms of clients", "memory MB")  # fmt: skip
    print("| server | clients | " + " | ".join(titles) + " |\n|---|---:|" + "---:|" * len(titles))
    for row in medians(turns):
        values = " | ".join(f"{row[key]:.2f}" if "of_" in key else f"{row[key]:.1f}" for key in columns)
        print(f"| {row['server']} | {row['clients']} | {values} |")


def write_inputs(index: str, file: Path) -> None:
    """Write what the plain servers read: network, image size and descriptors."""
    import torch

    from cosplace.index.photo_index import open_index
    from cosplace.localization.localizer import open_index_encoder

    opened = open_index(index)
    ids, encoder = opened.columns().ids, open_index_encoder(opened, "cpu")
    descriptors = torch.from_numpy(opened.descriptors(ids).astype(np.float32))
    content = {"network": encoder.network.state_dict(), "image_size": encoder.image_size}
    torch.save(content | {"descriptors": descriptors, "ids": torch.from_numpy(ids.copy())}, file)


# --- the command line ------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure all sides and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--index", required=True, help="an index with a ResNet-18 and an image size")
    parser.add_argument("--photos", type=Path, required=True, help="folder of JPEG files to locate")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="of each number of clients")
    parser.add_argument("--engine_seconds", type=float, default=4, help="of each batch size of the engine")
    parser.add_argument("--clients", type=int, nargs="+", default=list(NUM_CLIENTS))
    parser.add_argument("--servers", nargs="+", default=["cosplace", "FastAPI", "LitServe"])
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--engine_only", action="store_true", help=argparse.SUPPRESS)
    arguments, flags = parser.parse_known_args()
    if arguments.engine_only:
        keep_freed_memory()  # as `cosplace serve` does
        print(json.dumps(measure_engine(arguments.index, arguments.photos, arguments.seconds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.torch"
        write_inputs(arguments.index, inputs)
        expected = expected_answers(arguments.index, arguments.photos, flags)
        turns = []
        for _ in range(arguments.turns):
            turns.append(run_turn(arguments, flags, inputs, expected))
            if arguments.json is not None:
                arguments.json.write_text(json.dumps(turns, indent=1) + "\n")
            print_table(turns)


if __name__ == "__main__":
    main()
