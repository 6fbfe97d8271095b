"""The one model of all peers in ONNX Runtime: tokenize, pad, run, softmax. One thread, or $BENCH_THREADS, and 128 tokens at most; f32 arithmetic, but for the
graph of prepare.py int8, which $BENCH_GRAPH names."""

import json
import os
from pathlib import Path

TOKENS_MAX = 128
BATCH_MAX = int(os.environ.get("BENCH_BATCH_MAX", "32"))


class Engine:
    """A tokenizer and a session; `classify(texts)` returns `(label, scores)` for each text, scores in label order."""

    def __init__(self, directory, graph=os.environ.get("BENCH_GRAPH", "model.onnx")):
        import numpy
        import onnxruntime
        from tokenizers import Tokenizer

        self.numpy = numpy
        directory = Path(directory)
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self.labels = [config["id2label"][str(i)] for i in range(len(config["id2label"]))]
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self.tokenizer.enable_truncation(TOKENS_MAX)
        self.tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("BENCH_THREADS", "1"))
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Else ONNX Runtime fuses DequantizeLinear and MatMul and rounds activations to int8: no longer the same weights.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.session = onnxruntime.InferenceSession(
            str(directory / graph), options, providers=["CPUExecutionProvider"]
        )

    def padded(self, rows):
        """The inputs of one batch of token ids."""
        width = max(map(len, rows))
        ids = self.numpy.zeros((len(rows), width), dtype=self.numpy.int64)
        mask = self.numpy.zeros((len(rows), width), dtype=self.numpy.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def scores(self, texts):
        """Probabilities `[text, label]` as an array."""
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        logits = self.session.run(["logits"], self.padded(rows))[0]
        powers = self.numpy.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def classify(self, texts):
        """A label and the scores of all labels for each text."""
        return [(self.labels[row.index(max(row))], row) for row in self.scores(texts).tolist()]


def single_threaded():
    """Limits libraries to one thread; must run before they are imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
