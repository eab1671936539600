"""One rank of a storm's trainer: crashes on cue, and waits for the others' batches however slow the machine is.

rank.py CONFIG.yaml STAGE:NUMBER     as tests.trainer.rank_run
"""

import sys
from pathlib import Path

from stream.config import load
from tests.trainer.rank_run import armed
from trainer import app, loop

if __name__ == "__main__":
    # A rank that gave up waiting would step without the others' batches: right, but not to the bit the calm run.
    loop.PATIENCE_S = 600.0
    sys.exit(app.run(load(Path(sys.argv[1])), hook=armed(sys.argv[2])))
