"""Load test of `cosplace serve`: correct answers, errors, latency and memory, with many clients.

    python benchmarks/load_server.py --index INDEX --photos FOLDER [--clients 64] [--seconds 60] [--malformed 1000]

Starts the server in a second process and sends it photos and malformed uploads.  Compares each answer with that of a
Localizer in this process, samples the server's memory, and stops the server with SIGTERM.  Exits with 1 after any wrong
response.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cosplace.localization.answers import as_json
from cosplace.localization.localizer import Localizer
from cosplace.photos.scanning import scan_images
from tests.server.server_samples import malformed

MALFORMED_SHARE = 0.15  # of the uploads under load
TOLERANCE = 2e-3  # of similarities and confidence; the last digits depend on the other photos of a batch
POSITION_TOLERANCE = 1e-5  # degrees, about a meter
WARM_UP_SECONDS = 5.0


@dataclass(slots=True)
class Responses:
    """Collected responses; threads add to it under its lock."""

    good_ms: list[float] = field(default_factory=list)
    bad_ms: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, milliseconds: float, status: int, wrong: str | None) -> None:
        """Add one response.  wrong: a description if it is wrong."""
        with self.lock:
            self.statuses[status] += 1
            if status != 429:
                (self.good_ms if kind == "good" else self.bad_ms).append(milliseconds)
            if wrong is not None:
                self.wrong.append(wrong)


class Server:
    """`cosplace serve` in a process of its own."""

    def __init__(self, index: str, flags: Sequence[str]) -> None:
        command = [sys.executable, "-m", "cosplace", "serve", "--index", index, "--port", "0", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        if not words:
            raise SystemExit(f"The server did not start. Run it on its own:  {' '.join(command)}")
        self.address = words[-1]

    def memory_mb(self) -> float:
        """Return the resident memory of the server's process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def stop(self) -> int:
        """Stop the server with SIGTERM and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def difference(got: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """Describe the difference of two answers; None if they are equal within the tolerances."""
    if got["unknown"] != expected["unknown"] and abs(got["confidence"] - expected["confidence"]) > TOLERANCE:
        return f"unknown is {got['unknown']}, expected {expected['unknown']}"
    if abs(got["confidence"] - expected["confidence"]) > TOLERANCE:
        return f"confidence is {got['confidence']}, expected {expected['confidence']}"
    for key in ("latitude", "longitude"):
        if got[key] is not None and expected[key] is not None and abs(got[key] - expected[key]) > POSITION_TOLERANCE:
            return f"{key} is {got[key]}, expected {expected[key]}"
    similarities = [[row["similarity"] for row in answer["neighbours"]] for answer in (got, expected)]
    if len(similarities[0]) != len(similarities[1]) or np.abs(np.subtract(*similarities)).max(initial=0) > TOLERANCE:
        return "different similarities"
    expected_ids = {row["id"] for row in expected["neighbours"]}
    # Matches with nearly the similarity of the last one may be exchanged.
    lowest = min(similarities[1], default=0.0) + TOLERANCE
    unexpected = [r["id"] for r in got["neighbours"] if r["id"] not in expected_ids and r["similarity"] > lowest]
    return f"unexpected match {unexpected[0]}" if unexpected else None


def send(client: httpx.Client, raw: bytes, name: str | None) -> tuple[httpx.Response, float]:
    """Send one upload as a form, or as the body if it has no name; return the response and its milliseconds."""
    started = time.perf_counter()
    if name is None:
        response = client.post("/locate", content=raw, headers={"Content-Type": "image/jpeg"})
    else:
        response = client.post("/locate", files=[("files", (name, raw))])
    return response, 1_000 * (time.perf_counter() - started)


def check_error(response: httpx.Response, what: str, statuses: set[int]) -> str | None:
    """Describe what is wrong with the response to a malformed upload; None if it is correct."""
    if response.status_code not in statuses:
        return f"{what}: {response.status_code} {response.text[:200]}"
    detail = response.json()["detail"]
    is_message = isinstance(detail, str) and detail and "Traceback" not in detail
    return None if is_message else f"{what}: the message is {detail!r}"


def send_malformed(address: str, count: int) -> Responses:
    """Send malformed uploads from four clients."""
    responses, source, lock = Responses(), malformed(), threading.Lock()

    def run(worker: int) -> None:
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
            for number in range(worker, count, 4):
                with lock:
                    what, raw, statuses = next(source)
                response, milliseconds = send(client, raw, "x.jpg" if number % 2 else None)
                wrong = check_error(response, what, statuses)
                responses.add("bad", milliseconds, response.status_code, wrong)

    _run_in_threads(run, 4)
    return responses


def load(address: str, photos: list[tuple[str, bytes, dict]], clients: int, seconds: float) -> Responses:
    """Send photos and malformed uploads from many clients at once."""
    responses, until = Responses(), time.monotonic() + seconds

    def run(number: int) -> None:
        rng, source = random.Random(number), malformed(number)
        with httpx.Client(base_url=address, timeout=120, trust_env=False) as client:
            while time.monotonic() < until:
                try:
                    wait = _send_random(client, rng, source, photos, responses)
                except httpx.HTTPError as error:
                    responses.add("bad", 0.0, 0, f"no response: {error!r}")
                    wait = 0.1
                time.sleep(min(wait, max(0.0, until - time.monotonic())))

    _run_in_threads(run, clients)
    return responses


def _send_random(
    client: httpx.Client, rng: random.Random, source: Any, photos: list[tuple[str, bytes, dict]], responses: Responses
) -> float:
    """Send a photo or a malformed upload; return the seconds to wait before the next."""
    if rng.random() < MALFORMED_SHARE:
        what, raw, statuses = next(source)
        response, milliseconds = send(client, raw, rng.choice((None, "x.jpg")))
        wrong = check_error(response, what, statuses | {429})
        responses.add("bad", milliseconds, response.status_code, wrong)
    else:
        name, raw, expected = rng.choice(photos)
        response, milliseconds = send(client, raw, name)
        wrong = None
        if response.status_code == 200:
            text = difference(response.json()["results"][0], expected)
            wrong = None if text is None else f"{name}: {text}"
        elif response.status_code != 429:
            wrong = f"{name}: {response.status_code} {response.text[:200]}"
        responses.add("good", milliseconds, response.status_code, wrong)
    return float(response.headers.get("retry-after", 0)) if response.status_code == 429 else 0.0


def _run_in_threads(run: Any, count: int) -> None:
    with ThreadPoolExecutor(count) as threads:
        for future in [threads.submit(run, number) for number in range(count)]:
            future.result()


class MemorySampler(threading.Thread):
    """Samples the server's memory every half second."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.server, self.samples, self.ended = server, [], threading.Event()

    def run(self) -> None:
        """Sample until `ended` is set."""
        started = time.monotonic()
        while not self.ended.wait(0.5):
            self.samples.append((time.monotonic() - started, self.server.memory_mb()))

    def growth(self) -> dict[str, float]:
        """Return the memory at the start, the means of the first and last third of the second half, and the maximum."""
        later = [memory for _, memory in self.samples[len(self.samples) // 2 :]]
        third = max(1, len(later) // 3)
        return {
            "start_mb": round(self.samples[0][1], 1),
            "middle_mb": round(float(np.mean(later[:third])), 1),
            "end_mb": round(float(np.mean(later[-third:])), 1),
            "most_mb": round(max(memory for _, memory in self.samples), 1),
        }


def percentiles(values: list[float]) -> dict[str, float]:
    """Return percentiles in milliseconds."""
    if not values:
        return {}
    return {f"p{rank}": round(float(np.percentile(values, rank)), 1) for rank in (50, 95, 99)} | {
        "most": round(max(values), 1)
    }


def read_photos(index: str, folder: Path, count: int, flags: Sequence[str]) -> list[tuple[str, bytes, dict]]:
    """Return (name, bytes, answer of a Localizer in this process) of photos spread over a folder."""
    images = scan_images(folder)
    localizer = Localizer(index, device="cpu", uncalibrated="--uncalibrated" in flags)
    rows = np.unique(np.linspace(0, len(images) - 1, count).astype(int)).tolist()
    return [
        (images.path(row).name, images.path(row).read_bytes(), as_json(localizer.locate(images.path(row))))
        for row in rows
    ]


def main() -> int:
    """Run the load test."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--index", required=True)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos to locate")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--malformed", type=int, default=1000)
    parser.add_argument("--different", type=int, default=100, help="number of photos to locate")
    parser.add_argument("--json", type=Path, default=None)
    arguments, flags = parser.parse_known_args()
    photos = read_photos(arguments.index, arguments.photos, arguments.different, flags)
    server = Server(arguments.index, flags)
    try:
        report = run(server, photos, arguments)
    except BaseException:
        server.process.kill()
        raise
    report["exit_code"] = server.stop()
    print(json.dumps(report, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if report["wrong"] or report["exit_code"] else 0


def run(server: Server, photos: list[tuple[str, bytes, dict]], arguments: argparse.Namespace) -> dict[str, Any]:
    """Send malformed uploads, then a warm-up, then the load; return the report."""
    idle_mb = round(server.memory_mb(), 1)
    bad = send_malformed(server.address, arguments.malformed)
    load(server.address, photos, arguments.clients, min(WARM_UP_SECONDS, arguments.seconds))
    sampler = MemorySampler(server)
    sampler.start()
    started = time.monotonic()
    responses = load(server.address, photos, arguments.clients, arguments.seconds)
    seconds = time.monotonic() - started
    sampler.ended.set()
    sampler.join()
    with httpx.Client(base_url=server.address, timeout=60, trust_env=False) as client:
        lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
        health = client.get("/health").json()
    batches = float(lines["cosplace_batch_photos_count"])
    wrong = [*bad.wrong, *responses.wrong]
    return {
        "malformed": {"sent": sum(bad.statuses.values()), "statuses": dict(bad.statuses), **percentiles(bad.bad_ms)},
        "clients": arguments.clients,
        "seconds": round(seconds, 1),
        "cores": os.cpu_count(),
        "statuses": dict(sorted(responses.statuses.items())),
        "located_per_s": round(len(responses.good_ms) / seconds, 1),
        "good_ms": percentiles(responses.good_ms),
        "bad_ms": percentiles(responses.bad_ms),
        "photos_per_batch": round(float(lines["cosplace_batch_photos_sum"]) / max(1.0, batches), 1),
        "memory": {"idle_mb": idle_mb, **sampler.growth()},
        "in_line_after": health["in_line"],
        "wrong": len(wrong),
        "first_wrong": wrong[:5],
    }


if __name__ == "__main__":
    raise SystemExit(main())
