"""ONNX Runtime alone on a GPU, for `cargo xtask bench gpu`.

onnxruntime_gpu.py libraries                        prints the folders of the libraries of CUDA, joined by ":"
onnxruntime_gpu.py measure MODEL TEXTS CORPUS SECONDS

`measure` reads a text from each line of TEXTS, writes CORPUS (JSON lines with `text` and `tokens`), and prints a JSON object: for each
number of texts in a batch the real tokens per second and the median milliseconds of a batch. Texts are tokenized in advance, and those of
a batch have similar lengths, as a server with a full queue could choose them.
"""

import json
import statistics
import sys
import time
from pathlib import Path

BATCHES = (1, 8, 32, 64, 128)


def libraries():
    import nvidia

    folders = {library.parent for root in nvidia.__path__ for library in Path(root).rglob("lib*.so*")}
    print(":".join(sorted(map(str, folders))))


def session(model):
    import onnxruntime

    onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    # As Weir: stored int8 weights become f32.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    loaded = onnxruntime.InferenceSession(str(model / "model.onnx"), options, providers=["CUDAExecutionProvider"])
    if "CUDAExecutionProvider" not in loaded.get_providers():
        raise SystemExit("ONNX Runtime computes on the processor: its provider for CUDA cannot be loaded")
    return loaded


def batches(rows, size):
    import numpy

    ordered = sorted(rows, key=len)
    for start in range(0, len(ordered) - size + 1, size):
        part = ordered[start : start + size]
        ids = numpy.zeros((size, len(part[-1])), dtype=numpy.int64)
        mask = numpy.zeros_like(ids)
        for row, tokens in enumerate(part):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        yield sum(map(len, part)), {"input_ids": ids, "attention_mask": mask}


def measure(model, texts, corpus, seconds):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    lines = texts.read_text(encoding="utf-8").splitlines()
    rows = [encoding.ids for encoding in tokenizer.encode_batch(lines)]
    with corpus.open("w", encoding="utf-8") as out:
        for line, row in zip(lines, rows):
            out.write(json.dumps({"text": line, "tokens": len(row)}) + "\n")
    loaded = session(model)
    measured = {}
    for size in BATCHES:
        inputs = list(batches(rows, size))
        for _, feed in inputs:
            loaded.run(["logits"], feed)
        tokens, times, started = 0, [], time.perf_counter()
        while time.perf_counter() - started < seconds:
            count, feed = inputs[len(times) % len(inputs)]
            began = time.perf_counter()
            loaded.run(["logits"], feed)
            times.append(time.perf_counter() - began)
            tokens += count
        took = time.perf_counter() - started
        measured[size] = {"tokens_per_s": tokens / took, "batch_ms": statistics.median(times) * 1e3}
    print(json.dumps(measured))


def main():
    command, *rest = sys.argv[1:]
    if command == "libraries":
        libraries()
    else:
        measure(Path(rest[0]), Path(rest[1]), Path(rest[2]), float(rest[3]))


main()
