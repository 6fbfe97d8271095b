"""The engine within a process of Python: other threads, signals, forks, the end of the interpreter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import unittest

from support import WAIT_S, Program

from weir_stream import InferenceError, ServerError, pipeline

#: Interpreters that are started and ended.
SHUTDOWNS = int(os.environ.get("WEIR_TEST_SHUTDOWNS", "100"))


def run(code: str, timeout_s: float = 2 * WAIT_S) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout_s)


class Threads(unittest.TestCase):
    def test_other_threads_run_while_the_engine_computes(self) -> None:
        pipe = pipeline("sentiment-analysis")
        texts = ["word " * 100] * 600
        turns = 0
        stopped = threading.Event()

        def count() -> None:
            nonlocal turns
            while not stopped.wait(0.005):
                turns += 1

        counting = threading.Thread(target=count, daemon=True)
        self.addCleanup(stopped.set)
        counting.start()
        began = time.monotonic()
        pipe(texts)
        elapsed_s = time.monotonic() - began
        stopped.set()
        counting.join(WAIT_S)
        # A thread that waits for the interpreter would have had no turn. The machine may be busy, hence a small share.
        self.assertGreater(turns, elapsed_s / 0.005 / 20, f"{turns} turns in {elapsed_s:.1f} s")

    def test_threads_share_a_pipeline(self) -> None:
        pipe = pipeline("sentiment-analysis")
        answers = {}

        def ask(number: int) -> None:
            text = ["What a wonderful evening!", "It was terrible."][number % 2]
            answers[number] = [pipe(text)[0]["label"] for _ in range(20)]

        threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(8)]
        for thread in threads:
            thread.start()
        deadline_s = time.monotonic() + 2 * WAIT_S
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
            self.assertFalse(thread.is_alive(), "a thread has no answer")
        for number in range(8):
            self.assertEqual(answers[number], [["positive", "negative"][number % 2]] * 20)


class Signals(unittest.TestCase):
    def test_interrupt_ends_a_call_that_computes(self) -> None:
        code = (
            # A shell without job control lets the programs that it starts in the background ignore the signal, and so does Python then.
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "import weir_stream\n"
            "pipe = weir_stream.pipeline('sentiment-analysis')\n"
            "pipe('x'); print('ready', flush=True)\n"
            "try:\n    pipe(['word ' * 300] * 200000, truncation=True)\n"
            "except KeyboardInterrupt:\n    print('interrupted', pipe('A fine day.')[0]['label'])\n"
        )
        program = Program([sys.executable, "-c", code], self.addCleanup)
        self.assertEqual(program.line(), "ready\n", program.errors())
        time.sleep(0.5)
        program.process.send_signal(signal.SIGINT)
        began = time.monotonic()
        self.assertEqual(program.line(), "interrupted positive\n", program.errors())
        self.assertEqual(program.wait(), 0)
        self.assertLess(time.monotonic() - began, 30)


@unittest.skipUnless(hasattr(os, "fork"), "this system does not fork")
class Forks(unittest.TestCase):
    def test_use_after_a_fork_is_refused_with_a_sentence(self) -> None:
        code = (
            "import os, sys, weir_stream\n"
            "pipe = weir_stream.pipeline('sentiment-analysis'); pipe('x')\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    try:\n        pipe('x')\n"
            "    except RuntimeError as error:\n        print(error, flush=True)\n"
            "    try:\n        weir_stream.pipeline('ner')\n"
            "    except RuntimeError as error:\n        print('again', flush=True)\n"
            "    del pipe\n"
            "    sys.exit(0)\n"
            "print(os.waitpid(child, 0)[1], pipe('A fine day.')[0]['label'])\n"
        )
        done = run(code)
        self.assertIn('multiprocessing.get_context("spawn")', done.stdout)
        self.assertIn("again", done.stdout)
        self.assertTrue(done.stdout.endswith("0 positive\n"), done.stdout + done.stderr)

    def test_child_may_be_the_first_to_use_it(self) -> None:
        code = (
            "import os, weir_stream\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    os._exit(0 if weir_stream.pipeline('sentiment-analysis')('A fine day.')[0]['label'] == 'positive' else 3)\n"
            "print(os.waitpid(child, 0)[1])\n"
        )
        self.assertEqual(run(code).stdout, "0\n")


class End(unittest.TestCase):
    #: For 100 interpreters on a busy machine, in seconds.
    limit_s = 900.0

    def test_interpreter_ends_cleanly_while_the_engine_works(self) -> None:
        """Each interpreter ends with texts at the model, an open stream, an open generator or a thread in a call."""
        endings = [
            "pass",
            "results = pipe(('word ' * 200 for _ in iter(int, 1)), batch_size=64); next(results)",
            "import threading; threading.Thread(target=lambda: pipe(['word ' * 200] * 10000), daemon=True).start(); "
            "import time; time.sleep(0.05)",
            "import asyncio\n"
            "async def main():\n"
            "    stream = weir_stream.StreamingSentimentPipeline('sentiment')\n"
            "    await stream.start()\n"
            "    await stream.push_batch(['word ' * 200] * 300)\n"
            "asyncio.run(main())",
        ]
        failures = []
        for number in range(SHUTDOWNS):
            code = "import weir_stream\npipe = weir_stream.pipeline('sentiment-analysis')\n" + endings[number % len(endings)]
            done = run(code)
            if done.returncode != 0 or done.stderr:
                failures.append(f"{number}: {done.returncode}: {done.stderr[-500:]}")
        self.assertEqual(failures, [])


class Serve(unittest.TestCase):
    def test_module_serves_until_it_is_terminated(self) -> None:
        command = [sys.executable, "-m", "streaming_sentiment_pipeline", "--listen", "127.0.0.1:0"]
        program = Program(command, self.addCleanup)
        line = program.line()
        self.assertRegex(line, r"^listening on http://127\.0\.0\.1:\d+ with embeddings, entities, sentiment$")
        pipe = pipeline("sentiment-analysis", base_url=line.split()[2])
        deadline_s = time.monotonic() + WAIT_S
        while True:
            try:
                self.assertEqual(pipe("What a wonderful evening!")[0]["label"], "positive")
                break
            except (InferenceError, ServerError) as error:
                # The model loads.
                self.assertTrue(error.retryable, error)
                self.assertLess(time.monotonic(), deadline_s)
                time.sleep(0.05)
        program.process.send_signal(signal.SIGTERM)
        self.assertEqual(program.wait(), 0, program.errors())


if __name__ == "__main__":
    unittest.main()
