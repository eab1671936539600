"""Importing files into a real topic."""

import gzip
import json
from pathlib import Path
from threading import Event

import pytest

from recd.embedded import EmbeddedKafka
from recd.presets import preset_path
from stream.config import Config, ConfigError, load
from stream.importers import BAD_ROWS_SHOWN, ImportedEvent, ImportFileError, deskdrop, event_writer, import_file
from stream.kafka import Message, Reader, create_topic, end_offsets

REAL = Path(__file__).parents[3] / "shared" / "data" / "deskdrop" / "interactions.csv.gz"
HEADER = "timestamp,event_type,content_id,person_id,session_id\n"
GOOD = "1457963676,VIEW,8078873160882064481,-3891637997717104548,-87\n"


@pytest.fixture
def config(kafka: EmbeddedKafka, topic_prefix: str) -> Config:
    overrides = (f"topics.interactions={topic_prefix}interactions", f"kafka.bootstrap={kafka.bootstrap}")
    config = load(preset_path("deskdrop"), overrides=overrides)
    create_topic(config.kafka, config.topics.interactions, partitions=2)
    return config


def _read(config: Config) -> list[Message]:
    topic = config.topics.interactions
    ends = end_offsets(config.kafka, topic)
    found: list[Message] = []
    with Reader(config.kafka, topic=topic, positions=dict.fromkeys(ends, 0)) as reader:
        while sum(reader.positions().values()) < sum(ends.values()):
            found.extend(reader.poll(max_messages=10_000, timeout_ms=1_000))
    return found


def test_rows_arrive_under_the_configured_names(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "small.csv"
    path.write_text(HEADER + GOOD + "1457963700,COMMENT CREATED,8078873160882064481,-3891637997717104548,\n")
    report = import_file(config, path, format="deskdrop")
    assert (report.rows, report.events, report.impressions, report.engagements) == (2, 2, 1, 1)
    assert (report.first_event_ms, report.last_event_ms) == (1457963676000, 1457963700000)
    messages = _read(config)
    assert {m.key for m in messages} == {b"-3891637997717104548"}
    assert len({m.partition for m in messages}) == 1
    assert [json.loads(m.value or b"") for m in messages] == [
        {
            "row": "1",
            "person_id": "-3891637997717104548",
            "timestamp": 1457963676,
            "event_type": "VIEW",
            "content_id": "8078873160882064481",
            "session_id": "-87",
        },
        {
            "row": "2",
            "person_id": "-3891637997717104548",
            "timestamp": 1457963700,
            "event_type": "COMMENT CREATED",
            "content_id": "8078873160882064481",
        },
    ]


BAD = {
    b"x,VIEW,1,2,3": "timestamp",
    b"-5,VIEW,1,2,3": "timestamp",
    b"99999999999999,VIEW,1,2,3": "timestamp",
    b"1457963676,VIEW,1": "columns",
    b"1457963676,VIEW,,2,3": "content_id",
    b"1457963676,VIEW,1, ,3": "person_id",
    b'1457963676,"VIEW,1,2,3': "CSV",
    b"1457963676,VIEW,\xff\xfe,2,3": "UTF-8",
    b"1457963676,PURCHASE,1,2,3": "PURCHASE",
}


def test_bad_rows_are_counted_shown_and_cost_nobody_else(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv.gz"
    lines = [line for bad in BAD for line in (bad + b"\n", GOOD.encode())]
    with gzip.open(path, "wb") as file:
        file.write(HEADER.encode() + b"".join(lines))
    report = import_file(config, path, format="deskdrop")
    assert report.rows == 2 * len(BAD)
    assert report.events == report.impressions == len(BAD)
    assert report.bad_rows == len(report.first_bad_rows) == len(BAD)
    assert [bad.line for bad in report.first_bad_rows] == list(range(2, 2 + 2 * len(BAD), 2))
    for bad, reason in zip(report.first_bad_rows, BAD.values(), strict=True):
        assert reason in bad.reason
    written = [json.loads(m.value or b"")["row"] for m in _read(config)]
    assert sorted(map(int, written)) == list(range(2, 2 + 2 * len(BAD), 2))


def test_only_the_first_bad_rows_are_kept(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "all-bad.csv"
    path.write_text(HEADER + "nonsense\n" * (BAD_ROWS_SHOWN + 5))
    report = import_file(config, path, format="deskdrop")
    assert (report.bad_rows, len(report.first_bad_rows), report.events) == (BAD_ROWS_SHOWN + 5, BAD_ROWS_SHOWN, 0)
    assert report.first_event_ms is None


def test_a_torn_file_is_an_error_after_what_stood_before_it(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "torn.csv.gz"
    whole = gzip.compress((HEADER + "".join(f"{1457963676 + i},VIEW,{i * i},{i},3\n" for i in range(20_000))).encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImportFileError, match=r"torn\.csv\.gz: cannot be read behind line \d+"):
        import_file(config, path, format="deskdrop")
    written = sorted(int(json.loads(m.value or b"")["row"]) for m in _read(config))
    assert 0 < len(written) < 20_000
    assert written == list(range(1, len(written) + 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a,b\n1,2\n", "lacks timestamp, event_type"), (b"", "lacks timestamp"), (b"\x1f\x8bnonsense", "cannot be read")],
)
def test_files_of_another_kind_are_refused(config: Config, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "other.csv"
    path.write_bytes(content)
    with pytest.raises(ImportFileError, match=message):
        import_file(config, path, format="deskdrop")
    assert sum(end_offsets(config.kafka, config.topics.interactions).values()) == 0


def test_unknown_format_and_missing_file(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no format 'parquet': there are deskdrop"):
        import_file(config, tmp_path / "x", format="parquet")
    with pytest.raises(ImportFileError, match="No such file"):
        import_file(config, tmp_path / "x", format="deskdrop")


def test_stop_ends_early_and_says_how_far(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text(HEADER + GOOD * 5_000)
    stop = Event()
    told: list[int] = []

    def on_progress(events: int) -> None:
        told.append(events)
        if events >= 2_000:
            stop.set()

    report = import_file(config, path, format="deskdrop", stop=stop, on_progress=on_progress)
    assert report.events == 2_000
    assert told == [1_000, 2_000, 2_000]
    assert len(_read(config)) == 2_000


def test_importing_twice_repeats_the_event_ids(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "twice.csv"
    path.write_text(HEADER + GOOD * 3)
    for _ in range(2):
        import_file(config, path, format="deskdrop")
    ids = [json.loads(m.value or b"")["row"] for m in _read(config)]
    assert ids == ["1", "2", "3"] * 2


def test_events_go_under_nested_names_too() -> None:
    nested = load(
        None,
        overrides=("events.fields.key=user.id", "events.fields.item=item.id", "events.fields.time=at"),
    ).events
    event = ImportedEvent(2, "impression", 1_500, 'a"b', "c", {"at": "kept out", "more": 1})
    assert json.loads(event_writer(nested)(event)) == {
        "event_id": "1",
        "user": {"id": 'a"b'},
        "at": 1500,
        "type": "impression",
        "item": {"id": "c"},
        "more": 1,
    }


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data/deskdrop beside the repository")
def test_every_row_of_the_real_file_is_an_event() -> None:
    counts: dict[str, int] = {}
    for row in deskdrop(REAL):
        assert isinstance(row, ImportedEvent)
        counts[row.type] = counts.get(row.type, 0) + 1
    assert counts == {"VIEW": 61_086, "LIKE": 5_745, "BOOKMARK": 2_463, "COMMENT CREATED": 1_611, "FOLLOW": 1_407}
