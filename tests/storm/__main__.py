"""`make storm`: kills, restarts and zombies under traffic, then the audit; status 1 when it is not clean."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path

from tests.storm.plan import plan, short_plan
from tests.storm.storm import Storm


def main() -> None:
    parser = argparse.ArgumentParser(prog="make storm ARGS=...", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="workers killed with -9 (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="decides what happens to whom, and the traffic (default 0)")
    parser.add_argument("--short", action="store_true", help="one round with each kind of blow once")
    parser.add_argument("--dir", type=Path, help="where servers and logs lie; a temporary folder, kept when not clean")
    arguments = parser.parse_args()
    folder = arguments.dir or Path(tempfile.mkdtemp(prefix="recd-storm-"))
    rounds = short_plan(seed=arguments.seed) if arguments.short else plan(seed=arguments.seed, kills=arguments.kills)
    folder.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=folder / "storm.log")
    print(f"storm: seed {arguments.seed}, logs in {folder}", flush=True)
    tally = Storm(folder, seed=arguments.seed, say=lambda text: print(text, flush=True)).run(rounds)
    if tally.clean and not arguments.dir:
        shutil.rmtree(folder)
    print(json.dumps(tally.to_dict()), flush=True)
    sys.exit(0 if tally.clean else 1)


if __name__ == "__main__":
    main()
