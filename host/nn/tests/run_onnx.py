"""Runs ONNX graphs with ONNX Runtime for tests/onnxruntime.rs.

Reads one JSON object per line on stdin, {"model": path, "runs": [{input: {"shape", "values"}}]}, and prints for each one
line {"runs": [{output: {"shape", "values"}}]}.
"""

import json
import sys

import numpy
import onnxruntime

TYPES = {"tensor(int64)": numpy.int64, "tensor(float)": numpy.float32}

for line in sys.stdin:
    request = json.loads(line)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # Else ONNX Runtime fuses DequantizeLinear and MatMul and rounds activations to int8 too: the weights are f32 once folded.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(request["model"], options, providers=["CPUExecutionProvider"])
    types = {i.name: TYPES[i.type] for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    runs = []
    for run in request["runs"]:
        feed = {n: numpy.array(t["values"], types[n]).reshape(t["shape"]) for n, t in run.items()}
        outputs = session.run(names, feed)
        runs.append({n: {"shape": list(o.shape), "values": o.reshape(-1).tolist()} for n, o in zip(names, outputs)})
    print(json.dumps({"runs": runs}), flush=True)
