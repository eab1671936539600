"""quixstreams that counts, in an environment of its own: `python quix_count.py BOOTSTRAP TOPIC EVENTS`."""

import json
import sys
import time

from quixstreams import Application  # type: ignore[import-not-found,unused-ignore]


def main() -> None:
    """Print `{"events": n, "cpu_s": s}`, from the first event on."""
    bootstrap, topic, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])
    app = Application(
        broker_address=bootstrap,
        consumer_group=f"bench-quix-{time.time_ns()}",
        auto_offset_reset="earliest",
        auto_create_topics=False,
        use_changelog_topics=False,
        loglevel="ERROR",
    )
    counted = {"events": 0, "began": 0.0}

    def count(_value: object) -> None:
        if not counted["events"]:
            counted["began"] = time.process_time()
        counted["events"] += 1
        if counted["events"] == wanted:
            spent = time.process_time() - counted["began"]
            print(json.dumps({"events": wanted, "cpu_s": spent}), flush=True)
            app.stop()

    app.dataframe(app.topic(topic, value_deserializer="bytes")).update(count)
    app.run()


if __name__ == "__main__":
    main()
