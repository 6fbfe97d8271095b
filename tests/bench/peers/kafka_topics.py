"""The topics of a measurement, on a broker that has just started.

    kafka_topics.py BROKERS fill FILE     creates the topics, and writes the lines of a file to text-input
    kafka_topics.py BROKERS wait COUNT    prints `waiting`, then `done` once sentiment-output has COUNT records
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
    created = AdminClient({"bootstrap.servers": brokers}).create_topics([NewTopic(name, PARTITIONS, 1) for name in names])
    for result in created.values():
        result.result(TIMEOUT_S)
    producer = Producer({"bootstrap.servers": brokers, "linger.ms": 5, "queue.buffering.max.messages": 1_000_000})
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            producer.produce("text-input", line.rstrip("\n").encode(), str(number).encode())
    if producer.flush(TIMEOUT_S):
        raise SystemExit("records were not written")


def wait(brokers, count):
    """Waits for the results."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "count"})
    partitions = [TopicPartition("sentiment-output", number) for number in range(PARTITIONS)]
    print("waiting", flush=True)
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        if sum(consumer.get_watermark_offsets(partition, TIMEOUT_S)[1] for partition in partitions) >= count:
            print("done", flush=True)
            return
        time.sleep(0.005)
    raise SystemExit("there are not enough results")


if __name__ == "__main__":
    brokers, command, argument = sys.argv[1:]
    fill(brokers, argument) if command == "fill" else wait(brokers, int(argument))
