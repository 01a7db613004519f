"""Requests that are no HTTP: answered as everything else is, with a metav1.Status, and without a traceback in the log.

aiohttp would log every one of them as an error, with what the client sent; anybody who can connect could fill the log, and
a header may hold a secret.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import RequestHandler

from hub import errors
from hub.api.negotiation import JSON
from hub.api.rendering import encode

log = logging.getLogger(__name__)


class Connection(RequestHandler):
    """One connection of a client."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The last answer on a connection whose request could not be read."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        log.debug("a request from %s is no HTTP: %s", request.remote, type(exc).__name__)
        text = (message or "").partition("\n")[0].partition(": b")[0].rstrip(":")
        if isinstance(exc, LineTooLong):
            text = "a line of its head is too long; the bound is 16 KiB"
        failure = errors.BadRequest(f"the request is not acceptable: {text}")
        response = web.Response(body=encode(failure.status()), status=failure.code, content_type=JSON)
        response.force_close()
        return response


class HttpServer(web.Server):
    """Makes a `Connection` for everybody who connects. `options`: those of aiohttp's RequestHandler."""

    def __init__(
        self, answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], **options: Any
    ) -> None:
        # A client that went away ends its watch at once.
        super().__init__(answer, handler_cancellation=True)
        self._options = options

    def __call__(self) -> Connection:
        return Connection(self, loop=asyncio.get_running_loop(), **self._options)
