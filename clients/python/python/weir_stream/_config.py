"""The configuration of a stream: every setting and its default. The engine validates it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Dict, Optional


class OrderingMode(str, Enum):
    """The order in which results are delivered."""

    BEST_EFFORT = "best_effort"
    """In the order of completion."""
    STRICT = "strict"
    """In the order of their items; an item that fails is skipped."""


class DropPolicy(str, Enum):
    """The item that is dropped when the buffer is full."""

    NONE = "none"
    """None: ``push`` waits."""
    HEAD = "head"
    """The oldest item that waits for its first attempt."""
    TAIL = "tail"
    """The item that is being pushed."""


class CircuitBreakerPolicy(str, Enum):
    """Whether a circuit breaker guards the model."""

    ON = "on"
    OFF = "off"


class RetryPolicy(str, Enum):
    """The delays between the attempts of an item."""

    NO_RETRY = "no_retry"
    """One attempt only."""
    FIXED_DELAY = "fixed_delay"
    """``base_backoff_ms`` each time."""
    EXPONENTIAL_JITTER = "exponential_jitter"
    """Uniform from 0 to ``base_backoff_ms * 2 ** retries``."""
    EXPONENTIAL_DECORRELATED = "exponential_decorrelated"
    """Uniform from ``base_backoff_ms`` to three times the previous delay."""


class BackpressurePolicy(str, Enum):
    """The condition on which ``push`` waits."""

    ACK_BASED = "ack_based"
    """Too many unacknowledged results."""
    SIZE_BASED = "size_based"
    """Too many bytes in the buffer."""


class AggregationMode(str, Enum):
    """The end of a window, if ``batching`` is windowed."""

    TIME_AND_COUNT = "time_and_count"
    TIME_ONLY = "time_only"
    COUNT_ONLY = "count_only"


class BatchingMode(str, Enum):
    """The time at which items become a batch."""

    ADAPTIVE = "adaptive"
    """As soon as the model is free: batches grow only while it is busy."""
    WINDOWED = "windowed"
    """After ``batch_size`` items or ``window_ms``."""


class PipelineState(str, Enum):
    """The state of a pipeline."""

    INITIALIZED = "initialized"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ERROR = "error"


class ErrorCategory(str, Enum):
    """The party that can resolve an error."""

    CLIENT = "client"
    """The sender of the item."""
    MODEL = "model"
    """The operator of the model."""
    SYSTEM = "system"
    """The operator of the server, which is overloaded."""
    TRANSPORT = "transport"
    """The operator of the network between."""


class FlushReason(str, Enum):
    """The reason for which a batch was released."""

    MANUAL = "manual"
    TIMEOUT = "timeout"
    BACKPRESSURE_ACK = "backpressure_ack"
    SCHEDULED = "scheduled"
    BATCH_SIZE = "batch_size"
    SHUTDOWN = "shutdown"


@dataclass
class BufferingConfig:
    """The buffer of waiting items.

    Attributes:
        min_batch_size: the least room, in items, for which a release waits while too many results are unacknowledged.
        max_batch_size: the most items in a batch that a free slot or the end of a window releases.
        max_buffer_size: the most items in the stream, from their push until their result.
        drop_policy: the item that is dropped when the buffer is full.
    """

    min_batch_size: int = 8
    max_batch_size: int = 64
    max_buffer_size: int = 512
    drop_policy: DropPolicy = DropPolicy.NONE


@dataclass
class RetryConfig:
    """The retries of transient failures.

    Attributes:
        max_attempts: the most attempts of an item, the first included.
        base_backoff_ms: the base delay of the policy, in milliseconds.
        policy: the delays between the attempts.
        circuit_breaker_policy: whether a circuit breaker guards the model.
    """

    max_attempts: int = 3
    base_backoff_ms: int = 100
    policy: RetryPolicy = RetryPolicy.EXPONENTIAL_JITTER
    circuit_breaker_policy: CircuitBreakerPolicy = CircuitBreakerPolicy.ON


@dataclass
class StreamingConfig:
    """The configuration of a stream.

    Attributes:
        batch_size: the number of items that ends a window.
        window_ms: the longest wait of an item before its window ends, in milliseconds.
        max_batch_size: the most items in any batch.
        ordering: the order in which results are delivered.
        buffering: the buffer of waiting items.
        retry: the retries of transient failures.
        backpressure: the condition on which ``push`` waits.
        aggregation: the end of a window.
        batching: the time at which items become a batch.
        max_buffer_size: sets ``buffering.max_buffer_size``.
    """

    batch_size: int = 32
    window_ms: int = 250
    max_batch_size: int = 128
    ordering: OrderingMode = OrderingMode.BEST_EFFORT
    buffering: BufferingConfig = field(default_factory=BufferingConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)
    backpressure: BackpressurePolicy = BackpressurePolicy.SIZE_BASED
    aggregation: AggregationMode = AggregationMode.TIME_AND_COUNT
    batching: BatchingMode = BatchingMode.ADAPTIVE
    max_buffer_size: Optional[int] = None

    def __post_init__(self) -> None:
        if self.max_buffer_size is not None:
            self.buffering = replace(self.buffering, max_buffer_size=self.max_buffer_size)

    @classmethod
    def low_latency(cls) -> "StreamingConfig":
        """Low latency: batches of 4 and a window of 100 ms."""
        return cls(batch_size=4, window_ms=100)

    @classmethod
    def high_throughput(cls) -> "StreamingConfig":
        """High throughput: batches of 64, a window of 500 ms and a buffer of 2048 items."""
        return cls(batch_size=64, window_ms=500, max_buffer_size=2048)

    def settings(self) -> Dict[str, Any]:
        """The settings for the engine.

        Raises:
            ValueError: a name does not exist.
        """
        buffering, retry = self.buffering, self.retry
        return {
            "batch_size": self.batch_size,
            "window_ms": self.window_ms,
            "max_batch_size": self.max_batch_size,
            "ordering": OrderingMode(self.ordering).value,
            "batching": BatchingMode(self.batching).value,
            "min_buffered_batch_size": buffering.min_batch_size,
            "max_buffered_batch_size": buffering.max_batch_size,
            "max_buffer_size": buffering.max_buffer_size,
            "drop_policy": DropPolicy(buffering.drop_policy).value,
            "max_attempts": retry.max_attempts,
            "base_backoff_ms": retry.base_backoff_ms,
            "retry_policy": RetryPolicy(retry.policy).value,
            "circuit_breaker_policy": CircuitBreakerPolicy(retry.circuit_breaker_policy).value,
            "backpressure": BackpressurePolicy(self.backpressure).value,
            "aggregation": AggregationMode(self.aggregation).value,
        }
