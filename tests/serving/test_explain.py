"""POST /v1/explain: the same figures as in Python, others' texts go on meanwhile, and what is refused."""

from __future__ import annotations

import asyncio

import pytest
import tiny
from labellers import labeller
from served import error_of

import pellucid
from pellucid.api import Model
from pellucid.serving.explain import METHODS

PROMPT = "Alice was beginning to get very tired"


def test_it_finds_what_python_finds(model, with_server):
    async def ask(server):
        return await server.ask(
            "/v1/explain", input=PROMPT, target=" of", foil=" the", methods=["occlusion", "shapley"], seed=3
        )

    told = with_server(ask)
    found = pellucid.explain(model, PROMPT, target=" of", foil=" the", methods=["occlusion", "shapley"], seed=3)
    assert told["measure"] == found.question.measure
    assert told["difference"] == pytest.approx(found.difference, abs=1e-5)
    assert [unit["text"] for unit in told["units"]] == PROMPT.split()
    assert [one["method"] for one in told["attributions"]] == [one.method for one in found.attributions.found]
    for ours, theirs in zip(told["attributions"], found.attributions.found, strict=True):
        assert ours["values"] == pytest.approx(theirs.values.tolist(), abs=1e-4)
        assert ours["score"] == pytest.approx(theirs.faithfulness.score, abs=1e-4)
    assert told["verdict"] == found.verdict
    assert told["usage"]["prompt_tokens"] == len(found.question.ids)


def test_token_ids_and_no_target(model, with_server):
    ids = model.tokenizer.encode(PROMPT)

    async def ask(server):
        return await server.ask("/v1/explain", input=ids), await server.ask("/v1/explain", input=PROMPT)

    by_ids, by_text = with_server(ask)
    assert by_ids["attributions"] == by_text["attributions"]
    assert {one["method"] for one in by_text["attributions"]} == set(METHODS)


def test_a_classifier_is_explained(with_server):
    async def ask(server):
        return await server.ask("/v1/explain", input="Alice ran", target="yes")

    told = with_server(ask, model=labeller("bert"))
    assert told["target"] == "yes"
    assert told["foil"] in ("no", "perhaps")


def test_texts_go_on_while_something_is_explained(model, with_server):
    network = tiny.randomised(tiny.config(model.config.vocab_size, context_length=2048))
    slow = Model(network, model.tokenizer)
    text = " ".join(tiny.DOCUMENTS[:6])

    async def both(server):
        explaining = asyncio.create_task(server.ask("/v1/explain", input=text, by="tokens"))
        await asyncio.sleep(0.1)
        written = await server.ask("/v1/completions", prompt="Alice", max_tokens=5, logit_bias={"0": -100})
        first = explaining.done()
        short = await server.ask("/v1/score", input="Alice")
        second = explaining.done()
        told = await explaining
        return first, second, written, short, told

    first, second, written, short, told = with_server(both, model=slow)
    assert not first
    assert not second
    assert written["usage"]["completion_tokens"] == 5
    assert short["data"][0]["logprob"] < 0
    assert len(told["units"]) > 100


def test_work_that_nobody_waits_for_ends(model, with_server):
    network = tiny.randomised(tiny.config(model.config.vocab_size, context_length=2048))
    text = " ".join(tiny.DOCUMENTS[:6])

    async def leave(server):
        explaining = asyncio.create_task(server.ask("/v1/explain", input=text, by="tokens"))
        await asyncio.sleep(0.2)
        explaining.cancel()
        with pytest.raises(asyncio.CancelledError):
            await explaining
        worker = server.service.worker
        again = await server.ask("/v1/explain", input="Alice ran", methods=["occlusion"])
        return again, worker.taken, len(worker.jobs)

    again, taken, waiting = with_server(leave, model=Model(network, model.tokenizer))
    assert again["units"]
    assert (taken, waiting) == (0, 0)


LONG = {"input": " ".join(tiny.DOCUMENTS[:6]), "by": "tokens"}


@pytest.fixture
def slow(model):
    """A model that can read all of that, which takes a while."""
    return Model(tiny.randomised(tiny.config(model.config.vocab_size, context_length=2048)), model.tokenizer)


async def at_work(server):
    """Something that is being explained."""
    explaining = asyncio.create_task(server.post("/v1/explain", **LONG))
    while server.service.worker.jobs or not server.service.worker.taken:
        await asyncio.sleep(0.002)
    return explaining


def test_a_server_that_leaves_says_so_to_who_waits_for_an_explanation(slow, with_server):
    async def leave(server):
        explaining = await at_work(server)
        await server.service.worker.stop()
        return error_of(await asyncio.wait_for(explaining, 5), 503)

    assert with_server(leave, model=slow)["code"] == "shutting_down"


def test_an_engine_that_dies_meanwhile_is_said_to_both(slow, with_server):
    async def die(server):
        def dying():
            raise MemoryError("a bit fell over")

        explaining = await at_work(server)
        server.service.worker.engine.step = dying
        writing = asyncio.create_task(server.post("/v1/completions", prompt="Alice", max_tokens=5))
        both = [error_of(await asyncio.wait_for(task, 5), 500) for task in (explaining, writing)]
        return both, error_of(await server.post("/v1/explain", input="Alice"), 503)

    both, later = with_server(die, model=slow)
    assert {error["code"] for error in both} == {"internal_error"}
    assert later["code"] == "engine_dead"


REFUSED = [
    ({"input": ""}, "input", "not empty"),
    ({"input": []}, "input", "not empty"),
    ({"input": ["a", "b"]}, "input", "not empty"),
    ({"input": "   "}, None, "the text to explain is empty"),
    ({"input": [10**6]}, None, "token id 1000000 is not in the vocabulary"),
    ({"input": "Alice", "target": " a", "foil": " a"}, None, "a thing does not differ from itself"),
    ({"input": "Alice", "methods": ["magic"]}, "methods.0", "input should be"),
    ({"input": "Alice", "methods": []}, "methods", "at least 1"),
    ({"input": "Alice", "by": "letters"}, "by", "input should be"),
    ({"input": "Alice " * 300}, "input", "can be explained here; explain a part of it"),
    ({"input": "Alice", "top": 3}, "top", "is not supported here"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_is_refused(with_server, number):
    fields, param, said = REFUSED[number]

    async def ask(server):
        return await server.refused(400, "/v1/explain", **fields)

    error = with_server(ask)
    assert said in error["message"]
    assert error["param"] == param


def test_a_model_without_scores_cannot(with_server):
    from pellucid.network.families import FAMILIES

    shape = {
        "vocab_size": 80,
        "context_length": 64,
        "d_model": 24,
        "layers": 1,
        "heads": 4,
        "kv_heads": 4,
        "d_head": 6,
        "d_mlp": 40,
    }
    bare = Model(tiny.randomised(FAMILIES["bert"].new(head="none", **shape)), labeller("bert").tokenizer)

    async def ask(server):
        return await server.refused(400, "/v1/explain", input="Alice")

    assert "cannot answer /v1/explain" in with_server(ask, model=bare)["message"]
