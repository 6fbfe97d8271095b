"""The interface of adapters, and their common parts."""

from __future__ import annotations

import asyncio
import json
import threading
from abc import ABC, abstractmethod
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, Iterator, Mapping, Optional, TypeVar, Union

from .._events import ErrorEvent, ResultEvent

#: Pushes an item into the pipeline; waits for room.
Push = Callable[[Mapping[str, Any]], Awaitable[int]]
T = TypeVar("T")

#: The longest delay before a reconnection, in seconds, and the most doublings of the first one.
_DELAY_MAX_S = 30.0
_DOUBLINGS_MAX = 16


class Adapter(ABC):
    """A source of items. :meth:`run` pushes them, and :meth:`deliver` gets the result or error of each."""

    @abstractmethod
    async def run(self, push: Push) -> None:
        """Pushes items until the source ends. Cancelled when the pipeline stops."""

    async def deliver(self, event: Union[ResultEvent, ErrorEvent]) -> None:
        """Takes the result or the error of an item of this source."""

    async def close(self) -> None:
        """Releases the resources of the adapter, after every item was delivered."""


def delay_s(first_s: float, failures: int) -> float:
    """The delay after a number of failures in a row: it doubles with each one, up to 30 seconds."""
    return min(_DELAY_MAX_S, first_s * 2.0 ** min(failures - 1, _DOUBLINGS_MAX))


def item_of(data: str, text_field: str = "text", id_field: str = "id") -> Optional[Dict[str, Any]]:
    """The item of a record: a JSON object with ``text_field``, a JSON string, or else the record itself. ``None`` for a blank record."""
    stripped = data.strip()
    if not stripped:
        return None
    if stripped[0] in '{"':
        try:
            value = json.loads(stripped)
        except ValueError:
            return {"text": data}
        if isinstance(value, str):
            return {"text": value}
        if isinstance(value, dict) and isinstance(value.get(text_field), str):
            return {**value, "text": value[text_field], "id": value.get(id_field)}
    return {"text": data}


def record_of(event: Union[ResultEvent, ErrorEvent]) -> Dict[str, Any]:
    """A result or an error as a JSON object."""
    record: Dict[str, Any] = {"seq": event.seq}
    if event.id is not None:
        record["id"] = event.id
    if isinstance(event, ResultEvent):
        record["label"], record["score"] = event.result.label, event.result.score
        record["scores"] = event.result.scores
    else:
        error = event.error
        record["error"] = {
            "code": error.code,
            "message": error.message,
            "category": error.category.value,
            "retryable": error.retryable,
        }
    return record


#: The most values that the thread reads ahead of the loop.
_AHEAD_MAX = 64


async def from_thread(values: Callable[[threading.Event], Iterator[T]]) -> AsyncIterator[T]:
    """The values of a blocking iterator, which a thread reads. The iterator gets an event that is set when it is to end."""
    loop = asyncio.get_running_loop()
    queue: "asyncio.Queue[Any]" = asyncio.Queue()
    room = threading.Semaphore(_AHEAD_MAX)
    stopped = threading.Event()
    end = object()

    def put(value: Any) -> None:
        try:
            loop.call_soon_threadsafe(queue.put_nowait, value)
        except RuntimeError:
            # The loop is closed, so there is no reader.
            stopped.set()

    def read() -> None:
        try:
            for value in values(stopped):
                while not room.acquire(timeout=0.1):
                    if stopped.is_set():
                        return
                if stopped.is_set():
                    return
                put(value)
            put(end)
        except BaseException as error:  # noqa: B902 - raised again on the loop
            put(error)

    threading.Thread(target=read, name=f"weir-{values.__name__}", daemon=True).start()
    try:
        while True:
            value = await queue.get()
            room.release()
            if value is end:
                return
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        stopped.set()
