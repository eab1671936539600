"""Consume and decode, nothing else: `consume(...)` of confluent-kafka and one msgspec struct a record, fields typed.

python -m bench.peers.bare CONFIG '{"0": [first, end], ...}'
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import confluent_kafka as ck

from stream.config import load
from stream.event_schema import EventSchema

RECORDS = 5_000


def main() -> None:
    """Print `{"events": n, "cpu_s": s}`, from the first record on."""
    config = load(Path(sys.argv[1]))
    ranges = {int(partition): places for partition, places in json.loads(sys.argv[2]).items()}
    schema = EventSchema(config.events, features=config.features, labels=config.labels)
    decode = schema.decoder.decode
    consumer = ck.Consumer(
        {"bootstrap.servers": config.kafka.bootstrap, "group.id": "bench-bare", "enable.auto.commit": False}
    )
    topic = config.topics.interactions
    begin = time.process_time()
    consumer.assign([ck.TopicPartition(topic, partition, first) for partition, (first, _) in ranges.items()])
    wanted = sum(end - first for first, end in ranges.values())
    seen = 0
    while seen < wanted:
        for message in consumer.consume(RECORDS, 0.1):
            if message.error() is None:
                decode(message.value())
                seen += 1
    print(json.dumps({"events": seen, "cpu_s": time.process_time() - begin}), flush=True)
    consumer.close()


if __name__ == "__main__":
    main()
