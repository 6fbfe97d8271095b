"""Peer: FastAPI on uvicorn (uvloop, httptools), dynamic batches, ONNX Runtime. `fastapi_onnxruntime.py MODEL_DIR PORT`"""

import sys

import engine

engine.single_threaded()

import web

if __name__ == "__main__":
    model = engine.Engine(sys.argv[1])
    model.classify(["It starts.", "It starts, and it is warm."])
    web.serve(int(sys.argv[2]), model.classify)
