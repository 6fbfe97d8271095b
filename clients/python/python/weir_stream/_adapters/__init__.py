"""Sources of items that get the results: files, Server-Sent Events, WebSockets, Kafka."""

from ._base import Adapter, Push
from ._file import FileAdapter
from ._kafka import KafkaAdapter
from ._sse import HttpSseAdapter
from ._websocket import WebSocketAdapter

__all__ = ["Adapter", "FileAdapter", "HttpSseAdapter", "KafkaAdapter", "Push", "WebSocketAdapter"]
