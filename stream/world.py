"""A world with a known truth: users, items, drifting tastes, sessions, and the probability of every click.

`World` is a pure function of its options: the same seed gives the same events. Time is milliseconds since the world
began. Nothing here knows JSON or Kafka; `stream.generator` writes what happens here to a topic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream.catalogue import CATEGORIES, LATENT_DIM, Catalogue
from stream.config import ConfigError

IMPRESSION, CLICK, PURCHASE = 0, 1, 2

EVENT = np.dtype(
    [
        ("time_ms", np.int64),
        ("kind", np.int8),
        ("number", np.int64),
        ("impression", np.int64),
        ("request", np.int64),
        ("session", np.int64),
        ("user", np.int64),
        ("item", np.int64),
        ("p_click", np.float64),
        ("p_purchase", np.float64),
    ]
)
"""One event. `number` is unique; `impression` is the number of the impression it belongs to (its own, on impressions);
`p_click` and `p_purchase` are the chances, at draw time, that this impression is clicked and bought."""

WINDOW_MS = 500
HISTORY_LENGTH = 60
NUM_COUNTRIES = 8
NUM_INTERESTS = 3

_CLICK_RATE = 0.2
_QUALITY, _AFFINITY, _TASTE = 1.4, 1.0, 0.4
_SAME_CATEGORY, _SEEN_BEFORE, _TIRED = 0.7, -0.9, -0.03
_PURCHASE_BIAS, _PRICE_EFFECT = -1.3, -0.5
_HISTORY_UPDATE = 0.5


class WorldError(ConfigError):
    """The options describe no possible world; the message names the option and what would do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldOptions:
    """How large the world is and how its people behave."""

    seed: int = 0
    num_users: int = 3_000
    num_items: int = 600
    events_per_second: float = 1_500.0
    samples_per_session: float = 14.0
    """Mean number of impressions in a session (requests are geometrically distributed)."""
    candidates_per_request: int = 4
    session_gap_ms: int = 4_000
    """Requests of a session are 0.12 to 0.3 gaps apart, a user comes back after 1.5 gaps at the soonest."""
    drift_period_ms: int = 480_000
    """Tastes turn once around in this time: after a quarter of it nothing of the old ones is left."""
    new_item_ms: int = 1_000
    """A new item takes the place of an old one this often."""

    @property
    def requests_per_session(self) -> float:
        """Mean number of requests in a session."""
        return max(1.0, self.samples_per_session / self.candidates_per_request)


def users_needed(options: WorldOptions) -> int:
    """How many users it takes to keep up `events_per_second` when each rests between sessions."""
    sessions_per_second = options.events_per_second / options.samples_per_session
    busy_ms = (1.5 + 1.0 + 0.25 * options.requests_per_session) * options.session_gap_ms + WINDOW_MS
    return int(1.5 * sessions_per_second * busy_ms / 1000) + 50


@dataclass(frozen=True, slots=True)
class SessionBlock:
    """S sessions that begin in a window, with what is known of their users then."""

    numbers: np.ndarray
    """int64[S]"""
    users: np.ndarray
    """int64[S]"""
    histories: np.ndarray
    """int64[S, HISTORY_LENGTH], item ids of the user's long-term history, oldest first."""
    ends_ms: np.ndarray
    """int64[S], the time of each session's last event."""


@dataclass(frozen=True, slots=True)
class Window:
    """What happened in `[start_ms, end_ms)`."""

    start_ms: int
    end_ms: int
    events: np.ndarray
    """EVENT[E], in order of time."""
    sessions: SessionBlock


class World:
    """Users, items and time. `next_window` moves time on by WINDOW_MS."""

    def __init__(self, options: WorldOptions) -> None:
        _check(options)
        self.options = options
        self._rng = rng = np.random.default_rng(options.seed)
        self.catalogue = Catalogue(options.num_items, rng=rng, every_ms=options.new_item_ms)
        users = options.num_users
        self.country = rng.integers(0, NUM_COUNTRIES, users)
        self.age = np.round(rng.uniform(16.0, 80.0, users), 1)
        self._affinity = rng.normal(0.0, 1.0, (2, NUM_COUNTRIES, len(CATEGORIES)))
        leaning = self._affinity[0, self.country] + rng.normal(0.0, 1.0, (users, len(CATEGORIES)))
        self.interests = np.sort(np.argsort(-leaning, axis=1)[:, :NUM_INTERESTS], axis=1)
        self._taste = rng.normal(0.0, 1.0, (2, users, LATENT_DIM))
        self._histories = self.catalogue.draw(users, candidates=min(HISTORY_LENGTH, options.num_items // 2))
        self._activity = rng.normal(0.0, 0.7, users)
        self._rests_until_ms = np.zeros(users, np.int64)
        self._bias = self._calibrate()
        self._now_ms = 0
        self._pending = np.zeros(0, EVENT)
        self._numbers = self._requests = self._sessions = 0

    def next_window(self) -> Window:
        """The events of the next WINDOW_MS, and the sessions that begin in it."""
        start, end = self._now_ms, self._now_ms + WINDOW_MS
        self.catalogue.advance(start)
        starting = self._starting_users(end)
        drawn, sessions = self._play(starting)
        events = np.concatenate([self._pending, drawn])
        due = events["time_ms"] < end
        self._pending, events = events[~due], events[due]
        self._now_ms = end
        order = np.lexsort((events["number"], events["time_ms"]))
        return Window(start, end, events[order], sessions)

    def _starting_users(self, end_ms: int) -> np.ndarray:
        """As many rested users as it takes to stay on the wanted number of events, the active ones more often."""
        wanted = self.options.events_per_second * end_ms / 1000 - self._numbers
        per_session = self._numbers / self._sessions if self._sessions else self.options.samples_per_session * 1.2
        count = max(0, round(wanted / per_session))
        rested = np.flatnonzero(self._rests_until_ms <= self._now_ms)
        count = min(count, len(rested))
        if not count:
            return rested[:0]
        keys = self._activity[rested] + self._rng.gumbel(size=len(rested))
        return rested[np.argpartition(-keys, count - 1)[:count]]

    def _play(self, users: np.ndarray) -> tuple[np.ndarray, SessionBlock]:
        """Whole sessions of `users`, from their first request to their last purchase, before they happen."""
        rng, gap = self._rng, self.options.session_gap_ms
        count = len(users)
        histories = self._histories[users]
        numbers = self._sessions + np.arange(count)
        self._sessions += count
        lengths = rng.geometric(1.0 / self.options.requests_per_session, count)
        times_ms = self._now_ms + rng.integers(0, WINDOW_MS, count)
        play = _Sessions(
            users,
            numbers,
            times_ms,
            max_requests=int(lengths.max(initial=0)),
            candidates=self.options.candidates_per_request,
        )
        parts = []
        for request in range(play.max_requests):
            active = np.flatnonzero(lengths > request)
            parts.append(self._request(play, active, request))
            play.times_ms[active] += rng.integers(int(0.12 * gap), int(0.3 * gap) + 1, len(active))
        events = np.concatenate(parts) if parts else np.zeros(0, EVENT)
        self._rests_until_ms[users] = play.ends_ms + int(1.5 * gap)
        self._remember(users, play)
        return events, SessionBlock(numbers, users, histories, play.ends_ms)

    def _request(self, play: _Sessions, active: np.ndarray, request: int) -> np.ndarray:
        """One request of each active session: candidates shown, some clicked, some of those bought."""
        rng, gap = self._rng, self.options.session_gap_ms
        items = self.catalogue.draw(len(active), candidates=self.options.candidates_per_request)
        users = play.users[active]
        logits = self._bias + self._preference(users, items) + play.effects(active, items, self.catalogue, request)
        p_click = _sigmoid(logits)
        p_bought = _sigmoid(self._purchase_logits(items))
        clicked = rng.random(items.shape) < p_click
        bought = clicked & (rng.random(items.shape) < p_bought)
        shown = self._impressions(play, active, items)
        shown["p_click"], shown["p_purchase"] = p_click.ravel(), (p_click * p_bought).ravel()
        clicks = self._follow(shown[clicked.ravel()], CLICK, rng.uniform(0.02, 0.1, int(clicked.sum())) * gap)
        delays = np.minimum(rng.exponential(0.2, int(bought.sum())), 0.6) * gap
        purchases = self._follow(clicks[bought.ravel()[clicked.ravel()]], PURCHASE, delays)
        play.note(active, items, clicked, self.catalogue, request=request)
        for events in (shown, clicks, purchases):
            np.maximum.at(play.ends_ms, np.searchsorted(play.numbers, events["session"]), events["time_ms"])
        return np.concatenate([shown, clicks, purchases])

    def _impressions(self, play: _Sessions, active: np.ndarray, items: np.ndarray) -> np.ndarray:
        rows, candidates = items.shape
        shown = np.zeros(items.size, EVENT)
        shown["time_ms"] = np.repeat(play.times_ms[active], candidates)
        shown["number"] = shown["impression"] = self._take_numbers(items.size)
        shown["request"] = np.repeat(self._requests + np.arange(rows), candidates)
        self._requests += rows
        shown["session"] = np.repeat(play.numbers[active], candidates)
        shown["user"] = np.repeat(play.users[active], candidates)
        shown["item"] = items.ravel()
        return shown

    def _follow(self, causes: np.ndarray, kind: int, delays_ms: np.ndarray) -> np.ndarray:
        events = causes.copy()
        events["kind"] = kind
        events["time_ms"] += np.maximum(1, delays_ms.astype(np.int64))
        events["number"] = self._take_numbers(len(events))
        return events

    def _take_numbers(self, count: int) -> np.ndarray:
        self._numbers += count
        return np.arange(self._numbers - count, self._numbers)

    def _preference(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """float64[rows, candidates]: what a user makes of an item now, apart from this session."""
        angle = 2.0 * np.pi * self._now_ms / self.options.drift_period_ms
        turn = np.array([np.cos(angle), np.sin(angle)])
        affinity = np.tensordot(turn, self._affinity, axes=1)
        taste = np.tensordot(turn, self._taste[:, users], axes=1)
        found = self.catalogue
        personal = np.einsum("rd,rcd->rc", taste, found.latent[items])
        segment = affinity[self.country[users][:, None], found.category[items]]
        logits: np.ndarray = _QUALITY * (found.quality[items] @ turn) + _AFFINITY * segment + _TASTE * personal
        return logits

    def _purchase_logits(self, items: np.ndarray) -> np.ndarray:
        found = self.catalogue
        logits: np.ndarray = (
            _PURCHASE_BIAS + found.purchase_bias[items] + _PRICE_EFFECT * (np.log(found.price[items]) - 2.5)
        )
        return logits

    def _calibrate(self) -> float:
        """The bias at which a fifth of the impressions of a fresh session is clicked."""
        self._now_ms = 0
        users = self._rng.integers(0, self.options.num_users, 2_000)
        logits = self._preference(users, self.catalogue.draw(2_000, candidates=self.options.candidates_per_request))
        low, high = -20.0, 20.0
        for _ in range(40):
            middle = (low + high) / 2.0
            low, high = (middle, high) if _sigmoid(logits + middle).mean() < _CLICK_RATE else (low, middle)
        return low

    def _remember(self, users: np.ndarray, play: _Sessions) -> None:
        """Half of the sessions with a click move the user's long-term history on; the others leave it as it is."""
        for session in np.flatnonzero(self._rng.random(len(users)) < _HISTORY_UPDATE):
            new = play.engaged[session]
            if new:
                kept = self._histories[users[session]]
                self._histories[users[session]] = np.concatenate([kept, new])[-len(kept) :]


class _Sessions:
    """What the sessions under way know of themselves: S of them, played request by request."""

    def __init__(
        self, users: np.ndarray, numbers: np.ndarray, times_ms: np.ndarray, *, max_requests: int, candidates: int
    ) -> None:
        self.users, self.numbers, self.times_ms = users, numbers, times_ms
        self.max_requests = max_requests
        self.ends_ms = times_ms.copy()
        self.engaged: list[list[int]] = [[] for _ in users]
        self._last_category = np.full(len(users), -1, np.int64)
        self._seen = np.full((len(users), max_requests * candidates), -1, np.int64)

    def effects(self, active: np.ndarray, items: np.ndarray, found: Catalogue, request: int) -> np.ndarray:
        """float64 like `items`: drawn to the category clicked last, bored by what was seen, and tired in the end."""
        same = found.category[items] == self._last_category[active][:, None]
        seen = (items[:, :, None] == self._seen[active, None, : request * items.shape[1]]).any(axis=2)
        effect: np.ndarray = _SAME_CATEGORY * same + _SEEN_BEFORE * seen + _TIRED * request
        return effect

    def note(
        self, active: np.ndarray, items: np.ndarray, clicked: np.ndarray, found: Catalogue, *, request: int
    ) -> None:
        """Remember what was shown and clicked."""
        width = items.shape[1]
        self._seen[active, request * width : (request + 1) * width] = items
        for row, column in zip(*np.nonzero(clicked), strict=True):
            self.engaged[active[row]].append(int(items[row, column]))
            self._last_category[active[row]] = found.category[items[row, column]]


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    probability: np.ndarray = 1.0 / (1.0 + np.exp(-logits))
    return probability


def _check(options: WorldOptions) -> None:
    """Refuse worlds that cannot be."""
    if options.events_per_second <= 0 or options.samples_per_session < 1 or options.session_gap_ms < 10:
        raise WorldError(
            "events_per_second must be above 0, samples_per_session at least 1, session_gap_ms at least 10"
        )
    if not 1 <= options.candidates_per_request <= options.num_items // 4:
        raise WorldError(f"candidates_per_request must be between 1 and a quarter of num_items ({options.num_items})")
    if options.num_users < users_needed(options):
        raise WorldError(
            f"num_users={options.num_users} cannot make {options.events_per_second:g} events/s with a session gap of "
            f"{options.session_gap_ms} ms: at least {users_needed(options)} are needed"
        )
