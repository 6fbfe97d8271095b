"""Records of a Kafka topic, through the package ``confluent_kafka``."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import threading
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple, Union

from .._events import ErrorEvent, ResultEvent
from ._base import Adapter, Push, from_thread, item_of, record_of

logger = logging.getLogger("streaming_sentiment_pipeline")

#: How long the consumer waits for a record before it looks whether it is to stop, in seconds.
_POLL_S = 0.2
#: Errors of the consumer from which it recovers by itself: brokers that are away, a topic that does not exist yet.
_TRANSIENT = frozenset(("_ALL_BROKERS_DOWN", "_TRANSPORT", "_RESOLVE", "_TIMED_OUT", "_PARTITION_EOF", "UNKNOWN_TOPIC_OR_PART"))
#: How long the producer may take for what it holds at the end, in seconds.
_FLUSH_S = 10.0


class KafkaAdapter(Adapter):
    """Texts of a topic; their results are produced to another. A position is committed only after the results of every record up to it.
    A result that cannot be produced ends the adapter.

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
        self._positions = Positions()
        self._records: Dict[int, Tuple[Tuple[str, int], int, Any]] = {}
        common = {"bootstrap.servers": bootstrap_servers, **(settings or {})}
        if consumer is None:
            own = {"group.id": group_id, "enable.auto.commit": False, "auto.offset.reset": "earliest"}
            consumer = _client().Consumer({**own, **common})
            consumer.subscribe([topic], on_revoke=self._revoke, on_lost=self._revoke)
        if producer is None and output_topic is not None:
            producer = _client().Producer(common)
        self._consumer, self._producer = consumer, producer
        self._failure: Optional[Exception] = None

    async def run(self, push: Push) -> None:
        async for record in from_thread(self._poll):
            if self._failure is not None:
                # No position after that record can be committed.
                raise self._failure
            partition, offset = (record.topic(), record.partition()), record.offset()
            self._positions.add(partition, offset)
            # A tombstone has no value, and a blank record no text.
            value = record.value() or b""
            item = item_of(value.decode("utf-8", "replace"), self._text_field, self._id_field)
            if item is None:
                self._finish(partition, offset)
                continue
            if item.get("id") is None:
                item["id"] = f"{partition[0]}/{partition[1]}/{offset}"
            seq = await push(item)
            self._records[seq] = (partition, offset, record.key())

    async def deliver(self, event: Union[ResultEvent, ErrorEvent]) -> None:
        partition, offset, key = self._records.pop(event.seq)
        try:
            await self._produce(event, key)
        except Exception as error:
            self._failure = error
            raise
        self._finish(partition, offset)

    async def _produce(self, event: Union[ResultEvent, ErrorEvent], key: Any) -> None:
        if self._producer is not None and self._output_topic is not None:
            value = json.dumps(record_of(event), ensure_ascii=False).encode()
            reports: List[Any] = []
            self._producer.produce(self._output_topic, value, key, on_delivery=lambda error, _: reports.append(error))
            # The producer calls back while it is polled.
            loop = asyncio.get_running_loop()
            while not reports:
                await loop.run_in_executor(None, self._producer.poll, _POLL_S)
            if reports[0] is not None:
                # Not committed: the next start reads the record again.
                raise ConnectionError(f"the result was not produced: {reports[0]}")

    def _finish(self, partition: Tuple[str, int], offset: int) -> None:
        self._positions.finish(partition, offset)

    def _commit(self, positions: Dict[Tuple[str, int], int], asynchronous: bool) -> None:
        # Only where the consumer is polled: a commit in another thread waits for the end of the poll.
        if positions:
            offsets = [_client_partition(partition, position) for partition, position in positions.items()]
            self._consumer.commit(offsets=offsets, asynchronous=asynchronous)

    def _revoke(self, consumer: Any, partitions: List[Any]) -> None:
        """Partitions belong to another consumer, which reads from the committed position; called while the consumer is polled."""
        revoked = [(partition.topic, partition.partition) for partition in partitions]
        positions = self._positions.take_advanced(revoked)
        for partition in revoked:
            self._positions.forget(partition)
        try:
            self._commit(positions, asynchronous=False)
        except Exception as error:  # noqa: B902 - the next consumer reads these records again
            logger.warning("positions of revoked partitions are not committed: %s", error)

    async def close(self) -> None:
        def close() -> None:
            if self._producer is not None:
                self._producer.flush(_FLUSH_S)
            try:
                self._commit(self._positions.take_advanced(), asynchronous=False)
            finally:
                self._consumer.close()

        await asyncio.get_running_loop().run_in_executor(None, close)

    def _poll(self, stopped: threading.Event) -> Iterator[Any]:
        while not stopped.is_set():
            record = self._consumer.poll(_POLL_S)
            self._commit(self._positions.take_advanced(), asynchronous=True)
            if record is None:
                continue
            error = record.error()
            if error is not None:
                if error.fatal() or not (error.retriable() or error.name() in _TRANSIENT):
                    raise ConnectionError(f"the consumer has failed: {error}")
                continue
            yield record


class Positions:
    """The position of each partition up to which every record is finished. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: Dict[Tuple[str, int], List[int]] = {}
        self._finished: Dict[Tuple[str, int], set] = {}  # type: ignore[type-arg]
        self._advanced: Dict[Tuple[str, int], int] = {}

    def add(self, partition: Tuple[str, int], offset: int) -> None:
        """A record was read."""
        with self._lock:
            self._open.setdefault(partition, []).append(offset)

    def finish(self, partition: Tuple[str, int], offset: int) -> None:
        """A record is finished."""
        with self._lock:
            open = self._open.get(partition)
            if not open or offset < open[0]:
                # The partition was revoked after the record was read.
                return
            finished = self._finished.setdefault(partition, set())
            finished.add(offset)
            while open and open[0] in finished:
                first = open.pop(0)
                finished.remove(first)
                self._advanced[partition] = first + 1

    def take_advanced(self, partitions: Optional[Iterable[Tuple[str, int]]] = None) -> Dict[Tuple[str, int], int]:
        """The positions to commit that have moved since the last call, of some partitions or of all: offsets of the next records."""
        with self._lock:
            taken = list(self._advanced if partitions is None else partitions)
            return {partition: self._advanced.pop(partition) for partition in taken if partition in self._advanced}

    def forget(self, partition: Tuple[str, int]) -> None:
        """The partition was revoked: records of it that were read are not committed."""
        with self._lock:
            self._open.pop(partition, None)
            self._finished.pop(partition, None)
            self._advanced.pop(partition, None)


def _client() -> Any:
    try:
        return importlib.import_module("confluent_kafka")
    except ImportError as error:
        raise ImportError("KafkaAdapter needs confluent_kafka: pip install weir-stream[kafka]") from error


def _client_partition(partition: Tuple[str, int], position: int) -> Any:
    return _client().TopicPartition(partition[0], partition[1], position)
