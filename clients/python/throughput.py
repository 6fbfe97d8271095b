"""Texts per second of a streaming pipeline: the same texts and settings as examples/embed/src/bin/throughput.rs.

    python throughput.py TEXTS
"""

import asyncio
import sys
import time

from weir_stream import StreamingConfig, StreamingSentimentPipeline

WORDS = ["the", "evening", "was", "wonderful", "and", "the", "tea", "cold", "but", "nobody", "said", "sorry"]


def text(number: int) -> str:
    """A text of 6 to 29 words."""
    count = 6 + number * 7 % 24
    return " ".join(WORDS[(number + at) % len(WORDS)] for at in range(count))


async def main(count: int) -> None:
    """Prints the texts per second."""
    delivered = 0

    def on_result(event: object) -> None:
        nonlocal delivered
        delivered += 1

    pipeline = StreamingSentimentPipeline("sentiment", StreamingConfig.high_throughput())
    pipeline.subscribe_result_callback(on_result)
    await pipeline.start()
    began = time.perf_counter()
    for number in range(count):
        await pipeline.push(text(number))
    await pipeline.stop()
    elapsed_s = time.perf_counter() - began
    if delivered != count:
        raise SystemExit(f"{delivered} of {count} texts have a result")
    print(f"{count / elapsed_s:.1f}")


asyncio.run(main(int(sys.argv[1])))
