"""Every known format, read from files in its documented form: no broker is needed."""

import bz2
import gzip
from pathlib import Path

import pytest
import zstandard

from stream.importers import FORMATS, ImportFileError, Order
from tests.stream.importers import made_files as made
from tests.stream.importers.made_files import read, written

REAL = Path(__file__).parents[4] / "shared" / "data" / "deskdrop" / "interactions.csv.gz"
MS_2019_11_11 = 1_573_430_400_000


def test_mind_candidates_are_impressions_and_ones_are_clicks(tmp_path: Path) -> None:
    path = written(tmp_path, "behaviors.tsv", made.BEHAVIORS)
    events, tally = read("mind", path, items=written(tmp_path, "news.tsv", made.NEWS))
    assert (tally.rows, tally.events, tally.impressions, tally.bad) == (3, 8, 6, {})
    first, click, second, *_ = events[2:]
    file_id = first.id.split("-")[0]
    assert first.time_ms == MS_2019_11_11 + ((9 * 60 + 5) * 60 + 58) * 1000
    assert (first.id, first.type, first.key, first.item) == (f"{file_id}-1-0", "impression", "U13740", "N55689")
    assert first.extra == {
        "history": ["N55189", "N42782"],
        "position": 0,
        "category": "sports",
        "subcategory": "football",
    }
    assert (click.type, click.item, click.impression_id, click.time_ms) == ("click", "N55689", first.id, first.time_ms)
    assert (second.type, second.extra["position"], second.extra["category"]) == ("impression", 1, "news")
    assert first.request_id == second.request_id == f"{file_id}-1"
    assert [event.time_ms for event in events] == sorted(event.time_ms for event in events)
    assert events[-1].time_ms == MS_2019_11_11 + 86_400_000 + ((18 * 60 + 11) * 60 + 30) * 1000
    assert events[-1].extra == {"history": [], "position": 2}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("1\tU1\t11/11/2019 9:05:58 AM\t\tN55689 N35729", "impressions"),
        ("1\tU1\t11/11/2019 9:05:58 AM\t\tN55689-2", "impressions"),
        ("1\tU1\t11/11/2019 9:05:58 AM\t\t-1", "impressions"),
        ("1\tU1\t11/11/2019 9:05:58 AM\t", "columns"),
        ("1\t\t11/11/2019 9:05:58 AM\t\tN1-0", "no user id"),
        ("1\tU1\t11/11/2019 9:05:58 AM\t\t", "no impressions"),
        ("1\tU1\t13/11/2019 9:05:58 AM\t\tN1-0", "time"),
        ("1\tU1\t11/11/2019 19:05:58 PM\t\tN1-0", "time"),
        ("1\tU1\t11/11/2019 0:05:58 AM\t\tN1-0", "time"),
        ("1\tU1\t2/29/2019 1:05:58 AM\t\tN1-0", "time"),
    ],
)
def test_a_mind_row_that_fits_nothing_is_bad_as_a_whole(tmp_path: Path, row: str, reason: str) -> None:
    events, tally = read("mind", written(tmp_path, "b.tsv", f"{row}\n{made.BEHAVIORS}"))
    assert (tally.rows, tally.bad, len(events)) == (4, {reason: 1}, 8)
    assert tally.first_bad[0][0] == 1


def test_noon_and_midnight(tmp_path: Path) -> None:
    rows = "1\tU\t11/11/2019 12:00:00 AM\t\tN1-0\n2\tU\t11/11/2019 12:00:01 PM\t\tN1-0\n"
    events, _ = read("mind", written(tmp_path, "b.tsv", rows))
    assert [event.time_ms for event in events] == [MS_2019_11_11, MS_2019_11_11 + 43_201_000]


def test_rees46(tmp_path: Path) -> None:
    events, tally = read("rees46", written(tmp_path, "2019-Oct.csv", made.REES46))
    assert (tally.rows, tally.events, tally.impressions, tally.bad) == (4, 4, 1, {})
    assert [event.type for event in events] == ["view", "cart", "remove_from_cart", "purchase"]
    assert {(event.key, event.item) for event in events} == {("541312140", "44600062")}
    assert events[0].time_ms == 1_569_888_000_000
    assert events[0].extra == {
        "category_id": "2103807459595387724",
        "brand": "shiseido",
        "user_session": "72d76fde",
        "price": 35.79,
    }
    assert events[1].extra["category_code"] == "electronics.phone"
    assert "price" not in events[3].extra


def test_retailrocket_is_sorted_by_time(tmp_path: Path) -> None:
    events, tally = read("retailrocket", written(tmp_path, "events.csv", made.RETAILROCKET))
    assert [(event.type, event.time_ms) for event in events] == [
        ("transaction", 1433221078505),
        ("addtocart", 1433221079505),
        ("view", 1433221332117),
    ]
    assert [event.extra for event in events] == [{"transactionid": "4000"}, {}, {}]
    assert tally.behind == 0


def test_criteo_rows_are_users_of_their_own(tmp_path: Path) -> None:
    events, tally = read("criteo", written(tmp_path, "day_3.tsv", made.CRITEO * 3))
    assert (tally.rows, tally.events, tally.impressions, tally.bad) == (6, 9, 6, {})
    first, second, click = events[:3]
    assert first.extra["i5"] == 1382
    assert "i12" not in first.extra
    assert first.extra["c26"] == "00000019"
    assert second.extra == {"i1": -2, "i13": 9, "c1": "68fd1e64", "c26": "ffffffff"}
    assert (click.type, click.impression_id, click.key) == ("click", second.id, second.key)
    assert len({event.key for event in events}) == 6
    assert events[0].time_ms == 1_388_534_400_000 + 3 * 86_400_000
    assert events[-1].time_ms == events[0].time_ms + 1


def test_movielens_likes_are_ratings_from_four_stars_on(tmp_path: Path) -> None:
    movies = written(tmp_path, "movies.csv", made.MOVIES_CSV)
    events, tally = read("movielens", written(tmp_path, "ratings.csv", made.RATINGS_CSV), items=movies)
    assert (tally.rows, tally.impressions, tally.events) == (3, 3, 4)
    assert [(event.type, event.item) for event in events] == [
        ("rating", "1"),
        ("rating", "307"),
        ("rating", "481"),
        ("like", "481"),
    ]
    assert events[3].impression_id == events[2].id
    assert [event.extra.get("genres") for event in events] == [None, ["Drama"], ["Drama", "Thriller"], None]
    plain, _ = read("movielens", written(tmp_path, "ratings.dat", made.RATINGS_DAT))
    assert [(event.key, event.item, event.extra.get("rating")) for event in plain] == [
        ("1", "1193", 5.0),
        ("1", "1193", None),
        ("1", "661", 3.0),
    ]
    latin = written(tmp_path, "movies.dat", b"1193::Mis\xe9rables::Drama\n")
    events, _ = read("movielens", tmp_path / "ratings.dat", items=latin)
    assert events[0].extra["genres"] == ["Drama"]


@pytest.mark.parametrize("stars", ["nan", "inf", "6", "-1", "x", "1e999"])
def test_stars_that_are_none(tmp_path: Path, stars: str) -> None:
    _, tally = read("movielens", written(tmp_path, "r.csv", f"{made.RATINGS_CSV}3,1,{stars},1\n"))
    assert tally.bad == {"rating": 1}


def test_a_catalogue_must_be_whole(tmp_path: Path) -> None:
    path = written(tmp_path, "behaviors.tsv", made.BEHAVIORS)
    with pytest.raises(ImportFileError, match=r"news\.tsv: line 3: expected 8 columns, got 2"):
        read("mind", path, items=written(tmp_path, "news.tsv", made.NEWS + "N1\tx\n"))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zstandard.compress])
def test_packed_files_are_unpacked_whatever_their_name(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    content = made.REES46.encode()
    half = content.index(b"\n", 300) + 1
    two_frames = pack(content[:half]) + pack(content[half:])
    assert read("rees46", written(tmp_path, "x", two_frames))[0][1:] == [
        event._replace(id=event.id) for event in read("rees46", written(tmp_path, "y.csv", content))[0][1:]
    ]


def test_every_format_says_what_it_is() -> None:
    assert {name for name, found in FORMATS.items() if found.order is Order.TIME} == {
        "mind",
        "retailrocket",
        "movielens",
    }
    assert all(found.help for found in FORMATS.values())


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/data/deskdrop beside the repository")
def test_every_row_of_the_real_file_is_an_event() -> None:
    events, tally = read("deskdrop", REAL)
    counts = {kind: sum(event.type == kind for event in events) for kind in {event.type for event in events}}
    assert counts == {"VIEW": 61_086, "LIKE": 5_745, "BOOKMARK": 2_463, "COMMENT CREATED": 1_611, "FOLLOW": 1_407}
    assert (tally.behind, tally.bad) == (0, {})
