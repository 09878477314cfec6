"""Every request has an id, a line in the log and a place in the figures, however it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pellucid.serving.answers import as_api_error
from pellucid.serving.metrics import Metrics
from pellucid.serving.service import Record

logger = logging.getLogger("pellucid.serving")

SANE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")  # an id that may stand in a log and in a header
GONE = 499  # in the log: the client left before there was an answer


class Recorded:
    """The outermost layer: what nobody else caught becomes an error that says nothing of our insides."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        asked = Headers(scope=scope).get("x-request-id", "")
        record = Record(asked if SANE.fullmatch(asked) else f"req-{uuid.uuid4().hex}")
        scope.setdefault("state", {})["record"] = record
        status = GONE

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = record.id
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except asyncio.CancelledError:
            record.facts["cut_off"] = True
            raise
        except Exception as error:  # nobody stands further out: a client gets an error object, and the log what it was
            told = as_api_error(error)
            if status != GONE:  # the answer has begun, so that all that is left is to break it off
                raise
            record.facts["error"] = told.code
            await told.response()(scope, receive, noting)
        finally:
            self.note(scope, record, status)

    def note(self, scope: Scope, record: Record, status: int) -> None:
        took = time.monotonic() - record.started
        path = scope["path"] if scope["path"] in self.paths else "other"  # so that nobody's paths fill the memory
        self.metrics.requests.labels(path, status).inc()
        self.metrics.took.observe(took)
        if status >= 400 and "error" in record.facts:
            self.metrics.rejected.labels(record.facts["error"]).inc()
        client = scope.get("client") or ("",)
        line = {"id": record.id, "method": scope["method"], "path": scope["path"][:200], "status": status}
        logger.info(json.dumps({**line, "client": client[0], "seconds": round(took, 4), **record.facts}))
