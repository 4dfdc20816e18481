"""The photos of an index at one moment, and the search among them.  Nothing here changes, so threads may share it.

Up to `exact_rows` photos are held in memory and all of them are compared; more are searched with the approximate index
of the store.  Legend: I photos, Q queries, K neighbors, D dimension.  Side effects: `load_snapshot` reads the index.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cosplace.config.index import IndexSettings
from cosplace.index.approximate import (
    ApproximateIndex,
    build_approximate_index,
    read_approximate_index,
    search_exactly,
)
from cosplace.index.filters import SearchFilter
from cosplace.index.lance import OutdatedError
from cosplace.index.records import Columns, Matches
from cosplace.index.search_index import (
    MAX_UNINDEXED,
    check_search_index,
    drop_vector_index,
    find_nearest,
    prewarm,
    search_index_state,
)
from cosplace.index.store import READ_ROWS, Store
from cosplace.photos.crops import MAJORITY
from cosplace.retrieval.crop_ranking import VOTE_RANKS, rank_crops
from cosplace.retrieval.exact_distances import nearest_of_few

FEW_QUERIES = 64  # up to so many, all compared at once, numpy is faster than torch
MAX_SCORES = 1 << 24  # of queries and photos that are compared at once: 67 MB
MAX_GATHERED = 5_000  # photos that pass a filter: up to so many are read and compared exactly
MORE_CANDIDATES = 4  # times k photos are searched where a condition passes more photos than the filter

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Photos, and what is needed to search them."""

    store: Store
    columns: Columns
    held: np.ndarray | None  # (I, D) float32: all descriptors, if they are few
    approximate: ApproximateIndex | None  # if they are many and the index has been built
    unindexed: tuple[np.ndarray, np.ndarray] | None = None  # rows (n,) and descriptors (n, D) that it does not cover

    def search(
        self, queries: np.ndarray, k: int, where: SearchFilter | None, *, exact: bool, policy: str | None = None
    ) -> Matches:
        """The k most similar photos of each query (Q, D) float32 among those that pass the filter.

        queries: also the descriptors (Q, V, D) of the crops of each query; policy: how they are ranked.
        """
        if queries.ndim == 2:
            rows, similarities, _ = self._find(queries, k, where, exact=exact)
            return self._matches(rows, similarities, k)
        num_found = max(k, *VOTE_RANKS)  # by each crop: enough for the votes
        rows, _, squared = self._find(queries.reshape(-1, queries.shape[2]), num_found, where, exact=exact)
        shape = (*queries.shape[:2], rows.shape[1])
        squared = squared.reshape(shape).astype(np.float32)  # as in an evaluation
        rows, squared, ranked_by = rank_crops(rows.reshape(shape), squared, k, policy=policy)
        return self._matches(rows, 1 - squared / 2, k, voted=1 - ranked_by / 2 if policy == MAJORITY else None)

    def _find(
        self, queries: np.ndarray, k: int, where: SearchFilter | None, *, exact: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the k most similar photos of each query (Q, up to K), their similarities and squared distances."""
        passes = None if where is None or where.is_everywhere else where.mask(self.columns)
        num_passing = len(self.columns) if passes is None else int(np.count_nonzero(passes))
        num_found = min(k, num_passing)
        if num_found == 0:
            none = np.empty((len(queries), 0), np.float32)
            return none.astype(np.int64), none, none
        if self.held is not None:
            rows, squared = _nearest(queries, self.held, num_found, passes)
            return rows, np.einsum("qkd,qd->qk", self.held[rows], queries), squared
        if passes is not None and num_passing <= MAX_GATHERED and not exact:
            return self._search_gathered(queries, num_found, np.flatnonzero(passes))
        if exact or self.approximate is None:
            return self._search_exactly(queries, num_found, passes)
        rows, similarities = self._search_approximately(self.approximate, queries, num_found, where, passes)
        return rows, similarities, 2 - 2 * similarities  # of unit descriptors

    def _search_exactly(
        self, queries: np.ndarray, k: int, passes: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        searchable = None if passes is None else self.columns.ids[passes]
        ids, found, squared = search_exactly(self.store, queries, k, searchable)
        return self._rows_of(ids), np.einsum("qkd,qd->qk", found, queries), squared

    def _search_gathered(
        self, queries: np.ndarray, k: int, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compare the queries with some photos, read for this search."""
        descriptors = self.store.descriptors_at(self.columns.row_ids[rows], self.columns.ids[rows])
        places, squared = _nearest(queries, descriptors, k, None)
        similarities = np.einsum("qkd,qd->qk", descriptors[places].astype(np.float32), queries)
        return rows[places], similarities, squared

    def _search_approximately(
        self,
        index: ApproximateIndex,
        queries: np.ndarray,
        k: int,
        where: SearchFilter | None,
        passes: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search with the index of the store, and compare the photos that it does not cover."""
        assert self.unindexed is not None
        others, descriptors = self.unindexed
        if passes is not None:
            others, descriptors = others[passes[others]], descriptors[passes[others]]
        condition = None if where is None or passes is None else where.sql()
        num_candidates = k if condition is None or where is None or where.is_sql else MORE_CANDIDATES * k
        rows, similarities = np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf, np.float32)
        for number, query in enumerate(queries):
            ids, found = find_nearest(
                self.store, query, num_candidates, num_probed=index.num_probed, condition=condition
            )
            candidates, scores = self._rows_of(ids), found.astype(np.float32) @ query
            if passes is not None:
                scores, candidates = scores[passes[candidates]], candidates[passes[candidates]]
            candidates, scores = np.append(candidates, others), np.append(scores, descriptors @ query)
            if passes is not None and len(candidates) < k:  # too few of the candidates pass
                nearest_rows, nearest_scores, _ = self._search_exactly(query[None], k, passes)
                candidates, scores = nearest_rows[0], nearest_scores[0]
            best = np.lexsort((candidates, -scores))[:k]
            rows[number, : len(best)], similarities[number, : len(best)] = candidates[best], scores[best]
        return rows, similarities

    def _rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Rows of `columns` with these ids.  Raises OutdatedError if the store has changed since."""
        rows = np.minimum(np.searchsorted(self.columns.ids, ids), len(self.columns) - 1)
        if not np.array_equal(self.columns.ids[rows], ids):
            address = self.store.address
            raise OutdatedError(
                f"The search index of {address} has photos that are not in it. Run `cosplace index verify {address}`."
            )
        return rows

    def _matches(self, rows: np.ndarray, similarities: np.ndarray, k: int, voted: np.ndarray | None = None) -> Matches:
        """Columns of the rows found (Q, up to K), padded to K.  voted: see `Matches`; (Q, K)."""
        padding = ((0, 0), (0, k - rows.shape[1]))
        rows = np.pad(rows, padding, constant_values=-1)
        similarities = np.pad(similarities.astype(np.float32), padding, constant_values=-np.inf)
        missing = rows < 0

        def values(column: np.ndarray, fill: float) -> np.ndarray:
            if not len(column):
                return np.full(rows.shape, fill, column.dtype)
            return np.where(missing, column.dtype.type(fill), column[np.where(missing, 0, rows)])

        columns = self.columns
        names = _names(rows, columns)
        return Matches(
            ids=values(columns.ids, -1),
            similarities=similarities,
            latitudes=values(columns.latitudes, np.nan),
            longitudes=values(columns.longitudes, np.nan),
            headings=values(columns.headings, np.nan),
            times=values(columns.times, np.nan),
            accuracies_m=values(columns.accuracies_m, np.nan),
            names=names,
            paths=tuple(
                tuple(columns.path_of(row, name) if row >= 0 else "" for row, name in zip(*line, strict=True))
                for line in zip(rows.tolist(), names, strict=True)
            ),
            voted=voted,
        )


def _nearest(
    queries: np.ndarray, database: np.ndarray, k: int, searchable: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (Q, K) of the k nearest descriptors of a database in memory, and their squared distances."""
    if len(queries) <= FEW_QUERIES and len(queries) * len(database) <= MAX_SCORES:
        return nearest_of_few(queries, database, k, searchable)
    from cosplace.retrieval.search import nearest

    return nearest(queries, database, k, searchable=searchable)


def _names(rows: np.ndarray, columns: Columns) -> tuple[tuple[str, ...], ...]:
    """Names of rows (Q, K), each read once; "" for rows of -1."""
    different = np.unique(rows[rows >= 0])
    names = dict(zip(different.tolist(), columns.names(different), strict=True))
    return tuple(tuple(names.get(row, "") for row in line) for line in rows.tolist())


def load_snapshot(
    store: Store, settings: IndexSettings, place: Callable[[Columns], Columns], *, can_write: bool
) -> Snapshot:
    """Read the photos of the version that the store reads, and what is needed to search them.

    place: puts the roots of columns where they are now.  can_write: build a search index that is needed and missing.
    """

    def is_search_intact() -> bool:  # not checked for few photos, which are searched without it
        return store.count() <= settings.exact_rows or check_search_index(store)

    with ThreadPoolExecutor(1) as checker:
        checked = checker.submit(is_search_intact)  # while the columns are read
        columns = place(store.columns())
    if len(columns) <= settings.exact_rows:
        return Snapshot(store=store, columns=columns, held=_read_descriptors(store, columns.ids), approximate=None)
    is_intact = checked.result()
    approximate = read_approximate_index(store) if is_intact else None
    num_unindexed = 0 if approximate is None else search_index_state(store)[0]
    if num_unindexed > max(settings.exact_rows, MAX_UNINDEXED):
        approximate = None
    if approximate is None and can_write:
        log.info("%s has no search index that can be used, building it", store.address)
        if not is_intact:
            drop_vector_index(store)
        approximate, num_unindexed = build_approximate_index(store), 0
        columns = place(store.columns())
    elif approximate is None:
        problem = f"{store.address} has no search index"
        if not is_intact:
            problem = f"The search index of {store.address} is damaged and not used"
        elif num_unindexed:
            problem = f"The search index of {store.address} lacks {num_unindexed:,} photos"
        log.warning(
            "%s: searches compare all photos and are slow. Run `cosplace index compact %s`.", problem, store.address
        )
    else:
        prewarm(store)
    if approximate is None:
        return Snapshot(store=store, columns=columns, held=None, approximate=None)
    # Rows that the search index does not cover are the last ones of the table.
    rows = np.sort(np.argsort(columns.row_ids)[len(columns) - num_unindexed :])
    return Snapshot(
        store=store,
        columns=columns,
        held=None,
        approximate=approximate,
        unindexed=(rows, _descriptors_at(store, columns, rows)),
    )


def _descriptors_at(store: Store, columns: Columns, rows: np.ndarray) -> np.ndarray:
    """Descriptors (n, D) float32 of rows of `columns`.  Raises DamagedIndexError."""
    descriptors = np.empty((len(rows), store.dimension), np.float32)
    for at in range(0, len(rows), READ_ROWS):
        some = rows[at : at + READ_ROWS]
        descriptors[at : at + READ_ROWS] = store.descriptors_at(columns.row_ids[some], columns.ids[some])
    return descriptors


def _read_descriptors(store: Store, ids: np.ndarray) -> np.ndarray:
    """Descriptors (I, D) float32 of all photos, by ascending id.  ids: (I,)."""
    held = np.empty((len(ids), store.dimension), np.float32)
    for some, rows in store.descriptors() if len(ids) else ():
        held[np.searchsorted(ids, some)] = rows
    return held
