"""Transcript sessions against the vectors of slower-whisper (tests/golden)."""

from __future__ import annotations

import doctest
import json
import unittest
from pathlib import Path
from typing import Any, Dict, List

from weir_stream import transcript
from weir_stream.transcript import (
    ContextWindow,
    KeywordSemanticAnnotator,
    SemanticConfig,
    StreamConfig,
    StreamEvent,
    StreamEventType,
    StreamingSession,
    StreamSegment,
    Transcript,
    WorkflowType,
    render_segment_for_llm,
    route_to_workflow,
)

GOLDEN = Path(__file__).resolve().parents[3] / "tests" / "golden"


def vectors(name: str) -> List[Dict[str, Any]]:
    with open(GOLDEN / name, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def wire(event: StreamEvent) -> Dict[str, Any]:
    segment = event.segment
    fields = {"start": segment.start, "end": segment.end, "text": segment.text, "speaker_id": segment.speaker_id}
    return {"type": event.type.value, "segment": fields}


class Golden(unittest.TestCase):
    def test_sessions_agree_with_slower_whisper(self) -> None:
        events = refused = 0
        for vector in vectors("streaming_session.jsonl"):
            session = StreamingSession(StreamConfig(max_gap_sec=vector["max_gap_sec"]))
            for given, expected in zip(vector["input"], vector["output"]):
                try:
                    got: Any = session.end_of_stream() if given.get("op") == "end" else session.ingest_chunk(given)
                    got = [wire(event) for event in got]
                    events += len(got)
                except ValueError as error:
                    got = {"error": str(error)}
                    refused += 1
                self.assertEqual(got, expected)
        self.assertEqual((events, refused), (2185, 139))

    def test_context_windows_agree_with_slower_whisper(self) -> None:
        states = 0
        for vector in vectors("context_window.jsonl"):
            window = ContextWindow(vector["max_segments"], vector["max_time_sec"])
            for segment, expected in zip(vector["input"], vector["after_each"]):
                window.add(segment)
                self.assertEqual({"n": len(window.segments), "render": window.render_for_llm()}, expected)
                states += 1
        self.assertEqual(states, 721)

    def test_annotations_agree_but_for_the_documented_differences(self) -> None:
        annotator = KeywordSemanticAnnotator(SemanticConfig(enable_intent=False))
        different = []
        for vector in vectors("keyword_annotator.jsonl"):
            segment = StreamSegment(0.0, 1.0, vector["text"], "spk_0")
            annotated = annotator.annotate(Transcript("stream", "en", [segment]))
            got, expected = annotated.segments[0].annotations["semantic"], vector["semantic"]
            if got != expected:
                different.append(vector["text"])
                # Only actions differ: `ill` and `well` without an apostrophe, and curly apostrophes.
                self.assertEqual({**got, "actions": 0}, {**expected, "actions": 0})
        self.assertEqual(len(different), 15)
        self.assertIn("I feel ill today", different)


class Names(unittest.TestCase):
    def test_intents_lead_to_workflows(self) -> None:
        annotator = KeywordSemanticAnnotator(SemanticConfig(enable_keywords=True, enable_intent=True))
        self.assertEqual(annotator.classify_intent("What does it cost?"), "question")
        self.assertEqual(annotator.extract_keywords("the price, the manager's price"), ["manager", "price"])
        self.assertEqual(route_to_workflow("commitment"), WorkflowType.ACTION_ITEM)
        self.assertEqual(route_to_workflow("general"), WorkflowType.GENERAL)

    def test_pattern_of_the_context_runs(self) -> None:
        session, annotator, context = StreamingSession(), KeywordSemanticAnnotator(), ContextWindow(max_segments=15)
        chunks = [
            {"start": 0.0, "end": 1.0, "text": "the price is high", "speaker_id": "a"},
            {"start": 1.2, "end": 2.0, "text": "I will cancel", "speaker_id": "b"},
        ]
        events = [event for chunk in chunks for event in session.ingest_chunk(chunk)] + session.end_of_stream()
        for event in events:
            if event.type == StreamEventType.FINAL_SEGMENT:
                segment = event.segment
                context.add({**segment.__dict__, "keywords": annotator.extract_keywords(segment.text)})
        self.assertEqual(context.get_keywords(), ["cancel", "price"])
        self.assertEqual(
            context.render_for_llm(),
            "Recent conversation context:\n[0.0s] a: the price is high\n[1.2s] b: I will cancel",
        )
        self.assertEqual(render_segment_for_llm(StreamSegment(1.0, 2.0, "x")), "[1.0s] Unknown: x")

    def test_gap_that_is_no_number_is_refused(self) -> None:
        with self.assertRaisesRegex(ValueError, "max_gap_sec"):
            StreamingSession(StreamConfig(max_gap_sec=-1.0))

    def test_examples_of_the_module_run(self) -> None:
        self.assertEqual(doctest.testmod(transcript).failed, 0)


if __name__ == "__main__":
    unittest.main()
