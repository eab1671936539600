"""Where one run of the demo keeps its data and logs, and the configuration that lies there."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from recd.embedded import EmbeddedKafka, EmbeddedRedis, free_port
from recd.presets import preset_path
from stream.config import Config, load, to_yaml

RUNS_KEPT = 3


def configure(
    preset: str, *, directory: Path, kafka: EmbeddedKafka, redis: EmbeddedRedis, overrides: tuple[str, ...]
) -> Config:
    """The preset with this run's addresses and folders laid over it, written down for the services."""
    of_this_run = (
        f"kafka.bootstrap={kafka.bootstrap}",
        f"redis.url={redis.url}",
        f"trainer.checkpoint_url={directory / 'checkpoints'}",
        f"trainer.versions_url={directory / 'versions'}",
        f"trainer.port={free_port()}",
        f"serving.port={free_port()}",
        f"stream.data_dir={directory / 'stream'}",
    )
    config = load(preset_path(preset), overrides=(*of_this_run, *overrides))
    (directory / "recd.yaml").write_text(to_yaml(config), encoding="utf-8")
    return config


def new_run_folder(parent: Path) -> Path:
    """A fresh folder below `parent`; of the older ones the newest few are kept."""
    parent = parent.absolute()
    parent.mkdir(parents=True, exist_ok=True)
    old = sorted(path for path in parent.glob("run-*") if path.is_dir())
    for path in old[: -(RUNS_KEPT - 1)]:
        shutil.rmtree(path, ignore_errors=True)
    path = parent / time.strftime(f"run-%Y%m%d-%H%M%S-{os.getpid()}")
    path.mkdir()
    return path
