"""Hashes and value noise for compiled code: the same input gives the same number on every machine."""

import math

from synthcity.compiling import inner_function

WORD = 0xFFFFFFFF


@inner_function("int64(int64, int64)")
def hash_int(a: int, b: int) -> int:
    """Hash two integers to a 32-bit word that looks random."""
    h = (a * 0x9E3779B1 + b * 0x85EBCA77 + 0x165667B1) & WORD
    h ^= h >> 15
    h = (h * 0x2C1B3C6D) & WORD
    h ^= h >> 12
    h = (h * 0x297A2D39) & WORD
    return h ^ (h >> 15)


@inner_function("float64(int64, int64)")
def hash01(a: int, b: int) -> float:
    """Hash two integers to a number in [0, 1) that looks random."""
    return hash_int(a, b) * (1.0 / 4294967296.0)


@inner_function("float64(float64, float64, float64)")
def smooth(low: float, high: float, x: float) -> float:
    """Smooth step: 0 below low, 1 above high."""
    t = min(max((x - low) / (high - low), 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)


@inner_function("float64(int64)")
def _corner(word: int) -> float:
    """Hash one corner of the noise lattice to [0, 1).  A faster hash, because each point needs four."""
    h = word & WORD
    h = ((h ^ (h >> 15)) * 0x2C1B3C6D) & WORD
    h = ((h ^ (h >> 13)) * 0x297A2D39) & WORD
    return (h >> 8) * (1.0 / 16777216.0)


@inner_function("float64(float64, float64, int64)")
def value_noise(x: float, y: float, seed: int) -> float:
    """Smooth noise in [0, 1) with features of size 1."""
    column, row = math.floor(x), math.floor(y)
    fx, fy = x - column, y - row
    fx, fy = fx * fx * (3.0 - 2.0 * fx), fy * fy * (3.0 - 2.0 * fy)
    corner = column * 0x9E3779B1 + row * 0x85EBCA77 + seed * 0x27D4EB2F
    low = _corner(corner) * (1.0 - fx) + _corner(corner + 0x9E3779B1) * fx
    corner += 0x85EBCA77
    high = _corner(corner) * (1.0 - fx) + _corner(corner + 0x9E3779B1) * fx
    return low * (1.0 - fy) + high * fy
