"""Why a replay cannot be made, or cannot go on. A message says what was wrong, where, and what to do."""

from __future__ import annotations


class ReplayError(Exception):
    """Root of what a replay raises."""


class RangeGone(ReplayError):
    """The history no longer holds records that the stretch needs."""


class NoJournal(ReplayError):
    """No journal entry tells in which state the live run was where the stretch begins."""


class OtherConfig(ReplayError):
    """The stretch was made under other events, features or labels than those of the configuration."""


class OtherReplay(ReplayError):
    """The target topic holds something else than the beginning of this replay."""


class Diverged(ReplayError):
    """The replay counted other samples than the live run: it stopped before it wrote them."""


class LiveGap(ReplayError):
    """The live batches do not continue where the replay ends."""
