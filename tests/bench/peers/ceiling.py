"""The ceiling: ONNX Runtime alone in a loop, one thread, inputs prepared, no server.

    ceiling.py MODEL_DIR --corpus short=FILE --corpus mixed=FILE … [--seconds S] [--shapes padded:8,packed:512]

Texts are sorted by length and cut into batches; each shape runs over the same texts. Prints one JSON object: for each corpus
microseconds per real token of every shape (`padded:B`: B texts in a batch; `packed:T`: texts end to end, T tokens at most),
and `calls_us`, the time of a call with one text for the first texts of the file, in their order.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import engine

engine.single_threaded()

SHAPES = "padded:1,padded:4,padded:8,padded:16,padded:32,packed:128,packed:256"
TEXTS = 128
CALLS = 128


def packed(numpy, rows):
    """The inputs of the packed graph: texts end to end."""
    total = sum(map(len, rows))
    lines = numpy.zeros((3, 1, total), dtype=numpy.int64)
    pool = numpy.zeros((len(rows), total), dtype=numpy.float32)
    start = 0
    for i, row in enumerate(rows):
        end = start + len(row)
        lines[0, 0, start:end], lines[1, 0, start:end], lines[2, 0, start:end] = row, range(len(row)), i
        pool[i, start:end] = 1 / len(row)
        start = end
    return {"input_ids": lines[0], "position_ids": lines[1], "segment_ids": lines[2], "pool": pool}


def batches(rows, kind, size):
    """Sorted rows cut into batches: by texts, or by tokens."""
    batch = []
    for row in sorted(rows, key=len):
        full = len(batch) == size if kind == "padded" else sum(map(len, batch)) + len(row) > size
        if batch and full:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def us_per_token(session, feeds, tokens, seconds):
    """Microseconds per token of the median pass over all batches.

    Passes are repeated for `seconds`, three at least, of which the first is the warm-up.
    """
    passes, started = [], time.perf_counter()
    while len(passes) < 3 or time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        for feed in feeds:
            session.run(["logits"], feed)
        passes.append(time.perf_counter() - begun)
    return statistics.median(passes[1:]) * 1e6 / tokens


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--corpus", action="append", required=True)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--shapes", default=SHAPES)
    arguments = parser.parse_args()
    padded = engine.Engine(arguments.model)
    sessions = {"padded": padded}
    if "packed" in arguments.shapes and (arguments.model / "model_packed.onnx").exists():
        sessions["packed"] = engine.Engine(arguments.model, "model_packed.onnx")
    result = {}
    for name, path in (corpus.split("=", 1) for corpus in arguments.corpus):
        with open(path, encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line, _ in zip(file, range(TEXTS))]
        rows = [encoding.ids for encoding in padded.tokenizer.encode_batch(texts)]
        tokens = sum(map(len, rows))
        shapes = {}
        for shape in arguments.shapes.split(","):
            kind, size = shape.split(":")
            if kind in sessions:
                form = padded.padded if kind == "padded" else lambda batch: packed(padded.numpy, batch)
                feeds = [form(batch) for batch in batches(rows, kind, int(size))]
                shapes[shape] = us_per_token(sessions[kind].session, feeds, tokens, arguments.seconds)
        calls = []
        for row in rows[:CALLS]:
            feed = padded.padded([row])
            begun = time.perf_counter()
            padded.session.run(["logits"], feed)
            calls.append((time.perf_counter() - begun) * 1e6)
        result[name] = {"us_per_token": shapes, "calls_us": calls}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
