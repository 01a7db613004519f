"""/metrics on a port of its own, for scrapers that have no client certificate: in clear, without authentication.

What it shows names no workload and no secret, but who may reach it is for the network to say; so there is no such port
unless `metrics_address` is set. Everything else on it is 404.
"""

import asyncio
from typing import Final

from aiohttp import hdrs, web

from hub.api.doorstep import Doorstep
from hub.api.protocol import HttpServer
from observability.metrics import Metrics
from observability.prometheus import CONTENT_TYPE, exposition

CONNECTIONS_MAX: Final = 32
FIRST_REQUEST_S: Final = 10.0
IDLE_S: Final = 60.0
STOP_S: Final = 1.0
LINE_BYTES_MAX: Final = 4096


class MetricsPort:
    """`start`, then `stop`. More than `connections_max` are closed at once, and who asks for nothing after `first_request_s`."""

    def __init__(
        self,
        metrics: Metrics,
        address: tuple[str, int],
        connections_max: int = CONNECTIONS_MAX,
        first_request_s: float = FIRST_REQUEST_S,
    ) -> None:
        self._metrics = metrics
        self._address = address
        self._connections_max = connections_max
        self._first_request_s = first_request_s
        self._server: HttpServer | None = None
        self._doorstep: Doorstep | None = None
        self._listener: asyncio.Server | None = None

    async def start(self) -> tuple[str, int]:
        """Listens; returns the address. Raises OSError when it is taken."""
        self._server = HttpServer(
            self._answer,
            access_log=None,
            keepalive_timeout=IDLE_S,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=LINE_BYTES_MAX,
        )
        self._doorstep = Doorstep(self._server, self._connections_max, self._first_request_s)
        self._listener = await asyncio.get_running_loop().create_server(
            self._doorstep.accept, *self._address, backlog=CONNECTIONS_MAX
        )
        bound = self._listener.sockets[0].getsockname()
        return str(bound[0]), int(bound[1])

    async def stop(self) -> None:
        """Closes the port and what is connected."""
        if self._listener is not None:
            self._listener.close()
        if self._doorstep is not None:
            self._doorstep.close()
        if self._server is not None:
            self._server.pre_shutdown()
            await self._server.shutdown(STOP_S)  # 0 would be without end

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._doorstep is not None
        self._doorstep.entered(request.protocol)
        if request.rel_url.raw_path != "/metrics":
            return web.Response(status=404, text="only /metrics is served here\n")
        if request.method not in (hdrs.METH_GET, hdrs.METH_HEAD):
            return web.Response(status=405, headers={hdrs.ALLOW: "GET, HEAD"})
        body = await asyncio.to_thread(exposition, self._metrics.snapshot())
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})
