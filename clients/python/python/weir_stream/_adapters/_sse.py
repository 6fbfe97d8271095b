"""Server-sent events of another server as items."""

from __future__ import annotations

import http.client
import random
import threading
import urllib.parse
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple, Union

from ._base import Adapter, Push, delay_s, from_thread, item_of

#: The longest line of a stream, in bytes.
LINE_BYTES_MAX = 1 << 20
#: The longest data of an event, in characters.
_EVENT_CHARS_MAX = 16 << 20
#: The longest id that is sent to resume, in bytes, and the most digits of a reconnection time: others have no effect.
_ID_BYTES_MAX = 4096
_RETRY_DIGITS_MAX = 15


class HttpSseAdapter(Adapter):
    """Texts from a stream of server-sent events. After a lost connection it resumes at the last id. Results go to the callbacks.

    Args:
        url: the stream.
        events: the types of the events that are read; ``None``: all.
        text_field: the member of the data with the text; data that is not JSON is the text.
        id_field: the member with the id; else the id of the event.
        headers: further headers of the request.
        token: a bearer token.
        attempts_max: consecutive connections that may fail.
        timeout_s: the longest time without data, comments included, in seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        events: Optional[List[str]] = None,
        text_field: str = "text",
        id_field: str = "id",
        headers: Optional[Mapping[str, str]] = None,
        token: Optional[str] = None,
        attempts_max: int = 5,
        timeout_s: float = 60.0,
    ) -> None:
        self._url, self._types = url, None if events is None else set(events)
        self._text_field, self._id_field = text_field, id_field
        self._headers = dict(headers or {}, Accept="text/event-stream")
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._attempts_max, self._timeout_s = attempts_max, timeout_s
        #: The id of the last event.
        self.last_event_id: Optional[str] = None

    async def run(self, push: Push) -> None:
        async for item in from_thread(self._items):
            await push(item)

    def _items(self, stopped: threading.Event) -> Iterator[Dict[str, Any]]:
        parser = SseParser()
        failures = 0
        while not stopped.is_set():
            try:
                for kind, data, event_id in self._connect(parser, stopped):
                    failures = 0
                    if event_id and is_sendable(event_id):
                        self.last_event_id = event_id
                    if self._types is not None and kind not in self._types:
                        continue
                    item = item_of(data, self._text_field, self._id_field)
                    if item is not None:
                        if item.get("id") is None:
                            item["id"] = event_id
                        yield item
                if self._is_over:
                    return
                error: Exception = ConnectionError("the stream ended")
            except (OSError, http.client.HTTPException) as failed:
                error = failed
            failures += 1
            if failures > self._attempts_max:
                raise ConnectionError(f"{self._url}: {error} (after {failures} attempts)") from error
            base = parser.retry_ms / 1000 if parser.retry_ms is not None else 1.0
            stopped.wait(delay_s(base, failures) * random.uniform(0.5, 1.0))

    _is_over = False

    def _connect(self, parser: "SseParser", stopped: threading.Event) -> Iterator[Tuple[str, str, Optional[str]]]:
        parts = urllib.parse.urlsplit(self._url)
        kind: Callable[..., http.client.HTTPConnection] = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        connection = kind(parts.hostname or "", parts.port, timeout=self._timeout_s)
        try:
            headers: Dict[str, Union[str, bytes]] = dict(self._headers)
            if self.last_event_id is not None:
                headers["Last-Event-ID"] = self.last_event_id.encode()
            connection.request("GET", urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, "")), headers=headers)
            response = connection.getresponse()
            if response.status == 204:
                # The server ends the stream.
                self._is_over = True
                return
            if response.status != 200:
                raise ConnectionError(f"the server answers {response.status} {response.reason}")
            parser.reset()
            while not stopped.is_set():
                line = response.readline(LINE_BYTES_MAX + 1)
                if len(line) > LINE_BYTES_MAX:
                    raise ConnectionError(f"a line has more than {LINE_BYTES_MAX} bytes")
                if not line:
                    return
                for one in lines_of(line):
                    event = parser.feed(one)
                    if event is not None:
                        yield event
        finally:
            connection.close()


def is_sendable(event_id: str) -> bool:
    """Whether an id can be sent in the header ``Last-Event-ID``. Another one leaves the stream at the event before."""
    has_control = any(char < " " and char != "\t" or char == "\x7f" for char in event_id)
    return not has_control and len(event_id.encode()) <= _ID_BYTES_MAX


def lines_of(line: bytes) -> List[str]:
    """The lines of bytes up to a line feed: a carriage return ends one as well."""
    text = line.decode("utf-8", "replace")
    text = text[:-1] if text.endswith("\n") else text
    return (text[:-1] if text.endswith("\r") else text).split("\r")


class SseParser:
    """Parses the lines of a stream into events, by the rules of the HTML standard."""

    def __init__(self) -> None:
        self.retry_ms: Optional[int] = None
        self.reset()

    def reset(self) -> None:
        """Begins another stream: drops an incomplete event."""
        self._is_first_line = True
        self._data: List[str] = []
        self._chars = 0
        self._kind = ""
        self._id: Optional[str] = None

    def feed(self, line: str) -> Optional[Tuple[str, str, Optional[str]]]:
        """Takes a line without its end; returns the event ``(type, data, id)`` that it completes.

        Raises:
            ConnectionError: the data of the event is too long.
        """
        if self._is_first_line:
            self._is_first_line = False
            line = line[1:] if line.startswith("\ufeff") else line
        if not line:
            data, kind, event_id = self._data, self._kind, self._id
            self._data, self._kind, self._chars = [], "", 0
            return (kind or "message", "\n".join(data), event_id) if data else None
        name, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if name == "data":
            self._chars += len(value)
            if self._chars > _EVENT_CHARS_MAX:
                raise ConnectionError(f"an event has more than {_EVENT_CHARS_MAX} characters")
            self._data.append(value)
        elif name == "event":
            self._kind = value
        elif name == "id" and "\0" not in value:
            self._id = value
        elif name == "retry" and value.isascii() and value.isdigit() and len(value) <= _RETRY_DIGITS_MAX:
            self.retry_ms = int(value)
        return None
