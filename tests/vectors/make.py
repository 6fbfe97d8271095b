"""Makes the vectors beside this file by running the real transformers pipelines.

    pip install -r requirements.txt
    python make.py

The logits come from the committed ONNX files through ONNX Runtime; tokenizing, post-processing and the shape of the
output are those of `TextClassificationPipeline` and `TokenClassificationPipeline`. The embeddings come from the base
encoder in PyTorch, in f32 and not quantized. README.md describes the lines.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel
from transformers import TextClassificationPipeline, TokenClassificationPipeline
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
SHIPPED = HERE.parent.parent / "host" / "nn" / "models"
TOYS = HERE.parent / "models"
sys.path.insert(0, str(SHIPPED))
from export import base_directory, loaded, session  # noqa: E402

STRATEGIES = ["none", "simple", "first", "average", "max"]
LONG = "The service was slow, the soup was cold and nobody said sorry. " * 70
TEXTS = [
    "I loved every minute of it.",
    "The worst flight of my life, never again!",
    "The meeting is on Tuesday at ten.",
    "",
    "   ",
    " \t\n ",
    "a",
    "?!",
    "Great 😀😀 but the ending 👨‍👩‍👧‍👦 was 💩.",
    "Cafe\u0301 nai\u0308ve Zu\u0308rich A\u030angstro\u0308m",
    "北京和东京都很好玩。这个产品太差了！",
    "اليوم كان رائعا جدا",
    "שלום עולם, it was fine",
    "“Don’t you dare,” she said — ‘ever’…",
    "see https://example.org/a?b=c&d=%20#e or mail me@example.org",
    "@user http 👍🏽 #blessed #notreally",
    "unaffable \u0001\u0007 \u200b zero\u200dwidth \ufeff bom",
    "line one\nline two\r\n\tindented\u2028separator\u00a0nbsp",
    "ALL CAPS AND NO POINT",
    "ſtraße İstanbul ﬁne ﬂuﬀy Ⅷ ½ ①",
    "ᚠᛇᚻ 𐍈 𝕬𝖇𝖈 ꙮ",
    "x" * 150,
    "unbelievable internationalization, disagreement; replaying tokenization",
    "[CLS] she said [SEP] [MASK] [UNK] </s> <s> <pad>",
]
NEWS = [
    "Angela Merkel met Tim Cook in Paris on Monday.",
    "My name is Sarah Jessica Parker but you can call me Jessica.",
    "The European Union and the United Nations talked in New York about Srebrenica.",
    "Jean-Luc O’Neill (Müller & Söhne GmbH) flew from São Paulo to Ürümqi.",
    "SOCCER - JAPAN GET LUCKY WIN, CHINA IN SURPRISE DEFEAT.",
    "Real Madrid beat Bayern Munich 3-2; Ronaldo scored twice.",
    "It rains.",
    "Microsoft’s Satya Nadella, 57, lives in Bellevue, Washington — near Seattle.",
    "😀 Zoë 👩‍🚀 went to 北京 with مريم and Łukasz Żółć.",
    "Contact: Anna\tBerg\nVolvo AB\n\nGothenburg, Sweden",
    "C. Lewis and W. Athey played for Surrey at The Oval.",
    "The Russian president praised American films at the Cannes Film Festival.",
]


class OnnxModel(PreTrainedModel):
    """A model whose forward pass is an ONNX file."""

    base_model_prefix = "onnx"

    def __init__(self, config, directory):
        super().__init__(config)
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.session = session(loaded(directory / "model.onnx"))
        self.names = [one.name for one in self.session.get_inputs()]

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, **_):
        """Logits of a batch."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        feeds = {name: given[name].numpy().astype(np.int64) for name in self.names}
        self.ran = (feeds["input_ids"], self.session.run(None, feeds)[0])
        return SequenceClassifierOutput(logits=torch.from_numpy(self.ran[1]))


def directory_of(model):
    """The folder of a model."""
    return (TOYS if model.endswith("-toy") else SHIPPED) / model


def numbers(array):
    """f32 values as the shortest decimals that read back as the same f32."""
    return array.tolist() if array.dtype.kind == "i" else json.loads(np.array2string(
        array, separator=",", threshold=sys.maxsize, max_line_width=10**9, formatter={"float": lambda x: repr(float(str(x)))}
    ))


def plain(value):
    """The output of a pipeline, with numpy numbers converted to numbers of Python."""
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return value.item() if hasattr(value, "item") else value


class Lines:
    """The lines of a file, and the pipelines that compute them."""

    def __init__(self, kind, **defaults):
        self.kind, self.defaults, self.pipes, self.lines = kind, defaults, {}, []

    def pipe(self, model):
        """The pipeline of a model."""
        if model not in self.pipes:
            directory = directory_of(model)
            tokenizer = AutoTokenizer.from_pretrained(directory)
            onnx_model = OnnxModel(AutoConfig.from_pretrained(directory), directory)
            self.pipes[model] = self.kind(model=onnx_model, tokenizer=tokenizer, framework="pt", device=-1)
        return self.pipes[model]

    def add(self, model, given, **parameters):
        """Appends the line of one input."""
        pipe = self.pipe(model)
        expected = plain(pipe(given, **parameters))
        ids, logits = pipe.model.ran
        line = {"model": model, "input": given, "parameters": self.defaults | parameters, "given": parameters}
        self.lines.append(line | {"input_ids": ids[0].tolist(), "logits": numbers(logits[0]), "expected": expected})


def write(name, lines):
    """Writes a JSON-lines file."""
    text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    (HERE / name).write_text(text, encoding="utf-8")
    print(f"{name}: {len(lines)} lines, {len(text.encode())} bytes", flush=True)


def text_classification():
    """Every option on every kind of model."""
    out = Lines(TextClassificationPipeline, top_k=1)
    for i, text in enumerate(TEXTS):
        out.add("sentiment", text, **({} if i % 3 == 0 else {"top_k": None} if i % 3 == 1 else {"top_k": 2}))
    for function in ("softmax", "sigmoid", "none"):
        for top_k in (None, 1, 2, 10):
            out.add("sentiment", TEXTS[0], top_k=top_k, function_to_apply=function)
    out.add("sentiment", TEXTS[0], function_to_apply="sigmoid")
    out.add("sentiment", TEXTS[1], function_to_apply="none")
    out.add("sentiment", LONG, top_k=None, truncation=True)
    out.add("sentiment", LONG, truncation=True)
    out.add("sentiment", {"text": "The food was good.", "text_pair": "The room was dirty."}, top_k=None)
    for text in TEXTS[:1] + TEXTS[3:12]:
        out.add("multilabel-toy", text, top_k=None)
    for parameters in ({}, {"top_k": 1}, {"top_k": 2}, {"top_k": 3}, {"top_k": 99}):
        out.add("multilabel-toy", "the quick brown fox", **parameters)
        out.add("multilabel-toy", "trade between germany and the united states", **parameters)
    for function in ("softmax", "sigmoid", "none"):
        out.add("multilabel-toy", "what a terrible day", top_k=None, function_to_apply=function)
    for text in TEXTS[:4]:
        out.add("regression-toy", text)
        out.add("regression-toy", text, top_k=None)
    for function in ("softmax", "sigmoid", "none"):
        out.add("regression-toy", "a wonderful film", top_k=1, function_to_apply=function)
    pairs = [
        ("the quick brown fox", "the lazy dog"),
        ("", ""),
        ("", "only the second"),
        ("only the first", ""),
        ("“Café” 😀", "東京 is not 东京"),
        ("can you send me the report", "she said that the price is too high"),
        ("the old stone bridge " * 10, "near the river"),
    ]
    for text, text_pair in pairs:
        out.add("pair-toy", {"text": text, "text_pair": text_pair})
        out.add("pair-toy", {"text": text, "text_pair": text_pair}, top_k=None)
    for text, text_pair in (("the rain falls " * 40, "near the river"), ("near", "the rain falls " * 40)):
        out.add("pair-toy", {"text": text, "text_pair": text_pair}, top_k=None, truncation=True)
    out.add("pair-toy", {"text": "the rain falls " * 30, "text_pair": "on the bridge " * 30}, top_k=None, truncation=True)
    out.add("pair-toy", "just one text", top_k=None)
    for model in ("bpe-toy", "unigram-toy"):
        for text in TEXTS:
            if len(text) < 40:
                out.add(model, text, top_k=None)
        out.add(model, LONG, top_k=None, truncation=True)
        out.add(model, {"text": "the quick fox", "text_pair": "a lazy dog"}, top_k=2)
    write("text_classification.jsonl", out.lines)


def token_classification():
    """Every aggregation strategy on whole and broken words."""
    out = Lines(TokenClassificationPipeline, aggregation_strategy="none", ignore_labels=["O"])
    for i, text in enumerate(NEWS):
        for strategy in STRATEGIES if i < 9 else STRATEGIES[1:3]:
            out.add("entities", text, aggregation_strategy=strategy)
    out.add("entities", NEWS[0])
    for strategy in STRATEGIES:
        out.add("entities", NEWS[4], aggregation_strategy=strategy, ignore_labels=[])
        out.add("entities", NEWS[11], aggregation_strategy=strategy, ignore_labels=["O", "MISC"])
    out.add("entities", NEWS[0], aggregation_strategy="none", ignore_labels=["O", "B-PER", "LOC"])
    out.add("entities", NEWS[0], aggregation_strategy="simple", ignore_labels=["PER"])
    for text in TEXTS[3:7] + TEXTS[8:18]:
        out.add("entities", text, aggregation_strategy="simple", ignore_labels=[])
    out.add("entities", "Mr. Smith of Acme Corp. went to Rome. " * 60, aggregation_strategy="first")
    for model in ("tokens-toy", "tokens-bpe-toy"):
        for strategy in STRATEGIES:
            out.add(model, "Angela Merkel met Tim Cook in Paris", aggregation_strategy=strategy)
            out.add(model, "unbelievable disagreement, replaying it", aggregation_strategy=strategy, ignore_labels=[])
            out.add(model, "Zoë 😀 “went”\n to 北京 😀", aggregation_strategy=strategy, ignore_labels=[])
            out.add(model, "  spaces   and\ttabs ", aggregation_strategy=strategy, ignore_labels=["O", "PER", "ORG"])
        out.add(model, "", aggregation_strategy="simple")
        out.add(model, " \n ", aggregation_strategy="first", ignore_labels=[])
        out.add(model, "the customer can wait " * 40, aggregation_strategy="max", ignore_labels=[])
    write("token_classification.jsonl", out.lines)


def embedding():
    """Mean-pooled, normalized vectors of the base encoder in f32."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / "embeddings")
    model = AutoModel.from_pretrained(base_directory()).eval()
    lines = []
    for text in [*TEXTS[:21], *NEWS[:6], LONG]:
        encoded = tokenizer(text, truncation=True, return_tensors="pt")
        with torch.no_grad():
            vector = model(**encoded).last_hidden_state[0].mean(0).numpy().astype(np.float64)
        vector = [round(value, 6) for value in (vector / np.linalg.norm(vector)).tolist()]
        lines.append({"model": "embeddings", "input": text, "input_ids": encoded["input_ids"][0].tolist(), "expected": vector})
    write("embedding.jsonl", lines)


def tokenize():
    """Token ids and code point offsets of every kind of tokenizer."""
    lines = []
    for model in ("sentiment", "multilabel-toy", "pair-toy", "bpe-toy", "unigram-toy"):
        tokenizer = AutoTokenizer.from_pretrained(directory_of(model))
        pairs = [("a first text", "and a second"), ("", "😀 second"), ("first 北京", "")]
        cases = [(text, None, False) for text in TEXTS] + [(one, two, False) for one, two in pairs]
        cases += [(LONG, None, True), (LONG, "short", True), ("one " * 60, "two " * 60, True)]
        for text, text_pair, truncation in cases:
            encoded = tokenizer(
                text, text_pair, truncation=truncation, return_offsets_mapping=True, return_special_tokens_mask=True,
                return_token_type_ids=True,
            )
            given = text if text_pair is None else {"text": text, "text_pair": text_pair}
            lines.append({
                "model": model, "input": given, "parameters": {"truncation": truncation},
                "input_ids": encoded["input_ids"], "token_type_ids": encoded["token_type_ids"],
                "attention_mask": encoded["attention_mask"], "special_tokens_mask": encoded["special_tokens_mask"],
                "offsets": encoded["offset_mapping"], "tokens": encoded.tokens(),
            })
    write("tokenize.jsonl", lines)


if __name__ == "__main__":
    logging.set_verbosity(logging.CRITICAL)
    torch.set_num_threads(1)
    functions = {one.__name__: one for one in (text_classification, token_classification, embedding, tokenize)}
    for name in sys.argv[1:] or functions:
        functions[name]()
