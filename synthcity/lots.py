"""The style of each building: height, colors, material, windows, roof line, use of the ground floor."""

import numpy as np

from synthcity.scene import LOT

EMPTY_SHARE = 0.03  # gaps between buildings
# Wall colors as sRGB bytes, by material: plaster, brick, stone, boards, concrete, timber frame.
WALLS = (
    (
        (236, 226, 200),
        (232, 205, 160),
        (222, 184, 150),
        (214, 222, 214),
        (238, 236, 230),
        (196, 208, 220),
        (226, 196, 190),
        (205, 214, 180),
        (240, 214, 140),
        (186, 170, 150),
        (212, 150, 118),
        (170, 192, 200),
    ),
    ((150, 76, 58), (168, 96, 70), (128, 64, 52), (182, 124, 92), (196, 160, 120), (110, 70, 62), (160, 130, 112)),
    ((200, 190, 168), (180, 172, 158), (214, 204, 184), (160, 152, 142), (190, 172, 140)),
    (
        (226, 226, 220),
        (150, 178, 192),
        (196, 180, 140),
        (130, 156, 130),
        (206, 140, 110),
        (110, 130, 156),
        (230, 210, 170),
    ),
    ((176, 176, 172), (150, 156, 160), (198, 196, 190), (130, 134, 136), (190, 180, 168)),
    ((236, 228, 208), (228, 206, 160), (216, 190, 164), (240, 236, 226)),
)
TRIMS = ((240, 238, 230), (228, 220, 200), (250, 250, 248), (90, 84, 78), (120, 60, 50), (60, 74, 70), (200, 196, 188))
DOORS = (
    (96, 44, 34),
    (40, 60, 90),
    (34, 78, 58),
    (120, 30, 34),
    (60, 46, 36),
    (180, 150, 60),
    (30, 32, 36),
    (90, 110, 120),
)
ROOFS = ((120, 66, 52), (84, 84, 90), (66, 60, 58), (104, 92, 80), (90, 104, 100), (142, 84, 62))
MATERIAL_SHARES = (0.34, 0.24, 0.13, 0.12, 0.11, 0.06)


def srgb_to_linear(color: np.ndarray) -> np.ndarray:
    """Linear RGB in [0, 1] of sRGB bytes; the tone curve of the renderer inverts this square."""
    return (np.asarray(color, dtype=np.float64) / 255.0) ** 2.0


def sample_lots(corners: np.ndarray, block: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Give each lot a building.

    corners: (lots, 4, 2) meters, street side first.  block: (lots,) int64, lots of a block share a typical height.
    Returns (lots,) LOT; a height of 0 is an empty lot.
    """
    count = len(corners)
    lots = np.zeros(count, dtype=LOT)
    lots["corners"] = corners
    lots["seed"] = random.integers(0, 2**31, count)
    typical = random.normal(4.0, 1.2, int(block.max(initial=0)) + 1)
    floors = np.clip(np.round(typical[block] + random.normal(0.0, 1.3, count)), 1, 9)
    tower = random.random(count) < 0.03
    floors[tower] += random.integers(3, 6, int(tower.sum()))
    _sample_walls(lots, random)
    lots["ground_floor_m"] = random.uniform(3.2, 4.4, count)
    lots["floor_m"] = random.uniform(2.8, 3.6, count)
    lots["cornice_m"] = random.uniform(0.35, 0.95, count)
    lots["height"] = lots["ground_floor_m"] + (floors - 1) * lots["floor_m"] + lots["cornice_m"]
    lots["height"][random.random(count) < EMPTY_SHARE] = 0.0
    _sample_windows(lots, random)
    return lots


def _sample_walls(lots: np.ndarray, random: np.random.Generator) -> None:
    count = len(lots)
    lots["material"] = random.choice(len(WALLS), count, p=MATERIAL_SHARES)
    for field in ("base", "repaint"):
        for material, colors in enumerate(WALLS):
            mine = lots["material"] == material
            lots[field][mine] = _pick(colors, int(mine.sum()), 9.0, random)
    lots["trim"] = _pick(TRIMS, count, 6.0, random)
    lots["door"] = _pick(DOORS, count, 10.0, random)
    lots["roof"] = _pick(ROOFS, count, 8.0, random)


def _sample_windows(lots: np.ndarray, random: np.random.Generator) -> None:
    count = len(lots)
    lots["bay_m"] = random.uniform(1.9, 3.6, count)
    lots["window_w"] = random.uniform(0.36, 0.66, count)
    lots["window_h"] = random.uniform(0.45, 0.68, count)
    # 0 one pane, 1 cross, 2 sash, 3 arch, 4 many panes, 5 ribbon, 6 bay window
    lots["window_style"] = random.choice(7, count, p=(0.12, 0.2, 0.22, 0.13, 0.1, 0.1, 0.13))
    lots["surround"] = random.choice(5, count, p=(0.16, 0.26, 0.2, 0.2, 0.18))
    modern = lots["material"] == 4
    lots["window_style"][modern] = random.choice((0, 4, 5), int(modern.sum()))
    lots["surround"][modern] = random.choice((0, 0, 1), int(modern.sum()))
    ribbon = lots["window_style"] == 5
    lots["window_w"][ribbon] = random.uniform(0.8, 0.96, int(ribbon.sum()))
    # 0 flat, 1 gable, 2 stepped gable, 3 mansard with dormers, 4 raised middle, 5 tiled eaves, 6 chimneys
    lots["profile"] = random.choice(7, count, p=(0.32, 0.13, 0.07, 0.16, 0.08, 0.14, 0.1))
    lots["profile"][modern] = 0
    lots["roof_m"] = random.uniform(1.6, 3.4, count)
    # 0 dwelling, 1 shop, 2 garage, 3 arcade
    lots["street_use"] = random.choice(4, count, p=(0.34, 0.46, 0.12, 0.08))
    lots["awning"] = random.choice(3, count, p=(0.45, 0.35, 0.2))  # none, striped, plain
    lots["bands"] = random.random(count) < 0.45


def _pick(
    colors: tuple[tuple[int, int, int], ...], count: int, spread: float, random: np.random.Generator
) -> np.ndarray:
    """Linear colors (count, 3): randomly chosen ones with variations in brightness and hue."""
    chosen = np.array(colors, dtype=np.float64)[random.integers(0, len(colors), count)]
    chosen = chosen + random.normal(0.0, spread, (count, 1)) + random.normal(0.0, spread * 0.6, (count, 3))
    return srgb_to_linear(np.clip(chosen, 8, 250))
