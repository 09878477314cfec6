"""The log: lines that a thread of its own writes, so that whoever does not read them holds up nobody."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import QueueHandler
from queue import Full, Queue
from threading import Thread
from typing import TextIO

LINES = 10_000  # that may wait to be written
LAST = 2.0  # seconds for what is left at the end


class Lines(QueueHandler):
    """Takes lines without waiting, and counts those for which there is no room."""

    def __init__(self, lines: int) -> None:
        self.waiting: Queue[logging.LogRecord] = Queue(lines)
        super().__init__(self.waiting)
        self.lost = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.waiting.put_nowait(record)
        except Full:
            self.lost += 1

    def write(self, stream: TextIO) -> None:
        """Write what comes, for ever, and how many lines were lost when there is room again."""
        told = 0
        while True:
            record = self.waiting.get()
            try:
                stream.write(f"{record.getMessage()}\n")
                if self.lost > told and self.waiting.empty():
                    stream.write(f'{{"lost_lines": {self.lost - told}}}\n')
                    told = self.lost
                stream.flush()
            except (OSError, ValueError):  # nobody reads any more, or the stream is closed
                return
            finally:
                self.waiting.task_done()


@contextmanager
def logging_to(stream: TextIO, lines: int = LINES) -> Iterator[None]:
    """Write the server's log to a stream for as long; at the end nobody waits for a reader that does not read."""
    logger, handler = logging.getLogger("pellucid.serving"), Lines(lines)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    Thread(target=handler.write, args=[stream], name="pellucid-log", daemon=True).start()
    try:
        yield
    finally:
        logger.removeHandler(handler)
        end = time.monotonic() + LAST
        while handler.waiting.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.005)
