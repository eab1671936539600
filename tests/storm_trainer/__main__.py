"""`make storm-trainer`: trainers of one and of two ranks are killed again and again; status 1 when it is not clean."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from recd.embedded import EmbeddedKafka
from tests.storm_trainer.plan import plan
from tests.storm_trainer.storm import Storm

RANKS = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make storm-trainer ARGS=...", description=__doc__)
    parser.add_argument("--kills", type=int, default=24, help="ranks killed with -9 (default 24)")
    parser.add_argument("--seed", type=int, default=0, help="decides what happens when, and the batches (default 0)")
    parser.add_argument("--dir", type=Path, help="where broker and logs lie; a temporary folder, kept when not clean")
    arguments = parser.parse_args()
    folder = arguments.dir or Path(tempfile.mkdtemp(prefix="recd-storm-trainer-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"storm: seed {arguments.seed}, logs in {folder}", flush=True)
    with EmbeddedKafka(folder / "kafka") as kafka:
        storm = Storm(kafka, folder, seed=arguments.seed, say=lambda text: print(text, flush=True))
        for ranks in RANKS:
            share = arguments.kills // 2 + (ranks == 1 and arguments.kills % 2)
            storm.run(plan(seed=arguments.seed, kills=share, ranks=ranks), ranks=ranks)
    if storm.tally.clean and not arguments.dir:
        shutil.rmtree(folder)
    print(json.dumps(storm.tally.to_dict()), flush=True)
    sys.exit(0 if storm.tally.clean else 1)


if __name__ == "__main__":
    main()
