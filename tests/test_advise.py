"""`recd advise` on traffic whose rates are known, from a real topic; what it says to paste loads and runs."""

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from recd.cli import cli
from recd.embedded import EmbeddedKafka
from recd.presets import preset_path
from stream.advice.grouping import Candidate, greedy_groups
from stream.advice.report import factor, kept_together
from stream.advice.sides import Following, Side, sample_pairs
from stream.builder import concat_samples
from stream.config import Config, DerivedConfig, FeatureConfig, load, to_yaml
from stream.generator import GeneratorOptions, generate
from stream.id_lists import ListGroup, ListPlan, Motion
from stream.kafka import Reader, create_topic
from stream.pipeline import PartitionPipeline, PipelineConfig
from stream.records import CommitPoint, RecordBlock

PLAN = ListPlan(
    user=(
        ListGroup("calm", 0.02, Motion.REDRAWN, (12, 12)),
        ListGroup("front", 0.30, Motion.PREPENDED, (15, 10)),
        ListGroup("back", 1.00, Motion.APPENDED, (20,)),
    ),
    item=(6,),
)
RATES = {"calm_0": 0.98, "calm_1": 0.98, "front_0": 0.7, "front_1": 0.7, "back_0": 0.0}


def features() -> str:
    """Everything in one group, which is as wrong as can be."""
    lists = [*RATES, "item_0"]
    made = [{"name": name, "group": "all", "type": "list[int]", "max_length": 50} for name in lists]
    made += [{"name": "user_stats", "group": "all", "type": "list[float]", "length": 16}]
    made += [{"name": "country", "group": "all", "type": "string"}, {"name": "item_id", "group": "all"}]
    return json.dumps(made)


@pytest.fixture(scope="module")
def traffic(kafka: EmbeddedKafka) -> Config:
    """A topic with some 350 sessions of 16.5 samples."""
    overrides = (
        f"kafka.bootstrap={kafka.bootstrap}",
        "topics.interactions=advise",
        "session.gap_ms=400",
        f"features={features()}",
        "trainer.model.tables={}",
    )
    config = load(preset_path("demo"), overrides=overrides)
    create_topic(config.kafka, "advise", partitions=2)
    options = GeneratorOptions(
        max_events=6_000, samples_per_session=16.5, candidates_per_request=1, lists=PLAN, start_ms=1_700_000_000_000
    )
    generate(config, options=options)
    return config


def told(config: Config, folder: Path, *arguments: str) -> tuple[dict, str]:
    (folder / "recd.yaml").write_text(to_yaml(config))
    command = ["advise", "--config", str(folder / "recd.yaml"), "--json", str(folder / "advice.json"), *arguments]
    result = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads((folder / "advice.json").read_text()), result.output


def test_the_rates_of_the_traffic_are_found_and_the_groups_follow(traffic: Config, tmp_path: Path) -> None:
    advice, text = told(traffic, tmp_path)
    found = {feature["name"]: feature for feature in advice["features"]}
    for name, rate in RATES.items():
        assert abs(found[name]["repeats"] - rate) < 0.02
        assert found[name]["expected"] == pytest.approx(factor(advice["samples_per_session"], found[name]["repeats"]))
        assert abs(found[name]["measured"] / found[name]["expected"] - 1) < 0.15
    assert found["country"]["repeats"] == 1.0
    assert found["country"]["repeats_across"] == 1.0
    assert found["item_id"]["repeats"] < 0.1
    assert 6 < advice["samples_per_session"] < 18
    group = {name: feature["better_group"] for name, feature in found.items()}
    rhythms = [("calm_0", "calm_1", "user_stats"), ("front_0", "front_1"), ("back_0",), ("item_id", "item_0")]
    assert all(len({group[name] for name in names}) == 1 for names in rhythms)
    assert len({group[names[0]] for names in rhythms}) == 4
    sides = {name: feature["side"] for name, feature in found.items()}
    assert sides == {
        **dict.fromkeys((*RATES, "user_stats", "country"), "user"),
        **dict.fromkeys(("item_0", "item_id"), "item"),
    }
    assert advice["bytes_plain"] > advice["bytes_now"] > advice["bytes_advised"] > 0
    slices = {name: found[name]["slices"] for name in (*RATES, "item_0", "item_id")}
    on, off = ("front_0", "front_1", "back_0"), ("calm_0", "calm_1", "item_0")
    assert slices == {**dict.fromkeys(on, "always"), **dict.fromkeys(off, "never"), "item_id": "auto"}
    assert found["back_0"]["slice_factor"] > 4
    for name in found:
        assert name in text
    assert advice["yaml"] in text


def test_what_it_says_to_paste_loads_and_makes_the_same_samples(traffic: Config, tmp_path: Path) -> None:
    advice, _ = told(traffic, tmp_path, "--records", "3000")
    pasted = yaml.safe_load(to_yaml(traffic)) | yaml.safe_load(advice["yaml"])
    (tmp_path / "pasted.yaml").write_text(yaml.safe_dump(pasted))
    better = load(tmp_path / "pasted.yaml")
    assert {feature.name for feature in better.features} == {feature.name for feature in traffic.features}
    assert len({feature.group for feature in better.features}) >= 4
    (before_ids, before), (after_ids, after) = samples(traffic), samples(better)
    assert before_ids.tolist() == after_ids.tolist()
    for feature in traffic.features:
        if not feature.is_dense:
            group = next(f.group for f in better.features if f.name == feature.name)
            one, other = before["all"].lists[feature.name], after[group].lists[feature.name]
            assert [row.tolist() for row in one.rows()] == [row.tolist() for row in other.rows()]


def samples(config: Config) -> tuple[np.ndarray, dict]:
    """What the pipeline makes of the first 500 records of partition 0."""
    pipeline = PartitionPipeline(PipelineConfig.of(config), partition=0, start=CommitPoint(0))
    with Reader(config.kafka, topic=config.topics.interactions, positions={0: 0}) as reader:
        found = reader.poll(max_messages=500, timeout_ms=1_000)
    block = RecordBlock(
        0,
        np.array([m.offset for m in found]),
        np.array([m.timestamp_ms for m in found]),
        [m.key for m in found],
        [m.value for m in found],
    )
    outputs = [pipeline.feed(block), pipeline.advance(pipeline.close_all_watermark_ms())]
    made = concat_samples([output.samples for output in outputs if output.samples is not None])
    return made.offsets, made.groups


def test_a_stretch_is_as_long_as_asked_and_an_empty_one_is_refused(traffic: Config, tmp_path: Path) -> None:
    some, _ = told(traffic, tmp_path, "--records", "1000")
    assert 0 < some["samples"] <= 1_000
    (tmp_path / "none.yaml").write_text(to_yaml(msgspec.structs.replace(traffic, features=())))
    for arguments, message in (
        (["--from", "2099-01-01"], "no samples in 0 records of 'advise'"),
        (["--from", "yesterday"], "'yesterday' is not a time"),
        (["--config", str(tmp_path / "none.yaml")], "it has none - at $.features"),
    ):
        command = ["advise", "--config", str(tmp_path / "recd.yaml"), *arguments]
        result = CliRunner().invoke(cli, command)
        assert message in str(result.exception)


def test_nothing_is_joined_and_nothing_committed(traffic: Config, tmp_path: Path) -> None:
    from confluent_kafka.admin import AdminClient

    told(traffic, tmp_path, "--records", "500")
    admin = AdminClient({"bootstrap.servers": traffic.kafka.bootstrap})
    groups = {listed.group_id for listed in admin.list_consumer_groups().result().valid}
    assert not groups & {"recd-reader", traffic.stream.group_id, "recd-advise"}


def candidates(clocks: list[np.ndarray], *, copies: int, row_bytes: float) -> list[Candidate]:
    """One session of 2001 samples in one batch; the values of a clock are the number of its changes so far."""
    values = [np.concatenate([[0], np.cumsum(clock)]).astype(np.uint64) for clock in clocks]
    return [
        Candidate((f"{c}{i}",), row_bytes, clock, values[c]) for i in range(copies) for c, clock in enumerate(clocks)
    ]


def test_greedy_groups_join_what_changes_together_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    clocks = [random.random(2_000) < rate for rate in (0.02, 0.3, 0.3, 1.0)]
    groups = greedy_groups(candidates(clocks, copies=3, row_bytes=100.0), sessions=1)
    assert sorted(sorted(group) for group in groups) == [[f"{clock}{i}" for i in range(3)] for clock in range(4)]
    light = greedy_groups(candidates(clocks, copies=1, row_bytes=0.5), sessions=1)
    assert len(light) == 1, "an inverse costs more than they do"
    assert greedy_groups([], sessions=0) == []


def test_items_that_come_back_stay_apart_from_what_never_does() -> None:
    items = np.tile(np.arange(40, dtype=np.uint64), 50)
    always = np.ones(1_999, np.bool_)
    item = Candidate(("item",), 100.0, always, items)
    history = Candidate(("history",), 100.0, always, np.arange(2_000, dtype=np.uint64))
    assert greedy_groups([item, history], sessions=1) == [("item",), ("history",)]


def test_a_user_and_an_item_never_share_a_group_whatever_it_would_save() -> None:
    """Sessions of one sample: nothing repeats, so one inverse for all would be cheapest."""
    keys, never = np.arange(2_000, dtype=np.uint64), np.zeros(0, np.bool_)
    sides = {"who": Side.USER, "what": Side.ITEM, "age": Side.USER, "price": Side.ITEM, "hour": Side.OPEN}
    features = [Candidate((name,), 100.0, never, keys, side) for name, side in sides.items()]
    groups = greedy_groups(features, sessions=2_000)
    assert sorted(len(group) for group in groups) == [2, 3]
    assert not any({"who", "age"} & set(group) and {"what", "price"} & set(group) for group in groups)
    assert len(greedy_groups([replace(one, side=Side.OPEN) for one in features], sessions=2_000)) == 1


def test_a_small_feature_has_no_group_of_its_own() -> None:
    """Its few values would save less than half a percent."""
    random = np.random.default_rng(0)
    item = Candidate(("item",), 500.0, np.ones(1_999, np.bool_), np.arange(2_000, dtype=np.uint64))
    colours = random.integers(0, 5, 2_000).astype(np.uint64)
    colour = Candidate(("colour",), 4.6, colours[1:] != colours[:-1], colours)
    assert greedy_groups([item, colour], sessions=1) == [("item", "colour")]
    assert len(greedy_groups([item, replace(colour, row_bytes=50.0)], sessions=1)) == 2


@pytest.mark.parametrize("known", [True, False])
def test_whose_a_value_is_shows_in_what_it_follows(known: bool) -> None:
    random = np.random.default_rng(0)
    users = np.repeat(np.arange(300), 4)
    items = random.integers(0, 100, users.size)
    chance = random.integers(0, 2**60, 2_000).astype(np.uint64)
    pairs = sample_pairs(users, users, items if known else np.full(users.size, -1))
    values = {
        Side.USER: chance[users],
        Side.ITEM: chance[items],
        Side.CONTEXT: random.integers(0, 24, users.size).astype(np.uint64),
        Side.OPEN: np.zeros(users.size, np.uint64),
    }
    for side, value in values.items():
        following = Following()
        following.add(value, pairs)
        expected = Side.CONTEXT if side is Side.ITEM and not known else side
        assert following.side(slides=False) is expected
    assert Following().side(slides=True) is Side.USER


def test_what_a_derived_feature_reads_stays_together() -> None:
    features = [FeatureConfig(name=name, group="g") for name in "abcd"]
    derived = [DerivedConfig(name="x", inputs=("a", "c")), DerivedConfig(name="y", inputs=("x", "d"))]
    assert kept_together(features, derived) == [("a", "c", "d"), ("b",)]


@pytest.mark.parametrize(("size", "repeats", "expected"), [(16.5, 0.8, 4.02), (16.5, 0.95, 9.30), (1.15, 1.0, 1.15)])
def test_the_factor_is_recds(size: float, repeats: float, expected: float) -> None:
    assert factor(size, repeats) == pytest.approx(expected, abs=0.01)
