"""The key of a row that travels by itself, in the `values` topic: `generation/group/id`."""

from __future__ import annotations

from typing import NamedTuple

MAX_ID_DIGITS = 19


class ValueKey(NamedTuple):
    """A row by its id. Names of groups and generations hold no slash."""

    generation: str
    group: str
    row_id: int

    def encode(self) -> bytes:
        """The bytes of the key."""
        return f"{self.generation}/{self.group}/{self.row_id}".encode()

    @staticmethod
    def decode(key: bytes | None) -> ValueKey | None:
        """None for a key that is none of these."""
        parts = (key or b"").decode(errors="replace").split("/")
        if len(parts) != len(ValueKey._fields) or len(parts[2]) > MAX_ID_DIGITS:
            return None
        if not (parts[2].isascii() and parts[2].isdigit()):
            return None
        return ValueKey(parts[0], parts[1], int(parts[2]))
