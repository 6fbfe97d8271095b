"""The errors of the package."""

from __future__ import annotations

from typing import Optional, Tuple

#: A failure of the engine: code, message, category, whether a retry may help, and when (milliseconds).
FailureTuple = Tuple[str, str, str, bool, Optional[int]]

#: The category of an error by its code, as in ``weir_core``.
_CATEGORIES = {
    "invalid_input": "client",
    "invalid_item": "client",
    "unknown_model": "client",
    "too_long": "client",
    "throttled": "client",
    "overloaded": "system",
    "deadline_exceeded": "system",
    "dropped": "system",
    "engine_failed": "model",
    "inference_failed": "model",
    "circuit_open": "model",
}


def category_of(code: str) -> str:
    """The category of the code of an error; ``transport`` for an unknown code."""
    return _CATEGORIES.get(code, "transport")


class InferenceError(RuntimeError):
    """A text has no result.

    Attributes:
        code: a constant for programs, such as ``too_long``.
        category: the party that can resolve it: ``client``, ``model``, ``system`` or ``transport``.
        retryable: whether the same text may succeed later.
        retry_after_ms: the delay before another attempt, in milliseconds; ``None`` if it is unknown.
    """

    def __init__(self, failure: FailureTuple, index: Optional[int] = None) -> None:
        self.code, message, self.category, self.retryable, self.retry_after_ms = failure
        super().__init__(message if index is None else f"text {index}: {message}")


class ModelNotFoundError(OSError):
    """There is no model of this name. Transformers raises an ``OSError`` too."""


class ServerError(ConnectionError):
    """The server cannot be reached, or refused the request.

    Attributes:
        status: the HTTP status; ``None`` without a response.
        code: the code of the problem; ``unreachable`` without a response.
        retryable: whether the same request may succeed later.
        retry_after_ms: the delay before another attempt, in milliseconds; ``None`` if it is unknown.
    """

    def __init__(
        self,
        message: str,
        *,
        status: Optional[int] = None,
        code: str = "unreachable",
        retryable: bool = True,
        retry_after_ms: Optional[int] = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.retryable, self.retry_after_ms = status, code, retryable, retry_after_ms

    def failure(self) -> FailureTuple:
        """The error as the failure of a text."""
        return (self.code, str(self), category_of(self.code), self.retryable, self.retry_after_ms)
