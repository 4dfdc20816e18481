"""Load on `cosplace serve` from a second process: right answers under load, refusals, latencies, memory.

    python benchmarks/load_server.py --index INDEX --photos FOLDER [--clients 64] [--seconds 60] [--malformed 1000]

Starts the server over loopback, compares each good photo's answer with that of a Localizer in this process, sends
malformed uploads alone and among the good ones, samples the server's memory, stops it with SIGTERM.  Exits with 1 when
anything was wrong.
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

from tests.server_stand import malformed

from cosplace.localization.answers import as_json
from cosplace.localization.localizer import Localizer
from cosplace.photos.scanning import scan_images

BAD_SHARE = 0.15  # of the uploads under load
TOLERANCE = 2e-3  # of similarities and confidence: the photos of a batch change a convolution's last digits
POSITION_TOLERANCE = 1e-5  # degrees, about a meter
WARM_UP_SECONDS = 5.0


@dataclass(slots=True)
class Tally:
    """What was seen; threads add to it under its lock."""

    good_ms: list[float] = field(default_factory=list)
    bad_ms: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, milliseconds: float, status: int, wrong: str | None) -> None:
        """One answer."""
        with self.lock:
            self.statuses[status] += 1
            if status != 429:
                (self.good_ms if kind == "good" else self.bad_ms).append(milliseconds)
            if wrong is not None:
                self.wrong.append(wrong)


class Server:
    """`cosplace serve` in a process of its own."""

    def __init__(self, index: str, further: Sequence[str]) -> None:
        command = [sys.executable, "-m", "cosplace", "serve", "--index", index, "--port", "0", *further]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        if not words:
            raise SystemExit(f"the server did not start: {' '.join(command)}")
        self.address = words[-1]

    def memory_mb(self) -> float:
        """Resident memory of the server's process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def difference(got: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """What tells two answers apart; None for the same answer."""
    if got["unknown"] != expected["unknown"] and abs(got["confidence"] - expected["confidence"]) > TOLERANCE:
        return f"unknown: {got['unknown']}, not {expected['unknown']}"
    if abs(got["confidence"] - expected["confidence"]) > TOLERANCE:
        return f"confidence {got['confidence']}, not {expected['confidence']}"
    for key in ("latitude", "longitude"):
        if got[key] is not None and expected[key] is not None and abs(got[key] - expected[key]) > POSITION_TOLERANCE:
            return f"{key} {got[key]}, not {expected[key]}"
    similarities = [[row["similarity"] for row in answer["neighbours"]] for answer in (got, expected)]
    if len(similarities[0]) != len(similarities[1]) or np.abs(np.subtract(*similarities)).max(initial=0) > TOLERANCE:
        return "other similarities"
    known = {row["id"]: row["similarity"] for row in expected["neighbours"]}
    last = min(similarities[1], default=0.0)
    strangers = [r for r in got["neighbours"] if r["id"] not in known and r["similarity"] > last + TOLERANCE]
    return f"other neighbours: {strangers[0]['id']}" if strangers else None


def send(client: httpx.Client, raw: bytes, name: str | None) -> tuple[httpx.Response, float]:
    """One upload, as a form or (without a name) as the body."""
    started = time.perf_counter()
    if name is None:
        answer = client.post("/locate", content=raw, headers={"Content-Type": "image/jpeg"})
    else:
        answer = client.post("/locate", files=[("files", (name, raw))])
    return answer, 1_000 * (time.perf_counter() - started)


def refused_rightly(answer: httpx.Response, what: str, statuses: set[int]) -> str | None:
    """What is wrong with a refusal; None when all is well."""
    if answer.status_code not in statuses:
        return f"{what}: {answer.status_code} {answer.text[:200]}"
    detail = answer.json()["detail"]
    return None if isinstance(detail, str) and detail and "Traceback" not in detail else f"{what}: says {detail!r}"


def send_malformed(address: str, count: int) -> Tally:
    """Malformed uploads, one after another from a few clients."""
    tally, source, lock = Tally(), malformed(), threading.Lock()

    def run(number: int) -> None:
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
            for place in range(number, count, 4):
                with lock:
                    what, raw, statuses = next(source)
                answer, milliseconds = send(client, raw, "x.jpg" if place % 2 else None)
                tally.add("bad", milliseconds, answer.status_code, refused_rightly(answer, what, statuses))

    _together(run, 4)
    return tally


def load(address: str, photos: list[tuple[str, bytes, dict]], clients: int, seconds: float) -> Tally:
    """Many clients at once, good uploads and bad ones mixed."""
    tally, until = Tally(), time.monotonic() + seconds

    def run(number: int) -> None:
        chance, source = random.Random(number), malformed(number)
        with httpx.Client(base_url=address, timeout=120, trust_env=False) as client:
            while time.monotonic() < until:
                try:
                    wait = _one(client, chance, source, photos, tally)
                except httpx.HTTPError as error:
                    tally.add("bad", 0.0, 0, f"no answer: {error!r}")
                    wait = 0.1
                time.sleep(min(wait, max(0.0, until - time.monotonic())))

    _together(run, clients)
    return tally


def _one(client: httpx.Client, chance: random.Random, source: Any, photos: Any, tally: Tally) -> float:
    """One upload; returns the seconds to wait before the next."""
    if chance.random() < BAD_SHARE:
        what, raw, statuses = next(source)
        answer, milliseconds = send(client, raw, chance.choice((None, "x.jpg")))
        wrong = refused_rightly(answer, what, statuses | {429})
        tally.add("bad", milliseconds, answer.status_code, wrong)
    else:
        name, raw, expected = chance.choice(photos)
        answer, milliseconds = send(client, raw, name)
        wrong = None
        if answer.status_code == 200:
            told = difference(answer.json()["results"][0], expected)
            wrong = None if told is None else f"{name}: {told}"
        elif answer.status_code != 429:
            wrong = f"{name}: {answer.status_code} {answer.text[:200]}"
        tally.add("good", milliseconds, answer.status_code, wrong)
    return float(answer.headers.get("retry-after", 0)) if answer.status_code == 429 else 0.0


def _together(run: Any, count: int) -> None:
    with ThreadPoolExecutor(count) as threads:
        for future in [threads.submit(run, number) for number in range(count)]:
            future.result()


class MemorySampler(threading.Thread):
    """The server's memory every half second."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.server, self.samples, self.ended = server, [], threading.Event()

    def run(self) -> None:
        """Until `ended` is set."""
        started = time.monotonic()
        while not self.ended.wait(0.5):
            self.samples.append((time.monotonic() - started, self.server.memory_mb()))

    def growth(self) -> dict[str, float]:
        """Mean memory of the first and the last third of the second half, and the largest."""
        later = [memory for _, memory in self.samples[len(self.samples) // 2 :]]
        third = max(1, len(later) // 3)
        return {
            "start_mb": round(self.samples[0][1], 1),
            "middle_mb": round(float(np.mean(later[:third])), 1),
            "end_mb": round(float(np.mean(later[-third:])), 1),
            "most_mb": round(max(memory for _, memory in self.samples), 1),
        }


def percentiles(values: list[float]) -> dict[str, float]:
    """Milliseconds."""
    if not values:
        return {}
    return {f"p{rank}": round(float(np.percentile(values, rank)), 1) for rank in (50, 95, 99)} | {
        "most": round(max(values), 1)
    }


def good_photos(index: str, folder: Path, count: int, further: Sequence[str]) -> list[tuple[str, bytes, dict]]:
    """(name, bytes, the answer of a Localizer in this process)."""
    images = scan_images(folder)
    localizer = Localizer(index, device="cpu", uncalibrated="--uncalibrated" in further)
    rows = np.unique(np.linspace(0, len(images) - 1, count).astype(int)).tolist()
    return [
        (images.path(row).name, images.path(row).read_bytes(), as_json(localizer.locate(images.path(row))))
        for row in rows
    ]


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--index", required=True)
    parser.add_argument("--photos", type=Path, required=True, help="folder of good photos")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--malformed", type=int, default=1000)
    parser.add_argument("--different", type=int, default=100, help="good photos")
    parser.add_argument("--json", type=Path, default=None)
    arguments, further = parser.parse_known_args()
    photos = good_photos(arguments.index, arguments.photos, arguments.different, further)
    server = Server(arguments.index, further)
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
    """Malformed uploads, a warm-up, the load."""
    idle_mb = round(server.memory_mb(), 1)
    bad = send_malformed(server.address, arguments.malformed)
    load(server.address, photos, arguments.clients, min(WARM_UP_SECONDS, arguments.seconds))
    sampler = MemorySampler(server)
    sampler.start()
    started = time.monotonic()
    tally = load(server.address, photos, arguments.clients, arguments.seconds)
    seconds = time.monotonic() - started
    sampler.ended.set()
    sampler.join()
    with httpx.Client(base_url=server.address, timeout=60, trust_env=False) as client:
        lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
        health = client.get("/health").json()
    batches = float(lines["cosplace_batch_photos_count"])
    wrong = [*bad.wrong, *tally.wrong]
    return {
        "malformed": {"sent": sum(bad.statuses.values()), "statuses": dict(bad.statuses), **percentiles(bad.bad_ms)},
        "clients": arguments.clients,
        "seconds": round(seconds, 1),
        "cores": os.cpu_count(),
        "statuses": dict(sorted(tally.statuses.items())),
        "located_per_s": round(len(tally.good_ms) / seconds, 1),
        "good_ms": percentiles(tally.good_ms),
        "bad_ms": percentiles(tally.bad_ms),
        "photos_per_batch": round(float(lines["cosplace_batch_photos_sum"]) / max(1.0, batches), 1),
        "memory": {"idle_mb": idle_mb, **sampler.growth()},
        "in_line_after": health["in_line"],
        "wrong": len(wrong),
        "first_wrong": wrong[:5],
    }


if __name__ == "__main__":
    raise SystemExit(main())
