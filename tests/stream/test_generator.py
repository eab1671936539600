"""The generator's world, its truth, its faults, and what arrives in a real topic."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from threading import Event

import numpy as np
import pytest

import recd.presets
from recd.embedded import EmbeddedKafka
from recd.presets import preset_path
from stream.config import Config, ConfigError, load
from stream.event_json import EventRenderer
from stream.faults import MALFORMED, YEAR_2099_MS
from stream.generator import GeneratorOptions, generate
from stream.kafka import Message, Reader, create_topic, end_offsets
from stream.transforms import in_batch
from stream.world import CLICK, IMPRESSION, PURCHASE, World, WorldError, WorldOptions

START_MS = 1_700_000_000_000
PRESETS = sorted(path.stem for path in Path(recd.presets.__file__).parent.glob("*.yaml"))


@pytest.fixture(scope="module")
def minute() -> np.ndarray:
    """The events of a world's first minute."""
    return _events(World(WorldOptions(seed=3)), windows=120)


@pytest.fixture
def config(kafka: EmbeddedKafka, topic_prefix: str) -> Config:
    return _config(kafka, topic=f"{topic_prefix}interactions")


def _config(kafka: EmbeddedKafka, *, topic: str) -> Config:
    overrides = (f"topics.interactions={topic}", f"kafka.bootstrap={kafka.bootstrap}")
    config = load(preset_path("demo"), overrides=overrides)
    create_topic(config.kafka, topic, partitions=2)
    return config


def _events(world: World, *, windows: int) -> np.ndarray:
    return np.concatenate([world.next_window().events for _ in range(windows)])


def _read(config: Config) -> list[Message]:
    topic = config.topics.interactions
    ends = end_offsets(config.kafka, topic)
    found: list[Message] = []
    with Reader(config.kafka, topic=topic, positions=dict.fromkeys(ends, 0)) as reader:
        while sum(reader.positions().values()) < sum(ends.values()):
            found.extend(reader.poll(max_messages=10_000, timeout_ms=1_000))
    return found


def _entropy(p: np.ndarray) -> np.ndarray:
    return -(p * np.log(p) + (1 - p) * np.log(1 - p))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_complete_and_valid(name: str) -> None:
    config = load(preset_path(name))
    assert {feature.group for feature in config.features} >= {"user", "item", "session"}
    id_features = {f.name: f for f in in_batch(config.features, config.derived) if not f.is_dense}
    unbounded = {name for name, feature in id_features.items() if feature.bound is None}
    assert unbounded <= set(config.trainer.model.tables) <= set(id_features)
    assert any(feature.source for feature in config.features)


def test_presets_are_those_of_the_demo() -> None:
    assert {"demo", "deskdrop"} <= set(PRESETS)


def test_the_same_seed_is_the_same_world(minute: np.ndarray) -> None:
    again = _events(World(WorldOptions(seed=3)), windows=120)
    assert minute.tobytes() == again.tobytes()
    other = _events(World(WorldOptions(seed=4)), windows=10)
    assert not np.array_equal(minute["item"][: len(other)], other["item"])


def test_clicks_and_purchases_happen_as_often_as_their_probability_says(minute: np.ndarray) -> None:
    shown = minute[(minute["kind"] == IMPRESSION) & (minute["time_ms"] < 50_000)]
    for kind, column in ((CLICK, "p_click"), (PURCHASE, "p_purchase")):
        p = shown[column]
        happened = np.isin(shown["number"], minute["impression"][minute["kind"] == kind])
        for low, high in pairwise(np.quantile(p, [0.0, 0.25, 0.5, 0.75, 1.0])):
            chosen = (p >= low) & (p <= high)
            spread = np.sqrt((p * (1 - p))[chosen].sum())
            assert abs(happened[chosen].sum() - p[chosen].sum()) < 4.5 * spread


def test_there_is_much_to_learn_and_it_drifts(minute: np.ndarray) -> None:
    p = minute["p_click"][minute["kind"] == IMPRESSION]
    assert _entropy(p).mean() < 0.8 * _entropy(np.array([p.mean()]))[0]
    world = World(WorldOptions(seed=3))
    users, items = np.arange(400), np.tile(np.arange(400), (400, 1))
    before = world._preference(users, items)
    world._now_ms = WorldOptions().drift_period_ms // 4
    after = world._preference(users, items)
    assert abs(np.corrcoef(before.ravel(), after.ravel())[0, 1]) < 0.25


def test_sessions_are_as_asked_and_apart(minute: np.ndarray) -> None:
    gap = WorldOptions().session_gap_ms
    begun = np.unique(minute["session"][minute["time_ms"] < 40_000])
    shown = minute[(minute["kind"] == IMPRESSION) & np.isin(minute["session"], begun)]
    sizes = np.unique(shown["session"], return_counts=True)[1]
    assert 12 < sizes.mean() < 16
    requests = np.unique(shown["request"], return_counts=True)[1]
    assert set(requests.tolist()) == {4}
    for request in np.split(shown["item"][np.argsort(shown["request"], kind="stable")], len(requests))[:500]:
        assert len(set(request.tolist())) == 4
    order = np.lexsort((minute["time_ms"], minute["user"]))
    ordered = minute[order]
    same_user = ordered["user"][1:] == ordered["user"][:-1]
    same_session = ordered["session"][1:] == ordered["session"][:-1]
    steps = np.diff(ordered["time_ms"])
    assert steps[same_user & same_session].max() < gap
    assert steps[same_user & ~same_session].min() >= gap


def test_popularity_is_skewed_and_new_items_appear(minute: np.ndarray) -> None:
    items, counts = np.unique(minute["item"], return_counts=True)
    counts = np.sort(counts)[::-1]
    assert counts[: len(counts) // 10].sum() > 0.3 * counts.sum()
    assert (items >= WorldOptions().num_items).sum() > 20


def test_everything_keeps_its_time_order_and_its_impression(minute: np.ndarray) -> None:
    assert (np.diff(minute["time_ms"]) >= 0).all()
    assert len(np.unique(minute["number"])) == len(minute)
    time_of = dict(zip(minute["number"].tolist(), minute["time_ms"].tolist(), strict=True))
    for event in minute[minute["kind"] != IMPRESSION][:2_000]:
        assert time_of[int(event["impression"])] < event["time_ms"]


def test_user_features_repeat_within_a_session() -> None:
    world = World(WorldOptions(seed=5))
    renderer = EventRenderer(load(preset_path("demo")).events, world=world, run="r")
    rows: dict[int, set[str]] = {}
    for _ in range(40):
        window = world.next_window()
        for event, text in zip(window.events, renderer.render(window, start_ms=START_MS), strict=True):
            if event["kind"] == IMPRESSION:
                found = json.loads(text)
                row = json.dumps([found[name] for name in ("user_id", "country", "age", "interests", "history")])
                rows.setdefault(int(event["session"]), set()).add(row)
    assert len(rows) > 500
    assert all(len(found) == 1 for found in rows.values())


def test_impossible_worlds_are_refused(config: Config) -> None:
    with pytest.raises(WorldError, match="num_users=10 cannot make 1500 events/s"):
        World(WorldOptions(num_users=10))
    with pytest.raises(WorldError, match="candidates_per_request"):
        World(WorldOptions(candidates_per_request=400))
    with pytest.raises(ConfigError, match="needs an end"):
        generate(config, options=GeneratorOptions())
    with pytest.raises(ConfigError, match="retries is a fraction"):
        generate(config, options=GeneratorOptions(max_events=1, retries=2.0))
    with pytest.raises(ConfigError, match="type 'click'"):
        generate(load(preset_path("deskdrop")), options=GeneratorOptions(max_events=1))


def test_what_is_reported_is_what_is_in_the_topic_and_the_same_again(config: Config, kafka: EmbeddedKafka) -> None:
    options = GeneratorOptions(
        max_events=20_000, seed=7, start_ms=START_MS, out_of_order=0.05, retries=0.02, malformed=0.02
    )
    report = generate(config, options=options)
    messages = _read(config)
    assert report.events == 20_000 == report.impressions + report.engagements
    assert report.records == len(messages) == report.events + report.duplicates + report.malformed
    assert report.bytes == sum(len(m.value or b"") for m in messages)
    assert set(report.malformed_by_kind) == set(MALFORMED)
    found = Counter(_kind(m, config=config) for m in messages)
    assert found == Counter({"event": report.events + report.duplicates}) + Counter(report.malformed_by_kind)
    keyed = [m for m in messages if _kind(m, config=config) == "event"]
    events = [json.loads(m.value or b"") for m in keyed]
    by_id = Counter(event["event_id"] for event in events)
    assert len(by_id) == report.events
    assert sum(by_id.values()) - len(by_id) == report.duplicates > 200
    assert max(by_id.values()) == 2
    assert all(m.key == str(event["user_id"]).encode() for m, event in zip(keyed, events, strict=True))
    behind = [_most_behind(messages, partition=p, config=config) for p in (0, 1)]
    assert all(0 < most <= options.out_of_order_ms + 50 for most in behind)
    assert report.out_of_order > 500

    second = _config(kafka, topic=f"{config.topics.interactions}-again")
    assert generate(second, options=options).records == report.records
    assert _contents(_read(second)) == _contents(messages)


def _contents(messages: list[Message]) -> list[list[tuple[bytes | None, bytes | None]]]:
    return [[(m.key, m.value) for m in messages if m.partition == p] for p in (0, 1)]


def _kind(message: Message, *, config: Config) -> str:
    value = message.value or b""
    if len(value) > config.events.max_bytes:
        return "oversized"
    try:
        event = json.loads(value)
    except ValueError:
        return "broken_json"
    if "user_id" not in event:
        return "missing_key"
    if not isinstance(event["event_time_ms"], int):
        return "wrong_type"
    return "dated_2099" if event["event_time_ms"] == YEAR_2099_MS else "event"


def _most_behind(messages: list[Message], *, partition: int, config: Config) -> int:
    greatest = most = 0
    for message in messages:
        if message.partition == partition and _kind(message, config=config) == "event":
            time_ms = json.loads(message.value or b"")["event_time_ms"]
            greatest = max(greatest, time_ms)
            most = max(most, greatest - time_ms)
    return most


class _Clock:
    """A clock that moves when somebody sleeps, or when told to."""

    def __init__(self) -> None:
        self.now_ms = START_MS
        self.slept_s = 0.0

    def __call__(self) -> int:
        return self.now_ms

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds
        self.now_ms += round(seconds * 1000)


def test_a_rate_is_kept_and_events_are_dated_now(config: Config) -> None:
    clock = _Clock()
    report = generate(config, options=GeneratorOptions(rate=500, seconds=20, seed=1), clock=clock, sleep=clock.sleep)
    assert 0.75 * 10_000 < report.events <= 10_050
    assert 19 <= clock.slept_s <= 20
    assert START_MS <= (report.first_event_ms or 0) < START_MS + 1_000
    assert START_MS + 19_500 < (report.last_event_ms or 0) < START_MS + 20_000


def test_a_world_that_fell_behind_goes_on_from_now(config: Config) -> None:
    clock = _Clock()
    stalled = False

    def sleep(seconds: float) -> None:
        nonlocal stalled
        clock.sleep(seconds)
        if clock.now_ms > START_MS + 5_000 and not stalled:
            stalled = True
            clock.now_ms += 60_000

    report = generate(config, options=GeneratorOptions(rate=300, seconds=10), clock=clock, sleep=sleep)
    assert stalled
    times = sorted({json.loads(m.value or b"")["event_time_ms"] for m in _read(config)})
    assert max(b - a for a, b in pairwise(times)) > 55_000
    assert report.last_event_ms == times[-1] > START_MS + 65_000


def test_stop_ends_in_order_and_the_report_is_still_exact(config: Config) -> None:
    clock, stop = _Clock(), Event()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now_ms > START_MS + 3_000:
            stop.set()

    options = GeneratorOptions(rate=500, retries=0.05, malformed=0.05)
    report = generate(config, options=options, stop=stop, clock=clock, sleep=sleep)
    assert 0 < report.events < 1_600
    assert report.records == len(_read(config)) == report.events + report.duplicates + report.malformed


def test_only_known_engagements_are_sent(kafka: EmbeddedKafka, topic_prefix: str) -> None:
    overrides = ("events.engagements=[click]", "labels=[{name: click, engagements: [click]}]", "events.time_unit=s")
    names = (f"topics.interactions={topic_prefix}interactions", f"kafka.bootstrap={kafka.bootstrap}")
    config = load(preset_path("demo"), overrides=(*overrides, *names, "events.fields.key=user.id"))
    create_topic(config.kafka, config.topics.interactions, partitions=1)
    report = generate(config, options=GeneratorOptions(max_events=2_000, start_ms=START_MS))
    assert report.purchases == 0
    assert report.clicks > 100
    events = [json.loads(m.value or b"") for m in _read(config)]
    assert len(events) == 2_000
    assert {event["type"] for event in events} == {"impression", "click"}
    assert all(START_MS / 1000 <= event["event_time_ms"] < START_MS / 1000 + 10 for event in events)
    assert all(isinstance(event["user"]["id"], int) for event in events)
