"""The Kafka adapter: its positions, with the mock cluster of librdkafka, and with a broker."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
import types
import unittest
from typing import Any, Dict, List, Optional, Tuple
from unittest import mock

import confluent_kafka
import confluent_kafka.admin
from support import WAIT_S, Program, run_async, until_count

from weir_stream import KafkaAdapter, StreamingSentimentPipeline
from weir_stream._adapters._kafka import Positions

#: The partitions of each topic.
PARTITIONS = 4
#: The settings of the consumers. The member of a killed process leaves its group after the timeout.
SETTINGS: Dict[str, Any] = {"session.timeout.ms": 6000, "partition.assignment.strategy": "cooperative-sticky", "log_level": 2}


class Record:
    """A record of a topic."""

    def __init__(self, offset: int, value: str) -> None:
        self._offset, self._value = offset, value

    def topic(self) -> str:
        return "texts"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return b"key"

    def value(self) -> bytes:
        return self._value.encode()

    def error(self) -> None:
        return None


class Kafka(unittest.TestCase):
    """The adapter against the interface of confluent_kafka, without brokers."""

    def test_positions_are_committed_after_every_record_before_them(self) -> None:
        positions, partition = Positions(), ("texts", 0)
        for offset in (5, 6, 8):
            positions.add(partition, offset)
        positions.finish(partition, 6)
        self.assertEqual(positions.take_advanced(), {})
        positions.finish(partition, 5)
        self.assertEqual(positions.take_advanced(), {partition: 7})
        positions.finish(partition, 8)
        self.assertEqual(positions.take_advanced([("texts", 1)]), {})
        self.assertEqual(positions.take_advanced([partition]), {partition: 9})

    def test_revoked_records_move_no_position(self) -> None:
        positions, partition = Positions(), ("texts", 0)
        for offset in (5, 6):
            positions.add(partition, offset)
        positions.forget(partition)
        positions.finish(partition, 5)
        # The partition is assigned again, and read from a position that another consumer has committed.
        positions.add(partition, 6)
        positions.finish(partition, 5)
        self.assertEqual(positions.take_advanced(), {})
        positions.finish(partition, 6)
        self.assertEqual(positions.take_advanced(), {partition: 7})

    def test_errors_of_brokers_that_come_back_do_not_end_the_adapter(self) -> None:
        class Failure:
            def __init__(self, name: str) -> None:
                self._failure = confluent_kafka.KafkaError(getattr(confluent_kafka.KafkaError, name))

            def error(self) -> Any:
                return self._failure

        class Consumer:
            def __init__(self, polled: List[Any]) -> None:
                self.polled = polled

            def poll(self, timeout: float) -> Any:
                return self.polled.pop(0)

        polled: List[Any] = [Failure("_ALL_BROKERS_DOWN"), Failure("_TRANSPORT"), Record(0, "A fine day."), Failure("TOPIC_AUTHORIZATION_FAILED")]
        adapter = KafkaAdapter("texts", consumer=Consumer(polled))
        records = adapter._poll(threading.Event())
        self.assertEqual(next(records).value(), b"A fine day.")
        with self.assertRaisesRegex(ConnectionError, "the consumer has failed"):
            next(records)

    def test_results_are_produced_and_then_committed(self) -> None:
        class Consumer:
            def __init__(self) -> None:
                self.records = [Record(0, "A fine day."), Record(1, " "), Record(2, '{"text": "It was terrible.", "id": "x"}')]
                self.committed: List[int] = []
                self.is_closed = False

            def poll(self, timeout: float) -> Optional[Record]:
                return self.records.pop(0) if self.records else None

            def commit(self, offsets: List[Any], asynchronous: bool) -> None:
                self.committed += [one.offset for one in offsets]

            def close(self) -> None:
                self.is_closed = True

        class Producer:
            def __init__(self) -> None:
                self.produced: List[Dict[str, Any]] = []

            def produce(self, topic: str, value: bytes, key: bytes, on_delivery: Any) -> None:
                self.produced.append(json.loads(value))
                on_delivery(None, None)

            def poll(self, timeout: float) -> int:
                return 0

            def flush(self, timeout: float) -> int:
                return 0

        consumer, producer = Consumer(), Producer()
        module = types.ModuleType("confluent_kafka")
        module.TopicPartition = lambda topic, partition, offset: types.SimpleNamespace(offset=offset)  # type: ignore[attr-defined]

        async def run() -> None:
            pipeline = StreamingSentimentPipeline("sentiment")
            pipeline.add_adapter(KafkaAdapter("texts", output_topic="results", consumer=consumer, producer=producer))
            async with pipeline:
                await until_count(producer.produced, 2)

        with mock.patch.dict(sys.modules, {"confluent_kafka": module}):
            run_async(run())
        self.assertEqual({one["id"] for one in producer.produced}, {"texts/0/0", "x"})
        self.assertEqual(consumer.committed[-1], 3)
        self.assertTrue(consumer.is_closed)

    def test_result_that_cannot_be_produced_ends_the_adapter(self) -> None:
        class Consumer:
            def __init__(self) -> None:
                self.polls = 0
                self.committed: List[int] = []

            def poll(self, timeout: float) -> Optional[Record]:
                self.polls += 1
                return Record(self.polls - 1, "A fine day.")

            def commit(self, offsets: List[Any], asynchronous: bool) -> None:
                self.committed += [one.offset for one in offsets]

            def close(self) -> None:
                pass

        class Producer:
            def produce(self, topic: str, value: bytes, key: bytes, on_delivery: Any) -> None:
                on_delivery("the topic is full", None)

            def flush(self, timeout: float) -> int:
                return 0

        consumer = Consumer()

        async def run() -> None:
            pipeline = StreamingSentimentPipeline("sentiment")
            pipeline.add_adapter(KafkaAdapter("texts", output_topic="results", consumer=consumer, producer=Producer()))
            async with pipeline:
                await asyncio.wait_for(pipeline.wait_adapters(), WAIT_S)

        with self.assertLogs("streaming_sentiment_pipeline") as logged:
            run_async(run())
        self.assertIn("KafkaAdapter has ended", "".join(logged.output))
        self.assertIn("the topic is full", "".join(logged.output))
        self.assertEqual(consumer.committed, [])

    def test_missing_client_is_named(self) -> None:
        with mock.patch.dict(sys.modules, {"confluent_kafka": None}):
            with self.assertRaisesRegex(ImportError, r"pip install weir-stream\[kafka\]"):
                KafkaAdapter("texts")


class Brokers:
    """The adapter with brokers, which ``setUp`` starts: their addresses, and a producer that is connected to them."""

    brokers: str
    cluster: confluent_kafka.Producer
    # Of unittest.TestCase, which the classes with brokers have.
    addCleanup: Any
    assertEqual: Any
    assertLess: Any
    assertTrue: Any

    def write(self, values: List[Optional[bytes]], first: int = 0) -> None:
        for index, value in enumerate(values):
            self.cluster.produce("texts", value, f"k{(first + index) % 8}")
        self.assertEqual(self.cluster.flush(WAIT_S), 0)

    def adapter(self) -> KafkaAdapter:
        return KafkaAdapter("texts", self.brokers, "readers", output_topic="results", settings=SETTINGS)

    def read(self, count: int) -> List[Tuple[bytes, Dict[str, Any]]]:
        """Results until they have ``count`` different ids."""
        consumer = confluent_kafka.Consumer({"bootstrap.servers": self.brokers, "group.id": "test", "auto.offset.reset": "earliest"})
        self.addCleanup(consumer.close)
        consumer.assign([confluent_kafka.TopicPartition("results", number, 0) for number in range(PARTITIONS)])
        results: List[Tuple[bytes, Dict[str, Any]]] = []
        deadline = time.monotonic() + WAIT_S
        while len({value["id"] for _, value in results}) < count:
            self.assertLess(time.monotonic(), deadline, f"{len(results)} results")
            message = consumer.poll(0.2)
            if message is not None and message.error() is None:
                results.append((message.key() or b"", json.loads(message.value() or b"")))
        return results

    def committed(self) -> int:
        """The records before the committed positions of the group."""
        consumer = confluent_kafka.Consumer({"bootstrap.servers": self.brokers, "group.id": "readers"})
        try:
            asked = [confluent_kafka.TopicPartition("texts", number) for number in range(PARTITIONS)]
            return sum(max(one.offset, 0) for one in consumer.committed(asked, timeout=WAIT_S))
        finally:
            consumer.close()

    def test_each_record_has_a_result_with_its_key_and_the_next_consumer_begins_after_it(self) -> None:
        good = [json.dumps({"text": f"A fine day, number {number}.", "id": f"r{number}"}).encode() for number in range(60)]
        self.write([*good[:30], None, b" ", *good[30:]])

        async def run(count: int) -> List[Tuple[bytes, Dict[str, Any]]]:
            pipeline = StreamingSentimentPipeline("sentiment")
            pipeline.add_adapter(self.adapter())
            async with pipeline:
                loop = asyncio.get_running_loop()
                results = await loop.run_in_executor(None, self.read, count)
                deadline = time.monotonic() + WAIT_S
                # The tombstone and the blank record are committed too.
                while await loop.run_in_executor(None, self.committed) < count + 2:
                    self.assertLess(time.monotonic(), deadline)
                return results

        results = run_async(run(60))
        self.assertEqual({value["id"] for _, value in results}, {f"r{number}" for number in range(60)})
        self.assertEqual(len(results), 60)
        self.assertTrue(all(key.startswith(b"k") for key, _ in results))
        self.write([b"One more fine day."], first=60)
        results = run_async(run(61))
        self.assertEqual(len(results), 61)

    def test_consumers_that_join_and_leave_lose_no_record(self) -> None:
        def texts(numbers: range) -> List[Optional[bytes]]:
            return [json.dumps({"text": f"A fine day, number {number}.", "id": str(number)}).encode() for number in numbers]

        async def run() -> None:
            loop = asyncio.get_running_loop()
            first, second = StreamingSentimentPipeline("sentiment"), StreamingSentimentPipeline("sentiment")
            first.add_adapter(self.adapter())
            second.add_adapter(self.adapter())
            self.write(texts(range(100)))
            async with second:
                async with first:
                    await loop.run_in_executor(None, self.read, 100)
                    self.write(texts(range(100, 200)))
                # The first has left the group.
                self.write(texts(range(200, 300)))
                await loop.run_in_executor(None, self.read, 300)

        run_async(run())


class KafkaMockCluster(Brokers, unittest.TestCase):
    """Three brokers of librdkafka, which speak the protocol on sockets of this process."""

    def setUp(self) -> None:
        # Its configuration is that of a cluster; it is closed with the producer.
        self.cluster = confluent_kafka.Producer({"test.mock.num.brokers": 3, "log_level": 2})
        metadata = self.cluster.list_topics(timeout=WAIT_S)
        self.brokers = ",".join(f"{broker.host}:{broker.port}" for broker in metadata.brokers.values())


#: A process with the adapter, until it is killed.
PROCESS = """
import asyncio, json, sys
from weir_stream import KafkaAdapter, StreamingSentimentPipeline

async def main() -> None:
    pipeline = StreamingSentimentPipeline("sentiment")
    pipeline.add_adapter(KafkaAdapter("texts", sys.argv[1], "readers", output_topic="results", settings=json.loads(sys.argv[2])))
    async with pipeline:
        await pipeline.wait_adapters()

asyncio.run(main())
"""


@unittest.skipUnless("WEIR_TEST_KAFKA" in os.environ, "WEIR_TEST_KAFKA names the broker: `cargo xtask python --test`")
class KafkaBroker(Brokers, unittest.TestCase):
    """A broker, tansu, in a process of its own."""

    def setUp(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        url, self.brokers = f"tcp://127.0.0.1:{port}", f"127.0.0.1:{port}"
        command = [os.environ["WEIR_TEST_KAFKA"], "broker", "--silent", "--storage-engine", "memory://tansu/"]
        command += ["--listener-url", url, "--advertised-listener-url", url]
        broker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(broker.wait)
        self.addCleanup(broker.kill)
        common: Dict[str, Any] = {"bootstrap.servers": self.brokers, "log_level": 2}
        # It is exported, but not by the types of the package.
        new_topic = confluent_kafka.admin.NewTopic  # type: ignore[attr-defined]
        topics = [new_topic(name, PARTITIONS, 1) for name in ("texts", "results")]
        # The client waits for the broker.
        admin = confluent_kafka.admin.AdminClient(common)
        for created in admin.create_topics(topics, operation_timeout=WAIT_S, request_timeout=WAIT_S).values():
            created.result(WAIT_S)
        self.cluster = confluent_kafka.Producer(common)

    def test_killed_processes_lose_no_record(self) -> None:
        texts = [json.dumps({"text": f"A fine day, number {number}.", "id": str(number)}).encode() for number in range(200)]
        command = [sys.executable, "-c", PROCESS, self.brokers, json.dumps(SETTINGS)]
        process = Program(command, self.addCleanup)
        self.write([*texts[:100]])
        self.read(1)
        process.process.kill()
        process.wait()
        self.write([*texts[100:]], 100)
        Program(command, self.addCleanup)
        results = self.read(200)
        self.assertEqual({value["id"] for _, value in results}, {str(number) for number in range(200)})
        deadline = time.monotonic() + WAIT_S
        while self.committed() < 200:
            self.assertLess(time.monotonic(), deadline)


if __name__ == "__main__":
    unittest.main()
