"""Traffic with a known truth: a simulated world whose events are written to `interactions`.

Measured for the defaults (seed 0, two minutes at 1500 events/s): 13.9 samples a session (mean; median 12, p99 56), 4 a
request. From one sample of a session to the next the user's row is always the same, the session's row in 81 % (it is
one row per request), the item hardly ever. From one session of a user to the next the user's row is the same in 59 %.
19 % of the impressions are clicked and 4.6 % bought; the best possible normalised entropy is 0.70 for a click and 0.81
for a purchase. What other presets are like is said in `stream.traffic`.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event

import numpy as np

from stream.avro_schema import record_encoder
from stream.config import Config, ConfigError
from stream.event_json import EventRenderer
from stream.faults import MALFORMED, FaultOptions, Faults, Sending
from stream.id_lists import IdLists, ListPlan
from stream.kafka import Writer
from stream.world import CLICK, IMPRESSION, PURCHASE, World, WorldError, WorldOptions, users_needed

DENSITY = 1_500.0
"""Events per second of event time when nobody asks for a rate."""
FLUSH_TIMEOUT_MS = 60_000
_WHAT = ("impression", "click", "purchase")
"""By kind of event."""
_SLICE_MS = 10
_LAG_ALLOWED_MS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorOptions:
    """What to generate. Without bounds it goes on until it is stopped."""

    rate: float | None = None
    """Events per second of wall clock, dated now. None: as fast as it goes, at DENSITY events per second of event
    time, the last of them dated now; that needs a bound."""
    seconds: float | None = None
    """Length in event time."""
    max_events: int | None = None
    """Number of distinct events."""
    seed: int = 0
    start_ms: int | None = None
    """Event time at which the world begins; by default it follows from the clock."""
    samples_per_session: float = 14.0
    candidates_per_request: int = 4
    num_users: int | None = None
    """3000, or as many more as the rate takes."""
    num_items: int = 600
    lists: ListPlan | None = None
    """Further features of users and items."""
    out_of_order: float = 0.0
    """Fraction of events sent after their time, by `out_of_order_ms` at most."""
    out_of_order_ms: int = 400
    retries: float = 0.0
    """Fraction of events sent twice with the same event id, soon after."""
    malformed: float = 0.0
    """Records that no schema allows, as a fraction of the events; they come on top."""


@dataclass(frozen=True, slots=True)
class GeneratorReport:
    """What was sent: records = events + duplicates + malformed."""

    events: int = 0
    """Distinct events: impressions + engagements."""
    impressions: int = 0
    engagements: int = 0
    clicks: int = 0
    purchases: int = 0
    duplicates: int = 0
    malformed: int = 0
    malformed_by_kind: dict[str, int] = field(default_factory=dict)
    out_of_order: int = 0
    records: int = 0
    bytes: int = 0
    first_event_ms: int | None = None
    last_event_ms: int | None = None
    wall_s: float = 0.0


def now_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000


def generate(
    config: Config,
    *,
    options: GeneratorOptions,
    stop: Event | None = None,
    clock: Callable[[], int] = now_ms,
    sleep: Callable[[float], object] | None = None,
) -> GeneratorReport:
    """Write a world's events to `config.topics.interactions`, keyed by user, until a bound or `stop`.

    The same options and `start_ms` give the same records in the same order, whatever the clock does, as long as the
    generator keeps up with its rate: after falling behind by more than a second the world stands still for as long.
    `clock` gives ms, `sleep` takes seconds. Raises ConfigError (also for options that make no world), KafkaError.
    """
    stop = stop or Event()
    _check(config, options)
    with Writer(config.kafka) as writer:
        run = _Run(config, options=options, writer=writer, clock=clock, sleep=sleep or stop.wait)
        run.until_done(stop)
        writer.flush(FLUSH_TIMEOUT_MS)
    return run.report()


class _Run:
    """One run of the generator."""

    def __init__(
        self,
        config: Config,
        *,
        options: GeneratorOptions,
        writer: Writer,
        clock: Callable[[], int],
        sleep: Callable[[float], object],
    ) -> None:
        self._options, self._writer, self._clock, self._sleep = options, writer, clock, sleep
        self._topic = config.topics.interactions
        self._encode = record_encoder(config)
        self._kinds = [IMPRESSION, *(k for k in (CLICK, PURCHASE) if _WHAT[k] in config.events.engagements)]
        self._began_ms = clock()
        self._start_ms = _start_ms(options, now_ms=self._began_ms)
        self._world = World(world_options(options, session_gap_ms=config.session.gap_ms))
        run = f"{options.seed}-{self._start_ms:x}"
        self._renderer = event_renderer(config, options=options, world=self._world, run=run)
        faults = FaultOptions(
            out_of_order=options.out_of_order,
            out_of_order_ms=options.out_of_order_ms,
            retries=options.retries,
            malformed=options.malformed,
        )
        self._faults = Faults(faults, events=config.events, seed=options.seed)
        self._sent: Counter[str] = Counter()
        self._delayed = self._bytes = self._chosen_before = self._sent_until_ms = 0
        self._first_ms: int | None = None
        self._last_ms: int | None = None

    def until_done(self, stop: Event) -> None:
        """Window after window; at a bound what was delayed still goes out, after `stop` it does not."""
        done = False
        while not done and not stop.is_set():
            window = self._world.next_window()
            self._stand_still_if_behind(window.start_ms)
            values = self._renderer.render(window, start_ms=self._start_ms)
            chosen = self._chosen(window.events)
            done = self._is_last(window.end_ms, len(chosen))
            self._chosen_before += len(chosen)
            events = window.events[chosen]
            whats = [_WHAT[kind] for kind in events["kind"].tolist()]
            keys = [str(user).encode() for user in events["user"].tolist()]
            chosen_values = [values[i] for i in chosen.tolist()]
            self._faults.add(events["time_ms"] + self._start_ms, whats, keys, chosen_values)
            self._send(self._faults.take(None if done else self._start_ms + window.end_ms), stop)

    def report(self) -> GeneratorReport:
        """What was handed over so far."""
        sent = self._sent
        malformed = {kind: sent[kind] for kind in MALFORMED if sent[kind]}
        engagements = sent["click"] + sent["purchase"]
        return GeneratorReport(
            events=sent["impression"] + engagements,
            impressions=sent["impression"],
            engagements=engagements,
            clicks=sent["click"],
            purchases=sent["purchase"],
            duplicates=sent["duplicate"],
            malformed=sum(malformed.values()),
            malformed_by_kind=malformed,
            out_of_order=self._delayed,
            records=sent.total(),
            bytes=self._bytes,
            first_event_ms=self._first_ms,
            last_event_ms=self._last_ms,
            wall_s=(self._clock() - self._began_ms) / 1000,
        )

    def _chosen(self, events: np.ndarray) -> np.ndarray:
        """Indices of the events within the bounds and of kinds that the configuration knows."""
        chosen = np.isin(events["kind"], self._kinds)
        if self._options.seconds is not None:
            chosen &= events["time_ms"] < self._options.seconds * 1000
        indices = np.flatnonzero(chosen)
        if self._options.max_events is not None:
            indices = indices[: self._options.max_events - self._chosen_before]
        return indices

    def _is_last(self, end_ms: int, count: int) -> bool:
        seconds, most = self._options.seconds, self._options.max_events
        if seconds is not None and end_ms >= seconds * 1000:
            return True
        return most is not None and self._chosen_before + count >= most

    def _stand_still_if_behind(self, window_ms: int) -> None:
        """A world that fell behind the clock goes on from now, rather than send events with old dates."""
        if self._options.rate is not None:
            behind = self._clock() - (self._start_ms + window_ms)
            if behind > _LAG_ALLOWED_MS and self._options.start_ms is None:
                self._start_ms += behind

    def _send(self, due: list[Sending], stop: Event) -> None:
        for sending in due:
            if self._options.rate is not None and sending.at_ms >= self._sent_until_ms:
                self._wait_until(sending.at_ms)
                if stop.is_set():
                    return
            self._writer.send(self._topic, self._encode(sending.value), key=sending.key)
            self._count(sending)

    def _count(self, sending: Sending) -> None:
        self._sent[sending.what] += 1
        self._bytes += len(sending.value)
        if sending.what in _WHAT:
            event_ms = sending.event_ms
            self._delayed += sending.at_ms > event_ms
            self._first_ms = event_ms if self._first_ms is None else min(self._first_ms, event_ms)
            self._last_ms = event_ms if self._last_ms is None else max(self._last_ms, event_ms)

    def _wait_until(self, at_ms: int) -> None:
        """Sleep until `at_ms`, and let the records of a few milliseconds more go with it."""
        begins = self._options.start_ms
        offset = 0 if begins is None else begins - self._began_ms
        wait_ms = at_ms - offset - self._clock()
        if wait_ms > 0:
            self._sleep(wait_ms / 1000)
        self._sent_until_ms = at_ms + _SLICE_MS


def world_options(options: GeneratorOptions, *, session_gap_ms: int) -> WorldOptions:
    """The world that these options ask for."""
    base = WorldOptions(
        seed=options.seed,
        num_items=options.num_items,
        events_per_second=options.rate or DENSITY,
        samples_per_session=options.samples_per_session,
        candidates_per_request=options.candidates_per_request,
        session_gap_ms=session_gap_ms,
    )
    users = options.num_users or max(3_000, users_needed(base))
    return WorldOptions(**{name: getattr(base, name) for name in base.__slots__} | {"num_users": users})


def event_renderer(config: Config, *, options: GeneratorOptions, world: World, run: str) -> EventRenderer:
    """What writes the events of such a world."""
    lists = None if options.lists is None else IdLists(options.lists, seed=options.seed)
    return EventRenderer(config.events, world=world, run=run, lists=lists)


def _start_ms(options: GeneratorOptions, *, now_ms: int) -> int:
    """When the world begins: now, or so long ago that it ends now."""
    if options.start_ms is not None:
        return options.start_ms
    if options.rate is not None:
        return now_ms
    by_seconds = math.inf if options.seconds is None else options.seconds
    by_events = math.inf if options.max_events is None else options.max_events / DENSITY * 1.2 + 10
    return now_ms - math.ceil(min(by_seconds, by_events) * 1000)


def _check(config: Config, options: GeneratorOptions) -> None:
    """Options that cannot be followed are refused before anything is sent."""
    if "click" not in config.events.engagements or not config.events.impressions:
        raise ConfigError(
            "the generator sends impressions and engagements of type 'click', which this configuration does not know"
            " - at $.events; recd/presets/demo.yaml is one that does"
        )
    if options.rate is None and options.seconds is None and options.max_events is None:
        raise WorldError("as fast as it goes needs an end: give --seconds or --events, or a --rate")
    for name in ("out_of_order", "retries", "malformed"):
        if not 0.0 <= getattr(options, name) <= 1.0:
            raise WorldError(f"{name} is a fraction, got {getattr(options, name)}")
