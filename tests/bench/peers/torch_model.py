"""The model for transformers, with exactly the weights of the ONNX graph.

The graph (host/nn/models/export.py) keeps matrices as int8 with scales; they are multiplied out to f32 here, as an engine
does when it loads them. Two transformations are undone: the query's 1/sqrt(head size) is folded into its matrix, and
token type 0 into the positions. Sentences are pooled by their mean, which is not what BertForSequenceClassification does,
hence the class below.
"""

from pathlib import Path

import numpy
import onnx
import torch
from onnx import numpy_helper
from transformers import BertConfig, BertModel, BertPreTrainedModel, BertTokenizerFast
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPooledClassifier(BertPreTrainedModel):
    """BERT, the mean of its last states over the text, a linear head."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.head = torch.nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, **_):
        """Logits `[batch, labels]`."""
        states = self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return SequenceClassifierOutput(logits=self.head(mean))


def load(directory):
    """The model, ready to run, and its tokenizer."""
    config = BertConfig.from_pretrained(directory)
    model = MeanPooledClassifier(config).eval()
    weights = from_onnx(onnx.load(str(Path(directory) / "model.onnx")), config)
    expected = model.state_dict()
    missing = [name for name in expected if name not in weights and "position_ids" not in name and "token_type_ids" not in name]
    if missing:
        raise SystemExit(f"the graph has no weights for {missing}")
    model.load_state_dict({name: torch.tensor(weights[name]) for name in weights}, strict=False)
    tokenizer = BertTokenizerFast(
        tokenizer_file=str(Path(directory) / "tokenizer.json"), do_lower_case=True, model_max_length=512
    )
    return model, tokenizer


def from_onnx(model, config):
    """A state dict of f32 arrays from the graph's initializers."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    state = {
        "bert.embeddings.word_embeddings.weight":
            tensors["embeddings.words"].astype(numpy.float32) * tensors["embeddings.scales"].reshape(-1, 1),
        "bert.embeddings.position_embeddings.weight": tensors["embeddings.positions"],
        "bert.embeddings.token_type_embeddings.weight":
            numpy.zeros((config.type_vocab_size, config.hidden_size), numpy.float32),
        "head.weight": tensors["head.weight"].T,
        "head.bias": tensors["head.bias"],
    }
    unscale = numpy.float32(numpy.sqrt(config.hidden_size // config.num_attention_heads))
    for name, value in tensors.items():
        if name.endswith(".scale") and name.startswith("encoder."):
            layer = name.removesuffix(".scale")
            factor = unscale if layer.endswith("attention.self.query") else numpy.float32(1)
            state[f"bert.{layer}.weight"] = (tensors[f"{layer}.weight"].astype(numpy.float32) * value).T * factor
            state[f"bert.{layer}.bias"] = tensors[f"{layer}.bias"] * factor
        elif ".LayerNorm." in name:
            state[f"bert.{name}"] = value
    return state
