"""POST /v1/embeddings: a vector for each text."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel
from starlette.responses import Response

from pellucid.evaluation.embed import pooled
from pellucid.generation.generate import check_ids
from pellucid.serving.answers import as_json
from pellucid.serving.errors import refusal
from pellucid.serving.fields import Harmless, Inputs, Prompt
from pellucid.serving.service import Call, Service

TOGETHER = 2048  # tokens, filling included, that are read at once: other requests' tokens wait so long


class EmbeddingRequest(Harmless):
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None


class Embedding(BaseModel):
    """A vector: numbers, or the bytes of little-endian 32-bit floats as base64."""

    index: int
    object: Literal["embedding"]
    embedding: list[float] | str


class ReadUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: ReadUsage


async def embeddings(call: Call, asked: EmbeddingRequest) -> Response:
    service = call.service
    service.check("/v1/embeddings", asked.model)
    rows = await service.read(lambda: framed(service, asked.input), call.deadline)
    count = sum(map(len, rows))
    call.note(prompt_tokens=count, texts=len(rows))
    call.note_text(prompts=asked.input)
    vectors: dict[int, npt.NDArray[np.float32]] = {}
    for batch in alike(rows):
        work = partial(vectors_of, service, [rows[number] for number in batch])
        found = await service.worker.do(work, deadline=call.deadline)
        vectors |= zip(batch, found, strict=True)
    packed = asked.encoding_format == "base64"
    data = [
        Embedding(index=n, object="embedding", embedding=packed_up(vectors[n]) if packed else vectors[n].tolist())
        for n in range(len(rows))
    ]
    usage = ReadUsage(prompt_tokens=count, total_tokens=count)
    return as_json(Embeddings(object="list", model=service.name, data=data, usage=usage))


def framed(service: Service, inputs: Sequence[Prompt]) -> list[list[int]]:
    """The tokens of texts, between those that the model expects around them. None is empty, none too long."""
    tokenizer, longest = service.model.tokenizer, min(service.pooling.longest or service.context, service.context)
    before, after = tokenizer.frame
    for one in inputs:
        if isinstance(one, str):
            service.check_length(one)
    texts = iter(tokenizer.encode_batch([one for one in inputs if isinstance(one, str)], framed=True))
    rows: list[list[int]] = [next(texts).tolist() if isinstance(one, str) else [*before, *one, *after] for one in inputs]
    for number, row in enumerate(rows):
        check_ids(row, service.model.config.vocab_size)
        if len(row) == len(before) + len(after):
            raise refusal(f"text {number} is empty; give at least one character", "input")
        if len(row) > longest:
            raise refusal(
                f"this model's maximum context length is {longest:,} tokens, but text {number} has {len(row):,}; shorten it",
                "input",
                "context_length_exceeded",
            )
    return rows


def alike(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """The numbers of rows in batches, of like length so that there is little filling."""
    batches: list[list[int]] = []
    for number in sorted(range(len(rows)), key=lambda number: -len(rows[number])):
        if batches and (len(batches[-1]) + 1) * len(rows[batches[-1][0]]) <= TOGETHER:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def vectors_of(service: Service, rows: list[list[int]]) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        found: npt.NDArray[np.float32] = pooled(service.model.network, rows, service.pooling).float().cpu().numpy()
    return found


def packed_up(vector: npt.NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
