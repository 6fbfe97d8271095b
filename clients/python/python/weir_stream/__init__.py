"""Weir for Python: models of text in this process or on a server, streamed.

- :func:`pipeline`: pipelines with the interface of those of transformers.
- :class:`StreamingSentimentPipeline`: items pushed in, results by callback or iterator, with batching, retries and backpressure.
- :mod:`weir_stream.transcript`: transcript sessions.

>>> import weir_stream
>>> pipe = weir_stream.pipeline("sentiment-analysis")  # doctest: +SKIP
>>> pipe("What a wonderful evening!")  # doctest: +SKIP
[{'label': 'positive', 'score': 0.98...}]
"""

from ._adapters import Adapter, FileAdapter, HttpSseAdapter, KafkaAdapter, WebSocketAdapter
from ._config import (
    AggregationMode,
    BackpressurePolicy,
    BatchingMode,
    BufferingConfig,
    CircuitBreakerPolicy,
    DropPolicy,
    ErrorCategory,
    FlushReason,
    OrderingMode,
    PipelineState,
    RetryConfig,
    RetryPolicy,
    StreamingConfig,
)
from ._engine import __version__
from ._errors import InferenceError, ModelNotFoundError, ServerError
from ._events import ErrorEvent, PipelineError, PipelineStats, ResultEvent, SentimentResult
from ._pipelines import (
    FeatureExtractionPipeline,
    Pipeline,
    SummarizationPipeline,
    TextClassificationPipeline,
    TextGenerationPipeline,
    TokenClassificationPipeline,
    pipeline,
)
from ._streaming import ResultIterator, StreamingSentimentPipeline, Subscription

__all__ = [
    "Adapter",
    "AggregationMode",
    "BackpressurePolicy",
    "BatchingMode",
    "BufferingConfig",
    "CircuitBreakerPolicy",
    "DropPolicy",
    "ErrorCategory",
    "ErrorEvent",
    "FeatureExtractionPipeline",
    "FileAdapter",
    "FlushReason",
    "HttpSseAdapter",
    "InferenceError",
    "KafkaAdapter",
    "ModelNotFoundError",
    "OrderingMode",
    "Pipeline",
    "PipelineError",
    "PipelineState",
    "PipelineStats",
    "ResultEvent",
    "ResultIterator",
    "RetryConfig",
    "RetryPolicy",
    "SentimentResult",
    "ServerError",
    "StreamingConfig",
    "StreamingSentimentPipeline",
    "Subscription",
    "SummarizationPipeline",
    "TextClassificationPipeline",
    "TextGenerationPipeline",
    "TokenClassificationPipeline",
    "WebSocketAdapter",
    "__version__",
    "pipeline",
]
