"""The interface to models: in this process (:mod:`._local`) or on a server (:mod:`._remote`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from ._errors import FailureTuple

#: A text, and the second text of a pair.
TextPair = Tuple[str, Optional[str]]

#: ``(True, output)`` or ``(False, failure)``.
Outcome = Tuple[bool, Any]

#: An event of a stream: ``(0, seq, output, latency_ms, attempts)``, ``(1, seq, failure, 0.0, attempts)`` or ``(2, 0, None, 0.0, 0)`` when
#: every text has its result or error.
StreamEvent = Tuple[int, int, Any, float, int]
RESULT, ERROR, STOPPED = 0, 1, 2


@dataclass(frozen=True)
class Model:
    """A model that is served.

    Attributes:
        name: its name.
        kind: ``text-classification``, ``token-classification``, ``feature-extraction`` or ``text-generation``.
        labels: in the order of their ids; empty for a model without labels.
        tokens_max: its longest text, in tokens; 0 if that is unknown.
    """

    name: str
    kind: str
    labels: Tuple[str, ...] = ()
    tokens_max: int = 0


@dataclass(frozen=True)
class Task:
    """A task and its parameters, with the names of transformers' pipelines. ``overflow`` is the treatment of a long text."""

    task: str
    overflow: str = "truncate"
    top_k: Optional[int] = None
    function_to_apply: Optional[str] = None
    aggregation_strategy: str = "none"
    ignore_labels: Tuple[str, ...] = ("O",)
    stride: Optional[int] = None
    normalize: bool = False
    tokens_min: int = 0
    tokens_max: int = 0

    def mapping(self) -> Dict[str, Any]:
        """The task for the engine."""
        mapping = dict(self.__dict__)
        mapping["ignore_labels"] = list(self.ignore_labels)
        return mapping


@dataclass(frozen=True)
class GenerateRequest:
    """A request to generate text. ``None`` is the default of the model.

    Attributes:
        prompt: a text, or with ``is_chat`` a JSON array of messages.
        format: ``json``, ``json_schema``, ``grammar`` or ``regex``, and its text.
    """

    prompt: str
    is_chat: bool = False
    tokens_max: Optional[int] = None
    choices: int = 1
    stop: Tuple[str, ...] = ()
    temperature: Optional[float] = None
    top_k: Optional[int] = None
    top_p: Optional[float] = None
    min_p: Optional[float] = None
    repeat_penalty: Optional[float] = None
    seed: Optional[int] = None
    format: Optional[Tuple[str, str]] = None

    def mapping(self, model: str) -> Dict[str, Any]:
        """The request for the engine."""
        mapping = dict(self.__dict__)
        mapping["model"] = model
        mapping["stop"] = list(self.stop)
        return mapping


class Stream(ABC):
    """A stream of texts through one model, with events in an internal form."""

    @abstractmethod
    def take_fd(self) -> int:
        """A descriptor that is readable when there are events. The caller closes it."""

    @abstractmethod
    def start(self) -> None:
        """Takes texts from now on; also ends a pause."""

    @abstractmethod
    def pause(self) -> None:
        """Holds back waiting texts."""

    @abstractmethod
    def stop(self) -> None:
        """Takes no more texts; a ``STOPPED`` event follows."""

    @abstractmethod
    def try_push(self, text: str, text_pair: Optional[str]) -> Optional[int]:
        """Pushes a text; its number, or ``None`` when there is no room."""

    @abstractmethod
    def flush(self, reason: str) -> int:
        """Sends the waiting texts to the model now; how many there are."""

    @abstractmethod
    def acknowledge(self, count: int) -> None:
        """Acknowledges results and errors."""

    @abstractmethod
    def take_events(self) -> List[StreamEvent]:
        """The events since the last call."""

    @abstractmethod
    def stats(self) -> Dict[str, Any]:
        """The counters."""


class Backend(ABC):
    """Runs one model.

    Attributes:
        model: the model.
    """

    model: Model

    @abstractmethod
    def run(self, task: Task, texts: Sequence[TextPair]) -> List[Outcome]:
        """Sends texts and waits for all outcomes, in the order of the texts."""

    @abstractmethod
    def iterate(self, task: Task, texts: Iterable[TextPair], window: int) -> Iterator[Outcome]:
        """The outcomes of texts that come one after another, in their order; at most ``window`` texts are read ahead."""

    @abstractmethod
    def stream(self, settings: Dict[str, Any]) -> Stream:
        """Opens a stream; waits until the model is ready."""

    @abstractmethod
    def generate(self, request: GenerateRequest) -> Iterator["Piece"]:
        """Generates texts; yields their pieces."""


@dataclass(frozen=True)
class Piece:
    """A piece of a generated text, or its end.

    Attributes:
        choice: which of several texts, from 0.
        text: the piece.
        finish_reason: why the text ended; ``None`` before its end.
    """

    choice: int
    text: str
    finish_reason: Optional[str] = None
    failure: Optional[FailureTuple] = field(default=None, repr=False)
