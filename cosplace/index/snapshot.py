"""The photos of an index at one moment, and the search among them; nothing here changes, so threads may share it.

Few photos (up to Settings.exact_rows) are held in memory and all are compared.  Many are searched by their lists (see
`inverted`); photos that came after these were made are all compared, those removed since are passed over.
Legend: I photos, N photos in the lists, T later ones, Q queries, K neighbours, D dimension.
"""

from dataclasses import dataclass

import numpy as np

from cosplace.index.filters import SearchFilter
from cosplace.index.inverted import InvertedLists
from cosplace.index.records import Columns, Matches
from cosplace.index.store import Store
from cosplace.retrieval.search import nearest

ROUNDING = 1e-4  # more than sums in float32 lose
GATHERED_ROWS = 50_000  # at most; reading so many here and there takes as long as reading lists


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Photos and what finds them."""

    store: Store
    columns: Columns
    held: np.ndarray | None  # (I, D): all descriptors, where they are few
    lists: InvertedLists | None  # where they are many
    listed: np.ndarray  # (N,) int64: the row in `columns` of each photo in the lists, -1 where it was removed
    place: np.ndarray  # (I,) int64: the other way round, -1 for later photos
    later: np.ndarray  # (T,) int64: rows in `columns` of later photos
    later_descriptors: np.ndarray  # (T, D)
    most_gathered: int  # up to so many photos that pass a filter are all compared

    @classmethod
    def few(cls, store: Store, columns: Columns, held: np.ndarray) -> "Snapshot":
        """All photos held in memory."""
        none = np.empty(0, np.int64)
        return cls(
            store=store,
            columns=columns,
            held=held,
            lists=None,
            listed=none,
            place=none,
            later=none,
            later_descriptors=held[:0],
            most_gathered=0,
        )

    @classmethod
    def many(
        cls,
        store: Store,
        columns: Columns,
        lists: InvertedLists,
        later_descriptors: np.ndarray,
        exact_rows: int,
    ) -> "Snapshot":
        """Photos in lists, and later ones with their descriptors by ascending id."""
        ids = columns.ids
        row = np.minimum(np.searchsorted(ids, lists.ids), max(0, len(ids) - 1))
        listed = np.where(ids[row] == lists.ids, row, -1) if len(ids) else np.full(len(lists.ids), -1)
        place = np.full(len(ids), -1, np.int64)
        present = np.flatnonzero(listed >= 0)
        place[listed[present]] = present
        return cls(
            store=store,
            columns=columns,
            held=None,
            lists=lists,
            listed=listed,
            place=place,
            later=np.flatnonzero(place < 0),
            later_descriptors=later_descriptors,
            most_gathered=min(GATHERED_ROWS, exact_rows),
        )

    def search(self, queries: np.ndarray, k: int, where: SearchFilter | None, *, exact: bool) -> Matches:
        """The k most similar photos of each query (Q, D) float32 among those that pass the filter."""
        passes = None if where is None or where.is_everywhere else where.mask(self.columns)
        num_passing = len(self.columns) if passes is None else int(np.count_nonzero(passes))
        wanted = min(k, num_passing)
        if wanted == 0:
            rows, similarities = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        elif self.held is not None:
            rows = nearest(queries, self.held, wanted, searchable=passes)[0]
            similarities = np.einsum("qkd,qd->qk", self.held[rows].astype(np.float32), queries)
        elif exact:
            rows, similarities = self._search_all(queries, wanted, passes)
        else:
            rows, similarities = self._search_lists(queries, wanted, passes, num_passing)
        return self._neighbours(rows, similarities, k)

    # --- many photos -------------------------------------------------------------------------------------------------

    def _search_lists(
        self, queries: np.ndarray, k: int, passes: np.ndarray | None, num_passing: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows (Q, K) and similarities by the lists nearest to each query, and all later photos.

        Where few photos pass a filter, all of them are compared, whatever their lists.
        """
        assert self.lists is not None
        later, later_descriptors = self.later, self.later_descriptors
        if passes is not None:
            later, later_descriptors = later[passes[later]], later_descriptors[passes[later]]
        later_scores = queries @ later_descriptors.astype(np.float32).T  # (Q, T)
        searchable = self._searchable(passes)
        few = None
        if passes is not None and searchable is not None and num_passing <= self.most_gathered:
            few = np.flatnonzero(searchable)
        share = num_passing / len(self.columns)
        rows, similarities = np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf, np.float32)
        for number, query in enumerate(queries):
            if few is None:
                found, scores = self.lists.search(query, k, searchable=searchable, share=share)
            else:
                found, scores = self.lists.search_rows(query, k, few)
            candidates = np.concatenate([self.listed[found], later])
            scores = np.concatenate([scores, later_scores[number]])
            best = np.lexsort((candidates, -scores))[:k]
            rows[number, : len(best)], similarities[number, : len(best)] = candidates[best], scores[best]
        return rows, similarities

    def _searchable(self, passes: np.ndarray | None) -> np.ndarray | None:
        """(N,) bool: which photos in the lists may be found; None for all."""
        if passes is None and len(self.later) + len(self.listed) == len(self.columns):
            return None
        present = self.listed >= 0
        return present if passes is None else present & passes[self.listed]

    def _search_all(self, queries: np.ndarray, k: int, passes: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Rows (Q, K) and similarities, exactly by the descriptors as they are stored.

        The lists keep them rounded, which may turn two neighbours around.  So they only tell which photos can belong
        to the k nearest, and what the store keeps decides among these.
        """
        assert self.lists is not None
        searchable = self._searchable(passes)
        later, later_descriptors = self.later, self.later_descriptors
        if passes is not None:
            later, later_descriptors = later[passes[later]], later_descriptors[passes[later]]
        rows, similarities = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        for number, query in enumerate(queries):
            listed = self.listed[self.lists.possible(query, k, searchable)]
            best_later = _near_best(later_descriptors.astype(np.float32) @ query, k)
            candidates = np.concatenate([listed, later[best_later]])
            stored = np.concatenate([self._stored(listed), later_descriptors[best_later]])
            squared = ((stored.astype(np.float64) - query.astype(np.float64)) ** 2).sum(1)
            best = np.lexsort((candidates, squared))[:k]
            rows[number], similarities[number] = candidates[best], stored[best].astype(np.float32) @ query
        return rows, similarities

    def _stored(self, rows: np.ndarray) -> np.ndarray:
        """Descriptors (n, D) of some rows as the store keeps them."""
        if not len(rows):
            return self.later_descriptors[:0]
        return self.store.descriptors_at(self.columns.row_ids[rows], self.columns.ids[rows])

    # --- answers -----------------------------------------------------------------------------------------------------

    def _neighbours(self, rows: np.ndarray, similarities: np.ndarray, k: int) -> Matches:
        empty = ((0, 0), (0, k - rows.shape[1]))
        rows = np.pad(rows, empty, constant_values=-1)
        similarities = np.pad(similarities.astype(np.float32), empty, constant_values=-np.inf)
        missing = rows < 0

        def values(column: np.ndarray, nothing: float) -> np.ndarray:
            if not len(column):
                return np.full(rows.shape, nothing, column.dtype)
            return np.where(missing, column.dtype.type(nothing), column[np.where(missing, 0, rows)])

        columns = self.columns
        return Matches(
            ids=values(columns.ids, -1),
            similarities=similarities,
            latitudes=values(columns.latitudes, np.nan),
            longitudes=values(columns.longitudes, np.nan),
            headings=values(columns.headings, np.nan),
            times=values(columns.times, np.nan),
            paths=tuple(tuple("" if row < 0 else columns.texts[row].as_py() for row in line) for line in rows.tolist()),
        )


def _near_best(scores: np.ndarray, k: int) -> np.ndarray:
    """Places (n,) of the k best scores, and of all that rounding could put among them."""
    if len(scores) <= k:
        return np.arange(len(scores))
    return np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[len(scores) - k] - ROUNDING)
