"""Adapters: files, Server-Sent Events, WebSockets, Kafka."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import struct
import sys
import tempfile
import threading
import time
import types
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple
from unittest import mock

import confluent_kafka
from support import WAIT_S, run_async, until_count

from weir_stream import (
    Adapter,
    FileAdapter,
    HttpSseAdapter,
    KafkaAdapter,
    ResultEvent,
    StreamingSentimentPipeline,
    WebSocketAdapter,
)
from weir_stream._adapters._kafka import Positions
from weir_stream._adapters._sse import SseParser, lines_of


async def read_all(*adapters: Adapter) -> List[ResultEvent]:
    """The results of adapters whose sources end."""
    events: List[ResultEvent] = []
    pipeline = StreamingSentimentPipeline("sentiment")
    pipeline.subscribe_result_callback(events.append)
    for adapter in adapters:
        pipeline.add_adapter(adapter)
    async with pipeline:
        await pipeline.wait_adapters()
    return events


class Files(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_lines_of_each_format_are_answered_into_the_output(self) -> None:
        (self.folder / "a.txt").write_text("What a wonderful evening!\n\nIt was terrible.", "utf-8")
        (self.folder / "b.jsonl").write_text('{"text": "A fine day.", "id": 7}\n"It rained."\n', "utf-8")
        (self.folder / "c.csv").write_text('id,text\n9,"A day, a fine one"\n', "utf-8")
        output = self.folder / "out.ndjson"
        paths = [self.folder / name for name in ("a.txt", "b.jsonl", "c.csv")]
        run_async(read_all(FileAdapter(paths, output)))
        records = {one["id"]: one for one in map(json.loads, output.read_text("utf-8").splitlines())}
        expected = {f"{paths[0]}:1", f"{paths[0]}:3", "7", f"{paths[1]}:2", "9"}
        self.assertEqual(set(records), expected)
        self.assertEqual(records[f"{paths[0]}:3"]["label"], "negative")

    def test_pattern_names_several_files(self) -> None:
        for number in range(3):
            (self.folder / f"{number}.txt").write_text("A fine day.\n", "utf-8")
        events = run_async(read_all(FileAdapter(str(self.folder / "*.txt"))))
        self.assertEqual(len(events), 3)

    def test_lines_that_are_added_are_read(self) -> None:
        path = self.folder / "log.txt"
        path.write_text("A fine day.\nIt rai", "utf-8")

        async def run() -> List[str]:
            texts: List[str] = []
            pipeline = StreamingSentimentPipeline("sentiment")
            pipeline.subscribe_result_callback(lambda event: texts.append(event.result.metadata["model_input"]))
            pipeline.add_adapter(FileAdapter(path, follow=True))
            async with pipeline:
                await until_count(texts, 1)
                with open(path, "a", encoding="utf-8") as file:
                    file.write("ned.\n")
                await until_count(texts, 2)
            return texts

        self.assertEqual(run_async(run()), ["A fine day.", "It rained."])

    def test_missing_file_is_logged_and_the_pipeline_continues(self) -> None:
        async def run() -> int:
            pipeline = StreamingSentimentPipeline("sentiment")
            pipeline.add_adapter(FileAdapter(self.folder / "none.txt"))
            async with pipeline:
                await pipeline.wait_adapters()
                await pipeline.push("A fine day.")
            return (await pipeline.get_stats()).delivered

        with self.assertLogs("streaming_sentiment_pipeline") as logged:
            self.assertEqual(run_async(run()), 1)
        self.assertIn("FileAdapter has ended", logged.output[0])


class Sse(unittest.TestCase):
    def test_parser_agrees_with_the_vectors(self) -> None:
        path = Path(__file__).resolve().parents[3] / "tests" / "golden" / "sse_parser.jsonl"
        count = 0
        for line in path.read_text("utf-8").splitlines():
            vector = json.loads(line)
            given = vector["input"].encode()
            if given.startswith(b"\xef\xbb\xbf"):
                continue
            parser = SseParser()
            feed = [one for part in given[: given.rfind(b"\n") + 1].split(b"\n")[:-1] for one in lines_of(part + b"\n")]
            got = [event for one in feed for event in [parser.feed(one)] if event]
            expected = [(one["event"] or "message", one["data"]) for one in vector["ev"]]
            # Carriage returns at the end are a line that a line feed may still follow.
            self.assertEqual([(kind, data) for kind, data, _ in got], expected[: len(got)], vector)
            self.assertGreaterEqual(len(got) + given[given.rfind(b"\n") + 1 :].count(b"\r"), len(expected), vector)
            count += 1
        self.assertGreater(count, 250)

    def test_broken_stream_continues_after_the_last_id(self) -> None:
        requests: List[Optional[str]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.headers["last-event-id"])
                first = int(requests[-1] or -1) + 1
                if first >= 4:
                    self.send_response(204)
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                self.wfile.write(b"retry: 1\n: comment\n\n")
                for number in range(first, first + 2):
                    data = json.dumps({"text": f"Day {number} was fine."})
                    self.wfile.write(f"id: {number}\nevent: line\ndata: {data}\n\nevent: other\ndata: no\n\n".encode())
                # Cut in the middle of an event.
                self.wfile.write(b"id: 99\ndata: half")

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        adapter = HttpSseAdapter(f"http://127.0.0.1:{server.server_port}/", events=["line"])
        events = run_async(read_all(adapter))
        server.shutdown()
        server.server_close()
        self.assertEqual(sorted(str(event.id) for event in events), ["0", "1", "2", "3"])
        self.assertEqual(requests, [None, "1", "3"])


    def test_event_that_is_too_long_is_refused(self) -> None:
        parser = SseParser()
        with mock.patch("weir_stream._adapters._sse._EVENT_CHARS_MAX", 10):
            self.assertIsNone(parser.feed("data: 12345"))
            self.assertIsNone(parser.feed("data: 12345"))
            with self.assertRaisesRegex(ConnectionError, "more than 10 characters"):
                parser.feed("data: 1")
            parser.reset()
            self.assertIsNone(parser.feed("data: 1234567890"))
            self.assertEqual(parser.feed(""), ("message", "1234567890", None))


class WebSockets(unittest.TestCase):
    def test_handshake_without_a_response_fails_after_its_timeout(self) -> None:
        async def push(item: Any) -> int:
            raise AssertionError(f"there is no item {item}")

        async def run() -> None:
            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.read()
                writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            with mock.patch("weir_stream._adapters._websocket._CONNECT_S", 0.05):
                await asyncio.wait_for(WebSocketAdapter(url, attempts_max=0).run(push), 60)

        with self.assertRaisesRegex(ConnectionError, "no response"):
            asyncio.run(run())

    def test_messages_are_answered_on_the_same_socket(self) -> None:
        async def run() -> Tuple[List[Dict[str, Any]], bool]:
            answers: List[Dict[str, Any]] = []
            pong = False

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                nonlocal pong
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                key = next(line.split(": ")[1] for line in head.split("\r\n") if line.startswith("Sec-WebSocket-Key"))
                digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
                accept = base64.b64encode(digest).decode()
                writer.write(
                    f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
                )
                long = json.dumps({"text": "It was terrible. " * 20, "id": "b"}).encode()
                writer.write(b"\x81\x0bA fine day." + b"\x89\x02hi")
                # In two frames.
                writer.write(b"\x01" + bytes([126]) + struct.pack("!H", 100) + long[:100])
                rest = long[100:]
                writer.write(b"\x80" + bytes([126]) + struct.pack("!H", len(rest)) + rest)
                while len(answers) < 2:
                    first, second = await reader.readexactly(2)
                    length = second & 127
                    if length == 126:
                        (length,) = struct.unpack("!H", await reader.readexactly(2))
                    mask = await reader.readexactly(4)
                    payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(await reader.readexactly(length)))
                    if first & 15 == 10:
                        pong = payload == b"hi"
                    else:
                        answers.append(json.loads(payload))
                writer.write(b"\x88\x02" + struct.pack("!H", 1000))
                await reader.read()
                writer.close()
                closed.set()

            closed = asyncio.Event()
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            await read_all(WebSocketAdapter(f"ws://127.0.0.1:{port}/texts"))
            await asyncio.wait_for(closed.wait(), WAIT_S)
            server.close()
            return answers, pong

        answers, pong = run_async(run())
        self.assertTrue(pong)
        labels = {answer.get("id"): answer["label"] for answer in answers}
        self.assertEqual(labels, {None: "positive", "b": "negative"})


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

    def test_missing_client_is_named(self) -> None:
        with mock.patch.dict(sys.modules, {"confluent_kafka": None}):
            with self.assertRaisesRegex(ImportError, r"pip install weir-stream\[kafka\]"):
                KafkaAdapter("texts")


class KafkaBrokers(unittest.TestCase):
    """The adapter with brokers: the mock cluster of librdkafka, whose three brokers speak the protocol on sockets of this process."""

    def setUp(self) -> None:
        # Its configuration is that of a cluster; it is closed with the producer.
        self.cluster = confluent_kafka.Producer({"test.mock.num.brokers": 3, "log_level": 2})
        metadata = self.cluster.list_topics(timeout=WAIT_S)
        self.brokers = ",".join(f"{broker.host}:{broker.port}" for broker in metadata.brokers.values())

    def write(self, values: List[Optional[bytes]], first: int = 0) -> None:
        for index, value in enumerate(values):
            self.cluster.produce("texts", value, f"k{(first + index) % 8}")
        self.assertEqual(self.cluster.flush(WAIT_S), 0)

    def adapter(self) -> KafkaAdapter:
        settings = {"session.timeout.ms": 6000, "partition.assignment.strategy": "cooperative-sticky", "log_level": 2}
        return KafkaAdapter("texts", self.brokers, "readers", output_topic="results", settings=settings)

    def read(self, count: int) -> List[Tuple[bytes, Dict[str, Any]]]:
        """Results until they have ``count`` different ids."""
        consumer = confluent_kafka.Consumer({"bootstrap.servers": self.brokers, "group.id": "test", "auto.offset.reset": "earliest"})
        self.addCleanup(consumer.close)
        consumer.assign([confluent_kafka.TopicPartition("results", number, 0) for number in range(4)])
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
            asked = [confluent_kafka.TopicPartition("texts", number) for number in range(4)]
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


if __name__ == "__main__":
    unittest.main()
