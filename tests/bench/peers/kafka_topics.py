"""The topics of a measurement, on a broker that has just started.

    kafka_topics.py BROKERS fill FILE     creates the topics, and writes the lines of a file to text-input
    kafka_topics.py BROKERS wait COUNT    prints `waiting`, `first` once sentiment-output has a record, and `done` once it has COUNT
"""

import sys
import time

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

PARTITIONS = 4
TIMEOUT_S = 300


def fill(brokers, file):
    """Creates the topics and writes the records."""
    names = ["text-input", "sentiment-output", "sentiment-errors"]
    admin = AdminClient({"bootstrap.servers": brokers})
    for created in admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in names]).values():
        created.result(TIMEOUT_S)
    producer = Producer({"bootstrap.servers": brokers, "linger.ms": 5, "queue.buffering.max.messages": 1_000_000})
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            producer.produce("text-input", line.rstrip("\n").encode(), str(number).encode())
    if producer.flush(TIMEOUT_S):
        raise SystemExit("records were not written")


def wait(brokers, count):
    """Waits for the results by reading them: the end of a partition is not exact in the broker."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "count"})
    consumer.assign([TopicPartition("sentiment-output", number, 0) for number in range(PARTITIONS)])
    print("waiting", flush=True)
    end, results = time.monotonic() + TIMEOUT_S, 0
    while time.monotonic() < end:
        more = sum(record.error() is None for record in consumer.consume(500, 0.02))
        if more and not results:
            print("first", flush=True)
        results += more
        if results >= count:
            print("done", flush=True)
            return
    raise SystemExit(f"there are {results} results")


if __name__ == "__main__":
    brokers, command, argument = sys.argv[1:]
    fill(brokers, argument) if command == "fill" else wait(brokers, int(argument))
