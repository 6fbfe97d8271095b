"""Records of a Kafka topic, through the package ``confluent_kafka``."""

from __future__ import annotations

import asyncio
import importlib
import json
import threading
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple, Union

from .._events import ErrorEvent, ResultEvent
from ._base import Adapter, Push, from_thread, item_of, record_of

#: How long the consumer waits for a record before it looks whether it is to stop, in seconds.
_POLL_S = 0.2
#: How long the producer may take for what it holds at the end, in seconds.
_FLUSH_S = 10.0


class KafkaAdapter(Adapter):
    """Texts of a topic; their results are produced to another. A position is committed only after the results of every record up to it.

    Args:
        topic: the topic with the texts.
        bootstrap_servers: brokers, ``HOST:PORT`` separated by commas.
        group_id: the consumer group.
        output_topic: the topic for results, as JSON with the key of the record; ``None``: results go to the callbacks only.
        text_field: the member of a JSON record with the text; another record is the text.
        id_field: the member with the id; else the position ``TOPIC/PARTITION/OFFSET``.
        settings: further settings of the client.
        consumer: a consumer of ``confluent_kafka`` that is subscribed; ``None``: one is made.
        producer: a producer of ``confluent_kafka``; ``None``: one is made.
    """

    def __init__(
        self,
        topic: str,
        bootstrap_servers: str = "localhost:9092",
        group_id: str = "weir",
        *,
        output_topic: Optional[str] = None,
        text_field: str = "text",
        id_field: str = "id",
        settings: Optional[Mapping[str, Any]] = None,
        consumer: Any = None,
        producer: Any = None,
    ) -> None:
        self._output_topic, self._text_field, self._id_field = output_topic, text_field, id_field
        common = {"bootstrap.servers": bootstrap_servers, **(settings or {})}
        if consumer is None:
            own = {"group.id": group_id, "enable.auto.commit": False, "auto.offset.reset": "earliest"}
            consumer = _client().Consumer({**own, **common})
            consumer.subscribe([topic])
        if producer is None and output_topic is not None:
            producer = _client().Producer(common)
        self._consumer, self._producer = consumer, producer
        self._positions = Positions()
        self._records: Dict[int, Tuple[Tuple[str, int], int, Any]] = {}

    async def run(self, push: Push) -> None:
        async for record in from_thread(self._poll):
            partition, offset = (record.topic(), record.partition()), record.offset()
            self._positions.add(partition, offset)
            item = item_of(record.value().decode("utf-8", "replace"), self._text_field, self._id_field)
            if item is None:
                self._finish(partition, offset)
                continue
            if item.get("id") is None:
                item["id"] = f"{partition[0]}/{partition[1]}/{offset}"
            seq = await push(item)
            self._records[seq] = (partition, offset, record.key())

    async def deliver(self, event: Union[ResultEvent, ErrorEvent]) -> None:
        partition, offset, key = self._records.pop(event.seq)
        if self._producer is not None and self._output_topic is not None:
            value = json.dumps(record_of(event), ensure_ascii=False).encode()
            reports: List[Any] = []
            self._producer.produce(self._output_topic, value, key, on_delivery=lambda error, _: reports.append(error))
            # The producer calls back while it is polled.
            loop = asyncio.get_running_loop()
            while not reports:
                await loop.run_in_executor(None, self._producer.poll, _POLL_S)
            if reports[0] is not None:
                # Not committed: the record is read again.
                raise ConnectionError(f"the result was not produced: {reports[0]}")
        self._finish(partition, offset)

    def _finish(self, partition: Tuple[str, int], offset: int) -> None:
        position = self._positions.finish(partition, offset)
        if position is not None:
            topics = [_client_partition(partition, position)]
            self._consumer.commit(offsets=topics, asynchronous=True)

    async def close(self) -> None:
        def close() -> None:
            if self._producer is not None:
                self._producer.flush(_FLUSH_S)
            self._consumer.close()

        await asyncio.get_running_loop().run_in_executor(None, close)

    def _poll(self, stopped: threading.Event) -> Iterator[Any]:
        while not stopped.is_set():
            record = self._consumer.poll(_POLL_S)
            if record is None:
                continue
            error = record.error()
            if error is not None:
                if error.retriable():
                    continue
                raise ConnectionError(f"the consumer has failed: {error}")
            yield record


class Positions:
    """The position of each partition up to which every record is finished."""

    def __init__(self) -> None:
        self._open: Dict[Tuple[str, int], List[int]] = {}
        self._finished: Dict[Tuple[str, int], set] = {}  # type: ignore[type-arg]

    def add(self, partition: Tuple[str, int], offset: int) -> None:
        """A record was read."""
        self._open.setdefault(partition, []).append(offset)

    def finish(self, partition: Tuple[str, int], offset: int) -> Optional[int]:
        """A record is finished; returns the position to commit if it has moved: the offset of the next record."""
        open, finished = self._open[partition], self._finished.setdefault(partition, set())
        finished.add(offset)
        position = None
        while open and open[0] in finished:
            first = open.pop(0)
            finished.remove(first)
            position = first + 1
        return position


def _client() -> Any:
    try:
        return importlib.import_module("confluent_kafka")
    except ImportError as error:
        raise ImportError("KafkaAdapter needs confluent_kafka: pip install weir-stream[kafka]") from error


def _client_partition(partition: Tuple[str, int], position: int) -> Any:
    return _client().TopicPartition(partition[0], partition[1], position)
