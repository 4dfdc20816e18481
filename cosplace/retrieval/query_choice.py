"""Which photos of a validation or test set become queries: where possible, those of another visit than its database.

A visit is a sequence, or photos taken without a break of more than an hour.  A query has at least one database photo
within the radius of positives.  Legend: I photos of one set.
"""

from dataclasses import dataclass

import numpy as np

from cosplace.retrieval.recall import RADIUS_M, find_positives

BREAK_S = 3600.0
NUM_TRIALS = 10  # random orders of the visits; the one with the most queries is used
ENOUGH = 0.5  # of the wanted number of queries; with fewer, queries are chosen at random
DATABASE, QUERY, UNUSED = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryChoice:
    """The photos of a set by role."""

    roles: np.ndarray  # (I,) int8: DATABASE, QUERY or UNUSED
    rule: str  # how queries were chosen, for the user


def visits_of(seconds: np.ndarray, sequences: np.ndarray) -> np.ndarray:
    """Number of the visit of each photo, (I,) int64; -1 where neither sequence nor time is known.

    seconds: (I,), nan where unknown.  sequences: (I,) int64, -1 where unknown.
    """
    visits = np.full(len(seconds), -1)
    known = sequences >= 0
    visits[known] = sequences[known]
    rows = np.flatnonzero(~known & ~np.isnan(seconds))
    if len(rows):
        rows = rows[np.argsort(seconds[rows], kind="stable")]
        breaks = np.diff(seconds[rows], prepend=seconds[rows[0]]) > BREAK_S
        visits[rows] = sequences.max(initial=-1) + 1 + np.cumsum(breaks)
    return visits


def choose_queries(points: np.ndarray, visits: np.ndarray, share: float, generator: np.random.Generator) -> QueryChoice:
    """Choose about `share` of the photos as queries.  points: (I, 3) earth-centered, in meters."""
    wanted = max(1, round(share * len(points)))
    best = None
    if len(np.unique(visits[visits >= 0])) > 1:
        trials = [_by_visit(points, visits, wanted, generator) for _ in range(NUM_TRIALS)]
        best = max(trials, key=lambda roles: min(int((roles == QUERY).sum()), 2 * wanted))
    if best is not None and (best == QUERY).sum() >= ENOUGH * wanted:
        return QueryChoice(roles=best, rule="from other visits (sequences, or hours) than the database")
    return QueryChoice(
        roles=_at_random(points, wanted, generator), rule="at random, because few places were visited twice"
    )


def later_queries(points: np.ndarray, seconds: np.ndarray, first_query_s: float) -> QueryChoice:
    """Photos from a time on are queries if an earlier one is near, and unused otherwise."""
    roles = np.where(seconds >= first_query_s, QUERY, DATABASE).astype(np.int8)
    queries = np.flatnonzero(roles == QUERY)
    roles[queries[num_near(points, roles == DATABASE, queries) == 0]] = UNUSED
    return QueryChoice(roles=roles, rule="taken later than the database")


def num_near(points: np.ndarray, in_database: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Number of database photos within RADIUS_M of some photos, (n,).  in_database: (I,) bool.  queries: (n,) rows."""
    return find_positives(points[in_database], points[queries], RADIUS_M).counts


def _by_visit(points: np.ndarray, visits: np.ndarray, wanted: int, generator: np.random.Generator) -> np.ndarray:
    """Roles (I,) with the photos of some whole visits as queries.

    Photos of these visits that only they show become database photos, unless they are near a query.
    """
    chosen = np.zeros(len(points), bool)
    for visit in generator.permutation(np.unique(visits[visits >= 0])):
        of_visit = visits == visit
        if chosen.sum() + of_visit.sum() <= max(2 * wanted, of_visit.sum()) and not (chosen | of_visit).all():
            chosen |= of_visit
        if chosen.sum() >= wanted:
            break
    roles = np.where(chosen, QUERY, DATABASE).astype(np.int8)
    queries = np.flatnonzero(chosen)
    alone = queries[num_near(points, ~chosen, queries) == 0]
    roles[alone] = UNUSED
    is_query = roles == QUERY
    roles[alone[num_near(points, is_query, alone) == 0]] = DATABASE
    return roles


def _at_random(points: np.ndarray, wanted: int, generator: np.random.Generator) -> np.ndarray:
    """Roles (I,) with random positions as queries: all photos at one position, as crops of a panorama, are together.

    Where no position has another one near it, photos of one position are not kept together.
    """
    everything = np.arange(len(points))
    _, unit = np.unique(points, axis=0, return_inverse=True)
    unit = unit.reshape(-1)
    num_others = num_near(points, np.ones(len(points), bool), everything) - np.bincount(unit)[unit]
    if not num_others.any():
        unit, num_others = everything, num_others + np.bincount(unit)[unit] - 1
    order = generator.permutation(np.unique(unit[num_others > 0]))
    sizes = np.bincount(unit)[order]
    taken = order[np.cumsum(sizes) - sizes < wanted]
    roles = np.full(len(points), DATABASE, np.int8)
    while len(taken):
        queries = np.flatnonzero(np.isin(unit, taken))
        roles[queries] = QUERY
        roles[queries[num_near(points, roles == DATABASE, queries) == 0]] = DATABASE
        if (roles == QUERY).any():
            break
        taken = taken[: len(taken) // 2]  # they were near each other only; one alone has a photo near it
    return roles
