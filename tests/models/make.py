"""Makes the toy models beside this file: random but fixed weights, real tokenizers, a Hugging Face directory each.

    python make.py

| directory | contents |
|---|---|
| multilabel-toy | WordPiece; four labels, `multi_label_classification`; labels 1 and 2 always tie |
| regression-toy | WordPiece; one label, `regression` |
| pair-toy | WordPiece; two labels, text pairs; inputs `input_ids`, `attention_mask`, `token_type_ids` |
| bpe-toy | byte-level BPE in the form of RoBERTa: no token types, pad id 1, positions counted inside the graph |
| unigram-toy | Unigram in the form of SentencePiece: `▁` for spaces |
| tokens-toy | WordPiece; token classification over BIO labels, most words in several pieces |
| tokens-bpe-toy | byte-level BPE; token classification: the tokenizer cannot tell which tokens continue a word |

Needs numpy, onnx and tokenizers (versions in ../vectors/requirements.txt). The output is the same on every run.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

HERE = Path(__file__).resolve().parent
HIDDEN = 16
TOKENS_MAX = 64
OPSET = 17
IR_VERSION = 8
BIO = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"]
CORPUS = """
the quick brown fox jumps over the lazy dog while the rain falls on the old stone bridge near the river
i really loved this film it was funny and warm and the actors were wonderful but the ending was far too long
what a terrible day nothing works the train is late again and nobody tells us why we are waiting here
can you send me the report before friday please we need the numbers for the meeting with the new customer
angela merkel met tim cook in paris on monday to talk about trade between germany and the united states
she said that the price of the product is not too high for what it does and that they will buy it again
unbelievable unhappiness disagreement replaying internationalization tokenization streaming servers
""".split()


def split_word(word, merges):
    """`word` split by BPE merges, in order of their rank."""
    parts = list(word)
    while len(parts) > 1:
        pairs = [(merges.get(pair, len(merges)), i) for i, pair in enumerate(zip(parts, parts[1:]))]
        rank, i = min(pairs)
        if rank == len(merges):
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def learn_merges(words, count):
    """The first `count` BPE merges of a list of words, ties by the pair itself."""
    merges = {}
    for _ in range(count):
        pairs = Counter()
        for word in words:
            parts = split_word(word, merges)
            pairs.update(zip(parts, parts[1:]))
        if not pairs:
            break
        merges[min(pairs, key=lambda pair: (-pairs[pair], pair))] = len(merges)
    return merges


def wordpiece():
    """An uncased WordPiece tokenizer in the form of BERT: common words whole, others in pieces, rare letters unknown."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    marks = list(".,;:!?'\"-()#@&/%$+*=<>_’“”…东京")
    counts = Counter(CORPUS)
    whole = sorted(word for word in counts if len(word) < 6 or counts[word] > 1)
    ends = ["##" + end for end in ("s", "ed", "ing", "er", "ly", "ness", "tion", "ation", "able", "ment", "el", "la", "ke")]
    starts = ["un", "dis", "re", "inter", "token", "stream", "happi", "agree", "play", "mer", "ange"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters), *marks]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens + whole + ends + starts))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=40))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    return special(tokenizer, names), names


def byte_bpe():
    """A cased byte-level BPE tokenizer in the form of RoBERTa."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [word.capitalize() if i % 5 == 0 else word for i, word in enumerate(CORPUS)]
    merges = learn_merges([("Ġ" if i % 7 else "") + word for i, word in enumerate(words)], 160)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, *("".join(pair) for pair in merges), "<mask>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges), fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        sep=("</s>", vocabulary["</s>"]), cls=("<s>", vocabulary["<s>"]), trim_offsets=True, add_prefix_space=False
    )
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    names |= {"unk_token": "<unk>", "mask_token": "<mask>"}
    return special(tokenizer, names), names


def unigram():
    """A Unigram tokenizer in the form of SentencePiece."""
    counts = Counter("▁" + word for word in CORPUS)
    for word in list(counts):
        for size in (1, 2, 3, 4):
            for start in range(len(word) - size + 1):
                counts[word[start : start + size]] += 1
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,!?'-▁":
        counts[letter] += 1
    total = sum(counts.values())
    best = sorted(counts, key=lambda piece: (len(piece) > 1, -counts[piece], piece))[:420]
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(piece, float(np.log(counts[piece] / total).round(4))) for piece in best]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\t", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    names |= {"unk_token": "<unk>"}
    return special(tokenizer, names), names


def special(tokenizer, names):
    """`tokenizer` with its special tokens marked as such."""
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in dict.fromkeys(names.values())])
    return tokenizer


class Toy:
    """A graph under construction: embeddings, one tanh layer, optional pooling, linear head."""

    def __init__(self, seed, tokens, labels):
        self.random = np.random.default_rng(seed)
        self.tokens, self.labels = tokens, labels
        self.nodes, self.initializers = [], []

    def weight(self, name, *shape, spread=1.0):
        """A random f32 initializer."""
        values = self.random.standard_normal(shape).astype(np.float32) * np.float32(spread)
        return self.constant(name, values)

    def constant(self, name, values):
        """An initializer."""
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def op(self, kind, inputs, name, **attributes):
        """One node with one output."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def positions(self, pad):
        """Position ids of RoBERTa: from pad + 1 for real tokens, pad for padding."""
        same = self.op("Equal", ["input_ids", self.constant("pad", np.array(pad, dtype=np.int64))], "is_pad")
        real = self.op("Cast", [self.op("Not", [same], "is_real")], "real", to=TensorProto.INT32)
        count = self.op("CumSum", [real, self.constant("sequence", np.array(1, dtype=np.int64))], "count")
        counted = self.op("Cast", [self.op("Mul", [count, real], "kept")], "counted", to=TensorProto.INT64)
        return self.op("Add", [counted, "pad"], "position_ids")

    def states(self, types, pad):
        """Hidden states `[batch, sequence, HIDDEN]` that depend on token, position, token type and context."""
        x = self.op("Gather", [self.weight("words", self.tokens, HIDDEN), "input_ids"], "embedded")
        if pad is not None:
            table = self.weight("positions", TOKENS_MAX + pad + 1, HIDDEN, spread=0.3)
            x = self.op("Add", [x, self.op("Gather", [table, self.positions(pad)], "placed")], "x_placed")
        if types:
            table = self.weight("types", 2, HIDDEN, spread=2.0)
            x = self.op("Add", [x, self.op("Gather", [table, "token_type_ids"], "typed")], "x_typed")
        mask = self.op("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
        self.op("Unsqueeze", [mask, self.constant("last", np.array([2], dtype=np.int64))], "mask_column")
        context = self.mean(self.op("Tanh", [x], "x_tanh"), "context", keep=1)
        context = self.op("MatMul", [context, self.weight("mix", HIDDEN, HIDDEN, spread=0.5)], "mixed")
        own = self.op("MatMul", [x, self.weight("layer", HIDDEN, HIDDEN, spread=0.4)], "layered")
        return self.op("Tanh", [self.op("Add", [own, context], "summed")], "states")

    def mean(self, x, name, keep):
        """The mean of `x` over the tokens of the mask."""
        if name == "context":
            self.constant("axis", np.array([1], dtype=np.int64))
        kept = self.op("Mul", [x, "mask_column"], f"{name}_kept")
        total = self.op("ReduceSum", [kept, "axis"], f"{name}_total", keepdims=keep)
        count = self.op("ReduceSum", ["mask_column", "axis"], f"{name}_count", keepdims=keep)
        return self.op("Div", [total, count], name)

    def model(self, pooled, types=False, pad=None, tie=False, spread=1.5):
        """The model proto."""
        x = self.states(types, pad)
        if pooled:
            x = self.mean(x, "pooled", keep=0)
        head = self.random.standard_normal((HIDDEN, self.labels)).astype(np.float32) * np.float32(spread)
        if tie:
            head[:, 2] = head[:, 1]
        product = self.op("MatMul", [x, self.constant("head", head)], "scored")
        self.op("Add", [product, self.constant("bias", np.zeros(self.labels, dtype=np.float32))], "logits")
        names = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in names]
        shape = ["batch", self.labels] if pooled else ["batch", "sequence", self.labels]
        output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "toy", inputs, [output], self.initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, producer_name="weir", opset_imports=opsets, ir_version=IR_VERSION)


def write_json(path, value):
    """Writes a JSON file with an indentation of two spaces."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write(name, seed, tokenizer_and_names, kind, family, labels, problem=None, **graph):
    """Writes the folder of one model."""
    tokenizer, names = tokenizer_and_names
    directory = HERE / name
    directory.mkdir(exist_ok=True)
    pad = tokenizer.token_to_id(names["pad_token"])
    config = {"architectures": [kind], "model_type": family, "hidden_size": HIDDEN, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 1, "vocab_size": tokenizer.get_vocab_size(), "pad_token_id": pad}
    config |= {"max_position_embeddings": TOKENS_MAX + (pad + 1 if graph.get("pad") is not None else 0)}
    config |= {"id2label": {str(i): label for i, label in enumerate(labels)}}
    config |= {"label2id": {label: i for i, label in enumerate(labels)}}
    if problem:
        config["problem_type"] = problem
    write_json(directory / "config.json", config)
    inputs = ["input_ids", *(["token_type_ids"] if graph.get("types") else []), "attention_mask"]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": TOKENS_MAX}
    settings |= {"model_input_names": inputs, "clean_up_tokenization_spaces": False}
    write_json(directory / "tokenizer_config.json", settings | names)
    text = json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
    (directory / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    toy = Toy(seed, tokenizer.get_vocab_size(), len(labels))
    model = toy.model(pooled=kind.endswith("SequenceClassification"), **graph)
    (directory / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    print(name, sum(file.stat().st_size for file in directory.iterdir()), "bytes")


def main():
    """Writes every toy model."""
    sequence = {family: f"{family}ForSequenceClassification" for family in ("Bert", "Roberta", "XLMRoberta")}
    topics = ["sport", "music", "concert", "politics"]
    write("multilabel-toy", 1, wordpiece(), sequence["Bert"], "bert", topics, "multi_label_classification", tie=True)
    write("regression-toy", 2, wordpiece(), sequence["Bert"], "bert", ["quality"], "regression")
    pairs = ["different", "same"]
    write("pair-toy", 3, wordpiece(), sequence["Bert"], "bert", pairs, "single_label_classification", types=True)
    moods = ["negative", "neutral", "positive"]
    write("bpe-toy", 4, byte_bpe(), sequence["Roberta"], "roberta", moods, pad=1)
    write("unigram-toy", 5, unigram(), sequence["XLMRoberta"], "xlm-roberta", moods, pad=1)
    write("tokens-toy", 6, wordpiece(), "BertForTokenClassification", "bert", BIO)
    write("tokens-bpe-toy", 7, byte_bpe(), "RobertaForTokenClassification", "roberta", BIO, pad=1)


if __name__ == "__main__":
    main()
