"""Dynamic batching for an asyncio server: while one batch computes, the next one gathers, up to `batch_max` items.

There is no timer: on one core a batch that waits for company while the core idles only adds latency.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor


class Batcher:
    """`await ask(text)` answers with this text's result of `compute(texts)`, which runs in one thread of its own."""

    def __init__(self, compute, batch_max):
        self.compute, self.batch_max = compute, batch_max
        self.waiting = asyncio.Queue()
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.task = asyncio.get_running_loop().create_task(self.run())

    async def ask(self, text):
        """One item in, its result out."""
        answer = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((text, answer))
        return await answer

    async def run(self):
        """Takes what waits, again and again."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.waiting.get()]
            while len(batch) < self.batch_max and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            batch = [(text, answer) for text, answer in batch if not answer.cancelled()]
            if not batch:
                continue
            try:
                results = await loop.run_in_executor(self.thread, self.compute, [text for text, _ in batch])
            except Exception as error:  # every waiting request gets it
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, answer), result in zip(batch, results):
                if not answer.done():
                    answer.set_result(result)
