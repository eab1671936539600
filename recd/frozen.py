"""`python -m recd.frozen`: what a frozen version was worth on a stretch of batches; a process of its own for torch.

Standard input: `{"config": path, "versions_url": folder, "version": n, "ranges": {partition: [first, end]}}`.
Standard output, last line: `{"ne": ...}` of the first label.
"""

import json
import sys
from pathlib import Path
from typing import Any

from stream.config import load
from trainer.replay_eval import evaluate


def main(asked: dict[str, Any]) -> None:
    """Evaluate and print; partitions that are not named are left out."""
    overrides = (f"trainer.versions_url={asked['versions_url']}",)
    config = load(Path(asked["config"]), overrides=overrides)
    ranges = {int(partition): bounds for partition, bounds in asked["ranges"].items()}
    everywhere = range(config.topics.partitions)
    result = evaluate(
        config,
        version=asked["version"],
        begin={p: ranges[p][0] for p in ranges},
        end={p: ranges[p][1] if p in ranges else 0 for p in everywhere},
    )
    print(json.dumps({"ne": result.labels[config.labels[0].name].ne, "samples": result.samples}))


if __name__ == "__main__":
    main(json.load(sys.stdin))
