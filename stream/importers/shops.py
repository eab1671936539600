"""Logs of web shops and sites, one event a row: REES46, RetailRocket, Deskdrop."""

from __future__ import annotations

from pathlib import Path

from stream.importers import times
from stream.importers.rows import BadRowError, ImportedEvent, OpenedFile
from stream.importers.table import Table, number_of, required


def rees46(path: Path) -> OpenedFile:
    """REES46 (Open CDP) e-commerce behaviour, CSV: event_time, event_type (view, cart, remove_from_cart, purchase),
    product_id, category_id, category_code, brand, price, user_id, user_session.

    The type stands as the file has it: a view is the impression, what follows joins it by (user, product). Times are
    `2019-10-01 00:00:00 UTC`; files are in order of time. category_code and brand may be empty.
    Source: the files' own description, kaggle.com/datasets/mkechinov/ecommerce-behavior-data-from-multi-category-store.
    Raises ImportFileError where the file cannot be read, or the header lacks a column.
    """
    table = Table(path)
    needed = table.at("user_id", "product_id", "event_type", "event_time")
    texts = [(name, table.maybe_at(name)) for name in ("category_id", "category_code", "brand", "user_session")]
    present = [(name, place) for name, place in texts if place is not None]
    price_at = table.maybe_at("price")

    def parse(raw: bytes, row_id: str) -> list[ImportedEvent]:
        cells = table.cells(raw)
        user, product, kind, clock = required(cells, needed, table.columns)
        time_ms = times.time_ms(clock, times.utc_clock, column="event_time", expected="2019-10-01 00:00:00 UTC")
        extra: dict[str, object] = {name: cells[place] for name, place in present if cells[place]}
        if price_at is not None and cells[price_at]:
            extra["price"] = number_of(cells[price_at], column="price", convert=float)
        return [ImportedEvent(row_id, kind, time_ms, user, product, extra=extra)]

    return OpenedFile(table.source, parse)


def retailrocket(path: Path) -> OpenedFile:
    """RetailRocket events.csv: timestamp (ms), visitorid, event (view, addtocart, transaction), itemid, transactionid.

    The type stands as the file has it: a view is the impression, what follows joins it by (visitor, item). The file is
    not in order of time. Source: its own description, kaggle.com/datasets/retailrocket/ecommerce-dataset.
    Raises ImportFileError where the file cannot be read, or the header lacks a column.
    """
    table = Table(path)
    needed = table.at("visitorid", "itemid", "event", "timestamp")
    transaction_at = table.maybe_at("transactionid")

    def parse(raw: bytes, row_id: str) -> list[ImportedEvent]:
        cells = table.cells(raw)
        visitor, item, kind, stamp = required(cells, needed, table.columns)
        time_ms = times.time_ms(stamp, times.whole, column="timestamp", expected="milliseconds since 1970")
        transaction = cells[transaction_at].strip() if transaction_at is not None else ""
        extra: dict[str, object] = {"transactionid": transaction} if transaction else {}
        return [ImportedEvent(row_id, kind, time_ms, visitor, item, extra=extra)]

    return OpenedFile(table.source, parse)


def deskdrop(path: Path) -> OpenedFile:
    """CI&T Deskdrop, CSV: timestamp (s), event_type, content_id, person_id, and session_id if there.

    VIEW is the impression, the others engagements, joined by (person, article). In order of time.
    Source: the data set's description, kaggle.com/datasets/gspmoreira/articles-sharing-reading-from-cit-deskdrop.
    Raises ImportFileError where the file cannot be read, or the header lacks a column.
    """
    table = Table(path)
    needed = table.at("person_id", "content_id", "event_type", "timestamp")
    session_at = table.maybe_at("session_id")

    def parse(raw: bytes, row_id: str) -> list[ImportedEvent]:
        cells = table.cells(raw)
        person, content, kind, stamp = required(cells, needed, table.columns)
        time_ms = times.time_ms(stamp, times.seconds, column="timestamp", expected="seconds since 1970")
        session = cells[session_at] if session_at is not None else ""
        extra: dict[str, object] = {"session_id": session} if session else {}
        return [ImportedEvent(row_id, kind, time_ms, person, content, extra=extra)]

    return OpenedFile(table.source, parse)


def movielens(path: Path, items: Path | None = None) -> OpenedFile:
    """MovieLens: ratings.csv (userId,movieId,rating,timestamp) or ratings.dat (UserID::MovieID::Rating::Timestamp).

    Nobody logged what was shown. Every rating is an impression (`rating`, the user met the movie) and, from 4 stars
    on, an engagement (`like`) at the same time that names it. The stars stand in the field `rating`: they are the
    label, so never make them a feature. `items`: movies.csv or movies.dat, whose genres go along. Times are seconds;
    files are in order of users. Source: the README of the data sets, files.grouplens.org/datasets/movielens.
    Raises ImportFileError where a file cannot be read, or a header lacks a column.
    """
    genres = _genres(items) if items else {}
    table = _ratings_table(path)
    needed = table.at("userId", "movieId", "rating", "timestamp")

    def parse(raw: bytes, row_id: str) -> list[ImportedEvent]:
        user, movie, stars_text, stamp = required(table.cells(raw), needed, table.columns)
        time_ms = times.time_ms(stamp, times.seconds, column="timestamp", expected="seconds since 1970")
        stars = float(str(number_of(stars_text, column="rating", convert=float)))
        if not 0 <= stars <= MOST_STARS:
            raise BadRowError("rating", f"rating: expected 0 to {MOST_STARS:.0f} stars, got {stars_text[:40]!r}")
        extra: dict[str, object] = {"rating": stars}
        if movie in genres:
            extra["genres"] = genres[movie]
        events = [ImportedEvent(row_id, "rating", time_ms, user, movie, extra=extra)]
        if stars >= LIKED_STARS:
            events.append(ImportedEvent(f"{row_id}-like", "like", time_ms, user, movie, impression_id=row_id))
        return events

    return OpenedFile(table.source, parse)


LIKED_STARS, MOST_STARS = 4.0, 5.0


def _ratings_table(path: Path) -> Table:
    columns = ("userId", "movieId", "rating", "timestamp")
    if b"::" in _first_line(path):
        return Table(path, delimiter="::", quote=None, columns=columns)
    return Table(path)


def _genres(path: Path) -> dict[str, list[str]]:
    """By movie; held in memory, for there are tens of thousands of movies at most."""
    plain = b"::" in _first_line(path)
    names = ("movieId", "title", "genres")
    # movies.dat of ml-1m is Latin-1, and only its titles need more than ASCII.
    table = Table(path, delimiter="::", quote=None, columns=names, encoding="latin-1") if plain else Table(path)
    movie_at, genres_at = table.at("movieId", "genres")
    return {cells[movie_at].strip(): cells[genres_at].strip().split("|") for cells in table.all_cells()}


def _first_line(path: Path) -> bytes:
    source = Table(path, columns=("line",), quote=None).source
    try:
        first = next(source.rows(), None)
        return first.raw if first else b""
    finally:
        source.close()
