"""Running the application: the socket, what is slow, and how a server ends."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from signal import SIGINT, SIGTERM
from threading import current_thread, main_thread
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from pellucid.core.errors import ConfigError
from pellucid.serving.errors import ApiError
from pellucid.serving.service import Service
from pellucid.serving.settings import ServeSettings

# Seconds after which a thread must let another go on. By Python's usual 5 ms the engine's thread, which lets go in every
# operation of torch, waits for the event loop's after each, and the other way round: a small model writes half as fast.
SWITCH = 1e-4
WAITING = 512  # connections that the system may hold until they are accepted


class Connection(H11Protocol):
    """A connection that is closed when its client is too slow: with a request's head, or with reading the answer.

    uvicorn times only the silence between two requests. A body's time is the guard's concern.
    """

    def __init__(self, *words: Any, patience: float, **options: Any) -> None:
        super().__init__(*words, **options)
        self.patience = patience
        self.head: asyncio.TimerHandle | None = None
        self.stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.await_head()

    def await_head(self) -> None:
        self.head = self.loop.call_later(self.patience, self.too_slow)

    def handle_events(self) -> None:
        super().handle_events()
        if self.answering and self.head is not None:
            self.head.cancel()
            self.head = None

    @property
    def answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.head is None and not self.answering:
            self.await_head()

    def too_slow(self) -> None:
        """Close a connection without a request; say why, if one has begun."""
        self.head = None
        if self.answering or self.transport.is_closing():
            return
        if self.conn.trailing_data[0]:
            self.refuse(ApiError(408, "the request's head did not come in time; send it faster", "request_timeout"))
        self.transport.abort() if self.flow.write_paused else self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalled = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.stalled is not None:
            self.stalled.cancel()
            self.stalled = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self.head, self.stalled):
            if timer is not None:
                timer.cancel()

    def send_400_response(self, msg: str) -> None:
        self.refuse(ApiError(400, msg.rstrip("."), "invalid_http"))
        self.transport.close()

    def refuse(self, error: ApiError) -> None:
        """Answer what never became a request."""
        body = error.json.encode()
        head = [f"HTTP/1.1 {error.status} Refused", "content-type: application/json", f"content-length: {len(body)}"]
        self.transport.write("\r\n".join([*head, "connection: close", "", ""]).encode() + body)


class Server(uvicorn.Server):
    """A server that, told to stop, takes nothing new, finishes what is under way within a grace period, and ends with 0."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if current_thread() is not main_thread():  # which is the only one that hears signals
            yield
            return
        loop = asyncio.get_running_loop()
        for signal in (SIGTERM, SIGINT):
            loop.add_signal_handler(signal, self.leave)
        try:
            yield
        finally:
            for signal in (SIGTERM, SIGINT):
                loop.remove_signal_handler(signal)

    def leave(self) -> None:
        """Begin to end; asked a second time, end at once."""
        if self.service.worker.draining:
            self.should_exit = self.force_exit = True
        else:
            self.service.worker.draining = True
            self.draining = asyncio.ensure_future(self.drain())

    async def drain(self) -> None:
        until = asyncio.get_running_loop().time() + self.service.settings.grace
        while self.server_state.tasks and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.05)
        await self.service.worker.stop()  # what is still under way fails now, and says so
        self.should_exit = True


def listen(settings: ServeSettings) -> socket.socket:
    """The socket that clients connect to. Raises `ConfigError` if it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        # asyncio sends small pieces at once (TCP_NODELAY) only where the protocol is named; else each could wait for 40 ms
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        way_out = "choose another --port, or 0 for any that is free" if settings.port else "choose another --host"
        raise ConfigError(f"{settings.host}:{settings.port} cannot be listened at ({error.strerror}); {way_out}") from None
    return found


def configured(app: Starlette) -> uvicorn.Config:
    """How uvicorn runs the application."""
    patience = app.state.service.settings.read_timeout
    return uvicorn.Config(
        app,
        http=partial(Connection, patience=patience),  # type: ignore[arg-type]
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=WAITING,
        timeout_keep_alive=max(1, round(patience)),
        timeout_graceful_shutdown=5,
    )


def run(app: Starlette, bound: socket.socket) -> None:
    """Serve until a signal says to stop."""
    sys.setswitchinterval(SWITCH)
    Server(configured(app), app.state.service).run(sockets=[bound])
