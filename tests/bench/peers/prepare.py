"""Prepares models and corpora before the measurement.

    prepare.py model SOURCE DESTINATION       a copy without links: ONNX Runtime refuses external data behind a link
    prepare.py int8 MODEL_DIR                 writes model_int8.onnx beside model.onnx: dynamic quantization, the fastest of ONNX Runtime
    prepare.py count TOKENIZER_JSON           reads a JSON list of words, prints the token count of each as a JSON list
    prepare.py verify TOKENIZER_JSON FILE...  checks that `tokens` of every line is the token count of its `text`
"""

import json
import shutil
import sys
from pathlib import Path

from engine import TOKENS_MAX


def tokenizer(path):
    """The model's tokenizer, truncating as the servers do."""
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(path)
    loaded.no_padding()
    loaded.enable_truncation(TOKENS_MAX)
    return loaded


def fold(graph):
    """Converts weights stored as int8 with factors to f32, the input of dynamic quantization."""
    import numpy
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or any(name not in stored for name in node.input):
            nodes.append(node)
            continue
        values, factor, *zero = (numpy_helper.to_array(stored[name]) for name in node.input)
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        if factor.ndim == 1 and factor.size > 1:
            shape = [1] * values.ndim
            shape[axis] = factor.size
            factor, zero = factor.reshape(shape), [part.reshape(shape) for part in zero]
        values = values.astype(numpy.float32) - (zero[0].astype(numpy.float32) if zero else 0)
        tensor = numpy_helper.from_array((values * factor).astype(numpy.float32), node.output[0])
        graph.initializer.append(tensor)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    needed = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(needed)


def int8(directory):
    """Writes the graph with int8 products, whose activations are quantized at run time."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(directory / "model.onnx")
    fold(model.graph)
    whole = directory / "model_f32.onnx"
    onnx.save(model, whole)
    quantize_dynamic(whole, directory / "model_int8.onnx", weight_type=QuantType.QInt8, per_channel=True)


def main():
    """Reads the command line."""
    command, *rest = sys.argv[1:]
    if command == "model":
        shutil.rmtree(rest[1], ignore_errors=True)
        shutil.copytree(rest[0], rest[1], symlinks=False)
    elif command == "int8":
        int8(Path(rest[0]))
    elif command == "count":
        words = json.load(sys.stdin)
        encodings = tokenizer(rest[0]).encode_batch(words, add_special_tokens=False)
        json.dump([len(encoding.ids) for encoding in encodings], sys.stdout)
    elif command == "verify":
        known = tokenizer(rest[0])
        for path in rest[1:]:
            rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
            for row, encoding in zip(rows, known.encode_batch([row["text"] for row in rows])):
                if len(encoding.ids) != row["tokens"]:
                    raise SystemExit(f"{path}: {row} has {len(encoding.ids)} tokens")
            print(f"{path}: {len(rows)} texts")
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
