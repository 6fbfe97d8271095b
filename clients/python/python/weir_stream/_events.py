"""The events of a streaming pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Dict, List, Mapping, Optional

from ._config import ErrorCategory, PipelineState


@dataclass(frozen=True)
class SentimentResult:
    """The result of an item.

    Attributes:
        label: the best label.
        score: its score.
        metadata: ``model_input`` (the text), ``id``, ``model``, ``latency_ms`` (from the push to the result) and ``attempts``.
        scores: every label with its score, best first.
    """

    label: str
    score: float
    metadata: Dict[str, Any]
    scores: List[Dict[str, Any]]


@dataclass(frozen=True)
class ResultEvent:
    """The result of an item.

    Attributes:
        result: the result.
        id: the id of the item, if it has one.
        seq: the number that ``push`` returned.
        timestamp: the time of its delivery, in UTC.
    """

    result: SentimentResult
    id: Optional[str]
    seq: int
    timestamp: datetime


@dataclass(frozen=True)
class PipelineError:
    """The reason why an item has no result.

    Attributes:
        message: for people.
        code: a constant for programs, such as ``too_long``.
        category: the party that can resolve it.
        retryable: whether the same text may succeed later.
    """

    message: str
    code: str
    category: ErrorCategory
    retryable: bool


@dataclass(frozen=True)
class ErrorEvent:
    """The final failure of an item.

    Attributes:
        error: the reason.
        id: the id of the item, if it has one.
        seq: the number that ``push`` returned.
        item: the item as it was pushed.
        attempts: the number of attempts.
    """

    error: PipelineError
    id: Optional[str]
    seq: int
    item: Mapping[str, Any]
    attempts: int


@dataclass(frozen=True)
class PipelineStats:
    """The counters of a pipeline. ``pushed`` is ``delivered + failed + dropped`` and the items that are not finished.

    Attributes:
        state: its state.
        pushed: accepted items, dropped ones included.
        pushed_back: the number of times that there was no room for an item.
        delivered: results.
        failed: items that failed, and by category in ``failed_by_category``.
        dropped: items dropped by the drop policy.
        retried: attempts after the first.
        in_flight: items in batches at the model.
        buffered: items that wait for an attempt.
        unacknowledged: items that were released and not acknowledged.
        batches: released batches, and by reason in ``batches_by_reason``.
        mean_batch_size: attempts for each batch.
        circuit_breaker: ``closed``, ``open`` or ``half_open``; ``None`` without a circuit breaker.
        latency_p50_ms: from push to result, the median, at most 1/8 too high; ``None`` before the first.
        latency_p99_ms: the 99th percentile.
        latency_max_ms: the maximum.
    """

    state: PipelineState = PipelineState.INITIALIZED
    pushed: int = 0
    pushed_back: int = 0
    delivered: int = 0
    failed: int = 0
    failed_by_category: Mapping[str, int] = field(default_factory=dict)
    dropped: int = 0
    retried: int = 0
    in_flight: int = 0
    buffered: int = 0
    unacknowledged: int = 0
    batches: int = 0
    batches_by_reason: Mapping[str, int] = field(default_factory=dict)
    mean_batch_size: float = 0.0
    circuit_breaker: Optional[str] = None
    latency_p50_ms: Optional[float] = None
    latency_p99_ms: Optional[float] = None
    latency_max_ms: float = 0.0
