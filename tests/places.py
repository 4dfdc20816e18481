"""A synthetic world of descriptors: places that look unique or similar to each other; no photos."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cosplace.geo import destination
from cosplace.index.photo_index import PhotoIndex, create_index
from cosplace.index.records import ModelSpec, NewPhoto

D = 32
SPEC = ModelSpec(model="synthetic", checksum="c" * 64, dimension=D)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Places in a square grid; the descriptor of a photo is the vector of its place with noise, weak or strong."""

    vectors: np.ndarray  # (P, D)
    east_north_m: np.ndarray  # (P, 2)
    latitude: float
    longitude: float

    def capture(self, places: np.ndarray, rng: np.random.Generator, noise: tuple[float, float]):
        """Descriptors (n, D), latitudes and longitudes (n,) of one photo of each place, a few meters around it."""
        levels = rng.uniform(*noise, (len(places), 1))
        rows = self.vectors[places] + levels * rng.standard_normal((len(places), D)) / np.sqrt(D)
        at = self.east_north_m[places] + rng.uniform(-4, 4, (len(places), 2))
        return (units(rows), *destination(self.latitude, self.longitude, at[:, 0], at[:, 1]))


def units(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def make_world(num_places: int, *, seed: int = 0, latitude: float = 45.0, longitude: float = 7.0) -> World:
    """Places 60 m apart; all are somewhat similar, like the streets of one city."""
    rng = np.random.default_rng([seed, 1])
    side = int(np.ceil(np.sqrt(num_places)))
    grid = np.stack(np.divmod(np.arange(num_places), side), axis=1) * 60.0
    vectors = units(rng.standard_normal((num_places, D)) + 0.8 * rng.standard_normal(D))
    return World(vectors=vectors, east_north_m=grid, latitude=latitude, longitude=longitude)


def new_photos(latitudes: np.ndarray, longitudes: np.ndarray, prefix: str = "p") -> list[NewPhoto]:
    return [
        NewPhoto(
            path=f"/synthetic/{prefix}{number}.jpg",
            key=f"{prefix}{number}",
            latitude=float(lat),
            longitude=float(lon),
            time=1e9 + 86_400.0 * number,
        )
        for number, (lat, lon) in enumerate(zip(latitudes, longitudes, strict=True))
    ]


def world_index(address: Path, world: World, captures: int = 5, noise: tuple[float, float] = (0.3, 1.2)) -> PhotoIndex:
    """An index, open for writing, with `captures` photos of each place."""
    rng = np.random.default_rng(2)
    places = np.repeat(np.arange(len(world.vectors)), captures)
    rows, lat, lon = world.capture(places, rng, noise)
    index = create_index(address, SPEC)
    index.add(new_photos(lat, lon), rows)
    return index
