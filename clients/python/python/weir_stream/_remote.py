"""Models on a server."""

from __future__ import annotations

import json
import struct
import warnings
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence

from ._backend import Backend, GenerateRequest, Model, Outcome, Piece, Stream, Task, TextPair
from ._errors import InferenceError, ModelNotFoundError, ServerError, category_of
from ._http import Client
from ._models import STAND_INS
from ._remote_stream import RemoteStream

#: The most texts of one request.
TEXTS_MAX = 1024
_ROUTES = {"classify": "/v1/classify", "tokens": "/v1/tokens", "embed": "/v1/embed"}


class RemoteBackend(Backend):
    """A model on a server, over HTTP."""

    def __init__(self, base_url: str, model: Optional[str], *, token: Optional[str] = None) -> None:
        self._client = Client(base_url, token)
        served = {
            entry["name"]: Model(
                entry["name"], entry.get("kind", ""), tuple(entry.get("labels") or ()), entry.get("tokens_max") or 0
            )
            for entry in self._client.json("GET", "/v1/models")["models"]
        }
        stand_in = STAND_INS.get(model or "")
        if model not in served and stand_in in served:
            warnings.warn(
                f'the server has no model "{model}": using "{stand_in}" (negative, neutral, positive; the same labels)',
                UserWarning,
                stacklevel=4,
            )
            model = stand_in
        if model not in served:
            raise ModelNotFoundError(f'{base_url} has no model "{model}"; there are {", ".join(served) or "none"}')
        self.model = served[model]

    def run(self, task: Task, texts: Sequence[TextPair]) -> List[Outcome]:
        outcomes: List[Outcome] = []
        for start in range(0, len(texts), TEXTS_MAX):
            outcomes.extend(self._request(task, texts[start : start + TEXTS_MAX]))
        return outcomes

    def _request(self, task: Task, texts: Sequence[TextPair]) -> List[Outcome]:
        route = _ROUTES.get(task.task)
        if route is None:
            raise ValueError(f"a server has no route for {task.task}; omit base_url, or use /process-batch")
        inputs = [text if pair is None else {"text": text, "text_pair": pair} for text, pair in texts]
        body = {"inputs": inputs, "model": self.model.name, "parameters": _parameters(task)}
        outputs = self._client.json("POST", route, body)["outputs"]
        if len(outputs) != len(texts):
            raise ServerError(f"{route} returned {len(outputs)} outputs for {len(texts)} texts", retryable=False)
        return [_outcome(task, output) for output in outputs]

    def iterate(self, task: Task, texts: Iterable[TextPair], window: int) -> Iterator[Outcome]:
        ahead: List[TextPair] = []
        for text in texts:
            ahead.append(text)
            if len(ahead) >= window:
                yield from self.run(task, ahead)
                ahead = []
        yield from self.run(task, ahead)

    def stream(self, settings: Dict[str, Any]) -> Stream:
        # As in the streams of the engine: all labels, and a long text is truncated.
        task = Task("classify", overflow="truncate")
        return RemoteStream(lambda texts: self.run(task, texts), settings)

    def generate(self, request: GenerateRequest) -> Iterator[Piece]:
        for data in self._client.events(*_generation(self.model.name, request)):
            if data == "[DONE]":
                return
            event = json.loads(data)
            if "error" in event:
                error = event["error"]
                code = str(error.get("code") or error.get("type") or "generation_failed")
                raise InferenceError((code, str(error.get("message", "")), category_of(code), False, None))
            for choice in event.get("choices", ()):
                text = choice.get("delta", {}).get("content") if request.is_chat else choice.get("text")
                reason = choice.get("finish_reason")
                if text or reason:
                    yield Piece(choice.get("index", 0), text or "", reason)
        raise ServerError("the stream ended before the text", code="cut_off")


def _parameters(task: Task) -> Dict[str, Any]:
    """The parameters of a task in the API of the server."""
    parameters: Dict[str, Any] = {}
    is_cut = task.overflow != "fail"
    if task.task == "classify":
        parameters["truncation"] = is_cut
        if task.top_k is not None:
            parameters["top_k"] = task.top_k
        if task.function_to_apply is not None:
            parameters["function_to_apply"] = task.function_to_apply
    elif task.task == "tokens":
        parameters["aggregation_strategy"] = task.aggregation_strategy
        parameters["ignore_labels"] = list(task.ignore_labels)
        if task.stride is not None:
            parameters["stride"] = task.stride
        else:
            parameters["truncation"] = is_cut
    else:
        parameters.update(normalize=task.normalize, truncate=is_cut)
    return parameters


def _outcome(task: Task, output: Any) -> Outcome:
    if isinstance(output, dict) and "error" in output:
        error = output["error"]
        code = error["code"]
        failure = (code, error["message"], category_of(code), error["retryable"], error.get("retry_after_ms"))
        return (False, failure)
    if task.task == "embed":
        return (True, [_f32(value) for value in output])
    for entry in output:
        entry["score"] = _f32(entry["score"])
        # The results of transformers do not contain the text of an entity.
        entry.pop("text", None)
    return (True, output)


def _f32(value: float) -> float:
    """The exact value of a float32 that JSON represents by its shortest decimal."""
    (exact,) = struct.unpack("f", struct.pack("f", value))
    return float(exact)


def _generation(model: str, request: GenerateRequest) -> "tuple[str, Dict[str, Any]]":
    body: Dict[str, Any] = {"model": model, "stream": True, "n": request.choices}
    named = {
        "max_tokens": request.tokens_max,
        "temperature": request.temperature,
        "top_k": request.top_k,
        "top_p": request.top_p,
        "min_p": request.min_p,
        "repeat_penalty": request.repeat_penalty,
        "seed": request.seed,
        "stop": list(request.stop) or None,
    }
    body.update({name: value for name, value in named.items() if value is not None})
    if request.format is not None:
        kind, text = request.format
        if kind == "json":
            body["response_format"] = {"type": "json_object"}
        elif kind == "json_schema":
            schema = {"name": "schema", "schema": json.loads(text)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        else:
            raise ValueError(f"the API of a server has no format {kind!r}; omit base_url, or use json_schema")
    if request.is_chat:
        return "/v1/chat/completions", {**body, "messages": json.loads(request.prompt)}
    return "/v1/completions", {**body, "prompt": request.prompt}
