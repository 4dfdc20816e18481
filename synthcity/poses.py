"""Camera poses: all images of a city as rows of numbers, before anything is rendered."""

from dataclasses import dataclass

import numpy as np

from synthcity.layout import build_district, district_extent_m, interior_size
from synthcity.lighting import sample_lights
from synthcity.scene import POSE, VIEW_LIMIT_M, District
from synthcity.settings import HEADINGS_PER_SITE, CitySettings

ZONE, LETTER = 10, "S"
EAST_M, NORTH_M = 546_000.0, 4_177_000.0  # lower left corner of the training district
GAP_M = 2_000.0  # between districts
FIRST_YEAR = 2013
TRAIN, VAL, TEST = "train", "val", "test"
DATABASE_YEAR, QUERY_YEAR = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shots:
    """The images of one folder of the dataset."""

    folder: str  # relative to the dataset, with slashes
    prefix: str  # of panorama names
    district: District
    poses: np.ndarray  # (I,) POSE
    lights: np.ndarray  # (lights,) LIGHT

    def __len__(self) -> int:
        return len(self.poses)


@dataclass(frozen=True, slots=True, kw_only=True)
class CityPlan:
    """All images of a city: train, val/database, val/queries, test/database, test/queries_v1, in this order."""

    settings: CitySettings
    shots: tuple[Shots, ...]

    def counts(self) -> dict[str, int]:
        """Count the images of each folder."""
        return {shots.folder: len(shots) for shots in self.shots}

    def __len__(self) -> int:
        return sum(len(shots) for shots in self.shots)


def plan_city(settings: CitySettings) -> CityPlan:
    """Lay out three districts and place all cameras.  Renders nothing and does not need numba."""
    sites = {
        TRAIN: -(-settings.images // (HEADINGS_PER_SITE * settings.years)),
        VAL: -(-settings.database_images // HEADINGS_PER_SITE),
        TEST: -(-settings.database_images // HEADINGS_PER_SITE),
    }
    shots: list[Shots] = []
    east, first_id = EAST_M, 0
    for number, (name, num_sites) in enumerate(sites.items()):
        spacing = settings.train_spacing_m if name == TRAIN else settings.database_spacing_m
        size = interior_size(num_sites * spacing)
        random = _generator(settings.seed, number, 0)
        extent = district_extent_m(*size)
        district = build_district(name, *size, east, NORTH_M, random)
        east += extent + GAP_M + VIEW_LIMIT_M
        if name == TRAIN:
            parts = [_train_shots(settings, district, num_sites, _generator(settings.seed, number, 1))]
        else:
            parts = _evaluation_shots(settings, district, num_sites, number)
        for part in parts:
            part.poses["image_id"] = first_id + np.arange(len(part))
            first_id += len(part)
            shots.append(part)
    return CityPlan(settings=settings, shots=tuple(shots))


def _generator(seed: int, district: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, 16 * district + purpose], dtype=np.uint64)))


def _sites(district: District, spacing_m: float, num_sites: int) -> tuple[np.ndarray, np.ndarray]:
    """Street (sites,) int64 and meters along it (sites,) of at most `num_sites` sites, one every `spacing_m`."""
    length = _street_lengths(district)
    counts = np.maximum(1, np.round(length / spacing_m).astype(np.int64))
    street = np.repeat(np.arange(len(length)), counts)
    rank = np.arange(len(street)) - np.repeat(np.cumsum(counts) - counts, counts)
    along = (rank + 0.5) * (length / counts)[street]
    return street[:num_sites], along[:num_sites]


def _street_lengths(district: District) -> np.ndarray:
    step = district.streets[:, 2:4] - district.streets[:, :2]
    return np.hypot(step[:, 0], step[:, 1])


def _points(district: District, street: np.ndarray, along: np.ndarray, sideways: np.ndarray) -> np.ndarray:
    """Local positions (P, 2): `along` a street in meters and `sideways` to its right."""
    ends = district.streets[street]
    unit = (ends[:, 2:4] - ends[:, :2]) / _street_lengths(district)[street][:, None]
    right = np.stack([unit[:, 1], -unit[:, 0]], axis=1)
    return ends[:, :2] + unit * along[:, None] + right * sideways[:, None]


def _train_shots(settings: CitySettings, district: District, num_sites: int, random: np.random.Generator) -> Shots:
    return _panoramas(settings, district, settings.train_spacing_m, num_sites, settings.years, random, TRAIN, "T")


def _panoramas(
    settings: CitySettings,
    district: District,
    spacing_m: float,
    num_sites: int,
    years: int,
    random: np.random.Generator,
    folder: str,
    prefix: str,
) -> Shots:
    """Twelve images per site and year.  A street has one light and one camera per year."""
    street, along = _sites(district, spacing_m, num_sites)
    sites, num_captures = len(street), len(district.streets) * years
    lights = sample_lights(num_captures, settings.light_strength, district.rotation_deg, random)
    camera = np.stack(
        [random.uniform(*pair, num_captures) for pair in (settings.fov_deg, settings.camera_height_m, settings.horizon)]
    )
    capture_seeds = random.integers(0, 2**31, num_captures)
    year = np.tile(np.arange(years), sites)  # (panoramas,)
    site = np.repeat(np.arange(sites), years)
    capture = street[site] * years + year
    jitter = random.uniform(-settings.position_jitter_m, settings.position_jitter_m, (2, len(site)))
    place = _points(district, street[site], along[site] + jitter[0], jitter[1])
    poses = np.zeros((len(site), HEADINGS_PER_SITE), dtype=POSE)
    poses["x"], poses["y"] = place[:, 0, None], place[:, 1, None]
    poses["heading"] = np.arange(HEADINGS_PER_SITE) * (360 // HEADINGS_PER_SITE)
    poses["site_seed"] = random.integers(0, 2**31, len(site))[:, None]
    poses["capture_seed"], poses["light"] = capture_seeds[capture][:, None], capture[:, None]
    poses["year"] = (year if years > 1 else np.full(len(site), DATABASE_YEAR))[:, None]
    poses["site"], poses["traffic"] = site[:, None], settings.traffic
    for field, values in zip(("fov_deg", "height_m", "horizon"), camera, strict=True):
        poses[field] = values[capture][:, None]
    offset_deg = random.uniform(-settings.heading_jitter_deg, settings.heading_jitter_deg, (len(site), 1))
    poses["view_deg"] = poses["heading"] + offset_deg - district.rotation_deg
    return Shots(folder=folder, prefix=prefix, district=district, poses=poses.reshape(-1), lights=lights)


def _evaluation_shots(settings: CitySettings, district: District, num_sites: int, number: int) -> list[Shots]:
    name, letter = district.name, district.name[0].upper()
    random = _generator(settings.seed, number, 1)
    database = _panoramas(
        settings, district, settings.database_spacing_m, num_sites, 1, random, f"{name}/database", f"{letter}D"
    )
    folder = f"{name}/queries" if name == VAL else f"{name}/queries_v1"
    return [database, _query_shots(settings, district, num_sites, _generator(settings.seed, number, 2), folder, letter)]


def _query_shots(
    settings: CitySettings, district: District, num_sites: int, random: np.random.Generator, folder: str, letter: str
) -> Shots:
    """Images near the sites of the database, each with its own light, camera and heading."""
    count = settings.num_queries
    street, along = _sites(district, settings.database_spacing_m, num_sites)
    chosen = random.integers(0, len(street), count)
    street, along = street[chosen], along[chosen]
    along = along + random.uniform(-0.5, 0.5, count) * settings.database_spacing_m
    widest = district.streets[street, 4] + 0.6 * district.streets[street, 5]
    sideways = random.uniform(-1.0, 1.0, count) * settings.query_sideways * widest
    place = _points(district, street, along, sideways)
    poses = np.zeros(count, dtype=POSE)
    poses["x"], poses["y"] = place.T
    view = random.uniform(0.0, 360.0, count)
    poses["heading"] = np.round(view).astype(np.int64) % 360
    poses["view_deg"] = view - district.rotation_deg
    poses["site_seed"], poses["capture_seed"] = random.integers(0, 2**31, (2, count))
    poses["fov_deg"] = random.uniform(*settings.query_fov_deg, count)
    poses["height_m"] = random.uniform(*settings.query_height_m, count)
    poses["horizon"] = random.uniform(*settings.query_horizon, count)
    poses["traffic"], poses["year"] = settings.query_traffic, QUERY_YEAR
    poses["light"], poses["site"] = np.arange(count), np.arange(count)
    lights = sample_lights(count, settings.query_light_strength, district.rotation_deg, random)
    return Shots(folder=folder, prefix=f"{letter}Q", district=district, poses=poses, lights=lights)
