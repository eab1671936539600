"""Files as they come: torn, badly encoded, wrongly quoted, huge, empty, out of order, changed between two runs."""

import gzip
import random
from contextlib import closing
from pathlib import Path

import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.importers import ImportFileError, Order
from stream.importers.files import LONGEST_LINE, TextRows
from stream.importers.options import BAD_ROWS_SHOWN
from stream.importers.ordering import RowSorter
from stream.importers.rows import Mark, Row
from tests.stream.importers import made_files as made
from tests.stream.importers.made_files import DESKDROP_HEADER, VIEW, read, written

BAD = {
    b"x,VIEW,1,2,3": ("time", "timestamp"),
    b"-5,VIEW,1,2,3": ("time", "timestamp"),
    b"99999999999999,VIEW,1,2,3": ("time", "timestamp"),
    b"1457963676,VIEW,1": ("columns", "expected 5 columns, got 3"),
    b"1457963676,VIEW,,2,3": ("no content_id", "content_id"),
    b"1457963676,VIEW,1, ,3": ("no person_id", "person_id"),
    b'1457963676,"VIEW,1,2,3': ("csv", "CSV"),
    b"1457963676,VIEW,\xff\xfe,2,3": ("encoding", "UTF-8"),
    b"1457963676,PURCHASE,1,2,3": ("type", "PURCHASE"),
    b"1457963676,VIEW,1,2," + b"x" * (LONGEST_LINE + 5): ("too long", "longer than"),
}


def test_bad_rows_are_counted_by_reason_shown_and_cost_nobody_else(tmp_path: Path) -> None:
    lines = b"".join(line for bad in BAD for line in (bad + b"\n", VIEW.encode()))
    events, tally = read("deskdrop", written(tmp_path, "bad.csv", DESKDROP_HEADER.encode() + lines))
    assert (tally.rows, tally.events, tally.bad_rows) == (2 * len(BAD), len(BAD), len(BAD))
    assert [line for line, _ in tally.first_bad] == list(range(2, 2 + 2 * len(BAD), 2))
    for (_, detail), (_, words) in zip(tally.first_bad, BAD.values(), strict=True):
        assert words in detail
    assert tally.bad["time"] == 3
    assert set(tally.bad) == {reason for reason, _ in BAD.values()}
    assert [int(event.id.split("-")[1]) for event in events] == list(range(2, 2 + 2 * len(BAD), 2))


def test_only_the_first_bad_rows_are_kept_and_too_many_stop(tmp_path: Path) -> None:
    path = written(tmp_path, "b.csv", DESKDROP_HEADER + "nonsense\n" * (BAD_ROWS_SHOWN + 5))
    _, tally = read("deskdrop", path)
    assert (tally.bad, len(tally.first_bad)) == ({"columns": BAD_ROWS_SHOWN + 5}, BAD_ROWS_SHOWN)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_bom_and_crlf(tmp_path: Path, ending: str, bom: bytes) -> None:
    for name, content in (("rees46", made.REES46), ("mind", made.BEHAVIORS), ("movielens", made.RATINGS_DAT)):
        plain, _ = read(name, written(tmp_path, "plain", content))
        events, tally = read(name, written(tmp_path, "other", bom + content.replace("\n", ending).encode()))
        assert tally.bad == {}
        assert [event[1:5] for event in events] == [event[1:5] for event in plain]


def test_quoted_line_breaks_belong_to_a_cell_and_a_stray_quote_to_its_own_line(tmp_path: Path) -> None:
    header = "event_time,event_type,product_id,brand,user_id\n"
    good = "2019-10-01 00:00:00 UTC,view,{},x,7\n"
    broken = '2019-10-01 00:00:00 UTC,view,{},"two\nlines, and ""quotes""",7\n'
    stray = '2019-10-01 00:00:00 UTC,view,{},"stray,7\n'
    rows = [good, broken, stray, good, stray, good, broken, good, stray]
    content = header + "".join(row.format(i) for i, row in enumerate(rows))
    events, tally = read("rees46", written(tmp_path, "q.csv", content))
    assert [event.item for event in events] == ["0", "1", "3", "5", "6", "7"]
    assert events[1].extra["brand"] == 'two\nlines, and "quotes"'
    assert tally.bad == {"csv": 3}
    assert [line for line, _ in tally.first_bad] == [5, 7, 12]


@pytest.mark.parametrize(("pack", "name"), [(gzip.compress, "gz"), (zstandard.compress, "zst")])
def test_a_torn_file_is_an_error_after_what_stood_before_it(tmp_path: Path, pack: object, name: str) -> None:
    assert callable(pack)
    chance = random.Random(0)
    rows = "".join(f"{1457963676 + i},VIEW,{chance.random()},{i},3\n" for i in range(20_000))
    whole = pack((DESKDROP_HEADER + rows).encode())
    path = written(tmp_path, f"torn.csv.{name}", whole[: len(whole) // 2])
    message = rf"torn\.csv\.{name}: cannot be read behind line \d+"
    before: list[Row] = []
    with closing(TextRows(path, has_header=True)) as source, pytest.raises(ImportFileError, match=message):
        before.extend(source.rows())
    assert 1 < len(before) < 20_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n", "lacks person_id, content_id, event_type, timestamp; it has a, b"),
        (b"", "no header"),
        (b"\xef\xbb\xbf", "no header"),
        (b"\x1f\x8bnonsense", "cannot be read"),
        (DESKDROP_HEADER.encode("utf-16"), "UTF-16"),
        (b"PK\x03\x04....", "zip archive"),
        (b"\xff" + DESKDROP_HEADER.encode(), "header is not CSV in UTF-8"),
        (b"timestamp,event_type,content_id,person_id,person_id\n", "has person_id twice"),
        (b"x" * (LONGEST_LINE + 1), "no header"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ImportFileError, match=message):
        read("deskdrop", written(tmp_path, "other.csv", content))


def test_an_empty_file_without_a_header_has_no_rows(tmp_path: Path) -> None:
    assert read("mind", written(tmp_path, "behaviors.tsv", b""))[1].rows == 0
    with pytest.raises(ImportFileError, match="No such file"):
        read("mind", tmp_path / "none")


def test_events_that_come_too_late_for_their_session_are_counted(tmp_path: Path) -> None:
    rows = "".join(f"{1457963676 + seconds},VIEW,1,2,3\n" for seconds in (0, 3600, 1799, 1798, 10))
    path = written(tmp_path, "d.csv", DESKDROP_HEADER + rows)
    assert read("deskdrop", path)[1].behind == 2
    events, tally = read("deskdrop", path, order=Order.TIME)
    assert (tally.behind, [event.time_ms for event in events]) == (0, sorted(event.time_ms for event in events))


def _rows(path: Path, after: Mark | None = None) -> list[Row]:
    with closing(TextRows(path)) as source:
        return list(source.rows(after))


def _mark(row: Row) -> Mark:
    return Mark(row.number, row.line, row.start, xxhash.xxh3_64_hexdigest(row.raw))


CELLS = st.lists(st.sampled_from(["a", "bb", '"', '""', "\n", "\r\n", ",", " ", "é"]), max_size=14).map("".join)


@settings(max_examples=60)
@given(text=st.lists(CELLS, max_size=8).map("\n".join), bom=st.booleans(), pack=st.booleans())
def test_reading_goes_on_behind_any_row(
    tmp_path_factory: pytest.TempPathFactory, text: str, bom: bool, pack: bool
) -> None:
    content = ("\ufeff" if bom else "").encode() + b"h1,h2\n" + text.encode()
    path = tmp_path_factory.mktemp("rows") / "file"
    path.write_bytes(gzip.compress(content) if pack else content)
    source = TextRows(path, quote=b'"', has_header=True)
    source.fits = lambda raw: raw.count(b",") == 1
    rows = list(source.rows())
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    for i, row in enumerate(rows):
        assert content[row.start : row.end] == row.raw
        assert list(source.rows(_mark(row))) == rows[i + 1 :]
    covered = b"".join(row.raw for row in rows)
    assert b"".join(covered.split()) == b"".join(content.partition(b"h1,h2\n")[2].split())
    source.close()


def test_a_file_that_changed_is_not_gone_on_with(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", made.BEHAVIORS)
    mark = _mark(_rows(path)[1])
    written(tmp_path, "a.tsv", made.BEHAVIORS + made.BEHAVIORS)
    assert len(_rows(path, mark)) == 4
    for changed in (made.BEHAVIORS.replace("N20678", "N20679"), made.BEHAVIORS.partition("\n")[0]):
        written(tmp_path, "a.tsv", changed)
        with pytest.raises(ImportFileError, match=r"2 rows were imported, but line 2 is another one now.*--again"):
            _rows(path, mark)


@given(times=st.lists(st.integers(0, 6), max_size=60), run_bytes=st.sampled_from([1, 700, 5_000, 1 << 20]))
def test_sorting_on_disk_is_sorting(times: list[int], run_bytes: int) -> None:
    rows = [Row(i + 1, i + 2, 10 * i, 10 * i + 5, b"x" * (i % 7)) for i in range(len(times))]
    sorter = RowSorter(run_bytes=run_bytes)
    for row, time_ms in zip(rows, times, strict=True):
        sorter.add(row, time_ms=time_ms)
    expected = sorted(zip(times, rows, strict=True), key=lambda entry: entry[0])
    for _ in range(2):
        found = [(r.time_ms, r.number, r.line, r.start, r.raw) for r in sorter.rows()]
        assert found == [(t, r.number, r.line, r.start, r.raw) for t, r in expected]
    sorter.close()


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    sorter = RowSorter(folder=tmp_path / "none", run_bytes=1)
    with pytest.raises(ImportFileError, match=r"sorting by time needs.*--temp"):
        sorter.add(Row(1, 1, 0, 1, b"x"), time_ms=0)
