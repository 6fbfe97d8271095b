"""The streaming pipeline: seed 000's examples, order, backpressure, callbacks, stop."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import unittest
import warnings
from typing import Any, List

from support import run_async, until_count

from streaming_sentiment_pipeline import (
    BackpressurePolicy,
    BatchingMode,
    BufferingConfig,
    CircuitBreakerPolicy,
    DropPolicy,
    ErrorCategory,
    ErrorEvent,
    FlushReason,
    OrderingMode,
    PipelineState,
    ResultEvent,
    RetryConfig,
    StreamingConfig,
    StreamingSentimentPipeline,
)

#: A server that runs the same tests; empty: this process does.
BASE_URL = os.environ.get("WEIR_TEST_BASE_URL", "")


def stream(config: Any = None, **arguments: Any) -> StreamingSentimentPipeline:
    return StreamingSentimentPipeline("sentiment", config, base_url=BASE_URL or None, **arguments)


class Seed(unittest.TestCase):
    """The examples of the reference, as they are written."""

    def test_quick_start_runs(self) -> None:
        async def quick_start_example() -> None:
            # Create pipeline with default sentiment model
            pipeline = StreamingSentimentPipeline(
                model="cardiffnlp/twitter-roberta-base-sentiment-latest"
            )

            # Subscribe to results
            def on_result(event: ResultEvent) -> None:
                result = event.result
                print(f"'{result.metadata.get('model_input', '')}' -> "
                      f"{result.label} ({result.score:.3f})")

            pipeline.subscribe_result_callback(on_result)

            # Initialize and start
            await pipeline.initialize()
            await pipeline.start()

            # Process text
            await pipeline.push({"text": "I love this product!", "id": "1"})
            await pipeline.push({"text": "This is terrible.", "id": "2"})

            # Wait for processing
            await asyncio.sleep(2)
            await pipeline.stop()

        with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()) as out:
            warnings.simplefilter("always")
            run_async(quick_start_example())
        printed = sorted(out.getvalue().splitlines())
        self.assertEqual(len(printed), 2)
        self.assertRegex(printed[0], r"^'I love this product!' -> positive \(0\.\d{3}\)$")
        self.assertRegex(printed[1], r"^'This is terrible\.' -> negative \(0\.\d{3}\)$")
        texts = [str(one.message) for one in caught if one.category is UserWarning]
        self.assertEqual(len(texts), 1, texts)
        self.assertIn('using "sentiment" (negative, neutral, positive; the same labels)', texts[0])

    def test_configurations_are_valid(self) -> None:
        config = StreamingConfig(
            batch_size=32,
            window_ms=250,
            max_batch_size=128,
            ordering=OrderingMode.BEST_EFFORT,
            buffering=BufferingConfig(min_batch_size=8, max_batch_size=64, max_buffer_size=512, drop_policy=DropPolicy.NONE),
            retry=RetryConfig(max_attempts=3, base_backoff_ms=100, circuit_breaker_policy=CircuitBreakerPolicy.ON),
        )
        self.assertEqual(config, StreamingConfig())
        low = StreamingConfig(batch_size=4, window_ms=100, ordering=OrderingMode.BEST_EFFORT)
        self.assertEqual(low, StreamingConfig.low_latency())
        high = StreamingConfig(batch_size=64, window_ms=500, max_buffer_size=2048)
        self.assertEqual(high, StreamingConfig.high_throughput())
        self.assertEqual(high.buffering.max_buffer_size, 2048)

        async def run() -> None:
            for one in (config, low, high):
                async with stream(one) as pipeline:
                    await pipeline.push("A fine day.")

        run_async(run())


class Results(unittest.TestCase):
    """What is delivered."""

    def test_event_has_the_item_and_all_scores(self) -> None:
        async def run() -> List[ResultEvent]:
            events: List[ResultEvent] = []
            async with stream() as pipeline:
                pipeline.subscribe_result_callback(events.append)
                self.assertEqual(await pipeline.push({"text": "What a wonderful evening!", "id": 7}), 0)
                self.assertEqual(await pipeline.push_batch(["It rained.", "A fine day."]), [1, 2])
            stats = await pipeline.get_stats()
            self.assertEqual((stats.pushed, stats.delivered, stats.failed, stats.state), (3, 3, 0, PipelineState.STOPPED))
            self.assertGreaterEqual(stats.batches, 1)
            return events

        events = run_async(run())
        first = next(event for event in events if event.seq == 0)
        self.assertEqual((first.id, first.result.label), ("7", "positive"))
        self.assertEqual([score["label"] for score in first.result.scores][0], "positive")
        self.assertEqual(len(first.result.scores), 3)
        metadata = first.result.metadata
        self.assertEqual(metadata["model_input"], "What a wonderful evening!")
        self.assertEqual((metadata["id"], metadata["model"], metadata["attempts"]), ("7", "sentiment", 1))
        self.assertGreater(metadata["latency_ms"], 0)
        self.assertIsNotNone(first.timestamp.tzinfo)

    def test_strict_order_is_that_of_the_pushes(self) -> None:
        async def run() -> List[int]:
            seen: List[int] = []
            async with stream(StreamingConfig(ordering=OrderingMode.STRICT)) as pipeline:
                pipeline.subscribe_result_callback(lambda event: seen.append(event.seq))
                for number in range(300):
                    await pipeline.push("word " * (1 + number * 7 % 60))
            return seen

        self.assertEqual(run_async(run()), list(range(300)))

    def test_iterator_has_every_result_and_slows_the_pushes(self) -> None:
        async def run() -> int:
            count = 0
            pipeline = stream(StreamingConfig(buffering=BufferingConfig(max_buffer_size=64)))
            async with pipeline:
                results = pipeline.results()

                async def feed() -> None:
                    for _ in range(500):
                        await pipeline.push("A fine day.")
                    await pipeline.stop()

                feeding = asyncio.create_task(feed())
                async for event in results:
                    count += 1
                    # What is pushed is bounded by the buffer and what the iterator holds.
                    self.assertLessEqual((await pipeline.get_stats()).pushed - count, 64 + 64 + 1)
                await feeding
            return count

        self.assertEqual(run_async(run()), 500)

    def test_iterator_that_was_left_holds_up_nothing(self) -> None:
        async def run() -> None:
            async with stream() as pipeline:
                await pipeline.push_batch(["A fine day."] * 20)
                async for _ in pipeline.results():
                    break
                await pipeline.push_batch(["A fine day."] * 300)
            self.assertEqual((await pipeline.get_stats()).delivered, 320)

        run_async(run())

    def test_callbacks_run_in_order_and_one_at_a_time(self) -> None:
        async def run() -> List[str]:
            log: List[str] = []

            async def slow(event: ResultEvent) -> None:
                log.append(f"begin {event.seq}")
                await asyncio.sleep(0.005)
                log.append(f"end {event.seq}")

            async with stream(StreamingConfig(ordering=OrderingMode.STRICT)) as pipeline:
                subscription = pipeline.subscribe_result_callback(slow)
                await pipeline.push_batch(["A fine day."] * 5)
                await until_count(log, 10)
                subscription.unsubscribe()
                await pipeline.push("A fine day.")
            return log

        self.assertEqual(run_async(run()), [f"{word} {seq}" for seq in range(5) for word in ("begin", "end")])

    def test_callback_that_raises_is_logged_and_stops_nothing(self) -> None:
        async def run() -> List[int]:
            seen: List[int] = []

            def bad(event: ResultEvent) -> None:
                raise KeyError("a mistake")

            async with stream() as pipeline:
                pipeline.subscribe_result_callback(bad)
                pipeline.subscribe_result_callback(lambda event: seen.append(event.seq))
                await pipeline.push_batch(["A fine day."] * 3)
            return seen

        with self.assertLogs("streaming_sentiment_pipeline", logging.ERROR) as logged:
            self.assertEqual(sorted(run_async(run())), [0, 1, 2])
        self.assertEqual(len(logged.records), 3)

    def test_failed_item_is_an_error_event(self) -> None:
        async def run() -> List[ErrorEvent]:
            errors: List[ErrorEvent] = []
            async with stream() as pipeline:
                pipeline.subscribe_error_callback(errors.append)
                # Only a model that classifies pairs takes a second text.
                await pipeline.push({"text": "one", "text_pair": "x" * 1_000_001, "id": "pair"})
                await pipeline.push("A fine day.")
            return errors

        errors = run_async(run())
        self.assertEqual(len(errors), 1, errors)
        event = errors[0]
        self.assertEqual((event.id, event.seq, event.error.retryable), ("pair", 0, False))
        self.assertEqual(event.error.category, ErrorCategory.CLIENT)
        self.assertEqual(event.item["text"], "one")
        self.assertTrue(event.error.message)


class Life(unittest.TestCase):
    """Start, pause and stop."""

    def test_push_before_start_is_refused(self) -> None:
        async def run() -> None:
            pipeline = stream()
            with self.assertRaisesRegex(RuntimeError, "call start\\(\\) first"):
                await pipeline.push("x")
            await pipeline.initialize()
            with self.assertRaisesRegex(RuntimeError, "call start\\(\\) first"):
                await pipeline.push("x")
            await pipeline.start()
            await pipeline.stop()
            await pipeline.stop()
            with self.assertRaisesRegex(RuntimeError, "the pipeline is stopped"):
                await pipeline.push("x")
            with self.assertRaisesRegex(RuntimeError, "create a new one"):
                await pipeline.start()

        run_async(run())

    def test_wrong_item_is_refused(self) -> None:
        async def run() -> None:
            async with stream() as pipeline:
                for item in (7, {"txt": "x"}, None):
                    with self.assertRaisesRegex(TypeError, "an item is a text"):
                        await pipeline.push(item)  # type: ignore[arg-type]

        run_async(run())

    def test_contradictory_configuration_is_refused(self) -> None:
        with self.assertRaisesRegex(ValueError, "batch_size 129 is larger than max_batch_size 128"):
            run_async(StreamingSentimentPipeline("sentiment", StreamingConfig(batch_size=129)).initialize())

    def test_stop_loses_nothing(self) -> None:
        async def run() -> int:
            seen: List[int] = []
            pipeline = stream(StreamingConfig(max_buffer_size=4096))
            pipeline.subscribe_result_callback(lambda event: seen.append(event.seq))
            await pipeline.start()
            await pipeline.push_batch(["A fine day."] * 1000)
            await pipeline.stop()
            return len(set(seen))

        self.assertEqual(run_async(run()), 1000)

    def test_pause_holds_items_back(self) -> None:
        async def run() -> None:
            seen: List[int] = []
            async with stream() as pipeline:
                pipeline.subscribe_result_callback(lambda event: seen.append(event.seq))
                await pipeline.pause()
                self.assertEqual(pipeline.state, PipelineState.PAUSED)
                await pipeline.push_batch(["A fine day."] * 3)
                await asyncio.sleep(0.1)
                self.assertEqual(seen, [])
                await pipeline.start()
                await until_count(seen, 3)

        run_async(run())

    def test_windowed_items_wait_for_a_flush(self) -> None:
        async def run() -> None:
            seen: List[int] = []
            config = StreamingConfig(batching=BatchingMode.WINDOWED, window_ms=60_000)
            async with stream(config) as pipeline:
                pipeline.subscribe_result_callback(lambda event: seen.append(event.seq))
                await pipeline.push_batch(["A fine day."] * 3)
                await asyncio.sleep(0.1)
                self.assertEqual(seen, [])
                self.assertEqual(await pipeline.flush(), 3)
                await until_count(seen, 3)
                stats = await pipeline.get_stats()
                self.assertEqual(stats.batches_by_reason[FlushReason.MANUAL.value], 1)

        run_async(run())

    def test_timeout_of_stop_abandons_the_rest(self) -> None:
        async def run() -> None:
            async def never(event: ResultEvent) -> None:
                await asyncio.sleep(3600)

            pipeline = stream()
            pipeline.subscribe_result_callback(never)
            await pipeline.start()
            await pipeline.push_batch(["A fine day."] * 3)
            with self.assertRaisesRegex(asyncio.TimeoutError, "items had no result"):
                await pipeline.stop(timeout=0.5)
            self.assertEqual(pipeline.state, PipelineState.ERROR)

        run_async(run())

    def test_stop_in_a_callback_is_refused_with_a_sentence(self) -> None:
        async def run() -> None:
            async def stops(event: ResultEvent) -> None:
                await pipeline.stop()

            pipeline = stream()
            pipeline.subscribe_result_callback(stops)
            async with pipeline:
                await pipeline.push("A fine day.")

        with self.assertLogs("streaming_sentiment_pipeline", logging.ERROR) as logged:
            run_async(run())
        self.assertIn("create_task", "".join(logged.output))

    def test_acknowledgements_bound_what_is_released(self) -> None:
        async def run() -> None:
            seen: List[int] = []
            config = StreamingConfig(backpressure=BackpressurePolicy.ACK_BASED, max_buffer_size=2048)
            async with stream(config) as pipeline:
                pipeline.subscribe_result_callback(lambda event: seen.append(event.seq))
                await pipeline.push_batch(["A fine day."] * 600)
                await until_count(seen, 512)
                await asyncio.sleep(0.1)
                self.assertEqual(len(seen), 512)
                pipeline.acknowledge(512)
                await until_count(seen, 600)

        run_async(run())

    def test_call_answers_like_a_pipeline(self) -> None:
        self.assertEqual(stream()("What a wonderful evening!")[0]["label"], "positive")

    def test_drop_policy_drops_with_an_error(self) -> None:
        async def run() -> None:
            dropped: List[str] = []
            buffering = BufferingConfig(min_batch_size=1, max_batch_size=8, max_buffer_size=8, drop_policy=DropPolicy.TAIL)
            async with stream(StreamingConfig(batch_size=8, max_batch_size=8, buffering=buffering)) as pipeline:
                pipeline.subscribe_error_callback(lambda event: dropped.append(event.error.code))
                await pipeline.pause()
                for _ in range(12):
                    await pipeline.push("A fine day.")
                await until_count(dropped, 4)
                await pipeline.start()
            self.assertEqual(dropped, ["dropped"] * 4)

        run_async(run())


if __name__ == "__main__":
    unittest.main()
