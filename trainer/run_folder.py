"""What a rank tells the launcher when it ends: done in order, or a reason that starting again cannot heal."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

EXIT_OK, EXIT_FAILED, EXIT_OPERATOR = 0, 1, 3
"""How a rank, and the launcher, ends: in order; by something that starting again may heal; by something that an
operator must look at first."""
VARIABLE = "RECD_RUN_FOLDER"
DONE, REASON = "done", "reason"


@dataclass(frozen=True)
class RunFolder:
    """A folder of the launcher; None where the rank was started by something else."""

    path: Path | None
    rank: int = 0

    @staticmethod
    def from_environment() -> RunFolder:
        """As the launcher set it."""
        path = os.environ.get(VARIABLE)
        return RunFolder(Path(path) if path else None, int(os.environ.get("RANK", "0")))

    def write_done(self) -> None:
        """This rank ended in order."""
        self._write(DONE, "")

    def write_reason(self, text: str) -> None:
        """This rank ended for a reason that an operator must look at."""
        self._write(REASON, text)

    def reasons(self) -> list[str]:
        """What the ranks left, in their order."""
        return [path.read_text() for path in sorted(self.path.glob(f"{REASON}-*"))] if self.path else []

    def num_done(self) -> int:
        """How many ranks ended in order."""
        return len(list(self.path.glob(f"{DONE}-*"))) if self.path else 0

    def clear(self) -> None:
        """Before the ranks are started again."""
        for path in [*self.path.glob(f"{DONE}-*"), *self.path.glob(f"{REASON}-*")] if self.path else []:
            path.unlink()

    def _write(self, kind: str, text: str) -> None:
        if self.path is not None:
            (self.path / f"{kind}-{self.rank:04d}").write_text(text)
