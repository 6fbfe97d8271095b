"""Pipelines with the interface of those of transformers."""

from __future__ import annotations

import json
import warnings
from typing import Any, Dict, Iterator, List, Literal, Mapping, Optional, Set, Tuple, Type, overload

from ._backend import Backend, GenerateRequest, Outcome, Piece, Task, TextPair
from ._errors import InferenceError
from ._models import PathLike, find
from ._local import open_model

#: Arguments of transformers that Weir ignores, with one warning for each.
_IGNORED = {
    "device",
    "device_map",
    "dtype",
    "framework",
    "feature_extractor",
    "max_length",
    "model_kwargs",
    "num_workers",
    "padding",
    "revision",
    "tokenizer",
    "torch_dtype",
    "trust_remote_code",
    "use_fast",
}
_warned: Set[str] = set()


def _is_ignored(name: str, value: Any) -> bool:
    """Whether an argument is ignored; warns about it once."""
    if name not in _IGNORED:
        return False
    if value is not None and name not in _warned:
        _warned.add(name)
        warnings.warn(f"{name} is ignored: Weir chooses it", UserWarning, stacklevel=4)
    return True


class Pipeline:
    """A task of a model, which is called like a pipeline of transformers. Created by :func:`pipeline`.

    For a text or a list of texts it returns the results. For a generator, or any other iterable that is not a list, it returns a generator:
    results have the order of the inputs, and at most twice ``batch_size`` inputs (default 1) are read ahead.

    Attributes:
        task: the name of the task.
        model: the name of the model.
    """

    #: The required kind of the model.
    kind = ""
    #: The parameters of a call.
    parameters: Tuple[str, ...] = ()

    def __init__(self, task: str, backend: Backend, **defaults: Any) -> None:
        self.task = task
        self._backend = backend
        self.model = backend.model.name
        self._batch_size = 1
        if self.kind and backend.model.kind != self.kind:
            raise ValueError(
                f'the task {task} needs a model of the kind {self.kind}, and "{self.model}" is {backend.model.kind}'
            )
        self._defaults = self._checked(defaults)

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """The results of a text, a list of texts, or an iterable of texts.

        Raises:
            InferenceError: a text has no result.
        """
        given = self._checked(kwargs)
        batch_size = int(given.pop("batch_size", self._batch_size))
        parameters = {**self._defaults, **given}
        if self._is_single(inputs):
            outcome = self._backend.run(self._task(parameters), [self._text(inputs)])[0]
            return self._wrap_single(self._form(_checked_output(outcome, None), parameters), inputs, given)
        if isinstance(inputs, (list, tuple)):
            texts = [self._text(one) for one in inputs]
            outcomes = self._backend.run(self._task(parameters), texts)
            return [
                self._form(_checked_output(outcome, index), parameters) for index, outcome in enumerate(outcomes)
            ]
        return self._iterate(iter(inputs), parameters, batch_size)

    predict = __call__
    transform = __call__

    def _iterate(self, inputs: Iterator[Any], parameters: Dict[str, Any], batch_size: int) -> Iterator[Any]:
        texts = (self._text(one) for one in inputs)
        outcomes = self._backend.iterate(self._task(parameters), texts, 2 * batch_size)
        for index, outcome in enumerate(outcomes):
            yield self._form(_checked_output(outcome, index), parameters)

    def _checked(self, kwargs: Mapping[str, Any]) -> Dict[str, Any]:
        """The parameters among arguments.

        Raises:
            TypeError: an argument does not exist.
        """
        checked: Dict[str, Any] = {}
        for name, value in kwargs.items():
            if name == "return_all_scores":
                raise TypeError("return_all_scores was removed from transformers; top_k=None returns all scores")
            if name == "batch_size" or name in self.parameters:
                checked[name] = value
            elif not _is_ignored(name, value):
                names = ", ".join(("batch_size", *self.parameters))
                raise TypeError(f"{name} is not an argument of {self.task}; use {names}")
        if "batch_size" in checked and not hasattr(self, "_defaults"):
            self._batch_size = int(checked.pop("batch_size"))
        return checked

    def _is_single(self, inputs: Any) -> bool:
        return isinstance(inputs, str)

    def _text(self, value: Any) -> TextPair:
        if isinstance(value, str):
            return (value, None)
        raise TypeError(f"a text is a str, not {type(value).__name__}")

    def _wrap_single(self, output: Any, inputs: Any, given: Mapping[str, Any]) -> Any:
        return output

    def _task(self, parameters: Mapping[str, Any]) -> Task:
        raise NotImplementedError

    def _form(self, output: Any, parameters: Mapping[str, Any]) -> Any:
        return output

    def __repr__(self) -> str:
        return f"<weir_stream {self.task} pipeline of {self.model!r}>"


def _checked_output(outcome: Outcome, index: Optional[int]) -> Any:
    is_ok, value = outcome
    if not is_ok:
        raise InferenceError(value, index)
    return value


class TextClassificationPipeline(Pipeline):
    """``sentiment-analysis`` and ``text-classification``: labels and their scores.

    Parameters of a call: ``top_k`` (``None``: all labels), ``function_to_apply`` (``softmax``, ``sigmoid``, ``none``; default: by the
    configuration of the model), ``truncation`` (default False: a text of too many tokens is an error).
    """

    kind = "text-classification"
    parameters = ("top_k", "function_to_apply", "truncation")

    def _is_single(self, inputs: Any) -> bool:
        # A list of one list of two texts is a pair, as in transformers.
        is_pair = isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], list) and len(inputs[0]) == 2
        return is_pair or isinstance(inputs, (str, dict))

    def _text(self, value: Any) -> TextPair:
        if isinstance(value, dict):
            unknown = set(value) - {"text", "text_pair"}
            if unknown or "text" not in value:
                raise TypeError('a pair is {"text": ..., "text_pair": ...}')
            return (value["text"], value.get("text_pair"))
        if isinstance(value, (list, tuple)) and len(value) == 1:
            value = value[0]
        if isinstance(value, (list, tuple)) and len(value) == 2:
            return (value[0], value[1])
        return super()._text(value)

    def _task(self, parameters: Mapping[str, Any]) -> Task:
        top_k = parameters.get("top_k", 1)
        function = parameters.get("function_to_apply")
        name = str(getattr(function, "value", function)).lower() if function is not None else None
        return Task(
            "classify",
            overflow="truncate" if parameters.get("truncation") else "fail",
            top_k=1 if top_k == "" else top_k,
            function_to_apply=None if name == "default" else name,
        )

    def _form(self, output: Any, parameters: Mapping[str, Any]) -> Any:
        # Without top_k, the result of a text is one object and not a list of one, as in transformers.
        return output if "top_k" in parameters and parameters["top_k"] != "" else output[0]

    def _wrap_single(self, output: Any, inputs: Any, given: Mapping[str, Any]) -> Any:
        return [output] if isinstance(inputs, str) and "top_k" not in given else output


class TokenClassificationPipeline(Pipeline):
    """``ner`` and ``token-classification``: labelled spans.

    Parameters of a call: ``aggregation_strategy`` (``none``, ``simple``, ``first``, ``average``, ``max``; default ``none``),
    ``ignore_labels`` (default ``["O"]``), ``stride`` (a long text is read whole, in windows that overlap by this number of tokens).
    """

    kind = "token-classification"
    parameters = ("aggregation_strategy", "ignore_labels", "stride")

    def _task(self, parameters: Mapping[str, Any]) -> Task:
        strategy = parameters.get("aggregation_strategy") or "none"
        stride = parameters.get("stride") or None
        labels = parameters.get("ignore_labels")
        return Task(
            "tokens",
            overflow="truncate" if stride is None else "split",
            aggregation_strategy=str(getattr(strategy, "value", strategy)).lower(),
            ignore_labels=("O",) if labels is None else tuple(labels),
            stride=stride,
        )


class FeatureExtractionPipeline(Pipeline):
    """``feature-extraction``: a vector for each text, ``[1][1][hidden size]``.

    The pipeline of transformers returns ``[1][tokens][hidden size]``. Here the vectors of the tokens are averaged, so
    ``numpy.mean(pipe(text)[0], axis=0)`` is the same vector in both. ``normalize=True`` scales it to length 1.
    """

    kind = "feature-extraction"
    parameters = ("normalize", "truncation")

    def _task(self, parameters: Mapping[str, Any]) -> Task:
        overflow = "truncate" if parameters.get("truncation", True) else "fail"
        return Task("embed", overflow=overflow, normalize=bool(parameters.get("normalize", False)))

    def _form(self, output: Any, parameters: Mapping[str, Any]) -> Any:
        return [[output]]


#: The bounds of a summary in tokens, those of `/process-stream`.
_SUMMARY_TOKENS = (30, 130)


class SummarizationPipeline(Pipeline):
    """``summarization``: the most central sentences of a text, ``[{"summary_text": ...}]``. The summary is extractive.

    Parameters of a call: ``min_length`` and ``max_length`` (or ``min_new_tokens`` and ``max_new_tokens``) in tokens of the model.
    """

    kind = "feature-extraction"
    parameters = ("min_length", "max_length", "min_new_tokens", "max_new_tokens", "truncation", "do_sample")

    def _task(self, parameters: Mapping[str, Any]) -> Task:
        def bound(name: str, default: int) -> int:
            value = parameters.get(f"{name}_new_tokens", parameters.get(f"{name}_length"))
            return default if value is None else int(value)

        tokens_max = bound("max", _SUMMARY_TOKENS[1])
        tokens_min = min(bound("min", _SUMMARY_TOKENS[0]), tokens_max)
        return Task("summarize", overflow="split", tokens_min=tokens_min, tokens_max=tokens_max)

    def _form(self, output: Any, parameters: Mapping[str, Any]) -> Any:
        return {"summary_text": output}

    def _wrap_single(self, output: Any, inputs: Any, given: Mapping[str, Any]) -> Any:
        return [output]


class TextGenerationPipeline(Pipeline):
    """``text-generation``: the continuation of a prompt or a chat, ``[{"generated_text": ...}]``.

    Parameters of a call: ``max_new_tokens``, ``do_sample`` (default False: the most likely tokens), ``temperature``, ``top_k``, ``top_p``,
    ``min_p``, ``repetition_penalty``, ``num_return_sequences``, ``stop_strings`` (or ``stop``), ``return_full_text`` (default True),
    ``seed``, and ``format`` (``("json", "")``, ``("json_schema", SCHEMA)``, ``("grammar", LARK)`` or ``("regex", REGEX)``).
    """

    kind = "text-generation"
    parameters = (
        "max_new_tokens",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "num_return_sequences",
        "stop_strings",
        "stop",
        "return_full_text",
        "seed",
        "format",
    )

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        given = self._checked(kwargs)
        given.pop("batch_size", None)
        parameters = {**self._defaults, **given}
        if isinstance(inputs, str) or _is_chat(inputs):
            return self._generated(inputs, parameters)
        if isinstance(inputs, (list, tuple)):
            return [self._generated(one, parameters) for one in inputs]
        return (self._generated(one, parameters) for one in inputs)

    def stream(self, inputs: Any, **kwargs: Any) -> Iterator[str]:
        """The pieces of the continuation of a prompt or a chat, as they are generated. Closing the generator cancels the generation."""
        parameters = {**self._defaults, **self._checked(kwargs)}
        if int(parameters.get("num_return_sequences") or 1) != 1:
            raise ValueError("num_return_sequences must be 1 where pieces are streamed")
        return (piece.text for piece in self._pieces(inputs, parameters) if piece.text)

    def _generated(self, inputs: Any, parameters: Mapping[str, Any]) -> List[Dict[str, Any]]:
        texts: List[List[str]] = [[] for _ in range(int(parameters.get("num_return_sequences") or 1))]
        for piece in self._pieces(inputs, parameters):
            texts[piece.choice].append(piece.text)
        is_full = parameters.get("return_full_text", True)
        generated = []
        for pieces in texts:
            text: Any = "".join(pieces)
            if is_full:
                is_text = isinstance(inputs, str)
                text = inputs + text if is_text else [*inputs, {"role": "assistant", "content": text}]
            generated.append({"generated_text": text})
        return generated

    def _pieces(self, inputs: Any, parameters: Mapping[str, Any]) -> Iterator[Piece]:
        is_chat = not isinstance(inputs, str)
        if is_chat and not _is_chat(inputs):
            raise TypeError('a prompt is a str or a list of {"role": ..., "content": ...}')
        stop = parameters.get("stop_strings", parameters.get("stop")) or ()
        temperature = parameters.get("temperature")
        if temperature is None and not parameters.get("do_sample"):
            temperature = 0.0
        request = GenerateRequest(
            json.dumps(list(inputs)) if is_chat else inputs,
            is_chat,
            tokens_max=parameters.get("max_new_tokens"),
            choices=int(parameters.get("num_return_sequences") or 1),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            temperature=temperature,
            top_k=parameters.get("top_k"),
            top_p=parameters.get("top_p"),
            min_p=parameters.get("min_p"),
            repeat_penalty=parameters.get("repetition_penalty"),
            seed=parameters.get("seed"),
            format=parameters.get("format"),
        )
        return self._backend.generate(request)


def _is_chat(inputs: Any) -> bool:
    return (
        isinstance(inputs, (list, tuple))
        and len(inputs) > 0
        and all(isinstance(message, dict) and "role" in message for message in inputs)
    )


#: The class and the default model of each task.
_TASKS: Dict[str, Tuple[Type[Pipeline], Optional[str]]] = {
    "sentiment-analysis": (TextClassificationPipeline, "sentiment"),
    "text-classification": (TextClassificationPipeline, "sentiment"),
    "ner": (TokenClassificationPipeline, "entities"),
    "token-classification": (TokenClassificationPipeline, "entities"),
    "feature-extraction": (FeatureExtractionPipeline, "embeddings"),
    "summarization": (SummarizationPipeline, "embeddings"),
    "text-generation": (TextGenerationPipeline, None),
}


@overload
def pipeline(
    task: Literal["sentiment-analysis", "text-classification"],
    model: Optional[PathLike] = None,
    **kwargs: Any,
) -> TextClassificationPipeline: ...
@overload
def pipeline(
    task: Literal["ner", "token-classification"],
    model: Optional[PathLike] = None,
    **kwargs: Any,
) -> TokenClassificationPipeline: ...
@overload
def pipeline(
    task: Literal["feature-extraction"],
    model: Optional[PathLike] = None,
    **kwargs: Any,
) -> FeatureExtractionPipeline: ...
@overload
def pipeline(
    task: Literal["summarization"],
    model: Optional[PathLike] = None,
    **kwargs: Any,
) -> SummarizationPipeline: ...
@overload
def pipeline(
    task: Literal["text-generation"],
    model: Optional[PathLike] = None,
    **kwargs: Any,
) -> TextGenerationPipeline: ...
@overload
def pipeline(task: Optional[str] = None, model: Optional[PathLike] = None, **kwargs: Any) -> Pipeline: ...
def pipeline(
    task: Optional[str] = None,
    model: Optional[PathLike] = None,
    *,
    base_url: Optional[str] = None,
    token: Optional[str] = None,
    models_dir: Optional[PathLike] = None,
    precision: Optional[str] = None,
    engine: Optional[str] = None,
    replicas: int = 0,
    **kwargs: Any,
) -> Pipeline:
    """Creates a pipeline, like ``transformers.pipeline``.

    Args:
        task: ``sentiment-analysis``, ``text-classification``, ``ner``, ``token-classification``, ``feature-extraction``,
            ``summarization`` or ``text-generation``. ``None``: the task of the model.
        model: the name of a model, its id on the Hugging Face hub (taken from the local cache), or its folder; ``None``: the model of the
            task that is shipped.
        base_url: a server that runs the model, such as ``http://127.0.0.1:8080``; ``None``: this process does.
        token: a bearer token or an API key for that server.
        models_dir: the folder of models; ``None``: ``WEIR_MODELS_DIR``, or the package ``weir_stream_models``.
        precision: ``f32``, ``bf16`` or ``int8``; ``None``: the default of the engine.
        engine: ``builtin``, ``tract`` or ``onnxruntime``; ``None``: the first that supports the model.
        replicas: the number of texts that are computed at once; 0: one for each core.
        **kwargs: parameters of every call.

    Raises:
        ModelNotFoundError: there is no such model.
        ValueError: the task does not exist, or the model is of another kind.

    >>> pipe = pipeline("sentiment-analysis")  # doctest: +SKIP
    >>> pipe("What a wonderful evening!")  # doctest: +SKIP
    [{'label': 'positive', 'score': 0.98...}]
    """
    if task is not None and task not in _TASKS:
        raise ValueError(f"task {task!r} does not exist; there are {', '.join(_TASKS)}")
    if task is None and model is None:
        raise ValueError("give a task or a model")
    default = _TASKS[task][1] if task is not None else None
    backend: Backend
    if base_url is not None:
        from ._remote import RemoteBackend

        name = str(model) if model is not None else default
        backend = RemoteBackend(base_url, name, token=token)
    else:
        name, path = find(model, default, models_dir)
        backend = open_model(name, path, precision=precision, engine=engine, replicas=replicas)
    if task is None:
        task = backend.model.kind
    return _TASKS[task][0](task, backend, **kwargs)


