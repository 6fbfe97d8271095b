"""ONNX Runtime on one layer of a BERT-type encoder, for `cargo xtask bench engine`.

onnxruntime_layer.py HIDDEN HEADS INTERMEDIATE f32|int8 THREADS TEXTSxTOKENS...

Prints `TEXTSxTOKENS MICROSECONDS` for each batch: the median time of a layer for a token. With one thread it is the time of the
processor, so that other programs do not count; with more it is the time of the clock. The graph has random weights. Its int8 form is
what ONNX Runtime's dynamic quantization makes: activations quantized for each product, weights in i8 with a scale for each column.

The graph is written as protobuf by hand, because the `onnx` package is not among the tests' requirements.
"""

import statistics
import struct
import sys
import time

import numpy
import onnxruntime

ROUNDS = 5
ROUND_S = 0.04
FLOAT, INT8, INT64 = 1, 3, 7


def varint(value):
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field, value):
    return varint(field << 3) + varint(value)


def text(field, value):
    data = value if isinstance(value, bytes) else value.encode()
    return varint(field << 3 | 2) + varint(len(data)) + data


def attribute(name, value):
    out = text(1, name)
    if isinstance(value, float):
        return out + varint(2 << 3 | 5) + struct.pack("<f", value) + number(20, 1)
    if isinstance(value, int):
        return out + number(3, value) + number(20, 2)
    return out + b"".join(number(8, item) for item in value) + number(20, 7)


def shaped(name, dimensions):
    """A ValueInfoProto in f32; a dimension is a name or a number."""
    dimension = lambda item: text(1, number(1, item) if isinstance(item, int) else text(2, item))
    shape = b"".join(dimension(item) for item in dimensions)
    return text(1, name) + text(2, text(1, number(1, FLOAT) + text(2, shape)))


class Graph:
    def __init__(self):
        self.nodes, self.tensors, self.count = b"", b"", 0

    def name(self):
        self.count += 1
        return f"t{self.count}"

    def node(self, operator, inputs, outputs=1, **attributes):
        names = [self.name() for _ in range(outputs)]
        body = b"".join(text(1, item) for item in inputs) + b"".join(text(2, item) for item in names)
        body += text(4, operator) + b"".join(text(5, attribute(key, value)) for key, value in attributes.items())
        self.nodes += text(1, body)
        return names[0] if outputs == 1 else names

    def tensor(self, values):
        kind = {numpy.dtype("float32"): FLOAT, numpy.dtype("int8"): INT8, numpy.dtype("int64"): INT64}[values.dtype]
        name = self.name()
        body = b"".join(number(1, size) for size in values.shape) + number(2, kind) + text(8, name)
        self.tensors += text(5, body + text(9, values.tobytes()))
        return name

    def model(self, output, hidden):
        graph = self.nodes + text(2, "layer") + self.tensors
        graph += text(11, shaped("x", ["texts", "tokens", hidden])) + text(12, shaped(output, ["texts", "tokens", hidden]))
        return number(1, 8) + text(7, graph) + text(8, text(1, "") + number(2, 17))


def layer(hidden, heads, intermediate, int8):
    random = numpy.random.default_rng(1)
    graph = Graph()
    floats = lambda *shape: (random.random(shape, dtype=numpy.float32) - 0.5) / 10
    constant = lambda value: graph.tensor(numpy.array(value, dtype=numpy.float32))
    lowered = {}

    def linear(source, inner, columns):
        bias = graph.tensor(floats(columns))
        if not int8:
            return graph.node("Add", [graph.node("MatMul", [source, graph.tensor(floats(inner, columns))]), bias])
        if source not in lowered:
            lowered[source] = graph.node("DynamicQuantizeLinear", [source], outputs=3)
        quantized, scale, zero = lowered[source]
        weights = graph.tensor(random.integers(-127, 128, (inner, columns)).astype(numpy.int8))
        product = graph.node("Cast", [graph.node("MatMulInteger", [quantized, weights, zero])], to=FLOAT)
        scales = graph.node("Mul", [scale, graph.tensor(numpy.full(columns, 0.0005, dtype=numpy.float32))])
        return graph.node("Add", [graph.node("Mul", [product, scales]), bias])

    def norm(source):
        gain, bias = graph.tensor(floats(hidden) + 1), graph.tensor(floats(hidden))
        return graph.node("LayerNormalization", [source, gain, bias], axis=-1, epsilon=1e-12)

    split = graph.tensor(numpy.array([0, 0, heads, hidden // heads], dtype=numpy.int64))
    join = graph.tensor(numpy.array([0, 0, hidden], dtype=numpy.int64))
    part = lambda order: graph.node("Transpose", [graph.node("Reshape", [linear("x", hidden, hidden), split])], perm=order)
    queries, keys, values = part([0, 2, 1, 3]), part([0, 2, 3, 1]), part([0, 2, 1, 3])
    scores = graph.node("Div", [graph.node("MatMul", [queries, keys]), constant((hidden / heads) ** 0.5)])
    context = graph.node("MatMul", [graph.node("Softmax", [scores], axis=-1), values])
    context = graph.node("Reshape", [graph.node("Transpose", [context], perm=[0, 2, 1, 3]), join])
    states = norm(graph.node("Add", [linear(context, hidden, hidden), "x"]))
    wide = linear(states, hidden, intermediate)
    error = graph.node("Erf", [graph.node("Div", [wide, constant(2**0.5)])])
    wide = graph.node("Mul", [graph.node("Mul", [wide, graph.node("Add", [error, constant(1.0)])]), constant(0.5)])
    output = norm(graph.node("Add", [linear(wide, intermediate, hidden), states]))
    return graph.model(output, hidden)


def main():
    hidden, heads, intermediate = map(int, sys.argv[1:4])
    int8, threads = sys.argv[4] == "int8", int(sys.argv[5])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        layer(hidden, heads, intermediate, int8), options, providers=["CPUExecutionProvider"]
    )
    clock = time.thread_time if threads == 1 else time.perf_counter
    for batch in sys.argv[6:]:
        texts, tokens = map(int, batch.split("x"))
        states = numpy.random.default_rng(2).random((texts, tokens, hidden), dtype=numpy.float32)
        session.run(None, {"x": states})
        rounds = []
        for _ in range(ROUNDS):
            calls, started = 0, clock()
            while clock() < started + ROUND_S:
                session.run(None, {"x": states})
                calls += 1
            rounds.append((clock() - started) / calls)
        print(batch, f"{statistics.median(rounds) * 1e6 / (texts * tokens):.3f}", flush=True)


main()
