"""How the trainer judges itself."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from stream.config.section import NonNegative, Positive, Section

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
NonNegativeFloat = Annotated[float, msgspec.Meta(ge=0)]
Factor = Annotated[float, msgspec.Meta(gt=1)]


class EvaluationConfig(Section, frozen=True):
    """Progressive evaluation: every sample is predicted before it is trained."""

    window_samples: Positive = 20_000
    """Of each rank: the newest samples, which the metrics of the window are about."""
    new_item_samples: Annotated[int, msgspec.Meta(gt=0, le=255)] = 50
    """An item is new until so many samples of it were trained."""
    late_after_ms: NonNegative = 1_000
    """A sample is late when its event reached the broker so long after its time."""


class GateConfig(Section, frozen=True):
    """A version goes out only when the weights are not worse than those in service on samples that neither was
    trained on."""

    enabled: bool = True
    """Keeps a copy of the weights in service in rank 0's memory."""
    samples: Positive = 4_000
    """The newest ones, of rank 0, that both are compared on."""
    tolerance: Share = 0.01
    """By so much of the entropy, beyond what chance explains, the weights may be worse."""
    time_share: Share = 0.1
    """Of rank 0's time that scoring with the weights in service may take; batches beyond it are left out."""


class GuardsConfig(Section, frozen=True):
    """What stops publishing (never training), and names the batches. A limit of null switches a guard off."""

    enabled: bool = True
    window_samples: Positive = 2_000
    """Of each rank: the newest samples, which NE, calibration and users are judged on; publishing goes on after as
    many without an alarm."""
    warmup_samples: Positive = 20_000
    """NE and calibration are judged against those of at least so many samples before the window."""
    ne_band: NonNegativeFloat | None = 0.25
    """NE of the window may be above its reference by this share, beyond what chance explains."""
    calibration_band: Factor | None = 1.5
    """Calibration of the window may be off 1 (or its reference, if that is further off) by this factor either way,
    beyond what chance explains."""
    max_user_share: Share | None = 0.3
    """Of the window's samples, from one user."""
    max_non_finite_share: Share | None = 0.01
    """Of a batch's numbers (dense features) that are not finite."""
    max_move: NonNegativeFloat | None = 0.5
    """Of the dense weights in one step: length of the change over length of the weights."""
    non_finite_loss: Literal["skip", "stop"] = "skip"
    """A batch whose loss is not finite is passed over, or the trainer stops before it."""
    rollback: bool = True
    """Servers go back to the newest version from before the first batch that was named."""
    gate: GateConfig = GateConfig()
    skip: tuple[Annotated[str, msgspec.Meta(pattern=r"^\d+:\d+(-\d+)?$")], ...] = ()
    """Batches to pass over, `partition:offset` or `partition:first-last` of the topic of batches."""
