"""What every section of the configuration is made of."""

from __future__ import annotations

from typing import Annotated

import msgspec

Positive = Annotated[int, msgspec.Meta(gt=0)]

NonNegative = Annotated[int, msgspec.Meta(ge=0)]

Weight = Annotated[float, msgspec.Meta(ge=0)]

Rate = Annotated[float, msgspec.Meta(gt=0)]

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.\-]+$", max_length=200)]


class ConfigError(Exception):
    """The configuration cannot be used; the message names the file, the key and what was expected."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One mapping of the file: immutable, unknown keys refused."""
