"""Sends the answer of a language model, token by token, to a page that may lose its connection in the middle.

    .venv/bin/uvicorn --app-dir docs/examples/recipes llm_tokens:app --port 8001
    curl -H 'Content-Type: application/json' -d '{"prompt": "Why?"}' localhost:8001/questions

Replace `model` with your model's own streaming call.
"""
# ruff: noqa: INP001  # a program, not a part of a package

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from pydantic import BaseModel

from qgstream import AsyncPublisher

URL, KEY = os.environ.get("EVENTS_URL", "http://localhost:8000"), os.environ.get("EVENTS_KEY", "dev")


class Question(BaseModel):
    """The body of a question."""

    prompt: str


async def model(prompt: str) -> AsyncIterator[str]:
    """A small stand-in for a language model."""
    for word in f"You ask: {prompt} I do not know, and I say it slowly.".split(" "):
        yield word + " "
        await asyncio.sleep(0.02)


async def answer(publisher: AsyncPublisher, topic: str, prompt: str) -> None:
    """Publish the tokens one after the other, and then an `end` event, also after a failure."""
    reason = "failed"
    try:
        async for token in model(prompt):
            await publisher.publish(topic, {"token": token}, event="token")
        reason = "complete"
    finally:
        await publisher.publish(topic, {"reason": reason}, event="end")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open one publisher, and let running answers finish before the application ends."""
    app.state.answers = set()
    async with AsyncPublisher(URL, key=KEY) as publisher:
        app.state.publisher = publisher
        yield
        await asyncio.gather(*app.state.answers, return_exceptions=True)


app = FastAPI(lifespan=lifespan)
# For pages of another origin. In production: yours, as in `cors.allow_origins` of the server.
app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["POST"], allow_headers=["*"])


@app.post("/questions")
async def ask(question: Question) -> dict[str, str]:
    """Start to answer, on a topic that cannot be guessed."""
    topic = f"answers/{secrets.token_urlsafe(16)}"
    task = asyncio.create_task(answer(app.state.publisher, topic, question.prompt))
    app.state.answers.add(task)  # a task without a reference may be collected
    task.add_done_callback(app.state.answers.discard)
    return {"topic": topic}
