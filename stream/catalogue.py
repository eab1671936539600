"""The items of the generator's world: what they are like, how popular they are, and how new ones replace old ones."""

from __future__ import annotations

import numpy as np

CATEGORIES = (
    "news", "sports", "music", "film", "games", "travel", "food", "fashion", "garden", "science", "cars", "books",
)  # fmt: skip
TAGS_PER_CATEGORY = 6
LATENT_DIM = 8

_ZIPF_EXPONENT = 0.85
_NEWS_BOOST = 3.0
_NEWS_LASTS_MS = 30_000


class Catalogue:
    """`num_items` items on offer at any moment; ids are never used twice, so a replaced item keeps its row here.

    Columns are indexed by item id and grow as new items appear: `category` int64, `price` float64, `tags` bool[id,
    TAGS_PER_CATEGORY], `latent` float64[id, LATENT_DIM], `quality` float64[id, 2] (the two ends of its drift),
    `purchase_bias` float64.
    """

    def __init__(self, num_items: int, *, rng: np.random.Generator, every_ms: int) -> None:
        self._rng = rng
        self._every_ms = every_ms
        self._replaced = 0
        self._size = 0
        capacity = 2 * num_items
        self.category = np.zeros(capacity, np.int64)
        self.price = np.zeros(capacity)
        self.tags = np.zeros((capacity, TAGS_PER_CATEGORY), bool)
        self.latent = np.zeros((capacity, LATENT_DIM))
        self.quality = np.zeros((capacity, 2))
        self.purchase_bias = np.zeros(capacity)
        self.active = self._create(num_items)
        """int64[num_items], the ids on offer."""
        ranks = rng.permutation(num_items) + 1
        self._weights = ranks**-_ZIPF_EXPONENT
        self._born_ms = np.full(num_items, -(10**9), np.int64)
        self._turn = rng.permutation(num_items)
        self._cumulative = np.cumsum(self._weights)

    @property
    def size(self) -> int:
        """How many ids exist so far, replaced items included."""
        return self._size

    def advance(self, now_ms: int) -> None:
        """Let the items due by `now_ms` appear, each in the place of an old one, and set the popularity of now."""
        due = max(0, now_ms // self._every_ms)
        while self._replaced < due:
            count = min(due - self._replaced, len(self.active))
            slots = self._turn[(self._replaced + np.arange(count)) % len(self._turn)]
            self.active[slots] = self._create(count)
            self._born_ms[slots] = now_ms
            self._replaced += count
        age = (now_ms - self._born_ms) / _NEWS_LASTS_MS
        self._cumulative = np.cumsum(self._weights * (1.0 + (_NEWS_BOOST - 1.0) * np.exp(-age)))

    def draw(self, count: int, *, candidates: int) -> np.ndarray:
        """int64[count, candidates] item ids by popularity, distinct within a row."""
        slots = self._slots((count, candidates))
        while True:
            order = np.argsort(slots, axis=1, kind="stable")
            ranked = np.take_along_axis(slots, order, axis=1)
            repeated = np.zeros_like(slots, dtype=bool)
            np.put_along_axis(repeated[:, :], order[:, 1:], ranked[:, 1:] == ranked[:, :-1], axis=1)
            if not repeated.any():
                chosen: np.ndarray = self.active[slots]
                return chosen
            slots[repeated] = self._slots(int(repeated.sum()))

    def _slots(self, shape: int | tuple[int, int]) -> np.ndarray:
        points = self._rng.random(shape) * self._cumulative[-1]
        slots: np.ndarray = np.minimum(np.searchsorted(self._cumulative, points, side="right"), len(self.active) - 1)
        return slots

    def _create(self, count: int) -> np.ndarray:
        while self._size + count > len(self.category):
            self._double()
        ids = np.arange(self._size, self._size + count)
        rng = self._rng
        self.category[ids] = rng.integers(0, len(CATEGORIES), count)
        self.price[ids] = np.round(np.exp(rng.normal(2.5, 0.8, count)), 2)
        self.tags[ids] = rng.random((count, TAGS_PER_CATEGORY)) < 0.35
        self.latent[ids] = rng.normal(0.0, LATENT_DIM**-0.5, (count, LATENT_DIM))
        self.quality[ids] = rng.normal(0.0, 1.0, (count, 2))
        self.purchase_bias[ids] = rng.normal(0.0, 0.7, count)
        self._size += count
        return ids

    def _double(self) -> None:
        for name in ("category", "price", "tags", "latent", "quality", "purchase_bias"):
            column = getattr(self, name)
            setattr(self, name, np.concatenate([column, np.zeros_like(column)]))
