"""The generator's presets: what repeats as often as is said, and the configuration of the same name reads all of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from recd.cli import cli
from recd.presets import preset_path
from stream.config import ConfigError, load
from stream.event_json import EventRenderer
from stream.generator import DENSITY, event_renderer, world_options
from stream.id_lists import IdLists, ListGroup, ListPlan, Motion
from stream.traffic import RECD_LISTS, TRAFFIC, traffic_options
from stream.world import IMPRESSION, World, WorldOptions

START_MS = 1_700_000_000_000
PLAN = ListPlan(
    user=(
        ListGroup("still", 0.0, Motion.REDRAWN, (3, 4)),
        ListGroup("front", 0.3, Motion.PREPENDED, (5, 2)),
        ListGroup("back", 1.0, Motion.APPENDED, (4,)),
    ),
    item=(6,),
)


def test_lists_move_as_their_plan_says() -> None:
    lists = IdLists(PLAN, seed=1)
    size, samples = 50, 100
    users = np.tile(np.arange(size), samples)
    texts = lists.render(users, users % 7, np.arange(size * samples))
    rows = [json.loads("{" + text + "}") for text in texts]
    moved: dict[str, list[bool]] = {"still": [], "front": [], "back": []}
    for before, after in zip(rows, rows[size:], strict=False):
        for group in PLAN.user:
            moved[group.name].append(any(before[name] != after[name] for name in group.fields))
            for name in group.fields if moved[group.name][-1] else []:
                if group.motion is Motion.APPENDED:
                    assert after[name][:-1] == before[name][1:]
                else:
                    assert after[name][1:] == before[name][:-1]
        assert (before["user_stats"] == after["user_stats"]) == (not moved["still"][-1])
    assert not any(moved["still"])
    assert abs(np.mean(moved["front"]) - 0.3) < 0.03
    assert np.mean(moved["back"]) > 0.98, "four times the same id is all that may hide a move"
    by_item = {
        (int(user) % 7, tuple(row["item_0"]), tuple(row["item_stats"])) for user, row in zip(users, rows, strict=True)
    }
    assert len(by_item) == 7


def test_candidates_of_one_request_see_the_same_lists() -> None:
    requests = np.repeat(np.arange(40), 3)
    texts = IdLists(PLAN, seed=2).render(np.zeros(120, np.int64), np.arange(120), requests)
    backs = [json.loads("{" + text + "}")["back_0"] for text in texts]
    assert all(backs[3 * i] == backs[3 * i + 1] == backs[3 * i + 2] for i in range(40))
    assert len({tuple(back) for back in backs}) > 30


def test_preset_recd_is_read_whole_and_the_same_again() -> None:
    config = load(preset_path("recd"))
    options = traffic_options("recd", max_events=1)
    world_of = world_options(options, session_gap_ms=config.session.gap_ms)

    def first_windows() -> list[bytes]:
        world = World(world_of)
        renderer = event_renderer(config, options=options, world=world, run="r")
        return [text for _ in range(3) for text in renderer.render(world.next_window(), start_ms=START_MS)]

    texts = first_windows()
    assert texts == first_windows()
    shown = [event for event in map(json.loads, texts) if event["type"] == "impression"]
    read = [feature for feature in config.features if feature.source is None]
    for event in shown[:50]:
        for feature in read:
            value = event[feature.field or feature.name]
            assert not feature.type.startswith("list[i") or len(value) <= feature.max_length
            assert feature.type != "list[float]" or len(value) == feature.length
    assert {feature.name for feature in read} <= set(shown[0])
    named = [name for group in RECD_LISTS.user for name in group.fields]
    assert {f.name: f.group for f in read if f.name in named} == {name: name.split("_")[0] for name in named}


def test_preset_recd_has_sixteen_and_a_half_samples_a_session() -> None:
    """Ten times as dense and ten times as short, which is the same traffic in fewer windows."""
    config = load(preset_path("recd"))
    gap_ms = config.session.gap_ms // 10
    options = world_options(traffic_options("recd", rate=10 * DENSITY), session_gap_ms=gap_ms)
    world = World(options)
    events = np.concatenate([world.next_window().events for _ in range(16)])
    shown = events[events["kind"] == IMPRESSION]
    begun = np.isin(shown["session"], shown["session"][shown["time_ms"] < 1_000])
    assert abs(np.unique(shown["session"][begun], return_counts=True)[1].mean() - 16.5) < 1.5
    steady, size = shown["session"][shown["time_ms"] > 3_000], config.batch.max_samples
    in_batch = [size / len(np.unique(steady[i : i + size])) for i in range(0, len(steady) - size, size)]
    assert 1.08 < np.mean(in_batch) < 1.2


def test_what_is_named_but_unknown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no traffic 'nobody'.*demo, transforms, recd"):
        traffic_options("nobody")
    assert set(TRAFFIC) <= {path.stem for path in preset_path("demo").parent.glob("*.yaml")}
    result = CliRunner().invoke(cli, ["generate", "--preset", "nobody"])
    assert result.exit_code == 2
    assert "'demo', 'recd'" in result.output


def test_without_lists_the_events_are_as_ever() -> None:
    config = load(preset_path("demo"))
    plain, world = World(WorldOptions(seed=3)), World(WorldOptions(seed=3))
    one = EventRenderer(config.events, world=plain, run="r").render(plain.next_window(), start_ms=START_MS)
    other = event_renderer(config, options=traffic_options("demo", seed=3), world=world, run="r")
    assert other.render(world.next_window(), start_ms=START_MS) == one
