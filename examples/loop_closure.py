"""Loop closure for a robot, without ROS: has the camera been here before?  Query each keyframe, then add it.

    python examples/loop_closure.py                          # synthetic descriptors, prints latencies
    python examples/loop_closure.py --photos FOLDER --model best_model.pth --image_size 320

A keyframe is a descriptor with a number.  It is matched with older keyframes only, because the last `gap` ones always
look similar.  A match needs a similarity of at least `threshold`, and the match of the previous keyframe must be near.
"""

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

MAX_PRINTED = 20  # loop closures


@dataclass(frozen=True, slots=True, kw_only=True)
class Closure:
    """Keyframe `query` shows the same place as the older keyframe `match`."""

    query: int
    match: int
    similarity: float  # cosine


@dataclass(slots=True)
class LoopCloser:
    """The keyframes so far, in an array that doubles when it is full, so that `add` is fast on average."""

    dimension: int
    threshold: float = 0.6
    gap: int = 50
    max_step: int = 4  # keyframes between the matches of two consecutive keyframes
    count: int = 0
    descriptors: np.ndarray = field(init=False)
    previous_match: int = -1  # of the previous keyframe, -1 for none

    def __post_init__(self) -> None:
        self.descriptors = np.empty((1024, self.dimension), np.float32)

    def add(self, descriptor: np.ndarray) -> int:
        """Add a keyframe (D,), a unit vector; return its number."""
        if self.count == len(self.descriptors):
            self.descriptors = np.concatenate([self.descriptors, np.empty_like(self.descriptors)])
        self.descriptors[self.count] = descriptor
        self.count += 1
        return self.count - 1

    def query(self, descriptor: np.ndarray) -> Closure | None:
        """Find the older keyframe of the same place; None if there is none that the previous keyframe confirms."""
        candidates = self.descriptors[: max(0, self.count - self.gap)]
        previous, self.previous_match = self.previous_match, -1
        if not len(candidates):
            return None
        similarities = candidates @ descriptor
        best = int(similarities.argmax())
        if similarities[best] < self.threshold:
            return None
        self.previous_match = best
        if previous < 0 or abs(best - previous) > self.max_step:
            return None
        return Closure(query=self.count, match=best, similarity=float(similarities[best]))


def synthetic_drive(num_places: int, dimension: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors (2 P, D) of a drive that passes P places twice, and the place of each.

    Descriptors change slowly from place to place; noise stands for other light in the second round.
    """
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((num_places, dimension))
    kernel = np.array([0.25, 0.5, 1.0, 0.5, 0.25])
    smooth = sum(weight * np.roll(steps, shift, axis=0) for weight, shift in zip(kernel, range(-2, 3), strict=True))
    places = np.concatenate([smooth, smooth]) / np.linalg.norm(smooth, axis=1).mean()
    descriptors = places + 0.5 * rng.standard_normal(places.shape) / np.sqrt(dimension)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    return descriptors.astype(np.float32), np.tile(np.arange(num_places), 2)


def run(descriptors: np.ndarray, threshold: float) -> tuple[list[Closure], np.ndarray, np.ndarray]:
    """Find the closures of all keyframes; return them, and the seconds of each `query` and each `add`."""
    closer = LoopCloser(descriptors.shape[1], threshold=threshold)
    closures, query_s, add_s = [], [], []
    for descriptor in descriptors:
        started = time.perf_counter()
        closure = closer.query(descriptor)
        queried = time.perf_counter()
        closer.add(descriptor)
        query_s.append(queried - started)
        add_s.append(time.perf_counter() - queried)
        if closure is not None:
            closures.append(closure)
    return closures, np.array(query_s), np.array(add_s)


def latency_text(name: str, seconds: np.ndarray) -> str:
    """Median, 95th percentile and maximum in milliseconds."""
    median, high = np.percentile(seconds * 1000, [50, 95])
    return f"{name:9s} p50 {median:8.3f} ms   p95 {high:8.3f} ms   max {seconds.max() * 1000:8.3f} ms"


def main() -> None:
    """Run on a synthetic drive, or on a folder of frames."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--places", type=int, default=5000, help="places of the synthetic drive, which passes each twice"
    )
    parser.add_argument("--dimension", type=int, default=512, help="dimension of synthetic descriptors")
    parser.add_argument("--photos", type=Path, help="folder of frames, in the order of their names")
    parser.add_argument("--model", help="weights file or a name from `cosplace zoo list`, for --photos")
    parser.add_argument("--image_size", type=int, default=None, help="with --photos: shorter side in pixels")
    parser.add_argument("--threshold", type=float, default=0.6, help="minimum cosine similarity of a match")
    options = parser.parse_args()
    if options.photos:
        from cosplace import load_model

        model = load_model(options.model or parser.error("--photos needs --model"), image_size=options.image_size)
        encode_s, found = [], []
        for path in sorted(path for path in options.photos.iterdir() if path.suffix.lower() in (".jpg", ".png")):
            started = time.perf_counter()
            found.append(model.encode(path)[0])
            encode_s.append(time.perf_counter() - started)
        if not found:
            parser.error(f"{options.photos} has no .jpg or .png frames")
        descriptors, places = np.stack(found), None
        print(latency_text("encode", np.array(encode_s)))
    else:
        descriptors, places = synthetic_drive(options.places, options.dimension)
    closures, query_s, add_s = run(descriptors, options.threshold)
    print(latency_text("query", query_s))
    print(latency_text("add", add_s))
    print(f"{len(descriptors)} keyframes, {len(closures)} loop closures")
    if places is not None:
        num_correct = sum(abs(int(places[closure.query]) - int(places[closure.match])) <= 2 for closure in closures)
        print(f"{num_correct} of them correct, {len(descriptors) // 2} places passed a second time")
    else:
        for closure in closures[:MAX_PRINTED]:
            print(f"  {closure.query} shows the place of {closure.match} (similarity {closure.similarity:.3f})")


if __name__ == "__main__":
    main()
