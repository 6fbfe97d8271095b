"""Pipelines against the vectors of transformers (tests/vectors), and their arguments."""

from __future__ import annotations

import json
import math
import os
import tempfile
import unittest
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple, Type
from unittest import mock

import weir_stream
from weir_stream import InferenceError, ModelNotFoundError, pipeline

ROOT = Path(__file__).resolve().parents[3]
VECTORS = ROOT / "tests" / "vectors"
#: How far a score may be from that of transformers.
TOLERANCE = 1e-4


def lines(name: str) -> List[Dict[str, Any]]:
    with open(VECTORS / name, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def opened(task: str, name: str) -> Any:
    """The pipeline of a model of the vectors, with the arithmetic of transformers."""
    folder = ROOT / "tests" / "models" / name
    return pipeline(task, folder if folder.is_dir() else name, precision="f32", replicas=1)


def same(got: Any, expected: Any) -> bool:
    """Equal, but for scores, which are near."""
    if isinstance(expected, float):
        return isinstance(got, float) and abs(got - expected) <= TOLERANCE
    if isinstance(expected, list):
        return isinstance(got, list) and len(got) == len(expected) and all(map(same, got, expected))
    if isinstance(expected, dict):
        return isinstance(got, dict) and list(got) == list(expected) and all(same(got[key], expected[key]) for key in got)
    return bool(got == expected)


def same_labels(got: Any, expected: Any) -> bool:
    """Labels whose scores differ by less than the tolerance may change places."""
    if same(got, expected):
        return True
    if not (isinstance(got, list) and isinstance(expected, list) and len(got) == len(expected)):
        return False
    near = all(abs(one["score"] - other["score"]) <= TOLERANCE for one, other in zip(got, expected))
    return near and all(any(same(one, other) for other in expected) for one in got)


class Vectors(unittest.TestCase):
    """Each line is one call of a pipeline of transformers with its answer."""

    def check(self, name: str, task: str, matches: Any) -> None:
        pipes: Dict[str, Any] = {}
        checked = too_long = 0
        for number, line in enumerate(lines(name), 1):
            pipe = pipes.setdefault(line["model"], None) or opened(task, line["model"])
            pipes[line["model"]] = pipe
            with self.subTest(line=number, input=line["input"]):
                try:
                    got = pipe(line["input"], **line.get("given", {}))
                except InferenceError as error:
                    # The vectors run some texts past the maximum of the model, which is an error here.
                    self.assertEqual(error.code, "too_long")
                    self.assertIn(f"{len(line['input_ids'])} tokens", str(error))
                    too_long += 1
                    continue
                self.assertTrue(matches(got, line["expected"]), f"got {got}\nexpected {line['expected']}")
            checked += 1
        self.assertGreater(checked, 20)
        self.assertLessEqual(too_long, 8)

    def test_text_classification_agrees_with_transformers(self) -> None:
        self.check("text_classification.jsonl", "text-classification", same_labels)

    def test_token_classification_agrees_with_transformers(self) -> None:
        self.check("token_classification.jsonl", "ner", same)

    def test_embeddings_agree_with_the_full_model(self) -> None:
        def near(got: Any, expected: Any) -> bool:
            [[vector]] = got
            dot = sum(one * other for one, other in zip(vector, expected))
            return bool(dot / math.sqrt(sum(x * x for x in vector) * sum(x * x for x in expected)) >= 0.999)

        self.check("embedding.jsonl", "feature-extraction", near)


class Forms(unittest.TestCase):
    """What a pipeline takes and the form of its answers."""

    pipe: Any

    @classmethod
    def setUpClass(cls) -> None:
        cls.pipe = pipeline("sentiment-analysis")

    def test_list_is_answered_in_order(self) -> None:
        got = self.pipe(["What a wonderful evening!", "The tea was cold and nobody said sorry."] * 100)
        self.assertEqual([one["label"] for one in got], ["positive", "negative"] * 100)
        got = self.pipe(["A fine day."], top_k=2)
        self.assertEqual([len(one) for one in got], [2])
        self.assertEqual(self.pipe([]), [])

    def test_top_k_of_the_constructor_nests_as_in_transformers(self) -> None:
        pipe = pipeline("text-classification", top_k=None)
        [[first, *rest]] = pipe("A fine day.")
        self.assertEqual((first["label"], len(rest)), ("positive", 2))

    def test_generator_is_read_only_a_little_ahead(self) -> None:
        read = 0

        def texts() -> Iterator[str]:
            nonlocal read
            while True:
                read += 1
                yield "A fine day."

        results = self.pipe(texts(), batch_size=4)
        self.assertEqual(next(results)["label"], "positive")
        self.assertLessEqual(read, 8)
        for _ in range(50):
            next(results)
        self.assertLessEqual(read, 60)
        results.close()

    def test_other_iterable_is_answered_by_an_iterator_in_order(self) -> None:
        class Dataset:
            def __len__(self) -> int:
                return 40

            def __getitem__(self, index: int) -> str:
                if index >= 40:
                    raise IndexError
                return ["What a wonderful evening!", "It was terrible."][index % 2]

        labels = [one["label"] for one in self.pipe(Dataset(), batch_size=8)]
        self.assertEqual(labels, ["positive", "negative"] * 20)

    def test_wrong_arguments_are_refused_with_a_sentence(self) -> None:
        cases: List[Tuple[Callable[[], Any], Type[Exception], str]] = [
            (lambda: self.pipe("x", return_all_scores=True), TypeError, "top_k=None"),
            (lambda: self.pipe("x", topk=1), TypeError, "use batch_size, top_k"),
            (lambda: self.pipe("x", function_to_apply="tanh"), ValueError, "softmax, sigmoid, none"),
            (lambda: self.pipe(7), TypeError, "not iterable"),
            (lambda: self.pipe([7]), TypeError, "not int"),
            (lambda: pipeline("translation"), ValueError, "sentiment-analysis"),
            (lambda: pipeline(), ValueError, "task or a model"),
            (lambda: pipeline("ner", "sentiment"), ValueError, "token-classification"),
            (lambda: pipeline("text-generation"), ModelNotFoundError, "no default model"),
            (lambda: pipeline(model="nosuch/model"), ModelNotFoundError, "weir models pull hf:nosuch/model"),
        ]
        for call, error, part in cases:
            with self.subTest(part=part), self.assertRaisesRegex(error, part.replace(":", ".")):
                call()

    def test_argument_that_weir_decides_is_named_once(self) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                self.pipe("A fine day.", padding=True)
        self.assertEqual([str(one.message) for one in caught], ["padding is ignored: Weir chooses it"])

    def test_failed_text_raises_with_its_place(self) -> None:
        with self.assertRaisesRegex(InferenceError, "text 1: .*tokens") as raised:
            self.pipe(["short", "word " * 5000])
        self.assertEqual((raised.exception.code, raised.exception.retryable), ("too_long", False))
        self.assertEqual(self.pipe(["word " * 5000], truncation=True)[0].keys(), {"label", "score"})

    def test_model_of_a_task_is_found_by_its_kind(self) -> None:
        self.assertEqual(pipeline(model="entities").task, "token-classification")

    def test_summary_has_sentences_of_the_text(self) -> None:
        sentences = [f"The {name} of the city was repaired in {year}." for year, name in enumerate(["bridge", "tower", "wall"] * 8, 1900)]
        [summary] = pipeline("summarization")(" ".join(sentences), max_length=40, min_length=10)
        self.assertTrue(any(sentence in summary["summary_text"] for sentence in sentences), summary)
        self.assertLess(len(summary["summary_text"]), len(" ".join(sentences)) / 2)

    def test_model_is_taken_from_the_cache_of_the_hub(self) -> None:
        folder = ROOT / "tests" / "models" / "multilabel-toy"
        with tempfile.TemporaryDirectory() as home:
            repository = Path(home) / "hub" / "models--some--model"
            (repository / "refs").mkdir(parents=True)
            (repository / "refs" / "main").write_text("abc123")
            (repository / "snapshots").mkdir()
            os.symlink(folder, repository / "snapshots" / "abc123")
            with mock.patch.dict(os.environ, {"HF_HOME": home}):
                os.environ.pop("HF_HUB_CACHE", None)
                self.assertEqual(pipeline(model="some/model")("quick")[0].keys(), {"label", "score"})


@unittest.skipUnless(os.environ.get("WEIR_TEST_LM"), "there is no language model")
class TextGeneration(unittest.TestCase):
    """Generated texts."""

    pipe: Any

    @classmethod
    def setUpClass(cls) -> None:
        cls.pipe = pipeline("text-generation", Path(os.environ["WEIR_TEST_LM"]).parent)

    def test_greedy_text_follows_its_prompt(self) -> None:
        [first] = self.pipe("The capital of France is", max_new_tokens=5)
        [again] = self.pipe("The capital of France is", max_new_tokens=5)
        self.assertIn("Paris", first["generated_text"])
        self.assertEqual(first, again)
        [alone] = self.pipe("The capital of France is", max_new_tokens=5, return_full_text=False)
        self.assertEqual("The capital of France is" + alone["generated_text"], first["generated_text"])

    def test_chat_is_continued_by_the_assistant(self) -> None:
        chat = [{"role": "user", "content": "Name a colour."}]
        [answer] = self.pipe(chat, max_new_tokens=8)
        self.assertEqual([message["role"] for message in answer["generated_text"]], ["user", "assistant"])

    def test_pieces_join_to_the_text(self) -> None:
        pieces = list(self.pipe.stream("One, two, three,", max_new_tokens=8))
        [whole] = self.pipe("One, two, three,", max_new_tokens=8, return_full_text=False)
        self.assertEqual("".join(pieces), whole["generated_text"])
        self.assertGreater(len(pieces), 1)

    def test_format_is_kept(self) -> None:
        [answer] = self.pipe("A year: ", format=("regex", "[0-9]{4}"), return_full_text=False)
        self.assertRegex(answer["generated_text"], "^[0-9]{4}$")


class Names(unittest.TestCase):
    """The public names."""

    def test_every_public_name_exists(self) -> None:
        for name in weir_stream.__all__:
            self.assertTrue(hasattr(weir_stream, name), name)


if __name__ == "__main__":
    unittest.main()
