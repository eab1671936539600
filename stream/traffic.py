"""Kinds of traffic that the generator knows by name; each goes with the configuration of that name in recd/presets.

`recd`: samples like those of RecD (arXiv 2211.05239): 16.5 a session, one a request. In order of arrival a batch of
1024 holds 1.13 samples of a session (RecD: 1.15). From one sample of a session to the next the user's own features
stay in all cases, `profile` in 99 %, `followed` (slides by one id) in 95 %, `engaged` (slides) in 80 %; `viewed` and
the session's own lists slide with every sample, the item is another one. See docs/decisions/bytes.md for the figures.
"""

from __future__ import annotations

from typing import Any

from stream.config import ConfigError
from stream.generator import GeneratorOptions
from stream.id_lists import ListGroup, ListPlan, Motion

RECD_LISTS = ListPlan(
    user=(
        ListGroup("profile", 0.01, Motion.REDRAWN, (8, 8, 12, 12, 16, 16, 20, 20, 28, 28, 36, 36)),
        ListGroup("followed", 0.05, Motion.PREPENDED, (15, 20, 25, 25, 30, 35)),
        ListGroup("engaged", 0.20, Motion.PREPENDED, (10, 15, 20, 20, 25, 30)),
        ListGroup("viewed", 1.00, Motion.APPENDED, (15, 20)),
    ),
    item=(3, 3, 6, 6, 9, 9, 12, 12),
)
TRAFFIC: dict[str, dict[str, Any]] = {
    "demo": {},
    "transforms": {},
    "recd": {
        "samples_per_session": 16.5,
        "candidates_per_request": 1,
        "num_items": 20_000,
        "lists": RECD_LISTS,
    },
}
"""Options of the generator by name of the preset."""


def traffic_options(preset: str, **options: Any) -> GeneratorOptions:
    """Options of the generator for a preset, `options` laid over. ConfigError names the presets there are."""
    if preset not in TRAFFIC:
        raise ConfigError(f"no traffic '{preset}': there is {', '.join(TRAFFIC)}")
    return GeneratorOptions(**{**TRAFFIC[preset], **options})
