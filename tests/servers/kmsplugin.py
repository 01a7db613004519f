"""A plugin of Kubernetes' KMS v2 API over a real Unix socket, with keys in memory, that can be rotated, unwell, and gone."""

import secrets

import grpc
import grpc.aio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from security.kms.proto import kms_pb2 as pb

NONCE = "nonce.kms.example"


class KmsPlugin:
    """`async with KmsPlugin(socket) as plugin`."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        self.keys: dict[str, bytes] = {}
        self.current = ""
        self.healthz, self.version = "ok", "v2"
        self.ciphertext: bytes | None = None
        """What Encrypt answers in place of the truth."""
        self.calls: list[str] = []
        self._server: grpc.aio.Server | None = None
        self.rotate()

    def rotate(self) -> str:
        """A new key encrypts from now on; the others open still."""
        self.current = f"key-{len(self.keys) + 1}"
        self.keys[self.current] = AESGCM.generate_key(256)
        return self.current

    async def start(self) -> None:
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(method, request.FromString, response.SerializeToString)
            for name, method, request, response in (
                ("Status", self._status, pb.StatusRequest, pb.StatusResponse),
                ("Encrypt", self._encrypt, pb.EncryptRequest, pb.EncryptResponse),
                ("Decrypt", self._decrypt, pb.DecryptRequest, pb.DecryptResponse),
            )
        }
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("v2.KeyManagementService", handlers),)
        )
        self._server.add_insecure_port(f"unix:{self.socket}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def __aenter__(self) -> "KmsPlugin":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _status(
        self, request: pb.StatusRequest, context: grpc.aio.ServicerContext
    ) -> pb.StatusResponse:
        return pb.StatusResponse(version=self.version, healthz=self.healthz, key_id=self.current)

    async def _encrypt(
        self, request: pb.EncryptRequest, context: grpc.aio.ServicerContext
    ) -> pb.EncryptResponse:
        self.calls.append("encrypt")
        nonce = secrets.token_bytes(12)
        text = AESGCM(self.keys[self.current]).encrypt(nonce, request.plaintext, self.current.encode())
        text = text if self.ciphertext is None else self.ciphertext
        return pb.EncryptResponse(ciphertext=text, key_id=self.current, annotations={NONCE: nonce})

    async def _decrypt(
        self, request: pb.DecryptRequest, context: grpc.aio.ServicerContext
    ) -> pb.DecryptResponse:
        self.calls.append("decrypt")
        key = self.keys.get(request.key_id)
        if key is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no key {request.key_id}")
        try:
            plain = AESGCM(key or b"").decrypt(
                request.annotations[NONCE], request.ciphertext, request.key_id.encode()
            )
        except InvalidTag:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "it does not open")
        return pb.DecryptResponse(plaintext=plain)
