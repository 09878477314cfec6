"""A tiny model, and an application around it."""

import asyncio

import pytest
import tiny
import torch
from served import served

from pellucid.api import Model
from pellucid.text.tokenizer import Tokenizer

CONTEXT = 256


@pytest.fixture(scope="session")
def model():
    """A decoder of random weights. It may end a text by itself, unless a request bans token 0 by its logit bias."""
    tokenizer = Tokenizer.train_bpe(tiny.DOCUMENTS, 400)
    network = tiny.randomised(tiny.config(tokenizer.vocab_size + 3, context_length=CONTEXT))
    with torch.no_grad():
        network.scorer.weight.mul_(0.3)  # so that drawing matters
    return Model(network, tokenizer)


@pytest.fixture
def with_server(model):
    """Run an async function on an application of its own; the function's result."""

    def run(function, model=model, **settings):
        async def inside():
            async with served(model, **settings) as server:
                return await asyncio.wait_for(function(server), 60)

        return asyncio.run(inside())

    return run
