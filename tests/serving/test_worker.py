"""The engine's thread: what leaves frees its place at once, what hangs or dies is said, and nobody waits for ever."""

import asyncio
import threading
import time

import pytest
from served import error_of, served, slowed

COMPLETIONS = "/v1/completions"
LONG = {"prompt": "Alice", "max_tokens": 240, "logit_bias": {"0": -100}}


async def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        await asyncio.sleep(0.002)


def idle(server):
    worker, engine = server.service.worker, server.service.worker.engine
    return not (engine.places or engine.waiting or worker.active or worker.taken or worker.writings)


@pytest.mark.parametrize("where", ["queue", "prefill", "decode"])
def test_who_leaves_frees_their_place_at_once(with_server, where):
    async def inside(server):
        engine = slowed(server.app, 0.01)
        prompt = [*range(5, 205)] if where == "prefill" else "Alice"
        first = asyncio.ensure_future(server.post(COMPLETIONS, **LONG))
        await until(lambda: engine.places)
        leaving = asyncio.ensure_future(server.post(COMPLETIONS, **LONG | {"prompt": prompt, "max_tokens": 40}))
        if where == "queue":
            await until(lambda: engine.waiting)
        elif where == "prefill":
            await until(lambda: len(engine.places) == 2 and not engine.places[1].text.tokens)
        else:
            await until(lambda: len(engine.places) == 2 and engine.places[1].text.tokens)
        leaving.cancel()
        await until(lambda: len(engine.places) + len(engine.waiting) == 1)
        assert not first.done()
        first.cancel()
        await until(lambda: idle(server))
        return await server.ask(COMPLETIONS, prompt="a", max_tokens=2)

    assert with_server(inside, slots=1 if where == "queue" else 2)["choices"]


def test_a_dead_engine_is_said_to_everyone(with_server):
    async def inside(server):
        engine, step, steps = server.service.worker.engine, server.service.worker.engine.step, iter(range(100))

        def dying():
            if next(steps) == 10:
                raise MemoryError("a bit fell over")
            step()

        engine.step = dying
        whole = asyncio.ensure_future(server.post(COMPLETIONS, **LONG))
        streamed = asyncio.ensure_future(server.post(COMPLETIONS, **LONG, stream=True))
        waiting = asyncio.ensure_future(server.post(COMPLETIONS, **LONG, n=3))
        embedding = asyncio.ensure_future(server.post("/v1/embeddings", input=["a"] * 9))
        answers = await asyncio.gather(whole, streamed, waiting, embedding)
        ready, live = await server.client.get("/readyz"), await server.client.get("/livez")
        return answers, ready, live, await server.post(COMPLETIONS, prompt="a"), server.service.worker.taken

    (whole, streamed, waiting, embedding), ready, live, later, taken = with_server(inside, slots=2)
    assert error_of(whole, 500)["code"] == error_of(waiting, 500)["code"] == "internal_error"
    assert embedding.status_code in (200, 500)
    *_, error, done = streamed.text.strip().split("\n\n")
    assert error.startswith('data: {"error":{')
    assert done == "data: [DONE]"
    assert error_of(ready, 503)["code"] == error_of(later, 503)["code"] == "engine_dead"
    assert (live.status_code, taken) == (200, 0)


def test_an_engine_that_hangs_is_not_ready_and_is_again(with_server):
    async def inside(server):
        go, step, engine = threading.Event(), server.service.worker.engine.step, server.service.worker.engine
        before = (await server.client.get("/readyz")).status_code

        def hanging():
            assert go.wait(20)
            step()

        engine.step = hanging
        asked = asyncio.ensure_future(server.ask(COMPLETIONS, prompt="a", max_tokens=3))
        await asyncio.sleep(0.5)
        hung = await server.client.get("/readyz")
        go.set()
        await asked
        return before, hung, (await server.client.get("/readyz")).status_code

    before, hung, after = with_server(inside, hang=0.3)
    assert error_of(hung, 503)["code"] == "engine_hung"
    assert (before, after) == (200, 200)


def test_an_engine_with_nothing_to_do_is_ready(with_server):
    async def inside(server):
        await asyncio.sleep(1.8)
        return (await server.client.get("/readyz")).json()

    assert with_server(inside, hang=1.5) == {"status": "ok", "running": 0, "waiting": 0}


def test_a_request_that_takes_too_long_ends(with_server):
    async def inside(server):
        slowed(server.app, 0.05)
        whole = await server.post(COMPLETIONS, **LONG)
        streamed = await server.post(COMPLETIONS, **LONG, stream=True)
        await until(lambda: idle(server))
        return whole, streamed

    whole, streamed = with_server(inside, timeout=0.4)
    assert error_of(whole, 408)["code"] == "timeout"
    assert '"code":"timeout"' in streamed.text.split("\n\n")[-3]


def test_a_silent_stream_says_that_it_is_alive(with_server):
    async def inside(server):
        slowed(server.app, 0.3)
        return (await server.post(COMPLETIONS, prompt="a", max_tokens=2, stream=True)).text

    text = with_server(inside, heartbeat=0.1)
    assert text.count(": still at work\n\n") >= 2
    assert text.endswith("data: [DONE]\n\n")


def test_one_texts_failure_is_its_alone(with_server, monkeypatch):
    from pellucid.core.errors import ModelError
    from pellucid.generation.constrain import Matcher

    def failing(self, token):
        raise ModelError("the grammar became too large to go on")

    async def inside(server):
        monkeypatch.setattr(Matcher, "take", failing)
        good = asyncio.ensure_future(server.ask(COMPLETIONS, prompt="a", max_tokens=20, seed=1))
        bad = await server.post(COMPLETIONS, prompt="a", max_tokens=20, regex="[a-z]{5}")
        streamed = await server.post(COMPLETIONS, prompt="a", max_tokens=20, regex="[a-z]{5}", stream=True)
        await good
        await until(lambda: idle(server))
        return bad, streamed, (await server.client.get("/readyz")).status_code

    bad, streamed, ready = with_server(inside)
    assert error_of(bad, 400)["message"].startswith("the grammar became too large")
    assert "the grammar became too large" in streamed.text
    assert ready == 200


def test_a_job_that_fails_fails_alone(with_server, monkeypatch):
    from pellucid.serving import embeddings

    async def inside(server):
        def failing(service, rows):
            raise ZeroDivisionError

        kept = embeddings.vectors_of
        monkeypatch.setattr(embeddings, "vectors_of", failing)
        bad = await server.post("/v1/embeddings", input="a")
        monkeypatch.setattr(embeddings, "vectors_of", kept)
        return bad, await server.ask("/v1/embeddings", input="a")

    bad, good = with_server(inside)
    assert error_of(bad, 500)["code"] == "internal_error"
    assert "ZeroDivision" not in bad.text
    assert good["data"]


def test_a_server_that_ends_says_so_to_whom_it_leaves(model):
    async def inside():
        entered = served(model)
        server = await entered.__aenter__()
        slowed(server.app, 0.02)
        asked = asyncio.ensure_future(server.post(COMPLETIONS, **LONG))
        await until(lambda: server.service.worker.engine.places)
        await server.service.close()
        ready = await server.client.get("/readyz")
        answers = await asked, ready, await server.post(COMPLETIONS, prompt="a")
        await entered.__aexit__(None, None, None)
        return answers

    for answer in asyncio.run(inside()):
        assert error_of(answer, 503)["code"] == "shutting_down"
