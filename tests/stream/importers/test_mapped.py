"""Any CSV, JSON-lines or Parquet file, by a map of its columns."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream.config import Config, ConfigError
from stream.importers import ImportFileError, format_named
from stream.importers.rows import Mark
from tests.stream.importers.made_files import config_of, read, written

COLUMNS = {
    "key": "member",
    "time": "at",
    "item": "sku",
    "type": "what",
    "types": {"seen": "impression", "bought": "click"},
    "request_id": "page",
    "fields": {
        "price": {"type": "float"},
        "count": {"type": "int"},
        "tags": {"type": "list[string]", "separator": "|"},
        "sizes": {"type": "list[int]", "column": "all_sizes"},
        "colour": {},
    },
    "order": "file",
}


def configured(**columns: Any) -> Config:
    """A configuration with the format `shop`."""
    return config_of("shop", f"imports.shop={json.dumps(columns)}")


CSV = (
    "at;member;sku;what;page;price;count;tags;all_sizes;colour;unused\n"
    "1420070400.5;7;a1;seen;p1;3.5;2;new|hot;38 39;red;x\n"
    "1420070401;7;a1;bought;;;;;;;x\n"
)
ROWS = [
    {
        "at": 1420070400.5,
        "member": 7,
        "sku": "a1",
        "what": "seen",
        "page": "p1",
        "price": 3.5,
        "count": 2,
        "tags": ["new", "hot"],
        "all_sizes": [38, 39],
        "colour": "red",
        "unused": {"a": 1},
    },
    {"at": 1420070401, "member": 7, "sku": "a1", "what": "bought"},
]
EXTRA = {"price": 3.5, "count": 2, "tags": ["new", "hot"], "sizes": [38, 39], "colour": "red"}


def _files(folder: Path) -> dict[str, Path]:
    table = pa.Table.from_pylist([{name: row.get(name) for name in ROWS[0]} for row in ROWS])
    pq.write_table(table, folder / "a.parquet")
    jsonl = "".join(json.dumps(row) + "\n" for row in ROWS)
    return {
        "csv": written(folder, "a.csv", CSV),
        "jsonl": written(folder, "a.jsonl", jsonl),
        "parquet": folder / "a.parquet",
    }


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_three_kinds_of_files_give_the_same_events(tmp_path: Path, kind: str) -> None:
    config = configured(file=kind, delimiter=";", time_format="s", **COLUMNS)
    (seen, bought), tally = read("shop", _files(tmp_path)[kind], config=config)
    assert (tally.rows, tally.bad) == (2, {})
    assert seen[1:] == ("impression", 1420070400500, "7", "a1", None, "p1", EXTRA)
    assert bought[1:] == ("click", 1420070401000, "7", "a1", None, None, {})
    assert (seen.id[-2:], bought.id[-2:]) == ("-1", "-2")


def test_a_file_without_header_and_type_with_a_column_of_engagements(tmp_path: Path) -> None:
    config = configured(
        file="csv",
        key="u",
        time="t",
        item="i",
        event_id="id",
        columns=["id", "u", "i", "t", "clicked"],
        engaged={"click": "clicked"},
        time_format="%d.%m.%Y %H:%M",
    )
    rows = "e1,u,i,02.01.2015 00:00,1\ne2,u,i,01.01.2015 00:00,0\ne3,u,i,03.01.2015 00:00,\ne4,u,i,3.1.2015,1\n"
    events, tally = read("shop", written(tmp_path, "a.csv", rows), config=config)
    assert [(event.id, event.type, event.impression_id) for event in events] == [
        ("e2", "impression", None),
        ("e1", "impression", None),
        ("e1-click", "click", "e1"),
        ("e3", "impression", None),
    ]
    assert events[0].time_ms == 1_420_070_400_000
    assert tally.bad == {"time": 1}


@pytest.mark.parametrize(
    ("time_format", "text", "expected"),
    [
        ("ms", "1420070400000", 1420070400000),
        ("us", "1420070400000999", 1420070400000),
        ("ns", "1420070400000999999", 1420070400000),
        ("s", "1420070400.25", 1420070400250),
        ("iso", "2015-01-01T00:00:00", 1420070400000),
        ("iso", "2015-01-01T02:00:00.250+02:00", 1420070400250),
        ("%Y%m%d %z", "20150101 +0100", 1420066800000),
        ("s", "nan", None),
        ("s", "-1", None),
        ("s", "1e300", None),
        ("iso", "yesterday", None),
        ("ms", "253402300800000", None),
    ],
)
def test_times(tmp_path: Path, time_format: str, text: str, expected: int | None) -> None:
    config = configured(file="csv", key="u", time="t", item="i", time_format=time_format)
    events, tally = read("shop", written(tmp_path, "a.csv", f"u,t,i\n1,{text},2\n"), config=config)
    assert [event.time_ms for event in events] == ([] if expected is None else [expected])
    assert tally.bad == ({"time": 1} if expected is None else {})


BAD_JSON = {
    '{"t": 1, "u": "a", "i": "b"': "json",
    "[1]": "json",
    "{}": "time",
    '{"t": 1, "i": "b"}': "no u",
    '{"t": 1, "u": {}, "i": "b"}': "u",
    '{"t": 1, "u": 1.5, "i": "b"}': "u",
    '{"t": 1, "u": "a", "i": true}': "i",
    '{"t": 1, "u": "a", "i": "b", "n": "x"}': "n",
    '{"t": 1, "u": "a", "i": "b", "n": 9223372036854775808}': "n",
    '{"t": 1, "u": "a", "i": "b", "l": 5}': "l",
    '{"t": 1, "u": "a", "i": "b", "l": [{}]}': "l",
    "[" * 5_000: "json",
    '{"t": 1, "u": "\\ud800", "i": "b"}': "json",
}


def test_json_that_fits_nothing(tmp_path: Path) -> None:
    fields = {"n": {"type": "int"}, "l": {"type": "list[string]"}}
    config = configured(file="jsonl", key="u", time="t", item="i", fields=fields, order="file")
    good = '{"t": 1, "u": "a", "i": "b"}\n'
    events, tally = read("shop", written(tmp_path, "a", "".join(f"{bad}\n{good}" for bad in BAD_JSON)), config=config)
    assert len(events) == len(BAD_JSON)
    wanted: dict[str, int] = {}
    for reason in BAD_JSON.values():
        wanted[reason] = wanted.get(reason, 0) + 1
    assert tally.bad == wanted


def test_nested_json_is_reached_by_path(tmp_path: Path) -> None:
    config = configured(file="jsonl", key="user.id", time="t", item="i", fields={"c": {"column": "user.land"}})
    row = json.dumps({"t": 1, "i": "x", "user": {"id": 5, "land": "de"}})
    (event,), _ = read("shop", written(tmp_path, "a", row), config=config)
    assert (event.key, event.extra) == ("5", {"c": "de"})


def test_parquet_types_and_going_on_behind_any_row(tmp_path: Path) -> None:
    times = [datetime(2015, 1, 1, 0, 0, second, tzinfo=UTC) for second in range(20)]
    table = pa.table(
        {
            "t": pa.array(times, pa.timestamp("ns", tz="Europe/Berlin")),
            "u": pa.array([float(i) for i in range(19)] + [None]),
            "i": pa.array(["a", "b"] * 10).dictionary_encode(),
            "x": pa.array([b"bytes"] * 20),
            "n": pa.array([float("nan")] * 20),
        }
    )
    pq.write_table(table, tmp_path / "a", row_group_size=6)
    fields = {"x": {}, "n": {"type": "float"}}
    config = configured(file="parquet", key="u", time="t", item="i", fields=fields)
    events, tally = read("shop", tmp_path / "a", config=config)
    assert [event.time_ms for event in events] == [1_420_070_400_000 + 1000 * i for i in range(19)]
    assert (events[3].key, events[3].item, events[3].extra) == ("3", "b", {"x": "bytes"})
    assert tally.bad == {"no u": 1}
    assert tally.first_bad[0][0] == 20
    source = format_named(config, "shop").open(tmp_path / "a").source
    rows = list(source.rows())
    for row in rows:
        assert list(source.rows(Mark(row.number, row.line, row.start, ""))) == rows[row.number :]
    source.close()


def test_files_that_lack_columns_or_are_none(tmp_path: Path) -> None:
    for kind, message in (("csv", "header lacks u, t, i"), ("parquet", "cannot be read as Parquet")):
        config = configured(file=kind, key="u", time="t", item="i")
        with pytest.raises(ImportFileError, match=message):
            read("shop", written(tmp_path, "a", "x,y\n1,2\n"), config=config)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "p")
    with pytest.raises(ImportFileError, match=r"lacks the columns u, t, i; it has x"):
        read("shop", tmp_path / "p", config=configured(file="parquet", key="u", time="t", item="i"))


def test_a_map_that_cannot_be_is_refused_with_its_path() -> None:
    for columns, message in (
        ({"file": "csv", "key": "u", "time": "t"}, r"missing required field item - at \$\.imports\[\.\.\.\]"),
        ({"file": "xml", "key": "u", "time": "t", "item": "i"}, "xml"),
        ({"file": "csv", "key": "u", "time": "t", "item": "i", "quote": "''"}, "quote"),
    ):
        with pytest.raises(ConfigError, match=message):
            configured(**columns)
