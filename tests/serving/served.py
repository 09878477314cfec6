"""A model behind the application, in this process or behind a real socket, and what its answers are like."""

import json
import threading
import time
from contextlib import asynccontextmanager, contextmanager

import httpx

from pellucid.serving import ServeSettings, create_app
from pellucid.serving.running import Server, configured, listen


class Served:
    """An application, and a client of it."""

    def __init__(self, app, client):
        self.app, self.client, self.service = app, client, app.state.service

    async def post(self, path, body=None, **fields):
        return await self.client.post(path, json={"model": "tiny", **(body or {}), **fields})

    async def ask(self, path, **fields):
        """The answer to what must succeed."""
        answer = await self.post(path, **fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def stream(self, path, **fields):
        """The events of a stream, without the last, which says that it is done."""
        answer = await self.post(path, stream=True, **fields)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: ")]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]

    async def refused(self, status, path, **fields):
        """The error object of what must be refused."""
        return error_of(await self.post(path, **fields), status)


def error_of(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert body["error"]["code"]
    return body["error"]


@asynccontextmanager
async def served(model, **settings):
    app = create_app(model, ServeSettings(**{"name": "tiny", "slots": 4, **settings}))
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as client:
            yield Served(app, client)


@contextmanager
def listening(model, **settings):
    """The same behind a socket, on a thread of its own: its address and the application."""
    chosen = ServeSettings(**{"name": "tiny", "slots": 4, "port": 0, **settings})
    app, bound = create_app(model, chosen), listen(chosen)
    server = Server(configured(app), app.state.service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.01)
        yield bound.getsockname()[1], app
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def slowed(app, seconds):
    """The engine, of which every step now takes a while, so that there is time to leave."""
    engine, step = app.state.service.worker.engine, app.state.service.worker.engine.step

    def slow():
        time.sleep(seconds)
        step()

    engine.step = slow
    return engine


def wait(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)
