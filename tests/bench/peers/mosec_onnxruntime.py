"""Peer: mosec (an HTTP server in Rust before Python workers), its dynamic batches, ONNX Runtime.
`mosec_onnxruntime.py MODEL_DIR PORT`: mosec reads its own options from the command line, so the port goes by its name."""

import os
import sys

import engine

engine.single_threaded()

if len(sys.argv) == 3:
    # An environment variable also reaches the workers, which start as new interpreters.
    os.environ["BENCH_MODEL_DIR"] = sys.argv[1]
    sys.argv[1:] = [
        "--address", "127.0.0.1", "--port", sys.argv[2], "--timeout", "120000", "--capacity", "4096", "--log-level", "warning"
    ]

import orjson
from mosec import Server, ValidationError, Worker


class Classify(Worker):
    """One process with one session."""

    def __init__(self):
        self.model = engine.Engine(os.environ["BENCH_MODEL_DIR"])
        self.model.classify(["It starts.", "It starts, and it is warm."])

    def serialize(self, data):
        """Compact JSON: the default is indented."""
        return orjson.dumps(data)

    def forward(self, data):
        """Returns the responses to a batch of requests."""
        try:
            texts = [one["text"] for one in data]
        except (KeyError, TypeError) as error:
            raise ValidationError("a request is an object with `text`") from error
        return [{"label": label, "scores": scores} for label, scores in self.model.classify(texts)]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Classify, num=1, max_batch_size=engine.BATCH_MAX, max_wait_time=1, route="/classify")
    server.run()
