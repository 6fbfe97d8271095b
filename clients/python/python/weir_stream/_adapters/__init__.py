"""Sources of items, which may also take the results: files, server-sent events, WebSockets, Kafka."""

from ._base import Adapter, Push
from ._file import FileAdapter
from ._kafka import KafkaAdapter
from ._sse import HttpSseAdapter
from ._websocket import WebSocketAdapter

__all__ = ["Adapter", "FileAdapter", "HttpSseAdapter", "KafkaAdapter", "Push", "WebSocketAdapter"]
