"""Makes small models with random weights, one for each architecture of the engine `builtin`, and the outputs of transformers for
them: `NAME/config.json`, `NAME/model.safetensors`, for sentence embeddings the files of sentence-transformers, and
`NAME/vectors.json`. `host/nn/tests/architectures.rs` compares the engine with them; it needs no Python.

    python -m venv venv && venv/bin/pip install -r requirements.txt && venv/bin/python make.py

The widths (heads of 8, layers of 40) are not multiples of the vector length, so that the remainders of vectors are tested too. The three
models with names of the hub have the configuration of these models except for the size.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

HERE = Path(__file__).parent
VOCABULARY = 64
SMALL = dict(
    vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
    max_position_embeddings=40,
)
LENGTHS = (1, 2, 5, 17, 30)


def labels(count):
    return dict(id2label={i: f"L{i}" for i in range(count)}, label2id={f"L{i}": i for i in range(count)})


def randomize(model):
    """Sets weights that are large enough for every part to change the result, also norms away from 1 and biases away from 0."""
    for name, parameter in model.named_parameters():
        noise = torch.randn_like(parameter)
        if parameter.dim() == 1:
            norm = name.endswith("weight")
            parameter.data = 1 + 0.3 * noise if norm else 0.2 * noise
        elif "embedding" in name:
            parameter.data = 0.7 * noise
        else:
            parameter.data = noise * (1.6 / parameter.shape[-1] ** 0.5)


def texts(types):
    """The token ids and token types of some texts."""
    rows = []
    for length in LENGTHS:
        ids = torch.randint(5, VOCABULARY, (length,)).tolist()
        kinds = [int(i >= (length + 1) // 2) for i in range(length)] if types else None
        rows.append((ids, kinds))
    return rows


def compute(model, pool=None, types=False):
    vectors = []
    for ids, kinds in texts(types):
        inputs = dict(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
        if types:
            inputs["token_type_ids"] = torch.tensor([kinds])
        with torch.no_grad():
            output = model(**inputs)
            result = output.logits[0] if hasattr(output, "logits") else output.last_hidden_state[0]
            if pool is not None:
                result = pool(output.last_hidden_state[0])
        vector = dict(ids=ids, output=[round(x, 7) for x in result.flatten().tolist()])
        vectors.append(vector | (dict(types=kinds) if types else {}))
    return vectors


def save(name, model, vectors, dtype, files=None, drop=()):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = json.loads(model.config.to_json_string(use_diff=False))
    relevant = {k: v for k, v in config.items() if k not in NOISE and v is not None} | dict(architectures=[type(model).__name__])
    (folder / "config.json").write_text(json.dumps(relevant, indent=1, sort_keys=True) + "\n")
    state = {k: v.clone() for k, v in model.state_dict().items() if k not in drop and not k.endswith("position_ids")}
    if dtype != torch.float32:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    # Tied weights are stored once.
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    for file, content in (files or {}).items():
        path = folder / file
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, dict) and all(isinstance(v, torch.Tensor) for v in content.values()):
            save_file(content, path)
        else:
            path.write_text(json.dumps(content, indent=1) + "\n")
    rows = ",\n ".join(json.dumps(vector) for vector in vectors)
    (folder / "vectors.json").write_text(f"[{rows}]\n")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{name}: {size / 1024:.0f} KiB")


# Keys of `config.json` without an effect on the forward pass of an encoder.
NOISE = {
    "transformers_version", "dtype", "torch_dtype", "_name_or_path", "return_dict", "output_hidden_states", "output_attentions",
    "chunk_size_feed_forward", "is_encoder_decoder", "is_decoder", "add_cross_attention", "use_cache", "cross_attention_hidden_size",
    "tie_encoder_decoder", "pruned_heads", "torchscript", "use_bfloat16", "task_specific_params",
}


def classifier(name, cls, config, types=False, dtype=torch.float16, files=None):
    torch.manual_seed(sum(map(ord, name)))
    config._attn_implementation = "eager"
    model = cls(config).eval()
    randomize(model)
    if dtype != torch.float32:
        # The engine computes in f32 from what is stored.
        model.load_state_dict({k: v.to(dtype).to(v.dtype) for k, v in model.state_dict().items()})
    save(name, model, compute(model, types=types), dtype=dtype, files=files)


def modules(*kinds):
    paths = {"Transformer": ("", "models"), "Pooling": ("1_Pooling", "models"), "Dense": ("2_Dense", "models"),
             "Normalize": ("3_Normalize", "models")}
    return [
        dict(idx=i, name=str(i), path=paths[kind][0], type=f"sentence_transformers.{paths[kind][1]}.{kind}")
        for i, kind in enumerate(kinds)
    ]


def embedder(name, cls, config, mode, dense=None, normalize=True, types=False, dtype=torch.float16, **extra):
    torch.manual_seed(sum(map(ord, name)))
    config._attn_implementation = "eager"
    model = cls(config, **extra).eval()
    randomize(model)
    if dtype != torch.float32:
        model.load_state_dict({k: v.to(dtype).to(v.dtype) for k, v in model.state_dict().items()})
    width = config.hidden_size
    flags = {f"pooling_mode_{kind}": kind == mode for kind in ("cls_token", "mean_tokens", "max_tokens")}
    kinds = ["Transformer", "Pooling"]
    files = {"1_Pooling/config.json": dict(word_embedding_dimension=width, **flags)}
    linear = None
    if dense is not None:
        linear = torch.nn.Linear(width, dense)
        linear.weight.data = torch.randn(dense, width) / width ** 0.5
        kinds.append("Dense")
        files["2_Dense/config.json"] = dict(
            in_features=width, out_features=dense, bias=True, activation_function="torch.nn.modules.activation.Tanh")
        files["2_Dense/model.safetensors"] = {
            "linear.weight": linear.weight.data.clone(), "linear.bias": linear.bias.data.clone()}
    if normalize:
        kinds.append("Normalize")
    files["modules.json"] = modules(*kinds)

    def pool(states):
        vector = {"cls_token": states[0], "mean_tokens": states.mean(0), "max_tokens": states.max(0).values}[mode]
        if linear is not None:
            vector = torch.tanh(linear(vector))
        return torch.nn.functional.normalize(vector, dim=0) if normalize else vector

    save(name, model, compute(model, pool=pool, types=types), dtype=dtype, files=files)


def main():
    t = transformers
    # The three models with configurations of the hub.
    classifier(
        "cardiffnlp-twitter-roberta-base-sentiment-latest", t.RobertaForSequenceClassification,
        t.RobertaConfig(**SMALL, bos_token_id=0, eos_token_id=2, pad_token_id=1, layer_norm_eps=1e-5, type_vocab_size=1,
                        hidden_act="gelu", id2label={0: "negative", 1: "neutral", 2: "positive"}))
    classifier(
        "distilbert-base-uncased-finetuned-sst-2-english", t.DistilBertForSequenceClassification,
        t.DistilBertConfig(vocab_size=VOCABULARY, max_position_embeddings=40, n_layers=2, n_heads=3, dim=24, hidden_dim=40,
                           sinusoidal_pos_embds=False, seq_classif_dropout=0.2, id2label={0: "NEGATIVE", 1: "POSITIVE"}))
    stars = {0: "1 star", 1: "2 stars", 2: "3 stars", 3: "4 stars", 4: "5 stars"}
    classifier(
        "nlptown-bert-base-multilingual-uncased-sentiment", t.BertForSequenceClassification,
        t.BertConfig(**SMALL, type_vocab_size=2, id2label=stars, layer_norm_eps=1e-12), types=True, dtype=torch.float32)
    classifier("bert-tokens", t.BertForTokenClassification, t.BertConfig(**SMALL, **labels(4)), types=True)
    classifier("bert-cross-encoder", t.BertForSequenceClassification,
               t.BertConfig(**SMALL, **labels(1), hidden_act="gelu_new"), types=True, dtype=torch.bfloat16)
    classifier("distilbert-tokens", t.DistilBertForTokenClassification,
               t.DistilBertConfig(vocab_size=VOCABULARY, max_position_embeddings=40, n_layers=2, n_heads=3, dim=24, hidden_dim=40,
                                  sinusoidal_pos_embds=True, activation="relu", **labels(3)))
    classifier("roberta-tokens", t.RobertaForTokenClassification,
               t.RobertaConfig(**SMALL, type_vocab_size=1, pad_token_id=1, **labels(3)))
    classifier("xlm-roberta-tokens", t.XLMRobertaForTokenClassification,
               t.XLMRobertaConfig(**SMALL, type_vocab_size=1, pad_token_id=1, **labels(3)))
    classifier("electra", t.ElectraForSequenceClassification,
               t.ElectraConfig(**SMALL, embedding_size=16, **labels(2)), types=True)
    classifier("electra-tokens", t.ElectraForTokenClassification,
               t.ElectraConfig(**SMALL, embedding_size=24, **labels(3)), types=True)
    embedder("minilm-mean", t.BertModel, t.BertConfig(**SMALL), "mean_tokens", types=True, add_pooling_layer=False)
    embedder("bert-cls", t.BertModel, t.BertConfig(**SMALL), "cls_token", types=True, normalize=False)
    embedder("xlm-roberta-max", t.XLMRobertaModel, t.XLMRobertaConfig(**SMALL, type_vocab_size=1, pad_token_id=1), "max_tokens",
             add_pooling_layer=False)
    embedder("distilbert-dense", t.DistilBertModel,
             t.DistilBertConfig(vocab_size=VOCABULARY, max_position_embeddings=40, n_layers=2, n_heads=3, dim=24, hidden_dim=40),
             "mean_tokens", dense=20)
    classifier("bert-states", t.BertModel, t.BertConfig(**SMALL), types=True)
    embedder("mpnet-mean", t.MPNetModel, t.MPNetConfig(**SMALL), "mean_tokens",
             add_pooling_layer=False)
    classifier("mpnet", t.MPNetForSequenceClassification,
               t.MPNetConfig(**SMALL, **labels(3)))
    albert = dict(SMALL) | dict(num_hidden_layers=4, embedding_size=16)
    classifier("albert", t.AlbertForSequenceClassification,
               t.AlbertConfig(**albert, num_hidden_groups=2, inner_group_num=1, **labels(3)), types=True)
    classifier("albert-tokens", t.AlbertForTokenClassification, t.AlbertConfig(**albert, **labels(3)), types=True)
    modern = dict(SMALL) | dict(num_hidden_layers=4, global_attn_every_n_layers=3, local_attention=8, pad_token_id=0)
    classifier("modernbert", t.ModernBertForSequenceClassification,
               t.ModernBertConfig(**modern, classifier_pooling="mean", **labels(3)))
    classifier("modernbert-cls", t.ModernBertForSequenceClassification,
               t.ModernBertConfig(**modern, classifier_pooling="cls", **labels(2)))
    classifier("modernbert-tokens", t.ModernBertForTokenClassification, t.ModernBertConfig(**modern, **labels(3)))
    embedder("modernbert-mean", t.ModernBertModel, t.ModernBertConfig(**modern), "mean_tokens")
    deberta = dict(
        **SMALL, relative_attention=True, position_buckets=8, max_relative_positions=-1, norm_rel_ebd="layer_norm",
        share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False, type_vocab_size=0, layer_norm_eps=1e-7)
    classifier("deberta-v3", t.DebertaV2ForSequenceClassification,
               t.DebertaV2Config(**deberta, pooler_hidden_size=24, **labels(3)))
    classifier("deberta-v3-tokens", t.DebertaV2ForTokenClassification, t.DebertaV2Config(**deberta, **labels(3)))
    separate = deberta | dict(share_att_key=False, position_buckets=-1, norm_rel_ebd="none")
    classifier("deberta-v2", t.DebertaV2ForSequenceClassification,
               t.DebertaV2Config(**separate, pooler_hidden_size=24, **labels(2)))


if __name__ == "__main__":
    sys.exit(main())
