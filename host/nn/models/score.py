"""Measures the bundled models through `weir run`, on held-out data. Standard library only.

    python score.py --data DIR --weir target/release/weir [--models-dir DIR]

Prints the macro recall over tweets, the accuracy over review sentences and the F1 over entities, and exits 1 when one
of them is under its goal. DIR holds tweets_validation.jsonl, reviews_train.jsonl (of which only the held-out eighth is
scored; training never sees it) and entities_valid.jsonl; the model cards name their sources.

- Tweets: the label with the highest score; recall averaged over the three classes (SemEval-2017 Task 4A).
- Reviews have two classes: a review counts as positive when the score of `positive` exceeds that of `negative`.
- Entities: the tokens are joined with single spaces, and a span that `weir run` reports becomes the tokens it overlaps.
  An entity counts only when type, first and last token are right (conlleval).
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

# With one decimal, as the scores are reported.
GOALS = {"tweets macro recall": 71.5, "reviews accuracy": 87.4, "entities F1": 90.1}
LABELS = ("negative", "neutral", "positive")
HELD_OUT_SHARE = 8


def read_lines(path):
    """The objects of a JSON-lines file."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def held_out(text):
    """True for the reviews that training leaves out: the same rule as in train.py."""
    return hashlib.sha256(text.encode()).digest()[-1] % HELD_OUT_SHARE == 0


def run_weir(weir, options, texts):
    """One result per text, in order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        done = subprocess.run([weir, "run", *options, str(path)], stdout=subprocess.PIPE, encoding="utf-8")
    results = [json.loads(line) for line in done.stdout.splitlines()]
    failed = [result for result in results if "error" in result]
    if failed or done.returncode != 0 or [result.get("index") for result in results] != list(range(len(texts))):
        example = f", for example {failed[0]}" if failed else ""
        raise SystemExit(f"weir run: exit {done.returncode}, {len(results)} of {len(texts)} lines{example}")
    return results


def macro_recall(rows, scores):
    """Mean over the classes of the share of their texts that got them, in percent."""
    shares = []
    for label in LABELS:
        guesses = [max(score, key=score.get) for row, score in zip(rows, scores) if row["label"] == label]
        shares.append(guesses.count(label) / len(guesses))
    return 100 * sum(shares) / len(shares)


def accuracy(rows, scores):
    """Share of reviews whose better score, positive against negative, is right, in percent."""
    right = [(score["positive"] > score["negative"]) == (row["label"] == "positive") for row, score in zip(rows, scores)]
    return 100 * sum(right) / len(right)


def spans_of(tags):
    """The entities of a BIO sequence as conlleval reads it: (type, first, last)."""
    spans, kind, first = set(), None, 0
    for i, tag in enumerate([*tags, "O"]):
        if kind is not None and tag != "I-" + kind:
            spans.add((kind, first, i - 1))
            kind = None
        if tag != "O" and kind is None:
            kind, first = tag[2:], i
    return spans


def reported_spans(tokens, entities):
    """The spans of `weir run`, code points of the joined text, as spans of tokens."""
    offsets, start = [], 0
    for token in tokens:
        offsets.append((start, start + len(token)))
        start += len(token) + 1
    spans = set()
    for entity in entities:
        inside = [i for i, (first, end) in enumerate(offsets) if first < entity["end"] and entity["start"] < end]
        if inside:
            spans.add((entity["entity_group"], inside[0], inside[-1]))
    return spans


def f1(rows, results):
    """Span F1 over all rows, in percent."""
    correct = predicted = actual = 0
    for row, result in zip(rows, results):
        ours, theirs = reported_spans(row["tokens"], result["entities"]), spans_of(row["tags"])
        correct, predicted, actual = correct + len(ours & theirs), predicted + len(ours), actual + len(theirs)
    return 100 * 2 * correct / max(1, predicted + actual)


def measure(data, run):
    """The three figures; `run(task, texts)` returns results in the format of `weir run`."""
    by_label = lambda results: [{one["label"]: one["score"] for one in result["scores"]} for result in results]
    tweets = read_lines(data / "tweets_validation.jsonl")
    reviews = [row for row in read_lines(data / "reviews_train.jsonl") if held_out(row["text"])]
    entities = read_lines(data / "entities_valid.jsonl")
    scores = by_label(run("sentiment", [row["text"] for row in tweets + reviews]))
    return {
        "tweets macro recall": macro_recall(tweets, scores[: len(tweets)]),
        "reviews accuracy": accuracy(reviews, scores[len(tweets) :]),
        "entities F1": f1(entities, run("entities", [" ".join(row["tokens"]) for row in entities])),
    }


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weir", default="weir", help="the weir binary")
    parser.add_argument("--models-dir", default=Path(__file__).resolve().parent, help="by default the models beside this file")
    arguments = parser.parse_args()
    options = {
        "sentiment": ["--task", "sentiment", "--top-k", "3", "--models-dir", str(arguments.models_dir)],
        "entities": ["--task", "entities", "--models-dir", str(arguments.models_dir)],
    }
    scores = measure(arguments.data, lambda task, texts: run_weir(arguments.weir, options[task], texts))
    for name, value in scores.items():
        print(f"{name:20} {value:6.2f}   goal {GOALS[name]}")
    sys.exit(any(round(value, 1) < GOALS[name] for name, value in scores.items()))


if __name__ == "__main__":
    main()
