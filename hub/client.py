"""The command line's client of the API: a kubeconfig, aiohttp, and errors that say what to do."""

import os
from types import TracebackType
from typing import Any

import aiohttp
import orjson

from hub import kubeconfig
from security import tls

TIMEOUT_S = 30.0
JSON = "application/json"


class ClientError(Exception):
    """The API could not be reached, or refused. The message is what it said."""


class ClientRefused(ClientError):
    """The API answered, and refused. `code`: its HTTP status."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class ApiClient:
    """`async with ApiClient(credentials) as api: await api.get("/api/v1/nodes")`."""

    def __init__(self, credentials: kubeconfig.Credentials) -> None:
        self._server = credentials.server
        self._tls = tls.client_context(credentials.root_pem, credentials.cert_pem, credentials.key_pem)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "ApiClient":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=100),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def get(self, path: str, accept: str = JSON) -> Any:
        """The decoded answer. `accept` asks for another form in JSON: a Table, metadata alone."""
        return orjson.loads(await self._request("GET", path, accept=accept))

    async def text(self, path: str) -> str:
        """The body as it is: a log, a health check."""
        return (await self._request("GET", path, accept="*/*")).decode(errors="replace")

    async def post(self, path: str, body: Any) -> Any:
        return await self._call("POST", path, body)

    async def patch(self, path: str, body: Any) -> Any:
        """A merge patch."""
        return await self._call("PATCH", path, body, "application/merge-patch+json")

    async def delete(self, path: str) -> Any:
        return await self._call("DELETE", path)

    async def _call(self, method: str, path: str, body: Any = None, kind: str = JSON) -> Any:
        raw = await self._request(method, path, None if body is None else orjson.dumps(body), kind)
        return orjson.loads(raw)

    async def _request(
        self, method: str, path: str, body: bytes | None = None, kind: str = JSON, accept: str = JSON
    ) -> bytes:
        assert self._session is not None
        try:
            async with self._session.request(
                method, self._server + path, data=body, headers={"Content-Type": kind, "Accept": accept}
            ) as response:
                raw = await response.read()
                if response.status >= 400:
                    raise ClientRefused(_message(raw, response.status), response.status)
                return raw
        except (aiohttp.ClientError, TimeoutError, OSError) as failure:
            raise ClientError(
                f"cannot reach the API at {self._server}: {_reason(failure)}; is the hub running?"
            ) from failure


def _reason(failure: Exception) -> str:
    if isinstance(failure, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    if isinstance(failure, aiohttp.ClientConnectorCertificateError):
        return (
            f"its certificate is not of a root that the kubeconfig names ({failure.certificate_error}); after a rotation of"
            " the root use a kubeconfig that was made since"
        )
    if isinstance(failure, aiohttp.ClientConnectorError) and failure.os_error.errno:
        return os.strerror(failure.os_error.errno)
    return str(failure) or type(failure).__name__


def _message(raw: bytes, status: int) -> str:

    try:
        return str(orjson.loads(raw)["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {status}"
