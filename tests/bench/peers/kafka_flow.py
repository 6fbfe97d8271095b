"""Kafka to Kafka as a flow of Bytewax with ONNX Runtime, in micro-batches of up to 64 records, or those of 20 ms.

    python -m bytewax.run kafka_flow:flow     with BENCH_BROKERS and BENCH_MODEL in the environment
"""

import json
import os
from datetime import timedelta

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSinkMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from engine import Engine

brokers = [os.environ["BENCH_BROKERS"]]
engine = Engine(os.environ["BENCH_MODEL"])


def classify(batch):
    """The results of a batch, as records."""
    _, records = batch
    classified = engine.classify([json.loads(record.value)["text"] for record in records])
    for record, (label, scores) in zip(records, classified):
        yield KafkaSinkMessage(record.key, json.dumps({"label": label, "score": max(scores)}).encode())


flow = Dataflow("sentiment")
source = kop.input("input", flow, brokers=brokers, topics=["text-input"])
keyed = op.key_on("key", source.oks, lambda record: str(record.partition))
batches = op.collect("batch", keyed, timeout=timedelta(milliseconds=20), max_size=64)
results = op.flat_map("classify", batches, classify)
kop.output("output", results, brokers=brokers, topic="sentiment-output")
