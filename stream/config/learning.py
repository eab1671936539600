"""How the trainer judges itself."""

from __future__ import annotations

from typing import Annotated

import msgspec

from stream.config.section import NonNegative, Positive, Section


class EvaluationConfig(Section, frozen=True):
    """Progressive evaluation: every sample is predicted before it is trained."""

    window_samples: Positive = 20_000
    """Of each rank: the newest samples, which the metrics of the window are about."""
    new_item_samples: Annotated[int, msgspec.Meta(gt=0, le=255)] = 50
    """An item is new until so many samples of it were trained."""
    late_after_ms: NonNegative = 1_000
    """A sample is late when its event reached the broker so long after its time."""
