"""Kafka to Kafka with confluent-kafka and ONNX Runtime, in micro-batches: up to 64 records, or those of 20 ms, are classified together,
their results are written and acknowledged, and then their positions are committed.

    kafka_consumer.py BROKERS MODEL_DIR
"""

import json
import sys

from confluent_kafka import Consumer, Producer
from engine import Engine

RECORDS_MAX = 64
WAIT_S = 0.02


def main():
    """Runs until the process is ended."""
    brokers, model = sys.argv[1:]
    engine = Engine(model)
    consumer = Consumer(
        {
            "bootstrap.servers": brokers,
            "group.id": "peer",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "session.timeout.ms": 6000,
        }
    )
    consumer.subscribe(["text-input"])
    producer = Producer({"bootstrap.servers": brokers, "enable.idempotence": True, "linger.ms": 0})
    while True:
        records = consumer.consume(RECORDS_MAX, WAIT_S)
        if not records:
            continue
        texts = [json.loads(record.value())["text"] for record in records]
        for record, (label, scores) in zip(records, engine.classify(texts)):
            result = json.dumps({"label": label, "score": max(scores)}).encode()
            producer.produce("sentiment-output", result, record.key(), headers=record.headers())
        producer.flush()
        consumer.commit(asynchronous=True)


if __name__ == "__main__":
    main()
