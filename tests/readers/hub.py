"""Sends requests to the server at argv[1] with the client of huggingface_hub and prints what the client parsed, as JSON."""

import json
import sys

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

BASE = sys.argv[1]
TEXT = "Maria Schmidt lives in Geneva."


def client(name):
    return InferenceClient(model=f"{BASE}/models/{name}")


def scores(labels):
    return [[element.label, element.score] for element in labels]


def refused(request):
    try:
        request()
    except HfHubHTTPError as error:
        return [error.response.status_code, error.response.json()["error"]]
    return None


sentiment, entities, embeddings = client("sentiment"), client("entities"), client("embeddings")
groups = entities.token_classification(TEXT)
tokens = entities.token_classification(TEXT, aggregation_strategy="none", ignore_labels=["O"])
one = embeddings.feature_extraction("a sentence", normalize=True, truncate=True)
many = embeddings.feature_extraction(["a sentence", "another one"])
report = {
    "all": scores(sentiment.text_classification("what a wonderful day")),
    "top": scores(sentiment.text_classification("what a wonderful day", top_k=1, function_to_apply="softmax")),
    "raw": scores(sentiment.text_classification("what a wonderful day", function_to_apply="none")),
    "groups": [[group.entity_group, TEXT[group.start : group.end]] for group in groups],
    "tokens": [[token.entity, TEXT[token.start : token.end]] for token in tokens],
    "one": [list(one.shape), float((one**2).sum())],
    "many": [list(many.shape), float((many[0] * one).sum())],
    "by_base_url": scores(InferenceClient(base_url=f"{BASE}/models/sentiment").text_classification("awful")),
    "unknown": refused(lambda: client("nowhere").text_classification("hello")),
    "invalid": refused(lambda: sentiment.text_classification("hello", function_to_apply="tanh")),
}
print(json.dumps(report))
