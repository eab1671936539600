"""bytewax that counts, in an environment of its own: `python bytewax_count.py BOOTSTRAP TOPIC EVENTS`."""

import json
import os
import sys
import time

import bytewax.operators as op  # type: ignore[import-not-found,unused-ignore]
from bytewax.connectors.kafka import KafkaSource  # type: ignore[import-not-found,unused-ignore]
from bytewax.connectors.stdio import StdOutSink  # type: ignore[import-not-found,unused-ignore]
from bytewax.dataflow import Dataflow  # type: ignore[import-not-found,unused-ignore]
from bytewax.testing import run_main  # type: ignore[import-not-found,unused-ignore]


def main() -> None:
    """Print `{"events": n, "cpu_s": s}`, from the first event on."""
    bootstrap, topic, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])
    counted = {"events": 0, "began": 0.0}

    def count(_message: object) -> bool:
        if not counted["events"]:
            counted["began"] = time.process_time()
        counted["events"] += 1
        if counted["events"] == wanted:
            spent = time.process_time() - counted["began"]
            print(json.dumps({"events": wanted, "cpu_s": spent}), flush=True)
            os._exit(0)
        return False

    flow = Dataflow("count")
    records = op.input("records", flow, KafkaSource([bootstrap], [topic], tail=False, batch_size=1_000))
    op.output("nothing", op.filter("count", records, count), StdOutSink())
    run_main(flow)


if __name__ == "__main__":
    main()
