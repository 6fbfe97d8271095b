"""A client of a Weir server: JSON over HTTP, with the standard library."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.parse
from typing import Any, Callable, Dict, Iterator, Optional

from ._adapters._sse import SseParser, lines_of
from ._errors import ServerError

#: The longest time without data of a response, in seconds.
_TIMEOUT_S = 120.0


class _Connection:
    """Closes a connection when its thread ends or its client is dropped."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self.http = connection

    def __del__(self) -> None:
        self.http.close()


class Client:
    """Requests to one server. Each thread has its own connection, which is reused."""

    def __init__(self, base_url: str, token: Optional[str] = None) -> None:
        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base_url {base_url!r} is not http://HOST:PORT or https://HOST")
        self._host, self._port, self._prefix = parts.hostname, parts.port, parts.path.rstrip("/")
        self._kind: Callable[..., http.client.HTTPConnection] = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._headers = {"Accept": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._threads = threading.local()

    def json(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of a response.

        Raises:
            ServerError: the server cannot be reached, or answers with a problem.
        """
        response = self._send(method, path, body, {})
        content = response.read()
        if response.status >= 300:
            raise _problem(response, content)
        try:
            return json.loads(content)
        except ValueError as error:
            raise ServerError(f"the response of {path} is not JSON", status=response.status, retryable=False) from error

    def events(self, path: str, body: Any) -> Iterator[str]:
        """The data of the server-sent events of a response."""
        response = self._send("POST", path, body, {"Accept": "text/event-stream"})
        if response.status >= 300:
            raise _problem(response, response.read())
        parser = SseParser()
        try:
            while True:
                line = response.readline()
                if not line:
                    return
                for one in lines_of(line):
                    event = parser.feed(one)
                    if event is not None:
                        yield event[1]
        finally:
            # The rest of the response may be unread.
            self._drop()

    def _send(self, method: str, path: str, body: Any, headers: Dict[str, str]) -> http.client.HTTPResponse:
        content = None if body is None else json.dumps(body).encode()
        headers = {**self._headers, **headers}
        if content is not None:
            headers["Content-Type"] = "application/json"
        is_kept = getattr(self._threads, "connection", None) is not None
        try:
            return self._exchange(method, path, content, headers)
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            # A server closes an idle connection.
            if is_kept:
                try:
                    return self._exchange(method, path, content, headers)
                except (OSError, http.client.HTTPException) as again:
                    self._drop()
                    error = again
            raise ServerError(f"{self._host}:{self._port or ''} cannot be reached: {error}") from error

    def _exchange(
        self, method: str, path: str, content: Optional[bytes], headers: Dict[str, str]
    ) -> http.client.HTTPResponse:
        kept: Optional[_Connection] = getattr(self._threads, "connection", None)
        if kept is None:
            kept = _Connection(self._kind(self._host, self._port, timeout=_TIMEOUT_S))
            self._threads.connection = kept
        kept.http.request(method, self._prefix + path, content, headers)
        response: http.client.HTTPResponse = kept.http.getresponse()
        return response

    def _drop(self) -> None:
        kept: Optional[_Connection] = getattr(self._threads, "connection", None)
        self._threads.connection = None
        if kept is not None:
            kept.http.close()


def _problem(response: http.client.HTTPResponse, content: bytes) -> ServerError:
    """The problem of a response (RFC 9457)."""
    try:
        problem = json.loads(content)
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    detail = problem.get("detail") or problem.get("title") or response.reason
    errors = problem.get("errors")
    if isinstance(errors, list) and errors:
        detail = "; ".join([detail, *(str(error.get("message", error)) for error in errors if isinstance(error, dict))])
    return ServerError(
        f"{response.status}: {detail}",
        status=response.status,
        code=str(problem.get("code", f"http_{response.status}")),
        retryable=bool(problem.get("retryable", response.status in (429, 502, 503, 504))),
        retry_after_ms=problem.get("retry_after_ms"),
    )
