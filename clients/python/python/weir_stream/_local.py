"""The engine in this process."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, cast

from ._backend import Backend, GenerateRequest, Model, Outcome, Piece, Stream, Task, TextPair
from ._engine import Call, Engine
from ._errors import InferenceError

_Key = Tuple[str, Path, Optional[str], Optional[str], int]
_BACKENDS: "weakref.WeakValueDictionary[_Key, LocalBackend]" = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


class LocalBackend(Backend):
    """A model in this process. Pipelines of one model share it: see :func:`open_model`."""

    def __init__(
        self, name: str, path: Path, precision: Optional[str], engine: Optional[str], replicas: int
    ) -> None:
        self._engine = Engine({name: path}, precision=precision, engine=engine, replicas=replicas)
        self._engine.wait_ready(name)
        found, kind, labels, tokens_max = self._engine.models()[0]
        self.model = Model(found, kind, tuple(labels), tokens_max)

    def run(self, task: Task, texts: Sequence[TextPair]) -> List[Outcome]:
        return self._engine.run(self.model.name, task.mapping(), list(texts))

    def iterate(self, task: Task, texts: Iterable[TextPair], window: int) -> Iterator[Outcome]:
        call = self._engine.call(self.model.name, task.mapping())
        return _in_order(call, iter(texts), max(window, 1))

    def stream(self, settings: Dict[str, Any]) -> Stream:
        # The class of the engine has the same methods, but cannot inherit from a class of Python.
        return cast(Stream, self._engine.stream(self.model.name, settings))

    def generate(self, request: GenerateRequest) -> Iterator[Piece]:
        generation = self._engine.generate(request.mapping(self.model.name))
        while True:
            events = generation.receive()
            if not events:
                return
            for kind, choice, value in events:
                if kind == 0:
                    if value:
                        yield Piece(choice, value)
                elif kind == 1:
                    yield Piece(choice, "", value[0])
                elif kind == 2:
                    raise InferenceError(value)


def _in_order(call: Call, texts: Iterator[TextPair], window: int) -> Iterator[Outcome]:
    """Sends texts and yields their outcomes in order."""
    arrived: Dict[int, Outcome] = {}
    sent = delivered = 0
    is_open = True
    while True:
        while is_open and sent - delivered < window:
            try:
                text, text_pair = next(texts)
            except StopIteration:
                call.finish()
                is_open = False
                break
            call.send(sent, text, text_pair)
            sent += 1
        if delivered == sent:
            return
        while delivered not in arrived:
            received = call.receive()
            if not received:
                raise RuntimeError("the engine ended before every text had its outcome")
            for id, is_ok, value in received:
                arrived[id] = (is_ok, value)
        yield arrived.pop(delivered)
        delivered += 1


def open_model(
    name: str,
    path: Path,
    *,
    precision: Optional[str] = None,
    engine: Optional[str] = None,
    replicas: int = 0,
) -> LocalBackend:
    """The backend of a model, which is shared by all callers with the same arguments.

    Args:
        name: its name.
        path: its folder.
        precision: ``f32``, ``bf16`` or ``int8``; ``None``: the default of the engine.
        engine: ``builtin``, ``tract`` or ``onnxruntime``; ``None``: the first that supports the model.
        replicas: the number of texts that are computed at once; 0: one for each core.
    """
    key = (name, path.resolve(), precision, engine, replicas)
    with _LOCK:
        backend = _BACKENDS.get(key)
        if backend is None:
            backend = LocalBackend(name, path, precision, engine, replicas)
            _BACKENDS[key] = backend
        return backend
