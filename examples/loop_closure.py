"""Loop closure for a robot, without ROS: was I here before?  `add` each keyframe, `query` it against older ones.

    python examples/loop_closure.py                          # made descriptors, prints latencies
    python examples/loop_closure.py --photos FOLDER --model best_model.pth --image_size 320

A keyframe is a descriptor with its number.  Candidates are older than `gap` keyframes (the last ones always look
alike), alike beyond `threshold`, and confirmed by a run of neighbours: the keyframe before must point near there too.
"""

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Closure:
    """Keyframe `now` shows the place of keyframe `then`."""

    now: int
    then: int
    similarity: float  # cosine


@dataclass(slots=True)
class LoopCloser:
    """Keyframes so far; one array that doubles when it is full, so that `add` never copies much."""

    dimension: int
    threshold: float = 0.6
    gap: int = 50
    near: int = 3  # keyframes: consecutive answers may be so far apart, beyond the one step made
    count: int = 0
    rows: np.ndarray = field(init=False)
    last: int = -1  # what the keyframe before pointed to, -1 for nothing

    def __post_init__(self) -> None:
        self.rows = np.empty((1024, self.dimension), np.float32)

    def add(self, descriptor: np.ndarray) -> int:
        """Remember a keyframe (D,), a unit vector; returns its number."""
        if self.count == len(self.rows):
            self.rows = np.concatenate([self.rows, np.empty_like(self.rows)])
        self.rows[self.count] = descriptor
        self.count += 1
        return self.count - 1

    def query(self, descriptor: np.ndarray) -> Closure | None:
        """The older keyframe of the same place; None when there is none, or none that the keyframe before confirms."""
        old = self.rows[: max(0, self.count - self.gap)]
        before, self.last = self.last, -1
        if not len(old):
            return None
        similarities = old @ descriptor
        best = int(similarities.argmax())
        if similarities[best] < self.threshold:
            return None
        self.last = best
        if before < 0 or abs(best - before) > self.near + 1:
            return None
        return Closure(now=self.count, then=best, similarity=float(similarities[best]))


def made_drive(num_places: int, dimension: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors (2 P, D) of a drive around P places, twice, and the number of the place of each.

    Looks change slowly along the way; the second round has other light, made as noise.
    """
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((num_places, dimension))
    kernel = np.array([0.25, 0.5, 1.0, 0.5, 0.25])
    smooth = sum(weight * np.roll(steps, shift, axis=0) for weight, shift in zip(kernel, range(-2, 3), strict=True))
    looks = np.concatenate([smooth, smooth]) / np.linalg.norm(smooth, axis=1).mean()
    rows = looks + 0.5 * rng.standard_normal(looks.shape) / np.sqrt(dimension)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32), np.tile(np.arange(num_places), 2)


def run(rows: np.ndarray, threshold: float) -> tuple[list[Closure], np.ndarray, np.ndarray]:
    """Closures, and seconds of each `query` and of each `add`."""
    closer = LoopCloser(rows.shape[1], threshold=threshold)
    closures, query_s, add_s = [], [], []
    for row in rows:
        started = time.perf_counter()
        closure = closer.query(row)
        asked = time.perf_counter()
        closer.add(row)
        query_s.append(asked - started)
        add_s.append(time.perf_counter() - asked)
        closures += [closure] if closure else []
    return closures, np.array(query_s), np.array(add_s)


def latency_text(name: str, seconds: np.ndarray) -> str:
    """Median, 95th percentile and worst in milliseconds."""
    median, most = np.percentile(seconds * 1000, [50, 95])
    return f"{name:9s} p50 {median:8.3f} ms   p95 {most:8.3f} ms   worst {seconds.max() * 1000:8.3f} ms"


def main() -> None:
    """Run on a made drive, or on a folder of frames."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--places", type=int, default=5000, help="of the made drive, which passes each twice")
    parser.add_argument("--dimension", type=int, default=512, help="of made descriptors")
    parser.add_argument("--photos", type=Path, help="a folder of frames, in order of their names")
    parser.add_argument("--model", help="weights or a name of `cosplace zoo list`, for --photos")
    parser.add_argument("--image_size", type=int, default=None, help="shorter side in pixels, for --photos")
    parser.add_argument("--threshold", type=float, default=0.6, help="cosine similarity of one place")
    options = parser.parse_args()
    if options.photos:
        from cosplace.models.encoder import load_model

        model = load_model(options.model or parser.error("--photos needs --model"), image_size=options.image_size)
        describe_s, found = [], []
        for path in sorted(path for path in options.photos.iterdir() if path.suffix.lower() in (".jpg", ".png")):
            started = time.perf_counter()
            found.append(model.encode(path)[0])
            describe_s.append(time.perf_counter() - started)
        if not found:
            parser.error(f"there are no .jpg or .png frames in {options.photos}")
        rows, places = np.stack(found), None
        print(latency_text("describe", np.array(describe_s)))
    else:
        rows, places = made_drive(options.places, options.dimension)
    closures, query_s, add_s = run(rows, options.threshold)
    print(latency_text("query", query_s))
    print(latency_text("add", add_s))
    print(f"{len(rows)} keyframes, {len(closures)} closures")
    if places is not None:
        right = sum(abs(int(places[closure.now]) - int(places[closure.then])) <= 2 for closure in closures)
        print(f"{right} of them right, of {len(rows) // 2} places that were passed again")
    else:
        for closure in closures[:20]:
            print(f"  {closure.now} shows the place of {closure.then} (similarity {closure.similarity:.3f})")


if __name__ == "__main__":
    main()
