"""A key management service that wraps data keys: Kubernetes' KMS v2 plugin API over a Unix socket.

Any plugin that an API server can use serves a hub as well. The hub asks it when it makes a data key, and once for each data
key when it starts; secrets themselves never pass it. A data key is sent with the name that it is bound to, and opens under
that alone. Bounds are those of Kubernetes (KEP-3299).
"""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from security.keyring import KeyUnknown, ProviderFailed, Wrapped, wanted
from security.kms.proto import kms_pb2 as pb

CALL_S = 3.0
KEY_ID_BYTES_MAX = 1024
CIPHERTEXT_BYTES_MAX = 1024
ANNOTATIONS_BYTES_MAX = 32 << 10
VERSIONS = ("v2", "v2beta1")
_LATER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
)
"""Codes that say nothing of the key."""

T = TypeVar("T")


class KmsProvider:
    """See `security.keyring.KeyProvider`. Made on the event loop that uses it."""

    name = "kms"

    def __init__(self, socket: str) -> None:
        """`socket`: the plugin's, an absolute path."""
        self._socket = socket
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}")
        self._status = self._method("Status", pb.StatusResponse)
        self._encrypt = self._method("Encrypt", pb.EncryptResponse)
        self._decrypt = self._method("Decrypt", pb.DecryptResponse)

    def _method(self, name: str, response: Any) -> Callable[..., Awaitable[Any]]:
        method: Callable[..., Awaitable[Any]] = self._channel.unary_unary(
            f"/v2.KeyManagementService/{name}", _serialize, response.FromString
        )
        return method

    async def current(self) -> str:
        status: pb.StatusResponse = await self._call(self._status(pb.StatusRequest(), timeout=CALL_S))
        if status.version not in VERSIONS:
            raise ProviderFailed(
                f"{self} speaks version {status.version!r}, this hub knows {', '.join(VERSIONS)}"
            )
        if status.healthz != "ok":
            raise ProviderFailed(f"{self} is not well: {status.healthz[:200]!r}")
        return self._checked_id(status.key_id)

    async def wrap(self, data_key: bytes, context: str) -> Wrapped:
        request = pb.EncryptRequest(plaintext=context.encode() + b"\0" + data_key, uid=_uid())
        answer: pb.EncryptResponse = await self._call(self._encrypt(request, timeout=CALL_S))
        if not 0 < len(answer.ciphertext) <= CIPHERTEXT_BYTES_MAX:
            raise ProviderFailed(
                f"{self} answers with {len(answer.ciphertext)} bytes for a data key; 1 to {CIPHERTEXT_BYTES_MAX} are taken"
            )
        annotations = dict(answer.annotations)
        size = sum(len(name) + len(value) for name, value in annotations.items())
        if size > ANNOTATIONS_BYTES_MAX:
            raise ProviderFailed(
                f"{self} answers with {size} bytes of annotations; at most {ANNOTATIONS_BYTES_MAX} are taken"
            )
        return Wrapped(self.name, self._checked_id(answer.key_id), answer.ciphertext, annotations)

    async def unwrap(self, wrapped: Wrapped, context: str) -> bytes:
        request = pb.DecryptRequest(
            ciphertext=wrapped.key, uid=_uid(), key_id=wrapped.id, annotations=wrapped.annotations
        )
        try:
            answer: pb.DecryptResponse = await self._call(self._decrypt(request, timeout=CALL_S))
        except _Refused as refused:
            raise KeyUnknown(wanted(wrapped, context, f"{self} refuses it ({refused})")) from refused
        name, _, data_key = bytes(answer.plaintext).partition(b"\0")
        if name != context.encode():
            raise KeyUnknown(
                f"{context} does not open: {self} gives another data key for it; restore a backup"
            )
        return data_key

    async def close(self) -> None:
        await self._channel.close(None)

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as failure:
            said = f"{failure.code().name}: {(failure.details() or '')[:200]}"
            if failure.code() in _LATER:
                raise ProviderFailed(
                    f"{self} does not answer ({said}); start the plugin, or see its log"
                ) from failure
            raise _Refused(f"{self} refuses: {said}") from failure

    def _checked_id(self, id: str) -> str:
        if not 0 < len(id.encode()) <= KEY_ID_BYTES_MAX:
            raise ProviderFailed(
                f"{self} names its key in {len(id)} characters; 1 to {KEY_ID_BYTES_MAX} are taken"
            )
        return id

    def __str__(self) -> str:
        return f"the key management service at {self._socket}"


class _Refused(ProviderFailed):
    """The plugin has answered, and says no."""


def _uid() -> str:
    """Names a request in the plugin's log."""
    return secrets.token_hex(8)


def _serialize(message: Any) -> bytes:
    return bytes(message.SerializeToString())
