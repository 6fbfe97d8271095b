"""Lines of files as items."""

from __future__ import annotations

import asyncio
import csv
import glob
import json
import os
import threading
from typing import IO, Any, Dict, Iterator, List, Optional, Sequence, Union

from .._events import ErrorEvent, ResultEvent
from ._base import Adapter, Push, from_thread, item_of, record_of

_PathLike = Union[str, "os.PathLike[str]"]
#: The interval at which a followed file is checked, in seconds.
_FOLLOW_S = 0.2


class FileAdapter(Adapter):
    """Texts of files, one per line, and their results as lines of JSON.

    Args:
        paths: a path, a pattern such as ``logs/*.jsonl``, or several.
        output: a file for the results, one JSON object per line; ``None``: results go to the callbacks only.
        format: ``text`` (a text per line), ``ndjson`` (a JSON object or string per line), ``csv`` (with a header), or ``auto``: by the ending of
            the name.
        text_field: the member or column with the text.
        id_field: the member or column with the id; an item without one gets the position ``PATH:LINE``.
        follow: wait for lines that are added at the end of the last file, as ``tail -f`` does.
    """

    def __init__(
        self,
        paths: Union[_PathLike, Sequence[_PathLike]],
        output: Optional[_PathLike] = None,
        *,
        format: str = "auto",
        text_field: str = "text",
        id_field: str = "id",
        follow: bool = False,
    ) -> None:
        if format not in ("auto", "text", "ndjson", "csv"):
            raise ValueError(f"format {format!r} does not exist; there are auto, text, ndjson, csv")
        given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        self._paths = [os.fspath(path) for path in given]
        self._format, self._text_field, self._id_field, self._follow = format, text_field, id_field, follow
        self._output_path = output
        self._output: Optional[IO[str]] = None

    async def run(self, push: Push) -> None:
        if self._output_path is not None:
            # Each line is written when it is complete.
            self._output = open(self._output_path, "a", encoding="utf-8", buffering=1)
        async for item in from_thread(self._items):
            await push(item)

    async def deliver(self, event: Union[ResultEvent, ErrorEvent]) -> None:
        if self._output is not None:
            self._output.write(json.dumps(record_of(event), ensure_ascii=False) + "\n")

    async def close(self) -> None:
        output, self._output = self._output, None
        if output is not None:
            await asyncio.get_running_loop().run_in_executor(None, output.close)

    def _files(self) -> List[str]:
        files: List[str] = []
        for path in self._paths:
            found = sorted(glob.glob(path)) if glob.has_magic(path) else [path]
            if not found:
                raise FileNotFoundError(f"no file matches {path}")
            files.extend(found)
        return files

    def _items(self, stopped: threading.Event) -> Iterator[Dict[str, Any]]:
        files = self._files()
        for index, path in enumerate(files):
            follow = self._follow and index == len(files) - 1
            with open(path, encoding="utf-8-sig", newline="") as file:
                yield from self._read(path, file, follow, stopped)

    def _read(self, path: str, file: IO[str], follow: bool, stopped: threading.Event) -> Iterator[Dict[str, Any]]:
        ending = os.path.splitext(path)[1].lower()
        format = self._format
        if format == "auto":
            format = {".csv": "csv", ".jsonl": "ndjson", ".ndjson": "ndjson"}.get(ending, "text")
        lines = _lines(file, follow, stopped)
        if format == "csv":
            reader = csv.DictReader(lines)
            for row in reader:
                if self._text_field not in row:
                    raise ValueError(f"{path} has no column {self._text_field!r}; it has {', '.join(reader.fieldnames or ())}")
                yield {**row, "text": row[self._text_field], "id": row.get(self._id_field) or f"{path}:{reader.line_num}"}
            return
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r\n")
            item = item_of(line, self._text_field, self._id_field) if format == "ndjson" else {"text": line}
            if item is None or not line.strip():
                continue
            if item.get("id") is None:
                item["id"] = f"{path}:{number}"
            yield item


def _lines(file: IO[str], follow: bool, stopped: threading.Event) -> Iterator[str]:
    """The complete lines of a file; with ``follow`` also those that are added later."""
    rest = ""
    while True:
        line = file.readline()
        if line.endswith("\n"):
            yield rest + line
            rest = ""
        elif line:
            rest += line
        elif not follow:
            if rest:
                yield rest
            return
        elif stopped.wait(_FOLLOW_S):
            return
