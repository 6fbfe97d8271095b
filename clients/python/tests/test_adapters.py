"""Adapters: files, Server-Sent Events, WebSockets."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import struct
import tempfile
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple
from unittest import mock

from support import WAIT_S, run_async, until_count

from weir_stream import (
    Adapter,
    FileAdapter,
    HttpSseAdapter,
    ResultEvent,
    StreamingSentimentPipeline,
    WebSocketAdapter,
)
from weir_stream._adapters import Push
from weir_stream._adapters._base import delay_s
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


class Closing(unittest.TestCase):
    """Adapters are closed once, however the pipeline ends."""

    def test_adapters_are_closed_after_a_timeout_an_error_and_without_a_start(self) -> None:
        class Source(Adapter):
            closed = 0

            async def run(self, push: Push) -> None:
                await push({"text": "A fine day."})

            async def close(self) -> None:
                self.closed += 1
                raise OSError("not closed")

        async def never(event: ResultEvent) -> None:
            await asyncio.Event().wait()

        async def run(is_started: bool, is_stuck: bool) -> List[int]:
            pipeline = StreamingSentimentPipeline("sentiment")
            sources = [Source(), Source()]
            for source in sources:
                pipeline.add_adapter(source)
            if is_stuck:
                pipeline.subscribe_result_callback(never)
            if is_started:
                await pipeline.start()
                await pipeline.wait_adapters()
            with self.assertLogs("streaming_sentiment_pipeline") as logged:
                if is_stuck:
                    with self.assertRaises(asyncio.TimeoutError):
                        await pipeline.stop(timeout=0.5)
                await pipeline.stop()
            self.assertEqual([line.splitlines()[0].split(":")[-1] for line in logged.output], ["Source could not be closed"] * 2)
            return [source.closed for source in sources]

        for is_started, is_stuck in [(False, False), (True, False), (True, True)]:
            with self.subTest(is_started=is_started, is_stuck=is_stuck):
                self.assertEqual(run_async(run(is_started, is_stuck)), [1, 1])


class Delays(unittest.TestCase):
    def test_delay_doubles_up_to_its_bound_after_any_number_of_failures(self) -> None:
        self.assertEqual([delay_s(0.5, failures) for failures in (1, 2, 3, 7, 8)], [0.5, 1.0, 2.0, 30.0, 30.0])
        # 2 ** 5000 is larger than any float.
        self.assertEqual([delay_s(0.5, 5000), delay_s(0.0, 5000), delay_s(1e12, 5000)], [30.0, 0.0, 30.0])


class Sse(unittest.TestCase):
    def test_parser_agrees_with_the_vectors(self) -> None:
        path = Path(__file__).resolve().parents[3] / "tests" / "golden" / "sse_parser.jsonl"
        count = 0
        for line in path.read_text("utf-8").splitlines():
            vector = json.loads(line)
            given = vector["input"].encode()
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

    def test_stream_continues_after_the_last_id_that_a_header_can_have(self) -> None:
        requests: List[Optional[str]] = []
        ids = ["1", "日", "a\x01b", "x" * 5000]

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.headers["last-event-id"])
                self.send_response(200 if len(requests) == 1 else 204)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                if len(requests) == 1:
                    # The number is longer than those that Python reads.
                    self.wfile.write(b"retry: 1\nretry: " + b"9" * 5000 + b"\n\n")
                    self.wfile.write("".join(f'id: {id}\ndata: {{"text": "A fine day."}}\n\n' for id in ids).encode())

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        adapter = HttpSseAdapter(f"http://127.0.0.1:{server.server_port}/")
        items: List[Any] = []

        async def push(item: Any) -> int:
            items.append(item["id"])
            return len(items)

        run_async(adapter.run(push))
        server.shutdown()
        server.server_close()
        self.assertEqual(items, ids)
        self.assertEqual([id and id.encode("latin-1").decode() for id in requests], [None, "日"])

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


async def accept_handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    key = next(line.split(": ")[1] for line in head.split("\r\n") if line.startswith("Sec-WebSocket-Key"))
    digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
    accept = base64.b64encode(digest).decode()
    writer.write(
        f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
    )


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
                try:
                    await asyncio.wait_for(WebSocketAdapter(url, attempts_max=0).run(push), 60)
                finally:
                    server.close()

        with self.assertRaisesRegex(ConnectionError, "no response"):
            asyncio.run(run())

    def test_connection_without_a_pong_is_ended(self) -> None:
        """The first ping is answered, the second is not."""
        texts: List[str] = []
        pings: List[int] = []

        async def push(item: Any) -> int:
            texts.append(item["text"])
            return len(texts)

        async def run() -> None:
            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await accept_handshake(reader, writer)
                # Half of a frame is no frame, and is kept.
                writer.write(b"\x81\x0bA fine")
                while head := await reader.read(2):
                    pings.append(head[0] & 15)
                    await reader.readexactly(4)
                    if len(pings) == 1:
                        writer.write(b" day." + b"\x8a\x00")
                writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
            try:
                await asyncio.wait_for(WebSocketAdapter(url, attempts_max=0, heartbeat_s=2.0).run(push), WAIT_S)
            finally:
                server.close()

        with self.assertRaisesRegex(ConnectionError, "nothing received for 4 s"):
            asyncio.run(run())
        self.assertEqual((texts, pings[:2]), (["A fine day."], [9, 9]))

    def test_messages_are_answered_on_the_same_socket(self) -> None:
        async def run() -> Tuple[List[Dict[str, Any]], bool]:
            answers: List[Dict[str, Any]] = []
            pong = False

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                nonlocal pong
                await accept_handshake(reader, writer)
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


if __name__ == "__main__":
    unittest.main()
