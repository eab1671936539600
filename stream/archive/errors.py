"""Why an archive cannot be written or read. A message says what was wrong, where, and what to do."""

from __future__ import annotations


class ArchiveError(Exception):
    """Root of what an archive raises."""


class ArchiveGap(ArchiveError):
    """Records were deleted from the log before they were archived."""


class FileDamaged(ArchiveError):
    """A file is not there, or not the one that the manifest lists."""


class OtherSchema(ArchiveError):
    """A batch was made for another schema than that of the configuration."""
