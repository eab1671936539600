"""Imports into real topics: what arrives, kills with -9, two at a time, and the whole way to samples."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
import yaml

from recd.embedded import EmbeddedKafka, EmbeddedRedis
from recd.presets import preset_path
from recd.sources import import_lines
from stream.config import Config, ConfigError, to_yaml
from stream.importers import ImportFileError, ImportOptions, Order, import_files
from stream.importers.options import Look
from stream.kafka import Fenced, Message, create_topic
from tests.stream.importers import made_files as made
from tests.stream.importers.made_files import DESKDROP_HEADER, VIEW, config_of, written
from tests.stream.rig import ROOT, Rig, read_all

pytestmark = pytest.mark.kafka
Configure = Callable[[str], Config]


@pytest.fixture
def configure(kafka: EmbeddedKafka, topic_prefix: str) -> Configure:
    """The configuration for a format, with a topic of its own."""

    def make(name: str) -> Config:
        topics = (f"topics.interactions={topic_prefix}{name}", f"topics.imports={topic_prefix}imports")
        config = config_of(name, f"kafka.bootstrap={kafka.bootstrap}", *topics)
        create_topic(config.kafka, config.topics.interactions, partitions=2)
        return config

    return make


def events_of(config: Config) -> list[dict[str, object]]:
    """By partition, in their order."""
    return [json.loads(message.value or b"") for message in read_all(config, config.topics.interactions)]


def test_rows_arrive_under_the_configured_names(configure: Configure, tmp_path: Path) -> None:
    config = configure("deskdrop")
    rows = VIEW + "1457963700,COMMENT CREATED,8078873160882064481,-3891637997717104548,\nbad\n"
    path = written(tmp_path, "small.csv", DESKDROP_HEADER + rows)
    report = import_files(config, [path], format="deskdrop")
    assert (report.rows, report.events, report.impressions, report.engagements) == (3, 2, 1, 1)
    assert (report.files[0].first_event_ms, report.files[0].last_event_ms) == (1457963676000, 1457963700000)
    assert report.complete
    assert [line.strip() for line in import_lines(report)] == [
        "small.csv: 3 rows, 2 events (1 impressions, 1 engagements)",
        "1 rows are no events: columns 1",
        "line 4: expected 5 columns, got 1",
    ]
    messages: list[Message] = read_all(config, config.topics.interactions)
    assert {m.key for m in messages} == {b"-3891637997717104548"}
    assert len({m.partition for m in messages}) == 1
    first = json.loads(messages[0].value or b"")
    assert first.pop("row").endswith("-1")
    assert first == {
        "person_id": "-3891637997717104548",
        "timestamp": 1457963676,
        "event_type": "VIEW",
        "content_id": "8078873160882064481",
        "session_id": "-87",
    }


def test_a_file_is_imported_once_goes_on_when_it_grew_and_again_when_told(configure: Configure, tmp_path: Path) -> None:
    config = configure("deskdrop")
    path = written(tmp_path, "a.csv", DESKDROP_HEADER + VIEW * 100)
    import_files(config, [path], format="deskdrop")
    copy = written(tmp_path, "copy.csv", DESKDROP_HEADER + VIEW * 100)
    passed_over = import_files(config, [path, copy], format="deskdrop")
    assert [(file.events, file.resumed_rows) for file in passed_over.files] == [(100, 100), (100, 100)]
    assert len(events_of(config)) == 100
    written(tmp_path, "a.csv", DESKDROP_HEADER + VIEW * 103)
    grown = import_files(config, [path], format="deskdrop")
    assert (grown.files[0].resumed_rows, grown.events) == (100, 103)
    import_files(config, [path], format="deskdrop", options=ImportOptions(again=True))
    ids = [event["row"] for event in events_of(config)]
    assert len(ids) == 206
    assert ids[:103] == ids[103:]


def test_bad_rows_and_unknown_formats_stop_it(configure: Configure, tmp_path: Path) -> None:
    config = configure("deskdrop")
    path = written(tmp_path, "b.csv", DESKDROP_HEADER + VIEW * 2 + "bad\n" * 2 + VIEW)
    with pytest.raises(ImportFileError, match=r"2 of 4 rows are no events, 1 are allowed.*line 4: expected 5 columns"):
        import_files(config, [path], format="deskdrop", options=ImportOptions(max_bad=1))
    assert len(events_of(config)) == 2
    report = import_files(config, [path], format="deskdrop", options=ImportOptions(max_bad=2))
    assert (report.events, report.bad_rows, report.files[0].resumed_rows) == (3, 2, 4)
    assert len(events_of(config)) == 3
    with pytest.raises(ConfigError, match="no format 'csv': there are mind, rees46"):
        import_files(config, [path], format="csv")
    with pytest.raises(ConfigError, match="takes no catalogue"):
        import_files(config, [path], format="deskdrop", items=path)


def test_stop_ends_early_says_how_far_and_the_next_run_goes_on(configure: Configure, tmp_path: Path) -> None:
    config = configure("deskdrop")
    path = written(tmp_path, "long.csv", DESKDROP_HEADER + VIEW * 5_000)
    stop, told = Event(), list[Look]()

    def on_progress(look: Look) -> None:
        told.append(look)
        if look.events >= 2_000:
            stop.set()

    report = import_files(config, [path], format="deskdrop", options=ImportOptions(stop=stop, on_progress=on_progress))
    assert (report.events, report.complete) == (2_000, False)
    assert "goes on" in import_lines(report)[0]
    assert [(look.phase, look.events) for look in told] == [("sending", 1_000), ("sending", 2_000)]
    report = import_files(config, [path], format="deskdrop")
    assert (report.events, report.complete, report.files[0].resumed_rows) == (5_000, True, 2_000)
    ids = [str(event["row"]) for event in events_of(config)]
    assert [int(one.split("-")[1]) for one in ids] == list(range(1, 5_001))


@pytest.fixture
def behaviors(tmp_path: Path) -> Path:
    """100 rows of MIND in disorder, three candidates each."""
    rows = [
        f"{i}\tU{i * 7 % 13}\t11/{11 + i * 37 % 5}/2015 {1 + i % 12}:{i * 31 % 60:02d}:00 AM\tN1 N2\t"
        f"N{i}-{i % 2} N{i + 1}-0 N{i + 2}-1\n"
        for i in range(1, 101)
    ]
    return written(tmp_path, "behaviors.tsv", "".join(rows))


@pytest.mark.parametrize("order", [Order.FILE, Order.TIME])
def test_killed_with_9_no_event_is_lost_or_doubled(
    configure: Configure, tmp_path: Path, behaviors: Path, order: Order
) -> None:
    config = configure("mind" if order is Order.TIME else "rees46")
    if order is Order.TIME:
        path, name, crashes = behaviors, "mind", ("sent:1", "committed:3", "sent:77")
    else:
        header, *rows = made.REES46.splitlines(keepends=True)
        path, name = written(tmp_path, "rees.csv", header + "".join(rows) * 50), "rees46"
        crashes = ("sent:41", "committed:1", "sent:55")
    config_path = tmp_path / "recd.yaml"
    config_path.write_text(to_yaml(config))
    command = [sys.executable, "-m", "tests.stream.importers.import_process", str(config_path), name, str(path)]
    for crash in crashes:
        died = subprocess.run([*command, crash], cwd=ROOT, capture_output=True, check=False, timeout=60)
        assert died.returncode == -signal.SIGKILL, died.stderr
    end = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60)
    assert int(end.stdout) > 0, "the last run began anew"
    expected, _ = made.read(name, path, config=config)
    by_user: dict[str, list[object]] = {}
    for wanted in expected:
        by_user.setdefault(wanted.key, []).append(wanted.id)
    arrived: dict[str, list[object]] = {}
    for event in events_of(config):
        arrived.setdefault(str(event["user_id"]), []).append(event["event_id"])
    assert arrived == by_user


def test_a_second_import_of_the_file_fences_the_first(configure: Configure, tmp_path: Path) -> None:
    config = configure("deskdrop")
    path = written(tmp_path, "long.csv", DESKDROP_HEADER + VIEW * 3_000)
    second: list[int] = []

    def take_over(look: Look) -> None:
        if not second:
            second.append(import_files(config, [path], format="deskdrop").events)

    with pytest.raises(Fenced, match=r"another import of this file took over.*run it again to go on"):
        import_files(config, [path], format="deskdrop", options=ImportOptions(on_progress=take_over))
    assert second == [3_000]
    assert len({str(event["row"]) for event in events_of(config)}) == len(events_of(config)) == 3_000


def test_events_of_2015_all_become_samples(
    kafka: EmbeddedKafka, redis_server: EmbeddedRedis, tmp_path: Path, topic_prefix: str, behaviors: Path
) -> None:
    rig = Rig(tmp_path, kafka=kafka.bootstrap, redis=redis_server.url, prefix=topic_prefix)
    preset = yaml.safe_load(preset_path("mind").read_text())
    rig.tree |= {name: preset[name] for name in ("events", "features", "labels", "session")}
    rig.write()
    rig.create()
    with rig.worker() as worker:
        worker.wait_ready()
        report = import_files(rig.config, [behaviors], format="mind")
        worker.wait(lambda state: state["counters"]["events"] >= report.events, "every event")
        worker.order("close")
        # Behind the last event of a partition stands the import's commit marker, so the log's end is not a position.
        worker.wait(lambda state: state["counters"]["samples"] >= report.impressions, "every sample")
    samples = rig.check_exactly_once()
    assert sum(map(len, samples.values())) == report.impressions == 300
    assert (rig.rejects("late"), rig.rejects("quarantine")) == ([], [])
    assert sum(int(batch.labels.sum()) for batch in rig.batches()) == report.engagements == 150
