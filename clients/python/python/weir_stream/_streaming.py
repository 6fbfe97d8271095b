"""The streaming sentiment pipeline: items pushed in, results by callback or iterator."""

from __future__ import annotations

import asyncio
import inspect
import logging
import socket
import weakref
from collections import deque
from datetime import datetime, timezone
from typing import (
    Any,
    AsyncIterator,
    Awaitable,
    Callable,
    Deque,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Type,
    Union,
)

from ._adapters import Adapter
from ._backend import ERROR, RESULT, STOPPED, Stream, StreamEvent
from ._config import ErrorCategory, FlushReason, PipelineState, StreamingConfig
from ._events import ErrorEvent, PipelineError, PipelineStats, ResultEvent, SentimentResult
from ._models import PathLike
from ._pipelines import TextClassificationPipeline, pipeline

logger = logging.getLogger("streaming_sentiment_pipeline")

#: An item: a text, or a mapping with ``text`` and perhaps ``text_pair`` and ``id``.
Item = Union[str, Mapping[str, Any]]
ResultCallback = Callable[[ResultEvent], Union[None, Awaitable[None]]]
ErrorCallback = Callable[[ErrorEvent], Union[None, Awaitable[None]]]

#: The number of events that are delivered, or items that are pushed, before other tasks of the loop run.
_TURN = 64
#: The most bytes of a read from the socket of the engine; each byte stands for a list of events.
_WAKE_BYTES = 4096
#: The number of events in an iterator of results from which delivery waits for its reader.
_ITERATOR_EVENTS_MAX = 64


class Subscription:
    """A subscribed callback. :meth:`unsubscribe` removes it."""

    def __init__(self, callbacks: List[Any], callback: Any) -> None:
        self._callbacks, self._callback = callbacks, callback
        callbacks.append(callback)

    def unsubscribe(self) -> None:
        """The callback is not called again."""
        if self._callback in self._callbacks:
            self._callbacks.remove(self._callback)


def _has_label(output: Any) -> bool:
    """Whether the first entry of an output has a label and a score."""
    first = output[0] if isinstance(output, list) and output else None
    return isinstance(first, dict) and "label" in first and "score" in first


class _Pushed(NamedTuple):
    """An item without a delivered result."""

    item: Mapping[str, Any]
    text: str
    id: Optional[str]
    source: Optional[Adapter]


class ResultIterator(AsyncIterator[Union[ResultEvent, ErrorEvent]]):
    """The events of a pipeline from its creation until the pipeline stops: see :meth:`StreamingSentimentPipeline.results`."""

    def __init__(self, pipeline: "StreamingSentimentPipeline") -> None:
        self._pipeline = pipeline
        self._events: Deque[Union[ResultEvent, ErrorEvent]] = deque()
        self._waiter: Optional["asyncio.Future[None]"] = None
        self._is_over = False

    def __aiter__(self) -> "ResultIterator":
        return self

    async def __anext__(self) -> Union[ResultEvent, ErrorEvent]:
        while not self._events:
            if self._is_over:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        event = self._events.popleft()
        if len(self._events) < _ITERATOR_EVENTS_MAX:
            self._pipeline._wake()
        return event

    def close(self) -> None:
        """Ends the iterator."""
        self._pipeline._iterators.discard(self)
        self._end()
        self._pipeline._wake()

    def _is_full(self) -> bool:
        return len(self._events) >= _ITERATOR_EVENTS_MAX

    def _put(self, event: Union[ResultEvent, ErrorEvent]) -> None:
        self._events.append(event)
        self._notify()

    def _end(self) -> None:
        self._is_over = True
        self._notify()

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __del__(self) -> None:
        # The events of a loop that was left by `break` must not delay delivery to others.
        self._pipeline._wake()


class StreamingSentimentPipeline:
    """Sentiment of a stream of texts.

    Every item that is pushed has one result or one error. Callbacks get them in order, on the event loop that called :meth:`start`. A callback
    may be a coroutine function; coroutines are awaited one at a time. An exception of a callback is logged and has no other effect. Callbacks
    may be subscribed before :meth:`initialize`.

    Args:
        model: the name of a model, its id on the Hugging Face hub, or its folder.
        config: the configuration; ``None``: the defaults.
        base_url: a server that runs the model; ``None``: this process does.
        token: a bearer token or an API key for that server.
        models_dir: the folder of models; ``None``: ``WEIR_MODELS_DIR``, or the package ``weir_stream_models``.
        **pipeline_kwargs: further arguments of :func:`weir_stream.pipeline`.

    >>> async def main():  # doctest: +SKIP
    ...     async with StreamingSentimentPipeline() as pipeline:
    ...         pipeline.subscribe_result_callback(lambda event: print(event.result.label))
    ...         await pipeline.push("What a wonderful evening!")
    """

    def __init__(
        self,
        model: str = "cardiffnlp/twitter-roberta-base-sentiment-latest",
        config: Optional[StreamingConfig] = None,
        *,
        base_url: Optional[str] = None,
        token: Optional[str] = None,
        models_dir: Optional[PathLike] = None,
        **pipeline_kwargs: Any,
    ) -> None:
        self.model = model
        self.config = config if config is not None else StreamingConfig()
        self._arguments: Dict[str, Any] = dict(pipeline_kwargs, base_url=base_url, token=token, models_dir=models_dir)
        self._result_callbacks: List[ResultCallback] = []
        self._error_callbacks: List[ErrorCallback] = []
        self._adapters: List[Adapter] = []
        self._sources: List["asyncio.Task[None]"] = []
        self._iterators: "weakref.WeakSet[ResultIterator]" = weakref.WeakSet()
        #: Whether there may be iterators, so that most pipelines need not look for them.
        self._has_iterators = False
        self._pipeline: Optional[TextClassificationPipeline] = None
        self._stream: Optional[Stream] = None
        self._state = PipelineState.INITIALIZED
        self._items: Dict[int, _Pushed] = {}
        self._items_max = 0
        self._pushes = 0
        self._events: Deque[StreamEvent] = deque()
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._socket: Optional[socket.socket] = None
        self._dispatcher: Optional["asyncio.Task[None]"] = None
        self._dispatcher_waiter: Optional["asyncio.Future[None]"] = None
        self._push_waiters: List["asyncio.Future[None]"] = []
        self._last_stats = PipelineStats()

    @property
    def state(self) -> PipelineState:
        """Its state."""
        return self._state

    async def initialize(self) -> None:
        """Loads the model, and waits until it can answer.

        Raises:
            ModelNotFoundError: there is no such model.
            ValueError: the configuration is invalid.
        """
        if self._stream is not None or self._state is not PipelineState.INITIALIZED:
            return
        settings = self.config.settings()
        loop = asyncio.get_running_loop()
        opened = await loop.run_in_executor(None, self._open)
        self._stream = await loop.run_in_executor(None, opened._backend.stream, settings)
        # Also bounds the results that wait for callbacks. Each dropped item has an error, which waits too.
        self._items_max = settings["max_buffer_size"] * (1 if settings["drop_policy"] == "none" else 2)

    def _open(self) -> TextClassificationPipeline:
        if self._pipeline is None:
            self._pipeline = pipeline("sentiment-analysis", self.model, **self._arguments)
        return self._pipeline

    async def start(self) -> None:
        """Accepts items from now on; also ends a pause. Callbacks run on the loop of this call. Initializes the pipeline if necessary.

        Raises:
            RuntimeError: it was stopped.
        """
        if self._state in (PipelineState.STOPPING, PipelineState.STOPPED, PipelineState.ERROR):
            raise RuntimeError(f"a pipeline that is {self._state.value} cannot start; create a new one")
        if self._state is PipelineState.RUNNING:
            return
        if self._stream is None:
            await self.initialize()
        assert self._stream is not None
        self._stream.start()
        if self._state is PipelineState.INITIALIZED:
            self._loop = asyncio.get_running_loop()
            self._socket = socket.socket(fileno=self._stream.take_fd())
            self._loop.add_reader(self._socket.fileno(), self._take_events)
            self._dispatcher = self._loop.create_task(self._dispatch())
        self._state = PipelineState.RUNNING
        for adapter in self._adapters[len(self._sources) :]:
            self._sources.append(asyncio.get_running_loop().create_task(self._run_adapter(adapter)))

    async def pause(self) -> None:
        """Suspends waiting items; new ones are accepted while there is room. :meth:`start` resumes.

        Raises:
            RuntimeError: it is not running.
        """
        self._running().pause()
        self._state = PipelineState.PAUSED

    async def stop(self, *, timeout: Optional[float] = None) -> None:
        """Accepts no more items, and returns when every item has its result or error and the callbacks have returned.

        Args:
            timeout: the longest time for that, in seconds; ``None``: no limit.

        Raises:
            asyncio.TimeoutError: it took longer; the remaining items were abandoned.
            RuntimeError: a callback called it, and it would wait for that callback.
        """
        if self._state is PipelineState.STOPPED:
            return
        if self._dispatcher is None or self._stream is None:
            self._close(PipelineState.STOPPED)
            await self._close_adapters()
            return
        if asyncio.current_task() is self._dispatcher:
            raise RuntimeError("stop() waits for the callbacks, so a callback cannot await it; use asyncio.create_task(pipeline.stop())")
        if self._state is not PipelineState.STOPPING:
            await self._stop_adapters()
            self._state = PipelineState.STOPPING
            self._stream.stop()
            self._wake()
            self._wake_pushes()
        done, _ = await asyncio.wait([self._dispatcher], timeout=timeout)
        if not done:
            unanswered = len(self._items)
            self._dispatcher.cancel()
            self._close(PipelineState.ERROR)
            await self._close_adapters()
            raise asyncio.TimeoutError(f"{unanswered} items had no result after {timeout} s and were abandoned")
        self._close(PipelineState.STOPPED)
        await self._close_adapters()

    def _close(self, state: PipelineState) -> None:
        """Releases the engine, the descriptor and the iterators."""
        if self._stream is not None:
            self._last_stats = PipelineStats(**{**self._stream.stats(), "state": state})
        if self._socket is not None and self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
        # A stream of the engine ends when it is dropped; that of a server has threads.
        abandon = getattr(self._stream, "abandon", None)
        if abandon is not None:
            abandon()
        self._socket = None
        self._stream = None
        self._state = state
        self._wake_pushes()
        for iterator in list(self._iterators):
            iterator._end()

    async def __aenter__(self) -> "StreamingSentimentPipeline":
        await self.initialize()
        await self.start()
        return self

    async def __aexit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], traceback: Any
    ) -> None:
        await self.stop()

    # Items

    async def push(self, item: Item) -> int:
        """Pushes an item; waits for room unless the drop policy drops one. Returns its number, from 0.

        Raises:
            RuntimeError: it was not started, or was stopped.
            TypeError: the item is neither a text nor a mapping with ``text``.
        """
        return await self._push(item, None)

    async def push_batch(self, items: Iterable[Item]) -> List[int]:
        """Pushes items one after another; returns their numbers."""
        return [await self._push(item, None) for item in items]

    async def _push(self, item: Item, source: Optional[Adapter]) -> int:
        text_pair: Optional[str] = None
        if isinstance(item, str):
            text, pushed = item, _Pushed({"text": item}, item, None, source)
        else:
            if not isinstance(item, Mapping) or not isinstance(item.get("text"), str):
                raise TypeError('an item is a text or a mapping with "text", such as {"text": "...", "id": "1"}')
            text, text_pair, id = item["text"], item.get("text_pair"), item.get("id")
            pushed = _Pushed(item, text, None if id is None else str(id), source)
        self._pushes += 1
        if self._pushes % _TURN == 0:
            await asyncio.sleep(0)
        while True:
            stream = self._running(PipelineState.PAUSED)
            if len(self._items) < self._items_max:
                seq = stream.try_push(text, text_pair)
                if seq is not None:
                    self._items[seq] = pushed
                    return seq
            assert self._loop is not None
            waiter = self._loop.create_future()
            self._push_waiters.append(waiter)
            await waiter

    async def flush(self, reason: FlushReason = FlushReason.MANUAL) -> int:
        """Sends the waiting items to the model now. Returns how many there are.

        Raises:
            RuntimeError: it is not running.
        """
        return self._running(PipelineState.PAUSED).flush(FlushReason(reason).value)

    def acknowledge(self, count: int = 1) -> None:
        """Acknowledges results and errors, if ``backpressure`` is ``ack_based``."""
        if self._stream is not None:
            self._stream.acknowledge(count)
            self._wake_pushes()

    def _running(self, *more: PipelineState) -> Stream:
        if self._stream is None or self._state not in (PipelineState.RUNNING, *more):
            if self._state is PipelineState.INITIALIZED:
                raise RuntimeError("call start() first")
            raise RuntimeError(f"the pipeline is {self._state.value}")
        return self._stream

    # Results

    def subscribe_result_callback(self, callback: ResultCallback) -> Subscription:
        """Calls ``callback`` with every result; a coroutine function is awaited. May be called before :meth:`initialize`."""
        return Subscription(self._result_callbacks, callback)

    def subscribe_error_callback(self, callback: ErrorCallback) -> Subscription:
        """Calls ``callback`` with every item that failed; as :meth:`subscribe_result_callback`."""
        return Subscription(self._error_callbacks, callback)

    def results(self) -> ResultIterator:
        """An iterator over the results and errors from now until the pipeline stops, as an alternative to callbacks. A slow reader slows the pipeline."""
        iterator = ResultIterator(self)
        if self._state in (PipelineState.STOPPED, PipelineState.ERROR):
            iterator._end()
        else:
            self._iterators.add(iterator)
            self._has_iterators = True
        return iterator

    async def get_stats(self) -> PipelineStats:
        """The counters."""
        if self._stream is None:
            return self._last_stats
        stats = self._stream.stats()
        return PipelineStats(**{**stats, "state": PipelineState(stats["state"])})

    def add_adapter(self, adapter: Adapter) -> None:
        """Adds a source of items, which also gets their results. It runs from :meth:`start` on.

        Raises:
            RuntimeError: the pipeline is running already.
        """
        if self._state is not PipelineState.INITIALIZED:
            raise RuntimeError("add adapters before start()")
        self._adapters.append(adapter)

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """The results of texts, as of a pipeline of transformers, without an event loop."""
        return self._open()(inputs, **kwargs)

    # Delivery

    def _take_events(self) -> None:
        """Called when the descriptor of the engine is readable."""
        if self._socket is None or self._stream is None:
            return
        try:
            if not self._socket.recv(_WAKE_BYTES) and self._loop is not None:
                # The other end is closed, so no event follows the available ones.
                self._loop.remove_reader(self._socket.fileno())
        except BlockingIOError:
            return
        self._events.extend(self._stream.take_events())
        self._wake()

    def _wake(self) -> None:
        waiter = self._dispatcher_waiter
        if waiter is not None and not waiter.done() and not waiter.get_loop().is_closed():
            waiter.set_result(None)

    def _wake_pushes(self) -> None:
        waiters, self._push_waiters = self._push_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _dispatch(self) -> None:
        """Delivers events until the last."""
        assert self._loop is not None
        delivered = 0
        while True:
            if not self._events or self._is_held_back():
                self._wake_pushes()
                self._dispatcher_waiter = self._loop.create_future()
                await self._dispatcher_waiter
                continue
            event = self._events.popleft()
            if event[0] == STOPPED:
                return
            await self._deliver(event)
            delivered += 1
            if delivered % _TURN == 0:
                self._wake_pushes()
                await asyncio.sleep(0)

    def _is_held_back(self) -> bool:
        """Whether delivery waits for an iterator with too many events. Not while stopping, since its reader may have called ``stop``."""
        if not self._has_iterators or self._state is PipelineState.STOPPING:
            return False
        return any(iterator._is_full() for iterator in self._iterators)

    async def _deliver(self, event: StreamEvent) -> None:
        kind, seq, value, latency_ms, attempts = event
        if kind == RESULT and not _has_label(value):
            # Of a server that is not Weir, or of a model without labels.
            kind, value = ERROR, ("inference_failed", "the answer has no label", ErrorCategory.MODEL.value, False, None)
        pushed = self._items.pop(seq)
        delivered: Union[ResultEvent, ErrorEvent]
        callbacks: List[Callable[[Any], Union[None, Awaitable[None]]]]
        if kind == RESULT:
            metadata = {
                "model_input": pushed.text,
                "id": pushed.id,
                "model": self._pipeline.model if self._pipeline is not None else self.model,
                "latency_ms": latency_ms,
                "attempts": attempts,
            }
            result = SentimentResult(value[0]["label"], value[0]["score"], metadata, value)
            delivered = ResultEvent(result, pushed.id, seq, datetime.now(timezone.utc))
            callbacks = list(self._result_callbacks)
        else:
            code, message, category, retryable, _ = value
            error = PipelineError(message, code, ErrorCategory(category), retryable)
            delivered = ErrorEvent(error, pushed.id, seq, pushed.item, attempts)
            callbacks = list(self._error_callbacks)
        for callback in callbacks:
            try:
                returned = callback(delivered)
                if returned is not None and inspect.isawaitable(returned):
                    await returned
            except Exception:
                logger.exception("a callback raised for item %d", seq)
        if self._has_iterators:
            for iterator in tuple(self._iterators):
                iterator._put(delivered)
        if pushed.source is not None:
            try:
                await pushed.source.deliver(delivered)
            except Exception:
                logger.exception("%s could not deliver the result of item %d", type(pushed.source).__name__, seq)

    # Adapters

    async def _run_adapter(self, adapter: Adapter) -> None:
        try:
            await adapter.run(lambda item: self._push(item, adapter))
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("%s has ended", type(adapter).__name__)

    async def wait_adapters(self) -> None:
        """Returns when the sources of all adapters have ended: files at their end, others after their last attempt."""
        if self._sources:
            await asyncio.wait(self._sources)

    async def _close_adapters(self) -> None:
        """Closes every adapter once."""
        adapters, self._adapters = self._adapters, []
        for adapter in adapters:
            try:
                await adapter.close()
            except Exception:
                logger.exception("%s could not be closed", type(adapter).__name__)

    async def _stop_adapters(self) -> None:
        for source in self._sources:
            source.cancel()
        if self._sources:
            await asyncio.wait(self._sources)
