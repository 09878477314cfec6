"""Who may ask, from where, how much and how often: what stands before every endpoint."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pellucid.serving.errors import ApiError, busy, refusal
from pellucid.serving.service import Record
from pellucid.serving.settings import ServeSettings, is_loopback

OWN = frozenset({"localhost", "127.0.0.1", "[::1]"})
METHODS, HEADERS = "GET, POST, OPTIONS", "authorization, content-type, x-request-id"
HEARD = 16  # times what a body may have: so much of a request that is refused is read, and forgotten
TOLD = "x-request-id, retry-after"  # headers of answers that a page from elsewhere may read


class Guard:
    """Checks in this order: the Host, the origin, the key, how many requests are under way for it, and the body's size.

    The body is read here, whole, within a time. While the answer is made, the client is watched: if it goes, so does the work.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, open_paths: Sequence[str]) -> None:
        self.app, self.settings, self.open_paths = app, settings, tuple(open_paths)
        self.keys = [hashlib.sha256(key.encode()).digest() for key in settings.keys]
        self.under_way: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        ended = False

        async def hear() -> Message:
            nonlocal ended
            message = await receive()
            ended = not message.get("more_body", False)
            return message

        if origin in self.settings.origins:
            send = allowing(origin, send)
        try:
            self.check_host(headers.get("host", ""))
            if origin in self.settings.origins and scope["method"] == "OPTIONS":
                await preflight()(scope, receive, send)
            elif self.is_open(scope["path"]):
                await self.app(scope, receive, send)
            else:
                await self.admit(scope, hear, send, headers)
        except ApiError as error:
            if not ended and error.status != 408 and headers.get("expect", "").lower() != "100-continue":
                await self.hear_out(hear)
            scope["state"]["record"].facts["error"] = error.code
            await error.response()(scope, receive, send)

    async def admit(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        """Answer who may ask, unless too much is under way for them."""
        who = self.who(headers, scope["state"]["record"]) or (scope.get("client") or ("",))[0]
        if self.under_way[who] >= self.settings.per_key:
            raise busy(
                f"{self.settings.per_key} requests of yours are under way already; wait for one to end", "too_many_requests"
            )
        self.under_way[who] += 1
        with ExitStack() as place:
            place.callback(self.leave, who)

            async def send_on(message: Message) -> None:
                if message["type"] == "http.response.body" and not message.get("more_body", False):
                    place.close()  # who has the whole answer may ask again at once
                await send(message)

            await self.answer(scope, receive, send_on, headers)

    def leave(self, who: str) -> None:
        self.under_way[who] -= 1
        if not self.under_way[who]:
            del self.under_way[who]

    def check_host(self, host: str) -> None:
        """Refuse a name that is not ours: a page of another site may have made it point here (DNS rebinding)."""
        name = host.rsplit(":", 1)[0] if not host.endswith("]") and ":" in host else host
        known = name.lower() in OWN | {self.settings.host, *self.settings.hosts}
        if not known and not (is_address(name) and not is_loopback(self.settings.host)):
            raise refusal(
                f"the host {host[:100]!r} is not one of this server's; allow it with --hosts", code="host_not_allowed"
            )

    def is_open(self, path: str) -> bool:
        """Whether everybody may read a path: the sign of life, and the page, which holds nothing secret."""
        return any(path == one or (one.endswith("/") and one != "/" and path.startswith(one)) for one in self.open_paths)

    def who(self, headers: Headers, record: Record) -> str | None:
        """The fingerprint of the key that was shown, if keys are wanted. Every key is compared, whichever it is."""
        if not self.keys:
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        shown = hashlib.sha256(key.strip().encode("latin-1")).digest()
        known = [hmac.compare_digest(shown, mine) for mine in self.keys]
        if scheme.lower() != "bearer" or not any(known):
            said = "the API key is not known" if key else "an API key is needed"
            raise ApiError(
                401, f"{said}; send one in the header Authorization: Bearer KEY", "invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )  # fmt: skip
        record.facts["key"] = fingerprint = shown.hex()[:12]
        return fingerprint

    async def answer(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        """Answer a request whose body was read, until the client goes."""
        body = await self.body(receive, headers)
        told = False

        async def replay() -> Message:
            nonlocal told
            if told:  # nobody below listens for the client's going: it is done here
                await asyncio.Event().wait()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        answering = asyncio.ensure_future(self.app(scope, replay, send))
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                scope["state"]["record"].facts["client_left"] = True
                answering.cancel()
            await asyncio.wait({answering})
            if not answering.cancelled():
                answering.result()
        finally:
            gone.cancel()
            answering.cancel()

    async def body(self, receive: Receive, headers: Headers) -> bytes:
        """The whole body, if it is not too large and does not take too long."""
        most, length = self.settings.max_body, headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > most:
            raise self.too_large()
        parts, size = list[bytes](), 0
        try:
            async with asyncio.timeout(self.settings.read_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the client left before its request was complete", "client_left")
                    parts.append(message.get("body", b""))
                    if (size := size + len(parts[-1])) > most:
                        raise self.too_large()
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(
                408, f"the request was not complete after {self.settings.read_timeout:g} seconds; send it faster",
                "request_timeout", headers={"connection": "close"},
            ) from None  # fmt: skip

    async def hear_out(self, receive: Receive) -> None:
        """Read what is left of a request that is refused: a client that still sends it would not see why."""
        left = HEARD * self.settings.max_body
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.read_timeout):
                while left > 0 and (message := await receive()).get("more_body", False):
                    left -= len(message["body"])

    def too_large(self) -> ApiError:
        most = self.settings.max_body
        message = f"the body has more than the {most:,} bytes that this server takes; send less"
        return ApiError(413, message, "body_too_large", headers={"connection": "close"})


def is_address(name: str) -> bool:
    """Whether a host is an address, to which no name can be made to point."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def allowing(origin: str, send: Send) -> Send:
    """Let a page of this origin read the answer."""

    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["access-control-allow-origin"] = origin
            headers["access-control-expose-headers"] = TOLD
            headers.add_vary_header("origin")
        await send(message)

    return marked


def preflight() -> Response:
    allowed = {"access-control-allow-methods": METHODS, "access-control-allow-headers": HEADERS}
    return Response(status_code=204, headers={**allowed, "access-control-max-age": "600"})


async def until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
