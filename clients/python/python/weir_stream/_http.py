"""A client of a Weir server: JSON over HTTP, with the standard library."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import urllib.parse
from typing import Any, Callable, Dict, Iterator, Optional

from ._adapters._sse import LINE_BYTES_MAX, SseParser, lines_of
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
            ServerError: the server cannot be reached, answers with a problem, or the response is cut off.
        """
        response = self._send(method, path, body, {})
        content = self._read(response)
        if response.status >= 300:
            raise _problem(response, content)
        try:
            return json.loads(content)
        except ValueError as error:
            raise ServerError(f"the response of {path} is not JSON", status=response.status, retryable=False) from error

    def events(self, path: str, body: Any) -> Iterator[str]:
        """The data of the server-sent events of a response.

        Raises:
            ServerError: the server cannot be reached, answers with a problem, or the response is cut off.
        """
        response = self._send("POST", path, body, {"Accept": "text/event-stream"})
        if response.status >= 300:
            raise _problem(response, self._read(response))
        parser = SseParser()
        try:
            while True:
                try:
                    line = response.readline(LINE_BYTES_MAX + 1)
                except (OSError, http.client.HTTPException) as error:
                    raise _cut_off(error) from error
                if len(line) > LINE_BYTES_MAX:
                    raise ServerError(f"a line of {path} has more than {LINE_BYTES_MAX} bytes", retryable=False)
                if not line:
                    return
                for one in lines_of(line):
                    event = parser.feed(one)
                    if event is not None:
                        yield event[1]
        finally:
            # The rest of the response may be unread.
            self._drop()

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            raise _cut_off(error) from error

    def _send(self, method: str, path: str, body: Any, headers: Dict[str, str]) -> http.client.HTTPResponse:
        content = None if body is None else json.dumps(body).encode()
        headers = {**self._headers, **headers}
        if content is not None:
            headers["Content-Type"] = "application/json"
        is_reused = getattr(self._threads, "connection", None) is not None
        try:
            return self._exchange(method, path, content, headers)
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            # A server closes an idle connection. One that is silent may be computing, so the request is not repeated.
            if is_reused and not isinstance(error, socket.timeout):
                try:
                    return self._exchange(method, path, content, headers)
                except (OSError, http.client.HTTPException) as again:
                    self._drop()
                    error = again
            raise ServerError(f"{self._host}:{self._port or ''} cannot be reached: {error}") from error

    def _exchange(
        self, method: str, path: str, content: Optional[bytes], headers: Dict[str, str]
    ) -> http.client.HTTPResponse:
        connection: Optional[_Connection] = getattr(self._threads, "connection", None)
        if connection is None:
            connection = _Connection(self._kind(self._host, self._port, timeout=_TIMEOUT_S))
            self._threads.connection = connection
        connection.http.request(method, self._prefix + path, content, headers)
        response: http.client.HTTPResponse = connection.http.getresponse()
        return response

    def _drop(self) -> None:
        connection: Optional[_Connection] = getattr(self._threads, "connection", None)
        self._threads.connection = None
        if connection is not None:
            connection.http.close()


def _cut_off(error: Exception) -> ServerError:
    """The error of a response that has begun."""
    return ServerError(f"the response was cut off: {error}", code="cut_off")


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
