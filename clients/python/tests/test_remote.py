"""The same calls to a server: `weir serve`, started here from WEIR_TEST_PROGRAM."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
import unittest
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import test_streaming
from support import WAIT_S, Program, run_async

from weir_stream import (
    ErrorEvent,
    InferenceError,
    ModelNotFoundError,
    RetryConfig,
    ServerError,
    StreamingConfig,
    StreamingSentimentPipeline,
    pipeline,
)

PROGRAM = os.environ.get("WEIR_TEST_PROGRAM")
ROOT = Path(__file__).resolve().parents[3]


class Server:
    """A server on a free port, which the end of the module stops."""

    def __init__(self) -> None:
        assert PROGRAM is not None
        models = ["--models-dir", str(ROOT / "host" / "nn" / "models")]
        language_model = os.environ.get("WEIR_TEST_LM")
        if language_model:
            models += ["--model", f"lm={Path(language_model).parent}"]
        command = [PROGRAM, "serve", "--listen", "127.0.0.1:0", *models]
        self.program = Program(command, unittest.addModuleCleanup)
        unittest.addModuleCleanup(self.stop)
        line = "\n"
        while line and "http://" not in line:
            line = self.program.line()
        if not line:
            raise AssertionError(f"the server has ended; {self.program.errors()}")
        self.url = line[line.index("http://") :].split()[0]

    def wait_ready(self, model: str, timeout_s: float = 2 * WAIT_S) -> None:
        """Waits until a model can answer."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            with urllib.request.urlopen(f"{self.url}/v1/models", timeout=WAIT_S) as answer:
                models = {one["name"]: one["ready"] for one in json.load(answer)["models"]}
            if models[model]:
                return
            if time.monotonic() > deadline_s:
                raise AssertionError(f"after {timeout_s:.0f} s: the model {model} is not ready; {self.program.errors()}")
            time.sleep(0.05)

    def stop(self) -> None:
        self.program.process.terminate()
        if self.program.wait() != 0:
            raise AssertionError(f"the server ended with {self.program.process.returncode}; {self.program.errors()}")


_servers: List[Server] = []


def server() -> Server:
    """The server of this module; the small models are ready."""
    if not _servers:
        _servers.append(Server())
        # A language model takes longer than the others: its test waits for it.
        for model in ("sentiment", "entities", "embeddings"):
            _servers[0].wait_ready(model)
    return _servers[0]


@unittest.skipUnless(PROGRAM, "WEIR_TEST_PROGRAM is not set")
class Remote(unittest.TestCase):
    """Pipelines and streams of a server answer as those of this process."""

    url: str

    @classmethod
    def setUpClass(cls) -> None:
        cls.url = server().url

    def test_answers_are_those_of_this_process(self) -> None:
        texts = ["What a wonderful evening!", "The tea was cold.", "Ada met Grace in Berlin."]
        cases: List[Tuple[str, Dict[str, Any]]] = [
            ("sentiment-analysis", {"top_k": None}),
            ("sentiment-analysis", {}),
            ("ner", {"aggregation_strategy": "simple"}),
            ("ner", {}),
            ("feature-extraction", {"normalize": True}),
        ]
        for task, parameters in cases:
            with self.subTest(task=task, parameters=parameters):
                here, there = pipeline(task), pipeline(task, base_url=self.url)
                self.near(here(texts, **parameters), there(texts, **parameters))
                self.near(here(texts[0], **parameters), there(texts[0], **parameters))
                self.near(list(here(iter(texts), **parameters)), list(there(iter(texts), **parameters)))

    def near(self, one: Any, other: Any) -> None:
        if isinstance(one, float):
            # Batches differ, and with them the last digits.
            self.assertAlmostEqual(one, other, delta=2e-3)
        elif isinstance(one, list):
            self.assertEqual(len(one), len(other))
            for first, second in zip(one, other):
                self.near(first, second)
        elif isinstance(one, dict):
            self.assertEqual(set(one), set(other))
            for key in one:
                self.near(one[key], other[key])
        else:
            self.assertEqual(one, other)

    def test_errors_of_the_server_are_raised(self) -> None:
        with self.assertRaisesRegex(InferenceError, "text 1: .*tokens") as raised:
            pipeline("sentiment-analysis", base_url=self.url)(["a", "word " * 5000])
        self.assertEqual((raised.exception.code, raised.exception.category), ("too_long", "client"))
        with self.assertRaisesRegex(ModelNotFoundError, "there are embeddings, entities"):
            pipeline("ner", "nosuch", base_url=self.url)
        with self.assertRaisesRegex(ServerError, "cannot be reached"):
            pipeline("ner", base_url="http://127.0.0.1:9")
        with self.assertRaisesRegex(ValueError, "http://HOST:PORT"):
            pipeline("ner", base_url="localhost:8080")

    def test_more_texts_than_a_request_takes_are_answered(self) -> None:
        got = pipeline("sentiment-analysis", base_url=self.url)(["A fine day."] * 1100)
        self.assertEqual(len(got), 1100)

    @unittest.skipUnless(os.environ.get("WEIR_TEST_LM"), "there is no language model")
    def test_texts_are_generated(self) -> None:
        server().wait_ready("lm")
        pipe = pipeline("text-generation", "lm", base_url=self.url)
        [text] = pipe("The capital of France is", max_new_tokens=5)
        self.assertIn("Paris", text["generated_text"])
        chat = [{"role": "user", "content": "Name a colour."}]
        [answer] = pipe(chat, max_new_tokens=8)
        self.assertEqual(answer["generated_text"][1]["role"], "assistant")
        self.assertTrue(answer["generated_text"][1]["content"])
        self.assertEqual("".join(pipe.stream(chat, max_new_tokens=8)), answer["generated_text"][1]["content"])


class OnServer:
    """The tests of streams in this process, against the server."""

    @classmethod
    def setUpClass(cls) -> None:
        test_streaming.BASE_URL = server().url

    @classmethod
    def tearDownClass(cls) -> None:
        test_streaming.BASE_URL = ""


@unittest.skipUnless(PROGRAM, "WEIR_TEST_PROGRAM is not set")
class RemoteResults(OnServer, test_streaming.Results):
    """What is delivered."""


@unittest.skipUnless(PROGRAM, "WEIR_TEST_PROGRAM is not set")
class RemoteLife(OnServer, test_streaming.Life):
    """Start, pause and stop."""


class Failing(BaseHTTPRequestHandler):
    """A server that fails a number of requests."""

    failures = 0
    requests: List[str] = []
    #: Whether a generation is in a chunk without an end; else the end of the connection is its end.
    is_chunked = False

    def do_GET(self) -> None:
        kinds = {"sentiment": "text-classification", "writer": "text-generation"}
        models = [{"name": name, "kind": kind} for name, kind in kinds.items()]
        self.answer(200, json.dumps({"models": models}).encode())

    def do_POST(self) -> None:
        body: Dict[str, Any] = json.loads(self.rfile.read(int(self.headers["content-length"])))
        Failing.requests.append(self.path)
        if self.path == "/v1/completions":
            return self.generate(b'data: {"choices": [{"index": 0, "text": " three"}]}\n\n')
        if Failing.failures > 0:
            Failing.failures -= 1
            problem = {"status": 503, "code": "overloaded", "detail": "too much", "retryable": True}
            return self.answer(503, json.dumps(problem).encode())
        outputs = [[] if text == "odd" else [{"label": "positive", "score": 0.5}] for text in body["inputs"]]
        return self.answer(200, json.dumps({"model": "sentiment", "outputs": outputs}).encode())

    def generate(self, content: bytes) -> None:
        self.send_response(200)
        if Failing.is_chunked:
            self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content) if Failing.is_chunked else content)

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class Retries(unittest.TestCase):
    """What fails in passing is retried, and what fails for good is an error."""

    def setUp(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Failing)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def tearDown(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def errors(self, failures: int, attempts: int, texts: Optional[List[str]] = None) -> List[ErrorEvent]:
        Failing.failures = failures

        async def run() -> List[ErrorEvent]:
            errors: List[ErrorEvent] = []
            config = StreamingConfig(retry=RetryConfig(max_attempts=attempts, base_backoff_ms=1))
            async with StreamingSentimentPipeline("sentiment", config, base_url=self.url) as stream:
                stream.subscribe_error_callback(errors.append)
                await stream.push_batch(texts or ["one"])
            self.stats = await stream.get_stats()
            return errors

        return run_async(run())

    def test_failure_that_passes_is_retried(self) -> None:
        self.assertEqual(self.errors(2, 3), [])
        self.assertEqual((self.stats.retried, self.stats.delivered), (2, 1))

    def test_answer_without_a_label_is_an_error_and_the_stream_continues(self) -> None:
        [event] = self.errors(0, 3, ["one", "odd", "two"])
        self.assertEqual((event.seq, event.error.code, event.error.category.value), (1, "inference_failed", "model"))
        self.assertEqual(self.stats.pushed, 3)

    def test_stream_that_is_dropped_has_no_threads(self) -> None:
        Failing.failures = 0
        others = set(threading.enumerate())

        def threads() -> List[threading.Thread]:
            return [thread for thread in threading.enumerate() if thread.name.startswith("weir-remote-") and thread not in others]

        async def run(is_started: bool) -> None:
            stream = StreamingSentimentPipeline("sentiment", base_url=self.url)
            await stream.initialize()
            self.assertEqual(len(threads()), 2)
            if not is_started:
                return
            await stream.start()
            await stream.push("one")
            results = stream.results()
            await results.__anext__()
            results.close()

        for is_started in (False, True):
            with self.subTest(is_started=is_started):
                run_async(run(is_started))
                gc.collect()
                for thread in threads():
                    thread.join(WAIT_S)
                self.assertEqual(threads(), [])

    def test_generation_that_is_cut_off_is_an_error(self) -> None:
        pipe = pipeline("text-generation", "writer", base_url=self.url)
        for is_chunked in (True, False):
            Failing.is_chunked = is_chunked
            pieces = pipe.stream("One, two,")
            self.assertEqual(next(pieces), " three")
            with self.assertRaisesRegex(ServerError, "ended before the text") as raised:
                next(pieces)
            self.assertEqual(raised.exception.code, "cut_off")

    def test_failure_that_lasts_is_an_error(self) -> None:
        [event] = self.errors(100, 3)
        self.assertEqual((event.attempts, event.error.code, event.error.category.value), (3, "overloaded", "system"))
        self.assertTrue(event.error.retryable)


if __name__ == "__main__":
    unittest.main()
