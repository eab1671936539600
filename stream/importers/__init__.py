"""Files that users have -> `interactions`: streaming, resumable, every row an event or counted.

A format is a function from a path to the rows of the file and a parser of one row. Event ids are made of the digest
of the file's beginning and the row's number, so importing a file again repeats events rather than adding new ones.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from stream.config import Config, ConfigError
from stream.importers import criteo, mind, shops
from stream.importers.mapped import mapped_format
from stream.importers.options import BAD_ROWS_SHOWN, FileReport, ImportOptions, ImportReport, Look
from stream.importers.rows import Format, ImportFileError, Order
from stream.importers.run import FileImport

__all__ = [
    "BAD_ROWS_SHOWN",
    "FORMATS",
    "FileReport",
    "Format",
    "ImportFileError",
    "ImportOptions",
    "ImportReport",
    "Look",
    "Order",
    "format_named",
    "import_files",
]

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "mind": Format(mind.mind, Order.TIME, "MIND behaviors.tsv; --items news.tsv", takes_items=True),
        "rees46": Format(shops.rees46, Order.FILE, "REES46 (Open CDP) events: view, cart, purchase"),
        "retailrocket": Format(shops.retailrocket, Order.TIME, "RetailRocket events.csv: view, addtocart, transaction"),
        "criteo": Format(criteo.criteo, Order.FILE, "Criteo click logs, train.txt or day_N"),
        "movielens": Format(
            shops.movielens, Order.TIME, "MovieLens ratings.csv or ratings.dat; --items movies.csv", takes_items=True
        ),
        "deskdrop": Format(shops.deskdrop, Order.FILE, "CI&T Deskdrop users_interactions.csv"),
    }
)
"""By name of the format."""


def format_named(config: Config, name: str) -> Format:
    """One of FORMATS, or of `imports` in the configuration. Raises ConfigError."""
    if name in config.imports:
        return mapped_format(config.imports[name], impression=config.events.impressions[0])
    if name not in FORMATS:
        known = ", ".join([*FORMATS, *sorted(config.imports)])
        raise ConfigError(f"no format '{name}': there are {known}; name the columns of any other file under imports")
    return FORMATS[name]


def import_files(
    config: Config,
    paths: Sequence[Path],
    *,
    format: str,  # noqa: A002 - the word that the command line has
    items: Path | None = None,
    options: ImportOptions | None = None,
) -> ImportReport:
    """Write the events of files, one after the other, to `config.topics.interactions`, keyed by session key.

    Killed at any moment and called again, it goes on behind the last row whose events are in the topic. A file that is
    there already is passed over. Ends early, and says how far it came, when `options.stop` is set. Raises
    ImportFileError (unreadable, another header, too many bad rows; what stood before has been written then),
    ConfigError (an unknown format), KafkaError.
    """
    options = options or ImportOptions()
    chosen = format_named(config, format)
    if items is not None and not chosen.takes_items:
        raise ConfigError(f"the format '{format}' takes no catalogue of items")
    began_s = time.monotonic()
    reports: list[FileReport] = []
    for path in paths:
        if options.stop.is_set():
            break
        opened = chosen.open(path) if items is None else chosen.open(path, items)
        found = FileImport(config, path, opened, format_=chosen, options=options).run()
        reports.append(found)
    complete = len(reports) == len(paths) and all(found.complete for found in reports)
    return ImportReport.of(reports, complete=complete, wall_s=time.monotonic() - began_s)
