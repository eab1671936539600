"""Where numba looks for machine code that a container image brings along.

numba passes over a folder that it cannot write, so the code in an image would be made again in every container, or on a
read-only file system in every process. Named by NUMBA_CACHE_LOCATOR_CLASSES, this reads such a folder nevertheless.
"""

from __future__ import annotations

from pathlib import Path

from numba.core.caching import UserProvidedCacheLocator


class ImageCacheLocator(UserProvidedCacheLocator):
    """The folder NUMBA_CACHE_DIR, which need not be writable once it is filled."""

    def ensure_cache_path(self) -> None:
        """Raises OSError for a folder that is neither there nor can be made."""
        if not Path(self.get_cache_path()).is_dir():  # type: ignore[no-untyped-call]
            super().ensure_cache_path()  # type: ignore[no-untyped-call]
