"""Dynamic batching for an asyncio server: while one batch computes, the next one is collected, up to `batch_max` items.

There is no timer: on one core, waiting for more items while the core is idle only adds latency.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor


class Batcher:
    """`await submit(text)` returns the result for `text` of `compute(texts)`, which runs in one thread of its own."""

    def __init__(self, compute, batch_max):
        self.compute, self.batch_max = compute, batch_max
        self.queue = asyncio.Queue()
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.task = asyncio.get_running_loop().create_task(self.run())

    async def submit(self, text):
        """Queues one text; returns its result."""
        future = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((text, future))
        return await future

    async def run(self):
        """Computes the queued texts in batches until the task is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.queue.get()]
            while len(batch) < self.batch_max and not self.queue.empty():
                batch.append(self.queue.get_nowait())
            batch = [(text, future) for text, future in batch if not future.cancelled()]
            if not batch:
                continue
            try:
                results = await loop.run_in_executor(self.thread, self.compute, [text for text, _ in batch])
            except Exception as error:  # each request of the batch gets it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(batch, results):
                if not future.done():
                    future.set_result(result)
