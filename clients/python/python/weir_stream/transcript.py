"""Transcript sessions: chunks of a speech recognizer in, segments out, with keywords and intents.

Names and rules are those of the streaming module of slower-whisper. The state machine is that of Weir's transcript sessions, so the events are
the same. No model and no event loop are needed.

>>> session = StreamingSession(StreamConfig(max_gap_sec=1.0))
>>> events = session.ingest_chunk({"start": 0.0, "end": 1.0, "text": "can you send", "speaker_id": None})
>>> [(event.type.value, event.segment.text) for event in events]
[('partial_segment', 'can you send')]
>>> [(event.type.value, event.segment.text) for event in session.end_of_stream()]
[('final_segment', 'can you send')]
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Deque, Dict, List, Mapping, Optional, TypedDict, Union

from ._engine import Annotator as _Annotator
from ._engine import Session as _Session

__all__ = [
    "ContextWindow",
    "KeywordSemanticAnnotator",
    "SemanticConfig",
    "StreamChunk",
    "StreamConfig",
    "StreamEvent",
    "StreamEventType",
    "StreamSegment",
    "StreamingSession",
    "Transcript",
    "WorkflowType",
    "render_segment_for_llm",
    "route_to_workflow",
]


class StreamChunk(TypedDict):
    """A piece of a transcript, times in seconds."""

    start: float
    end: float
    text: str
    speaker_id: Optional[str]


@dataclass
class StreamSegment:
    """The speech of one speaker without a pause, times in seconds.

    Attributes:
        annotations: ``semantic`` if it was annotated.
    """

    start: float
    end: float
    text: str
    speaker_id: Optional[str] = None
    annotations: Dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


class StreamEventType(Enum):
    """The type of an event of a segment."""

    PARTIAL_SEGMENT = "partial_segment"
    """It may change with the next chunk."""
    FINAL_SEGMENT = "final_segment"
    """It does not change again."""


@dataclass
class StreamEvent:
    """An event of a session."""

    type: StreamEventType
    segment: StreamSegment


@dataclass
class StreamConfig:
    """The configuration of a session.

    Attributes:
        max_gap_sec: the longest pause of a speaker within a segment, in seconds.
    """

    max_gap_sec: float = 1.0


class StreamingSession:
    """Joins chunks to segments: a chunk of the same speaker within ``max_gap_sec`` extends the segment, else a new one begins."""

    def __init__(self, config: Optional[StreamConfig] = None) -> None:
        self.config = config if config is not None else StreamConfig()
        self._session = _Session(self.config.max_gap_sec)

    def ingest_chunk(self, chunk: Union[StreamChunk, Mapping[str, Any]]) -> List[StreamEvent]:
        """Takes a chunk; returns its events: a final segment if one was closed, and the partial one.

        Raises:
            ValueError: it ends before it starts, or starts before the segment in flight ends; nothing has changed.
        """
        start, end = float(chunk["start"]), float(chunk["end"])
        return _events(self._session.ingest(start, end, chunk["text"], chunk.get("speaker_id")))

    def end_of_stream(self) -> List[StreamEvent]:
        """The segment in flight becomes final. The session then takes chunks of any time."""
        return _events(self._session.end())


def _events(events: List[Any]) -> List[StreamEvent]:
    types = (StreamEventType.PARTIAL_SEGMENT, StreamEventType.FINAL_SEGMENT)
    return [StreamEvent(types[is_final], StreamSegment(*segment)) for is_final, *segment in events]


@dataclass
class SemanticConfig:
    """The parts of an annotation."""

    enable_keywords: bool = True
    enable_intent: bool = True


@dataclass
class Transcript:
    """Segments of a recording."""

    file_name: str
    language: str
    segments: List[StreamSegment]
    meta: Dict[str, Any] = field(default_factory=dict)


class KeywordSemanticAnnotator:
    """Finds keywords, risks, actions and intents by fixed rules, the same every time."""

    def __init__(self, config: Optional[SemanticConfig] = None) -> None:
        self.config = config if config is not None else SemanticConfig()
        self._annotator = _Annotator()

    def extract_keywords(self, text: str) -> List[str]:
        """The keywords of a text, sorted, each once; none if ``enable_keywords`` is off."""
        return list(self._annotator.annotate(text)["keywords"]) if self.config.enable_keywords else []

    def classify_intent(self, text: str) -> str:
        """``question``, ``clarification``, ``action_item``, ``commitment``, ``decision``, ``agreement`` or ``general``."""
        return str(self._annotator.annotate(text)["intent"]) if self.config.enable_intent else "general"

    def semantic(self, text: str, segment_id: int = 0, speaker_id: Optional[str] = None) -> Dict[str, Any]:
        """The annotation of a text: ``keywords``, ``risk_tags``, ``actions``, ``tags``, and ``matches`` if there are any."""
        found = self._annotator.annotate(text)
        actions = []
        if found["action"] is not None:
            action, pattern = found["action"]
            actions.append({"text": action, "speaker_id": speaker_id, "segment_ids": [segment_id], "pattern": pattern})
        semantic = {
            "keywords": list(found["keywords"]),
            "risk_tags": list(found["risk_tags"]),
            "actions": actions,
            "tags": list(found["risk_tags"]),
        }
        if found["matches"]:
            semantic["matches"] = [
                {"risk": risk, "keyword": keyword, "segment_id": segment_id} for risk, keyword in found["matches"]
            ]
        return semantic

    def annotate(self, transcript: Transcript) -> Transcript:
        """Stores the annotation of each segment in ``annotations["semantic"]``; with ``enable_intent`` it has ``intent``."""
        for index, segment in enumerate(transcript.segments):
            semantic = self.semantic(segment.text, index, segment.speaker_id)
            if self.config.enable_intent:
                semantic["intent"] = self.classify_intent(segment.text)
            segment.annotations["semantic"] = semantic
        return transcript


class WorkflowType(Enum):
    """The workflow of a segment."""

    QUESTION = "question"
    ACTION_ITEM = "action_item"
    DECISION = "decision"
    GENERAL = "general"


_WORKFLOWS = {
    "question": WorkflowType.QUESTION,
    "clarification": WorkflowType.QUESTION,
    "action_item": WorkflowType.ACTION_ITEM,
    "commitment": WorkflowType.ACTION_ITEM,
    "decision": WorkflowType.DECISION,
    "agreement": WorkflowType.DECISION,
}


def route_to_workflow(intent: str) -> WorkflowType:
    """The workflow of an intent."""
    return _WORKFLOWS.get(intent, WorkflowType.GENERAL)


def render_segment_for_llm(segment: Union[StreamSegment, Mapping[str, Any]]) -> str:
    """A segment as text for a language model: ``[1.5s] Unknown: text``."""
    values = segment.__dict__ if isinstance(segment, StreamSegment) else segment
    return f"[{values['start']:.1f}s] {values.get('speaker_id') or 'Unknown'}: {values['text']}"


@dataclass
class ContextWindow:
    """A rolling window of final segments for a language model.

    Attributes:
        max_segments: the most segments in it.
        max_time_sec: a segment is removed when it ended at least this number of seconds before the latest one.
        segments: mappings with ``start``, ``end``, ``text``, ``speaker_id`` and perhaps ``keywords``, the oldest first.
    """

    max_segments: int = 10
    max_time_sec: float = 120.0
    segments: Deque[Mapping[str, Any]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.segments = deque(self.segments, maxlen=max(self.max_segments, 1))

    def add(self, segment: Union[StreamSegment, Mapping[str, Any]]) -> None:
        """Adds a segment, and removes those that are too old."""
        self.segments.append(segment.__dict__ if isinstance(segment, StreamSegment) else segment)
        latest_end = self.segments[-1]["end"]
        while latest_end - self.segments[0]["end"] > self.max_time_sec:
            self.segments.popleft()

    def render_for_llm(self) -> str:
        """The window as text for a language model; empty without segments."""
        if not self.segments:
            return ""
        return "\n".join(["Recent conversation context:", *map(render_segment_for_llm, self.segments)])

    def get_keywords(self) -> List[str]:
        """The keywords of all segments, sorted, each once."""
        return sorted({keyword for segment in self.segments for keyword in segment.get("keywords", ())})
