"""A stream of texts to a server, with the batches, retries, order and backpressure of the engine, in threads of Python."""

from __future__ import annotations

import heapq
import random
import socket
import threading
import time
import weakref
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence, Tuple

from ._backend import ERROR, RESULT, STOPPED, Outcome, Stream, StreamEvent, TextPair
from ._config import ErrorCategory, FlushReason
from ._errors import FailureTuple, ServerError

#: The most requests at once: the number of batches at once in the engine.
_BATCHES_IN_FLIGHT_MAX = 2
_UNACKNOWLEDGED_MAX = 512
_BUFFER_BYTES_MAX = 8 << 20
_BACKOFF_MS_MAX = 10_000
_DOUBLINGS_MAX = 16
#: The number of consecutive failed requests that opens the circuit breaker, and the time for which it is open, in seconds.
_FAILURES_TO_OPEN = 5
_OPEN_S = 5.0


class _Item:
    __slots__ = ("seq", "text", "pushed_s", "attempts", "delay_ms", "bytes")

    def __init__(self, seq: int, text: TextPair) -> None:
        self.seq, self.text = seq, text
        self.pushed_s = time.monotonic()
        self.attempts = 0
        self.delay_ms = 0.0
        self.bytes = len(text[0].encode()) + len((text[1] or "").encode())


class RemoteStream(Stream):
    """Sends batches of texts with ``run``, which raises :class:`ServerError` when a whole batch has failed.

    Its threads refer to what it wraps, not to it: when it is dropped, they end.
    """

    def __init__(self, run: Callable[[Sequence[TextPair]], List[Outcome]], settings: Dict[str, Any]) -> None:
        self._sender = _Sender(run, settings)
        self.abandon = weakref.finalize(self, self._sender.abandon)

    def take_fd(self) -> int:
        return self._sender.take_fd()

    def start(self) -> None:
        self._sender.start()

    def pause(self) -> None:
        self._sender.pause()

    def stop(self) -> None:
        self._sender.stop()

    def try_push(self, text: str, text_pair: Optional[str]) -> Optional[int]:
        return self._sender.try_push(text, text_pair)

    def flush(self, reason: str) -> int:
        return self._sender.flush(reason)

    def acknowledge(self, count: int) -> None:
        self._sender.acknowledge(count)

    def take_events(self) -> List[StreamEvent]:
        return self._sender.take_events()

    def stats(self) -> Dict[str, Any]:
        return self._sender.stats()


class _Sender(Stream):
    """The state of a stream, and the threads that send its batches."""

    def __init__(self, run: Callable[[Sequence[TextPair]], List[Outcome]], settings: Dict[str, Any]) -> None:
        self._run, self._settings = run, settings
        self._changed = threading.Condition()
        self._state = "initialized"
        self._waiting: Deque[_Item] = deque()
        self._delayed: List[Tuple[float, int, _Item]] = []
        self._in_flight = 0
        self._held = self._held_bytes = self._unacknowledged = 0
        self._next_seq = self._next_delivered = 0
        self._flush_before = 0
        self._flush_reason = FlushReason.MANUAL
        self._ordered: Dict[int, Optional[StreamEvent]] = {}
        self._events: List[StreamEvent] = []
        self._bytes_of: Dict[int, int] = {}
        self._failures, self._open_until_s = 0, 0.0
        self._counts = {"pushed": 0, "pushed_back": 0, "delivered": 0, "failed": 0, "dropped": 0, "retried": 0}
        self._failed_by_category = {category.value: 0 for category in ErrorCategory}
        self._batches_by_reason = {reason.value: 0 for reason in FlushReason}
        self._attempts = 0
        self._latencies_ms: Deque[float] = deque(maxlen=1024)
        self._latency_max_ms = 0.0
        self._wake, self._watched = socket.socketpair()
        self._wake.setblocking(False)
        self._watched.setblocking(False)
        self._threads = _BATCHES_IN_FLIGHT_MAX
        for number in range(_BATCHES_IN_FLIGHT_MAX):
            threading.Thread(target=self._work, name=f"weir-remote-{number}", daemon=True).start()

    def take_fd(self) -> int:
        return self._watched.detach()

    def start(self) -> None:
        with self._changed:
            self._state = "running"
            self._changed.notify_all()

    def pause(self) -> None:
        with self._changed:
            self._state = "paused"

    def stop(self) -> None:
        with self._changed:
            self._state = "stopping"
            self._end_if_settled()
            self._changed.notify_all()

    def abandon(self) -> None:
        """Ends the threads after their current requests."""
        with self._changed:
            self._state = "stopped"
            self._changed.notify_all()

    def _end_thread(self) -> None:
        self._threads -= 1
        if self._threads == 0:
            self._wake.close()
            self._watched.close()

    def try_push(self, text: str, text_pair: Optional[str]) -> Optional[int]:
        with self._changed:
            if self._state not in ("running", "paused"):
                raise RuntimeError("the stream is not running")
            item = _Item(self._next_seq, (text, text_pair))
            is_sized = self._settings["backpressure"] == "size_based"
            is_full = self._held >= self._settings["max_buffer_size"] or (
                is_sized and self._held > 0 and self._held_bytes + item.bytes > _BUFFER_BYTES_MAX
            )
            policy = self._settings["drop_policy"]
            if is_full and (policy == "none" or (policy == "head" and not self._waiting)):
                self._counts["pushed_back"] += 1
                return None
            self._next_seq += 1
            self._counts["pushed"] += 1
            self._held += 1
            self._held_bytes += item.bytes
            self._bytes_of[item.seq] = item.bytes
            if is_full and policy == "tail":
                self._drop(item)
                return item.seq
            if is_full:
                self._drop(self._waiting.popleft())
            self._waiting.append(item)
            self._changed.notify()
            return item.seq

    def _drop(self, item: _Item) -> None:
        self._fail(item, ("dropped", "the buffer is full and the item was dropped", "system", True, None))

    def flush(self, reason: str) -> int:
        with self._changed:
            self._flush_before, self._flush_reason = self._next_seq, FlushReason(reason)
            self._changed.notify_all()
            return len(self._waiting)

    def acknowledge(self, count: int) -> None:
        with self._changed:
            self._unacknowledged = max(0, self._unacknowledged - count)
            self._changed.notify_all()

    def take_events(self) -> List[StreamEvent]:
        with self._changed:
            events, self._events = self._events, []
            for kind, seq, _, _, _ in events:
                if kind != STOPPED:
                    self._held -= 1
                    self._held_bytes -= self._bytes_of.pop(seq)
            self._changed.notify_all()
            return events

    def stats(self) -> Dict[str, Any]:
        with self._changed:
            latencies = sorted(self._latencies_ms)

            def quantile(percent: int) -> Optional[float]:
                return latencies[min(len(latencies) * percent // 100, len(latencies) - 1)] if latencies else None

            batches = sum(self._batches_by_reason.values())
            is_guarded = self._settings["circuit_breaker_policy"] == "on"
            is_open = time.monotonic() < self._open_until_s
            return {
                **self._counts,
                "state": self._state,
                "failed_by_category": dict(self._failed_by_category),
                "in_flight": self._in_flight,
                "buffered": len(self._waiting) + len(self._delayed),
                "unacknowledged": self._unacknowledged,
                "batches": batches,
                "batches_by_reason": dict(self._batches_by_reason),
                "mean_batch_size": self._attempts / max(batches, 1),
                "circuit_breaker": ("open" if is_open else "closed") if is_guarded else None,
                "latency_p50_ms": quantile(50),
                "latency_p99_ms": quantile(99),
                "latency_max_ms": self._latency_max_ms,
            }

    # The threads

    def _work(self) -> None:
        while True:
            with self._changed:
                batch = self._next_batch()
                while batch is None:
                    if self._state == "stopped":
                        self._end_thread()
                        return
                    self._changed.wait(self._wait_s())
                    batch = self._next_batch()
            try:
                outcomes = self._run([item.text for item in batch])
                is_failed = False
            except ServerError as error:
                outcomes = [(False, error.failure())] * len(batch)
                is_failed = error.retryable
            except Exception as error:  # noqa: B902 - each item gets it
                outcomes = [(False, ("inference_failed", str(error), "model", False, None))] * len(batch)
                is_failed = False
            with self._changed:
                self._in_flight -= len(batch)
                self._count_failure(is_failed)
                for item, (is_ok, value) in zip(batch, outcomes):
                    if is_ok:
                        self._deliver(item, value)
                    else:
                        self._retry_or_fail(item, value)
                self._end_if_settled()
                self._changed.notify_all()

    def _count_failure(self, is_failed: bool) -> None:
        self._failures = self._failures + 1 if is_failed else 0
        if self._failures >= _FAILURES_TO_OPEN and self._settings["circuit_breaker_policy"] == "on":
            self._open_until_s = time.monotonic() + _OPEN_S

    def _next_batch(self) -> Optional[List[_Item]]:
        """Items that are to be sent now."""
        if self._state not in ("running", "stopping") or time.monotonic() < self._open_until_s:
            return None
        room = len(self._waiting) + len(self._delayed)
        if self._settings["backpressure"] == "ack_based" and self._state == "running":
            room = _UNACKNOWLEDGED_MAX - self._unacknowledged
        now = time.monotonic()
        batch: List[_Item] = []
        reason, count_max = FlushReason.TIMEOUT, self._settings["max_batch_size"]
        while self._delayed and self._delayed[0][0] <= now and len(batch) < count_max:
            batch.append(heapq.heappop(self._delayed)[2])
        released = self._released(now)
        if released is not None:
            reason, limit = released
            taken = 0
            while self._waiting and taken < min(limit, room) and len(batch) < count_max:
                item = self._waiting.popleft()
                self._unacknowledged += self._settings["backpressure"] == "ack_based"
                batch.append(item)
                taken += 1
        if not batch:
            return None
        self._batches_by_reason[reason.value] += 1
        self._attempts += len(batch)
        self._in_flight += len(batch)
        for item in batch:
            item.attempts += 1
        return batch

    def _released(self, now: float) -> Optional[Tuple[FlushReason, int]]:
        """Why waiting items are sent now, and how many at most."""
        if not self._waiting:
            return None
        settings = self._settings
        if self._state == "stopping":
            return FlushReason.SHUTDOWN, settings["max_batch_size"]
        if self._waiting[0].seq < self._flush_before:
            return self._flush_reason, settings["max_batch_size"]
        if settings["batching"] == "adaptive":
            return FlushReason.SCHEDULED, settings["max_buffered_batch_size"]
        if settings["aggregation"] != "time_only" and len(self._waiting) >= settings["batch_size"]:
            return FlushReason.BATCH_SIZE, settings["max_buffered_batch_size"]
        if settings["aggregation"] != "count_only" and now >= self._waiting[0].pushed_s + settings["window_ms"] / 1000:
            return FlushReason.TIMEOUT, settings["max_buffered_batch_size"]
        return None

    def _wait_s(self) -> Optional[float]:
        """How long until the time alone may release a batch."""
        due = [self._delayed[0][0]] if self._delayed else []
        if self._waiting and self._settings["batching"] == "windowed" and self._settings["aggregation"] != "count_only":
            due.append(self._waiting[0].pushed_s + self._settings["window_ms"] / 1000)
        if self._open_until_s > time.monotonic():
            due.append(self._open_until_s)
        return max(0.0, min(due) - time.monotonic()) + 0.001 if due else None

    # Outcomes; the lock is held

    def _deliver(self, item: _Item, output: Any) -> None:
        latency_ms = (time.monotonic() - item.pushed_s) * 1000
        self._latencies_ms.append(latency_ms)
        self._latency_max_ms = max(self._latency_max_ms, latency_ms)
        self._counts["delivered"] += 1
        event: StreamEvent = (RESULT, item.seq, output, latency_ms, item.attempts)
        if self._settings["ordering"] == "strict":
            self._settle(item.seq, event)
        else:
            self._emit(event)

    def _retry_or_fail(self, item: _Item, failure: FailureTuple) -> None:
        _, _, _, retryable, retry_after_ms = failure
        if retryable and item.attempts < self._settings["max_attempts"] and self._settings["retry_policy"] != "no_retry":
            self._counts["retried"] += 1
            delay_ms = max(self._delay_ms(item), min(retry_after_ms or 0, _BACKOFF_MS_MAX))
            heapq.heappush(self._delayed, (time.monotonic() + delay_ms / 1000, item.seq, item))
        else:
            self._fail(item, failure)

    def _delay_ms(self, item: _Item) -> float:
        base, policy = float(self._settings["base_backoff_ms"]), self._settings["retry_policy"]
        if policy == "fixed_delay":
            delay = base
        elif policy == "exponential_jitter":
            delay = random.uniform(0, base * 2.0 ** min(item.attempts - 1, _DOUBLINGS_MAX))
        else:
            delay = random.uniform(base, max(base, 3 * item.delay_ms))
        item.delay_ms = min(delay, _BACKOFF_MS_MAX)
        return item.delay_ms

    def _fail(self, item: _Item, failure: FailureTuple) -> None:
        if failure[0] == "dropped":
            self._counts["dropped"] += 1
        else:
            self._counts["failed"] += 1
            self._failed_by_category[failure[2]] += 1
        self._emit((ERROR, item.seq, failure, 0.0, item.attempts))
        if self._settings["ordering"] == "strict":
            self._settle(item.seq, None)

    def _settle(self, seq: int, event: Optional[StreamEvent]) -> None:
        self._ordered[seq] = event
        while self._next_delivered in self._ordered:
            ready = self._ordered.pop(self._next_delivered)
            self._next_delivered += 1
            if ready is not None:
                self._emit(ready)

    def _end_if_settled(self) -> None:
        if self._state == "stopping" and not (self._waiting or self._delayed or self._in_flight):
            self._state = "stopped"
            self._emit((STOPPED, 0, None, 0.0, 0))

    def _emit(self, event: StreamEvent) -> None:
        self._events.append(event)
        if len(self._events) == 1 and self._threads > 0:
            try:
                self._wake.send(b"\1")
            except OSError:
                # A full socket wakes the loop already; a closed one has no loop.
                pass
