"""Peer: PyTriton (Triton's server with a Python backend), its dynamic batches, ONNX Runtime; requested over Triton's
`/v2/models/classify/generate`. `pytriton_onnxruntime.py MODEL_DIR PORT GRPC_PORT METRICS_PORT`"""

import os
import sys
import sysconfig

import engine

engine.single_threaded()
# Triton's Python backend loads libpython by its name: it must be the one of this interpreter, not of another patch release.
os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(
    filter(None, [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")])
)

import numpy
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

if __name__ == "__main__":
    model = engine.Engine(sys.argv[1])
    model.classify(["It starts.", "It starts, and it is warm."])

    @batch
    def classify(text):
        """`text` is bytes `[batch, 1]`."""
        scores = model.scores([one.decode("utf-8") for one in text[:, 0]])
        labels = [[model.labels[best].encode()] for best in scores.argmax(axis=1)]
        return {"label": numpy.array(labels, dtype=bytes), "scores": scores.astype(numpy.float32)}

    config = TritonConfig(
        http_address="127.0.0.1", http_port=int(sys.argv[2]), grpc_port=int(sys.argv[3]), metrics_port=int(sys.argv[4]),
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="classify",
            infer_func=classify,
            inputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
            outputs=[
                Tensor(name="label", dtype=bytes, shape=(1,)),
                Tensor(name="scores", dtype=numpy.float32, shape=(len(model.labels),)),
            ],
            config=ModelConfig(
                max_batch_size=engine.BATCH_MAX, batcher=DynamicBatcher(max_queue_delay_microseconds=1000)
            ),
        )
        triton.serve()
