"""Small files in the documented form of each data set, and a plain reading of what an importer makes of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from recd.presets import preset_path
from stream.config import Config, load
from stream.importers import format_named
from stream.importers.options import ImportOptions
from stream.importers.progress import Progress, Tally
from stream.importers.rows import ImportedEvent, Order
from stream.importers.rowwise import RowReader

BEHAVIORS = (
    "1\tU13740\t11/11/2019 9:05:58 AM\tN55189 N42782\tN55689-1 N35729-0\n"
    "2\tU91836\t11/12/2019 6:11:30 PM\t\tN20678-0 N39317-0 N58114-0\n"
    "3\tU13740\t11/11/2019 9:01:48 AM\tN55189\tN50014-1\n"
)
NEWS = (
    'N55689\tsports\tfootball\tA "title\twhat it says\thttps://x/1\t[]\t[]\n'
    "N35729\tnews\tnewsus\tB\t\thttps://x/2\t[]\t[]\n"
)
REES46 = (
    "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n"
    "2019-10-01 00:00:00 UTC,view,44600062,2103807459595387724,,shiseido,35.79,541312140,72d76fde\n"
    "2019-10-01 00:00:01 UTC,cart,44600062,2103807459595387724,electronics.phone,,35.79,541312140,72d76fde\n"
    "2019-10-01 00:00:07 UTC,remove_from_cart,44600062,21038,,,-1.5,541312140,72d76fde\n"
    "2019-10-01 00:00:09 UTC,purchase,44600062,21038,,,,541312140,72d76fde\n"
)
RETAILROCKET = (
    "timestamp,visitorid,event,itemid,transactionid\n"
    "1433221332117,257597,view,355908,\n"
    "1433221078505,158090,transaction,10572,4000\n"
    "1433221079505,158090,addtocart,10572,\n"
)
CRITEO = (
    "0\t1\t1\t5\t0\t1382\t4\t15\t2\t181\t1\t2\t\t2\t" + "\t".join(f"{k:08x}" for k in range(26)) + "\n"
    "1\t-2\t" + "\t" * 11 + "9\t" + "\t".join(["68fd1e64", *[""] * 24, "ffffffff"]) + "\n"
)
RATINGS_CSV = "userId,movieId,rating,timestamp\n1,307,3.5,1256677221\n1,481,4.0,1256677456\n2,1,0.5,1111111111\n"
RATINGS_DAT = "1::1193::5::978300760\n1::661::3::978302109\n"
MOVIES_CSV = 'movieId,title,genres\n307,"Three, Colours",Drama\n481,X,Drama|Thriller\n'
DESKDROP_HEADER = "timestamp,event_type,content_id,person_id,session_id\n"
VIEW = "1457963676,VIEW,8078873160882064481,-3891637997717104548,-87\n"

TYPES = {
    "mind": (["impression"], ["click"]),
    "rees46": (["view"], ["cart", "remove_from_cart", "purchase"]),
    "retailrocket": (["view"], ["addtocart", "transaction"]),
    "criteo": (["impression"], ["click"]),
    "movielens": (["rating"], ["like"]),
}


def config_of(name: str, *overrides: str) -> Config:
    """A configuration that knows the event types of a format."""
    if name == "deskdrop":
        return load(preset_path("deskdrop"), overrides=overrides)
    shown, engaged = TYPES.get(name, (["impression"], ["click"]))
    types = (
        f"events.impressions={shown}",
        f"events.engagements={engaged}",
        f"labels=[{{name: a, engagements: {engaged}}}]",
    )
    return load(None, overrides=(*types, *overrides))


def read(
    name: str, path: Path, *, items: Path | None = None, config: Config | None = None, **options: Any
) -> tuple[list[ImportedEvent], Tally]:
    """Every event of a file in the order in which it would be sent, and what was counted; no topic is involved."""
    tallies: list[Tally] = []
    events = list(stream(name, path, items=items, config=config, on_tally=tallies.append, **options))
    return events, tallies[0]


def stream(
    name: str,
    path: Path,
    *,
    items: Path | None = None,
    config: Config | None = None,
    on_tally: Callable[[Tally], object] = lambda _: None,
    **options: Any,
) -> Iterator[ImportedEvent]:
    """As `read`, event by event; `on_tally` hears what is counted from before the first on."""
    config = config or config_of(name)
    chosen = format_named(config, name)
    opened = chosen.open(path, items) if items else chosen.open(path)
    found = ImportOptions(**options)
    order = found.order or chosen.order
    reader = RowReader(config, path, opened, order=order, options=found)
    try:
        tally = reader.sort() if order is Order.TIME else Tally()
        on_tally(tally)
        for row in reader.rows(Progress(tally=Tally())):
            for event in reader.events(row, tally):
                reader.count(event, tally)
                yield event
    finally:
        reader.close()


def written(folder: Path, name: str, content: str | bytes) -> Path:
    """A file with this content."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
