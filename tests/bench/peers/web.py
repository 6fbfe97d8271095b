"""The shared parts of both FastAPI peers: the route, the batcher and uvicorn tuned according to its manual."""

from contextlib import asynccontextmanager

import uvicorn
from batcher import Batcher
from engine import BATCH_MAX
from fastapi import FastAPI
from fastapi.responses import Response
from pydantic import BaseModel

import orjson


class Item(BaseModel):
    """A request."""

    text: str


def serve(port, compute):
    """Serves `POST /classify` on `port`; `compute(texts)` returns `(label, scores)` for each text."""

    @asynccontextmanager
    async def lifespan(app):
        app.state.batcher = Batcher(compute, BATCH_MAX)
        yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/classify")
    async def classify(item: Item):
        label, scores = await app.state.batcher.submit(item.text)
        return Response(orjson.dumps({"label": label, "scores": scores}), media_type="application/json")

    uvicorn.run(
        app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", access_log=False, log_level="warning",
        workers=1, backlog=4096, timeout_keep_alive=120,
    )
