"""Peer: FastAPI on uvicorn around a transformers pipeline (torch, CPU), dynamic batches as in the web server of its manual.
`fastapi_transformers.py MODEL_DIR PORT`"""

import sys

import engine

engine.single_threaded()

import torch
import torch_model
import web
from transformers import pipeline

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    model, tokenizer = torch_model.load(sys.argv[1])
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu", top_k=None)

    def compute(texts):
        with torch.inference_mode():
            outputs = pipe(texts, batch_size=engine.BATCH_MAX, truncation=True, max_length=engine.TOKENS_MAX)
        by_label = [{one["label"]: one["score"] for one in output} for output in outputs]
        return [(output[0]["label"], [scores[label] for label in labels]) for output, scores in zip(outputs, by_label)]

    compute(["It starts.", "It starts, and it is warm."])
    web.serve(int(sys.argv[2]), compute)
