"""Messages of a WebSocket as items."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import ssl
import struct
import urllib.parse
from typing import Any, AsyncIterator, Coroutine, Dict, Mapping, Optional, Tuple, Union

from .._events import ErrorEvent, ResultEvent
from ._base import Adapter, Push, delay_s, item_of, record_of

#: The longest message, in bytes.
_MESSAGE_BYTES_MAX = 1 << 20
#: Timeout of a connection attempt and its handshake, in seconds.
_CONNECT_S = 30.0
#: The time without a frame after which the adapter sends a ping, and after which again it ends the connection, in seconds.
_HEARTBEAT_S = 30.0
#: The longest wait for the last messages to be sent when the adapter closes, in seconds.
_CLOSE_S = 5.0
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#: A frame: whether it is the last of its message, its opcode, its payload.
_Frame = Tuple[bool, int, bytes]
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10


class WebSocketAdapter(Adapter):
    """Texts from the messages of a WebSocket; their results are sent back as JSON.

    Args:
        url: a server that sends texts, ``ws://`` or ``wss://``.
        text_field: the member of a JSON message with the text; another message is the text.
        id_field: the member with the id.
        reply: send results back.
        headers: further headers of the request.
        token: a bearer token.
        attempts_max: consecutive connections that may fail.
        heartbeat_s: the time without a frame after which a ping is sent, and the time in which it has to be answered.
    """

    def __init__(
        self,
        url: str,
        *,
        text_field: str = "text",
        id_field: str = "id",
        reply: bool = True,
        headers: Optional[Mapping[str, str]] = None,
        token: Optional[str] = None,
        attempts_max: int = 5,
        heartbeat_s: float = _HEARTBEAT_S,
    ) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("ws", "wss"):
            raise ValueError(f"{url!r} is not ws:// or wss://")
        self._url, self._text_field, self._id_field, self._reply = url, text_field, id_field, reply
        self._headers = dict(headers or {})
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        if not heartbeat_s > 0:
            raise ValueError("heartbeat_s is not positive")
        self._attempts_max, self._heartbeat_s = attempts_max, heartbeat_s
        self._socket: Optional[WebSocket] = None

    async def run(self, push: Push) -> None:
        failures = 0
        while True:
            try:
                self._socket = await asyncio.wait_for(WebSocket.connect(self._url, self._headers), _CONNECT_S)
                async for message in self._socket.messages(self._heartbeat_s):
                    failures = 0
                    item = item_of(message, self._text_field, self._id_field)
                    if item is not None:
                        await push(item)
                # The server has ended the messages. Results are sent as long as it reads.
                return
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.TimeoutError) as error:
                failures += 1
                if self._socket is not None:
                    self._socket.abort()
                    self._socket = None
                if failures > self._attempts_max:
                    raise ConnectionError(f"{self._url}: {str(error) or 'no response'} (after {failures} attempts)") from error
                await asyncio.sleep(delay_s(0.5, failures))

    async def deliver(self, event: Union[ResultEvent, ErrorEvent]) -> None:
        if self._reply and self._socket is not None:
            await self._socket.send(json.dumps(record_of(event), ensure_ascii=False))

    async def close(self) -> None:
        if self._socket is not None:
            await self._socket.close()


class WebSocket:
    """A client of a WebSocket (RFC 6455), without extensions."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._is_closed = False

    @classmethod
    async def connect(cls, url: str, headers: Mapping[str, str]) -> "WebSocket":
        """Opens a connection.

        Raises:
            ConnectionError: the server refuses the handshake.
        """
        parts = urllib.parse.urlsplit(url)
        is_secure = parts.scheme == "wss"
        port = parts.port or (443 if is_secure else 80)
        context = ssl.create_default_context() if is_secure else None
        reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context)
        try:
            key = base64.b64encode(os.urandom(16))
            target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
            lines = [f"GET {target} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}", "Upgrade: websocket"]
            lines += ["Connection: Upgrade", f"Sec-WebSocket-Key: {key.decode()}", "Sec-WebSocket-Version: 13"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            if head[0].split(" ")[1:2] != ["101"]:
                raise ConnectionError(f"the server answers {head[0]}")
            answer: Dict[str, str] = {}
            for line in head[1:]:
                name, _, value = line.partition(":")
                answer[name.strip().lower()] = value.strip()
            accept = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()
            if answer.get("sec-websocket-accept") != accept:
                raise ConnectionError("the response does not have the key of the request")
        except BaseException:
            writer.close()
            raise
        return cls(reader, writer)

    async def messages(self, heartbeat_s: float) -> AsyncIterator[str]:
        """The messages, until the server closes.

        Raises:
            ConnectionError: the server sends nothing, also after a ping.
        """
        parts = bytearray()
        while True:
            frame = self._frame(_MESSAGE_BYTES_MAX - len(parts))
            is_last, kind, payload = await self._with_heartbeat(frame, heartbeat_s)
            if kind == _CLOSE:
                await self._write(_CLOSE, payload[:2])
                self._is_closed = True
                return
            if kind == _PING:
                await self._write(_PONG, payload)
            elif kind in (_CONTINUATION, _TEXT, _BINARY):
                parts += payload
                if is_last:
                    yield parts.decode("utf-8", "replace")
                    parts = bytearray()

    async def _with_heartbeat(self, frame: Coroutine[Any, Any, _Frame], heartbeat_s: float) -> _Frame:
        # A task, since a cancelled read would lose the part of the frame that it has read.
        reading = asyncio.ensure_future(frame)
        try:
            for is_answered in (True, False):
                await asyncio.wait({reading}, timeout=heartbeat_s)
                if reading.done():
                    return reading.result()
                if is_answered:
                    await asyncio.wait_for(self._write(_PING, b""), heartbeat_s)
            raise ConnectionError(f"nothing received for {2 * heartbeat_s:g} s")
        finally:
            reading.cancel()

    async def _frame(self, bytes_max: int) -> _Frame:
        first, second = await self._reader.readexactly(2)
        length = second & 127
        if length == 126:
            (length,) = struct.unpack("!H", await self._reader.readexactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", await self._reader.readexactly(8))
        if length > bytes_max:
            raise ConnectionError(f"a message has more than {_MESSAGE_BYTES_MAX} bytes")
        return bool(first & 128), first & 15, await self._reader.readexactly(length)

    async def send(self, message: str) -> None:
        """Sends a message; dropped when the connection is closed."""
        if not self._is_closed:
            await self._write(_TEXT, message.encode())

    async def _write(self, kind: int, payload: bytes) -> None:
        length = len(payload)
        head = bytearray([128 | kind])
        if length < 126:
            head.append(128 | length)
        elif length < 1 << 16:
            head += struct.pack("!BH", 128 | 126, length)
        else:
            head += struct.pack("!BQ", 128 | 127, length)
        mask = os.urandom(4)
        repeated = (mask * (length // 4 + 1))[:length]
        masked = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
        self._writer.write(bytes(head) + mask + masked.to_bytes(length, "big"))
        await self._writer.drain()

    async def close(self) -> None:
        """Closes the connection."""
        if not self._is_closed:
            self._is_closed = True
            try:
                await asyncio.wait_for(self._write(_CLOSE, struct.pack("!H", 1000)), _CLOSE_S)
            except (OSError, asyncio.TimeoutError):
                # The server has gone, or does not read.
                pass
        self._writer.close()

    def abort(self) -> None:
        """Closes a connection that has failed."""
        self._is_closed = True
        self._writer.close()
