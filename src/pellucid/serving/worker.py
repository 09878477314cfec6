"""The one thread that owns the network: it steps the engine, and between two steps does other work that is asked for.

Everything else lives on the event loop's thread. Orders go to this one by queues; what it has to tell goes back as calls on the
loop, one for all that happened in a step.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar, cast

from pellucid.core.errors import PellucidError
from pellucid.core.machine import end_helpers
from pellucid.generation.engine import Engine
from pellucid.generation.text import Text
from pellucid.serving.errors import busy, failure, unavailable
from pellucid.serving.writing import Following, News, Writing, within

logger = logging.getLogger("pellucid.serving")

Pause = Callable[[], None]

PULSE = 1.0  # seconds after which a thread without work says that it is alive
Value = TypeVar("Value")


class Abandoned(Exception):
    """Whoever asked for this work has gone."""


class Died(BaseException):
    """The engine failed while other work was under way."""


@dataclass(eq=False)
class Job:
    """Work for the network other than writing."""

    work: Callable[[], object]
    future: asyncio.Future[object]
    call: Callable[[Callable[[], object]], None]
    long: bool = False  # whether it pauses for steps and other jobs

    def do(self) -> None:
        if self.future.cancelled():
            return
        try:
            done = self.work()
        except Abandoned:
            self.fail(leaving())
        except PellucidError as error:
            self.fail(error)
        except Exception:  # of one request, which fails alone
            logger.exception("work on the engine's thread failed")
            self.fail(failure())
        except Died:  # with the thread, but whoever asked for this must hear of it too
            self.fail(failure())
            raise
        else:
            self.call(lambda: None if self.future.done() else self.future.set_result(done))

    def fail(self, error: Exception) -> None:
        self.call(lambda: None if self.future.done() else self.future.set_exception(error))


@dataclass
class Worker:
    """The thread, how to reach it, and whether it lives. Without an engine it only does jobs.

    `places` is how many texts and jobs may be under way or wait; `progressed` hears, on the thread, of every text that got
    tokens or ended.
    """

    engine: Engine | None
    places: int
    progressed: Callable[[Following, float], None]
    beat: float = field(default_factory=time.monotonic)  # when the thread last began something
    failure: BaseException | None = None
    draining: bool = False  # nothing new is taken
    stopped: bool = False
    thread: Thread | None = None
    orders: SimpleQueue[Callable[[], None] | None] = field(default_factory=SimpleQueue)
    jobs: deque[Job] = field(default_factory=deque)
    taken: int = 0  # of the places; the event loop's own, like the next two
    writings: set[Writing] = field(default_factory=set)
    loop: asyncio.AbstractEventLoop | None = None
    active: dict[Text, Following] = field(default_factory=dict)  # the thread's own

    # On the event loop's thread:

    def start(self) -> None:
        self.loop = asyncio.get_running_loop()
        if self.thread is None:
            self.beat = time.monotonic()
            end_helpers()
            self.thread = Thread(target=self.run, name="pellucid-engine", daemon=True)
            self.thread.start()

    def silence(self) -> float:
        """Seconds since the thread last began something."""
        return time.monotonic() - self.beat

    def check(self, count: int = 0) -> None:
        """Refuse what there is no place for."""
        if self.failure is not None:
            raise unavailable("the engine has died; the server must be started again", "engine_dead")
        if self.draining or self.stopped:
            raise leaving()
        if self.taken + count > self.places:
            raise busy(f"the queue is full: {self.taken} texts are under way or wait; try again in a moment", "queue_full")

    def enter(self, count: int) -> None:
        """Take places, if there are so many."""
        self.check(count)
        self.taken += count

    def leave(self, count: int) -> None:
        self.taken -= count

    def write(self, texts: Sequence[Text], *, streamed: bool, deadline: float) -> Writing:
        """Have texts written; close what is returned, whatever happens."""
        self.enter(len(texts))
        writing = Writing(texts, streamed=streamed, deadline=deadline, left=self.leave, closed=self.forget)
        self.writings.add(writing)
        self.orders.put(lambda: self.add(writing))
        self.start()
        return writing

    def forget(self, writing: Writing, *, unfinished: bool) -> None:
        self.writings.discard(writing)
        if unfinished:
            self.orders.put(lambda: self.cancel(writing))

    async def do(self, work: Callable[[], Value], *, deadline: float) -> Value:
        """The result of work that is done between two steps."""
        return cast(Value, await self.done(Job(work, asyncio.get_running_loop().create_future(), self.call), deadline))

    async def do_long(self, work: Callable[[Pause], Value], *, deadline: float) -> Value:
        """The same of work that calls `pause` now and then: texts go on meanwhile, and other work is done."""
        future = asyncio.get_running_loop().create_future()
        job = Job(lambda: work(lambda: self.pause(future)), future, self.call, long=True)
        return cast(Value, await self.done(job, deadline))

    async def done(self, job: Job, deadline: float) -> object:
        """What comes of a job, once it has its turn."""
        self.enter(1)
        self.start()
        try:
            self.jobs.append(job)
            self.orders.put(None)
            return await within(job.future, deadline)
        finally:
            job.future.cancel()
            self.leave(1)

    async def stop(self) -> None:
        """End the thread; what is under way fails."""
        self.stopped = True
        self.orders.put(None)
        self.fail_all(leaving())
        if self.thread is not None:
            await asyncio.to_thread(self.thread.join, 10)

    def fail_all(self, error: Exception) -> None:
        for writing in self.writings:
            writing.fail(error)
        while self.jobs:
            self.jobs.popleft().fail(error)

    # On the engine's thread:

    def call(self, function: Callable[[], object]) -> None:
        """Run something on the event loop's thread; if that has ended nobody waits for it."""
        assert self.loop is not None, "whoever asks for something does it on a loop"
        try:
            self.loop.call_soon_threadsafe(function)
        except RuntimeError:
            logger.debug("the event loop has ended")

    def run(self) -> None:
        try:
            while not self.stopped:
                self.beat = time.monotonic()
                self.turn()
        except BaseException as error:  # whatever ends the thread, those who wait for it must hear
            logger.exception("the engine died")
            self.failure = error  # from here on nothing enters, so that none is missed
            self.call(lambda: self.fail_all(failure()))

    def turn(self) -> None:
        """Take orders, do one job, make one step, and tell of it. Without work, wait for some."""
        self.hear(wait=not (self.jobs or (self.engine is not None and self.engine.busy)))
        if self.jobs:
            self.jobs.popleft().do()
        self.step()

    def pause(self, future: asyncio.Future[object]) -> None:
        """In the middle of long work: the same, without more long work. Raises if nobody waits for this any more."""
        if future.cancelled() or self.stopped:
            raise Abandoned
        try:
            self.others()
        except Exception as error:  # not of this work: the engine's
            raise Died from error

    def others(self) -> None:
        """Orders, one short job, and a step."""
        self.beat = time.monotonic()
        self.hear(wait=False)
        if (job := next((job for job in [*self.jobs] if not job.long), None)) is not None:
            self.jobs.remove(job)
            job.do()
        self.step()

    def hear(self, *, wait: bool) -> None:
        """Take all orders; if there is nothing to do, wait for one."""
        try:
            while True:
                order = self.orders.get(block=wait, timeout=PULSE)
                if order is not None:
                    order()
                wait = False  # further orders are taken, but not waited for
        except Empty:
            pass

    def step(self) -> None:
        """Write a token of each text."""
        if self.engine is not None and self.engine.busy:
            began = time.monotonic()
            self.engine.step()
            self.tell(self.engine, began)

    def add(self, writing: Writing) -> None:
        assert self.engine is not None, "texts are asked of models that write them"
        for following in writing.following:
            self.active[following.text] = following
            self.engine.add(following.text)

    def cancel(self, writing: Writing) -> None:
        assert self.engine is not None, "texts are asked of models that write them"
        for following in writing.following:
            if self.active.pop(following.text, None) is not None:
                self.engine.cancel(following.text)

    def tell(self, engine: Engine, began: float) -> None:
        """Give what a step has brought to those who asked for it."""
        now, batch = time.monotonic(), list[tuple[Writing, News]]()
        for place in engine.places:
            self.active[place.text].admit(began)
        for following in [*self.active.values()]:
            if following.moved():
                following.admit(began)
                self.progressed(following, now)
                if (news := following.news()) is not None:
                    batch.append((following.writing, news))
                if following.text.finish_reason:
                    del self.active[following.text]
        if batch:
            self.call(lambda: deliver(batch))


def leaving() -> Exception:
    return unavailable("the server is shutting down; ask again when it is back", "shutting_down")


def deliver(batch: Sequence[tuple[Writing, News]]) -> None:
    for writing, news in batch:
        writing.tell(news)
