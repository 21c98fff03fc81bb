"""What every request passes: the token, the size of its body, the time that it takes to arrive, and the clock."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from fedemb.serve.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

OPEN = ("/healthz", "/readyz")  # whoever starts and stops services asks without a token
_BODY_SECONDS = 10.0


class _RefusedError(Exception):
    def __init__(self, status: int, detail: str, headers: Mapping[str, str]) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


def gate(app: App, token: str | None, body_limit_bytes: int, metrics: Metrics, routes: frozenset[str]) -> App:
    """The same application behind the gate.

    Args:
        app: What is behind it.
        token: What clients must send; None: nothing.
        body_limit_bytes: Largest body.
        metrics: Where requests are counted.
        routes: Paths to count by name; anything else is counted as ``other``.
    """
    expected = None if token is None else f"Bearer {token}".encode()

    async def gated(scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            headers = dict(scope["headers"])
            if expected is not None and scope["path"] not in OPEN:
                given = headers.get(b"authorization", b"")
                if not hmac.compare_digest(given, expected):
                    wanted = {"www-authenticate": "Bearer"}
                    raise _RefusedError(401, "a token is needed: Authorization: Bearer ...", wanted)
            body = await _body(receive, headers, body_limit_bytes)
            await app(scope, _once(body, receive), sending)
        except _RefusedError as refused:
            await _refuse(sending, refused)
        finally:
            route = scope["path"] if scope["path"] in routes else "other"
            metrics.requests.labels(route, _method(scope["method"]), str(status)).inc()
            metrics.latency.labels(route).observe(time.perf_counter() - begin)

    return gated


def _method(method: str) -> str:
    return method if method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE") else "other"


async def _body(receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> bytes:
    """The whole body, if it is small enough and comes soon enough."""
    declared = headers.get(b"content-length", b"0")
    too_large = _RefusedError(
        413, f"a body must be at most {limit} bytes (body_limit_bytes)", {"connection": "close"}
    )
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    break
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    raise too_large
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        slow = f"a body must arrive within {_BODY_SECONDS:g} seconds"
        raise _RefusedError(408, slow, {"connection": "close"}) from None
    return b"".join(parts)


def _once(body: bytes, receive: Receive) -> Receive:
    given = False

    async def receiving() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


async def _refuse(send: Send, refused: _RefusedError) -> None:
    body = json.dumps({"detail": refused.detail}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
