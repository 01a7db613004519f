from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class NewDownstreamX509CARequest(_message.Message):
    __slots__ = ("csr", "preferred_ttl")
    CSR_FIELD_NUMBER: _ClassVar[int]
    PREFERRED_TTL_FIELD_NUMBER: _ClassVar[int]
    csr: bytes
    preferred_ttl: int
    def __init__(self, csr: _Optional[bytes] = ..., preferred_ttl: _Optional[int] = ...) -> None: ...

class NewDownstreamX509CAResponse(_message.Message):
    __slots__ = ("ca_cert_chain", "x509_authorities")
    CA_CERT_CHAIN_FIELD_NUMBER: _ClassVar[int]
    X509_AUTHORITIES_FIELD_NUMBER: _ClassVar[int]
    ca_cert_chain: _containers.RepeatedScalarFieldContainer[bytes]
    x509_authorities: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, ca_cert_chain: _Optional[_Iterable[bytes]] = ..., x509_authorities: _Optional[_Iterable[bytes]] = ...) -> None: ...
