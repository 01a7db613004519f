"""Keys in a PKCS #11 token: an HSM, a smart card, SoftHSM. The private half never leaves it.

Which key is told by a URI of RFC 7512: `pkcs11:token=fleet;object=ca?module-path=/usr/lib/softhsm/libsofthsm2.so&
pin-source=/etc/cloudhub/pin`. The PIN is read from the file that `pin-source` names, whenever the token is logged in
to; `pin-value` is refused, for command lines are seen by everybody. What is stored of a key (`reference`) has neither
PIN nor module, which may differ between replicas.

The keys are subclasses of `cryptography`'s abstract ones, so that its builders sign with them. Calls are made one at a
time and block for as long as the token takes. A session that the token has ended is opened again, once per signature.
Needs the extra `cloudhub[pkcs11]` (python-pkcs11, a binding of the C interface).
"""

import contextlib
import hashlib
import os
import re
import stat
import threading
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn
from urllib.parse import quote, unquote_to_bytes

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

from security import keys
from security.keys import REFERENCE, KeyRefused, PublicKey, SigningKey

URI_CHARS_MAX: Final = 2048
PIN_BYTES_MAX: Final = 256
_PATH: Final = ("token", "serial", "manufacturer", "model", "slot-id", "object", "id", "type")
_QUERY: Final = ("pin-source", "module-path")
_CURVES: Final = {
    keys.P256: bytes.fromhex("06082a8648ce3d030107"),
    keys.P384: bytes.fromhex("06052b81040022"),
    keys.ED25519: bytes.fromhex("130c") + b"edwards25519",
}
"""CKA_EC_PARAMS as DER: the curve's identifier, for Ed25519 its name (PKCS #11 3.0, section 2.3.4)."""
_PROBE: Final = b"cloudhub: is this the key?"


@dataclass(frozen=True, slots=True)
class Uri:
    """The parts of a URI that are used here; "" where one is missing."""

    token: str = ""
    serial: str = ""
    object: str = ""
    id: bytes = b""
    module: str = ""
    pin_source: str = ""

    @property
    def reference(self) -> str:
        """Which key, and nothing of how this replica reaches it."""
        parts = [
            f"{name}={quote(value, safe='')}"
            for name, value in (("token", self.token), ("serial", self.serial), ("object", self.object))
            if value
        ]
        if self.id:
            parts.append("id=" + "".join(f"%{byte:02X}" for byte in self.id))
        return REFERENCE + ";".join(parts)


def parse(text: str) -> Uri:
    """Raises KeyRefused: not a URI of this kind, an attribute that is not supported, a PIN in it."""
    if len(text) > URI_CHARS_MAX or not text.startswith(REFERENCE):
        raise KeyRefused(f"a key's URI begins with {REFERENCE} and has at most {URI_CHARS_MAX} characters")
    path, _, query = text.removeprefix(REFERENCE).partition("?")
    found = _attributes(path, ";", _PATH) | _attributes(query, "&", _QUERY)
    for name in ("manufacturer", "model", "slot-id"):
        if name in found:
            raise KeyRefused(f"{name} in a key's URI is not supported: name the token by token or serial")
    if found.get("type", b"private") != b"private":
        raise KeyRefused("type in a key's URI: only private keys sign; write type=private or leave it out")
    source = _text(found, "pin-source")
    if source.startswith("|") or (":" in source and not source.startswith("file:")):
        raise KeyRefused("pin-source in a key's URI: a file is supported, as /etc/cloudhub/pin")
    return Uri(
        _text(found, "token"),
        _text(found, "serial"),
        _text(found, "object"),
        found.get("id", b""),
        _text(found, "module-path"),
        re.sub("^file:(//)?", "", source),
    )


def open_key(uri: str, reference: str = "") -> SigningKey:
    """The key that `uri` names, or the one that `reference` names in the token that `uri` reaches. Raises KeyRefused."""
    here = parse(uri)
    if reference:
        named = parse(reference)
        here = replace(here, token=named.token, serial=named.serial, object=named.object, id=named.id)
    token = _Token(here)
    public = token.public_key()
    algorithm = keys.algorithm_of(public)
    private = _wrapped(token, public)
    key = SigningKey(algorithm, private, here.reference)
    _prove(key)
    return key


def create_key(uri: str, algorithm: str) -> SigningKey:
    """Makes a key pair in the token, sensitive and not extractable. Raises KeyRefused, also where the object exists."""
    here = parse(uri)
    if algorithm not in keys.ALGORITHMS:
        raise KeyRefused(f"key algorithm {algorithm!r}: there are {', '.join(keys.ALGORITHMS)}")
    _Token(here).generate(algorithm)
    return open_key(uri)


def _attributes(text: str, separator: str, known: tuple[str, ...]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in filter(None, text.split(separator)):
        name, equals, value = part.partition("=")
        if name in ("pin-value", "module-name") or name not in known or not equals:
            raise KeyRefused(
                "pin-value in a key's URI: write the PIN into a file and name it with pin-source"
                if name == "pin-value"
                else f"{name[:32]!r} in a key's URI: there are {', '.join(known)}"
            )
        if name in found:
            raise KeyRefused(f"{name} is twice in a key's URI")
        found[name] = unquote_to_bytes(value)
    return found


def _text(found: dict[str, bytes], name: str) -> str:
    try:
        return found.get(name, b"").decode()
    except UnicodeDecodeError as wrong:
        raise KeyRefused(f"{name} in a key's URI is no UTF-8") from wrong


def _read_pin(path: str) -> str:
    if not path:
        raise KeyRefused("a key's URI needs pin-source: a file of mode 0600 with the token's PIN")
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            pin = file.read(PIN_BYTES_MAX + 1).strip()
    except OSError as failure:
        raise KeyRefused(f"cannot read the PIN file {path}: {failure.strerror}") from failure
    if mode & stat.S_IRWXO:
        raise KeyRefused(f"the PIN file {path} is open to everybody (mode {mode & 0o777:o}): chmod 600 it")
    if not 0 < len(pin) <= PIN_BYTES_MAX:
        raise KeyRefused(f"the PIN file {path} holds {len(pin)} bytes; 1 to {PIN_BYTES_MAX} are needed")
    try:
        return pin.decode()
    except UnicodeDecodeError:
        raise KeyRefused(f"the PIN file {path} is no UTF-8") from None


class _Token:
    """A session with the token, and the one key in it. Thread-safe: a session does one thing at a time."""

    def __init__(self, uri: Uri) -> None:
        try:
            import pkcs11
        except ModuleNotFoundError as missing:
            raise KeyRefused(
                f"keys in tokens need a package that is not installed ({missing.name}): pip install 'cloudhub[pkcs11]'"
            ) from missing
        self._api = pkcs11
        self._uri = uri
        self._lock = threading.Lock()
        self._session: Any = None
        self._key: Any = None
        if not uri.module:
            raise KeyRefused("a key's URI needs module-path: the token's PKCS #11 library")
        if not (uri.object or uri.id):
            raise KeyRefused("a key's URI needs object (the key's label) or id")
        if not (uri.token or uri.serial):
            raise KeyRefused("a key's URI needs token (the token's label) or serial")

    def sign(self, data: bytes, mechanism: str) -> bytes:
        """Raises KeyRefused."""
        with self._lock:
            kind = getattr(self._api.Mechanism, mechanism)
            try:
                if self._key is not None:
                    return bytes(self._key.sign(data, mechanism=kind))
            except self._api.PKCS11Error:
                self._close()  # the token was restarted, or has ended the session: once more, from the start
            try:
                self._key = self._find(self._open(), self._api.ObjectClass.PRIVATE_KEY)
                return bytes(self._key.sign(data, mechanism=kind))
            except self._api.PKCS11Error as failure:
                self._close()
                self._refuse("cannot sign", failure)

    def public_key(self) -> PublicKey:
        """Raises KeyRefused."""
        with self._lock:
            try:
                return self._public(self._open())
            except self._api.PKCS11Error as failure:
                self._close()
                self._refuse("cannot be read", failure)

    def generate(self, algorithm: str) -> None:
        """Raises KeyRefused."""
        with self._lock:
            try:
                session = self._open(writes=True)
                if self._search(session, self._api.ObjectClass.PRIVATE_KEY):
                    raise KeyRefused(f"the key {self._uri.reference} exists and is left alone")
                self._generate(session, algorithm)
            except self._api.PKCS11Error as failure:
                self._refuse(f"of the algorithm {algorithm} cannot be made", failure)
            finally:
                self._close()

    def _open(self, writes: bool = False) -> Any:
        if self._session is None:
            self._session = self._new_session(writes)
        return self._session

    def _close(self) -> None:
        """Also logs this process out, as PKCS #11 has it: others find that, and log in again."""
        session, self._session, self._key = self._session, None, None
        if session is not None:
            with contextlib.suppress(self._api.PKCS11Error):  # it may be gone with its token
                session.close()

    def _generate(self, session: Any, algorithm: str) -> None:
        api = self._api
        common: dict[str, Any] = {
            "id": self._uri.id or hashlib.sha256(self._uri.object.encode()).digest()[:8],
            "label": self._uri.object or None,
            "store": True,
            "private_template": {api.Attribute.SENSITIVE: True, api.Attribute.EXTRACTABLE: False},
        }
        if algorithm in (keys.RSA2048, keys.RSA3072):
            session.generate_keypair(api.KeyType.RSA, int(algorithm.removeprefix("rsa-")), **common)
            return
        kind = api.KeyType.EC_EDWARDS if algorithm == keys.ED25519 else api.KeyType.EC
        curve = {api.Attribute.EC_PARAMS: _CURVES[algorithm]}
        parameters = session.create_domain_parameters(kind, curve, local=True)
        parameters.generate_keypair(**common)

    def _new_session(self, writes: bool) -> Any:
        api, uri = self._api, self._uri
        pin = _read_pin(uri.pin_source)
        try:
            library = api.lib(uri.module)
        except (RuntimeError, OSError, api.PKCS11Error) as failure:
            raise KeyRefused(f"the PKCS #11 library {uri.module} cannot be loaded: {failure}") from failure
        wanted: dict[str, Any] = {}
        if uri.token:
            wanted["token_label"] = uri.token
        if uri.serial:
            wanted["token_serial"] = uri.serial.encode()
        # A library looks at its slots when it is told to: a token may have come since.
        try:
            token = library.get_token(**wanted)
        except (api.NoSuchToken, api.PKCS11Error):
            library.reinitialize()
            token = library.get_token(**wanted)
        try:
            return token.open(rw=writes, user_pin=pin)
        except api.UserAlreadyLoggedIn:
            return token.open(rw=writes)  # a login is the whole process's

    def _search(self, session: Any, kind: Any) -> list[Any]:
        wanted: dict[Any, Any] = {self._api.Attribute.CLASS: kind}
        if self._uri.object:
            wanted[self._api.Attribute.LABEL] = self._uri.object
        if self._uri.id:
            wanted[self._api.Attribute.ID] = self._uri.id
        return list(session.get_objects(wanted))

    def _find(self, session: Any, kind: Any) -> Any:
        found = self._search(session, kind)
        if len(found) != 1:
            what = "private" if kind == self._api.ObjectClass.PRIVATE_KEY else "public"
            raise KeyRefused(
                f"the token has {len(found) or 'no'} {what} keys {self._uri.reference}; one is needed. Make it with:"
                " cloudhub key create 'pkcs11:..'"
                if not found
                else f"the token has {len(found)} {what} keys {self._uri.reference}: name one by object and id"
            )
        return found[0]

    def _public(self, session: Any) -> PublicKey:
        # Tokens that keep no public object cannot tell the key; their makers' tools can add one.
        api = self._api
        found = self._find(session, api.ObjectClass.PUBLIC_KEY)
        try:
            if found.key_type == api.KeyType.RSA:
                modulus, exponent = found[api.Attribute.MODULUS], found[api.Attribute.PUBLIC_EXPONENT]
                public: PublicKey = rsa.RSAPublicNumbers(
                    int.from_bytes(exponent), int.from_bytes(modulus)
                ).public_key()
            elif found.key_type in (api.KeyType.EC, api.KeyType.EC_EDWARDS):
                public = _on_curve(found[api.Attribute.EC_PARAMS], found[api.Attribute.EC_POINT])
            else:
                raise KeyRefused(f"the key {self._uri.reference} is of the kind {found.key_type.name}")
        except ValueError as wrong:
            raise KeyRefused(f"the public key {self._uri.reference} cannot be read: {wrong}") from wrong
        keys.algorithm_of(public)
        return public

    def _refuse(self, what: str, failure: Exception) -> NoReturn:
        said = str(failure) or type(failure).__name__
        raise KeyRefused(
            f"the key {self._uri.reference} {what}: {type(failure).__name__} {said}"
        ) from failure


def _on_curve(parameters: bytes, point: bytes) -> PublicKey:
    """The public key of CKA_EC_PARAMS and CKA_EC_POINT. Raises ValueError."""
    # The point is wrapped into a DER OCTET STRING; none of ours is longer than 127 bytes.
    if len(point) < 2 or point[0] != 0x04 or point[1] != len(point) - 2:
        raise ValueError("its point is not an octet string")
    raw = point[2:]
    if parameters == _CURVES[keys.P256]:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), raw)
    if parameters == _CURVES[keys.P384]:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), raw)
    if parameters in (_CURVES[keys.ED25519], bytes.fromhex("06032b6570")):
        return ed25519.Ed25519PublicKey.from_public_bytes(raw)
    raise ValueError("it is on a curve that is not supported")


def _wrapped(token: _Token, public: PublicKey) -> keys.PrivateKey:
    if isinstance(public, ec.EllipticCurvePublicKey):
        return _EcKey(token, public)
    if isinstance(public, rsa.RSAPublicKey):
        return _RsaKey(token, public)
    return _EdKey(token, public)


def _prove(key: SigningKey) -> None:
    """Does the private key belong to the public one, and sign? Raises KeyRefused."""
    public, private = key.public, key.signer
    try:
        if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(private, ec.EllipticCurvePrivateKey):
            kind = ec.ECDSA(key.hash or hashes.SHA256())
            public.verify(private.sign(_PROBE, kind), _PROBE, kind)
        elif isinstance(public, rsa.RSAPublicKey) and isinstance(private, rsa.RSAPrivateKey):
            scheme, digest = padding.PKCS1v15(), hashes.SHA256()
            public.verify(private.sign(_PROBE, scheme, digest), _PROBE, scheme, digest)
        elif isinstance(public, ed25519.Ed25519PublicKey) and isinstance(private, ed25519.Ed25519PrivateKey):
            public.verify(private.sign(_PROBE), _PROBE)
    except InvalidSignature as wrong:
        raise KeyRefused(f"the private and the public key {key.reference} do not belong together") from wrong


class _InToken:
    """What the keys in a token have in common: they sign, and nothing else."""

    _token: _Token

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def private_bytes(self, *_: Any, **__: Any) -> NoReturn:
        raise KeyRefused("a key in a token does not leave it")

    def private_numbers(self) -> NoReturn:
        raise KeyRefused("a key in a token does not leave it")

    def private_bytes_raw(self) -> NoReturn:
        raise KeyRefused("a key in a token does not leave it")


class _EcKey(_InToken, ec.EllipticCurvePrivateKey):
    def __init__(self, token: _Token, public: ec.EllipticCurvePublicKey) -> None:
        self._token, self._point = token, public

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._point.curve

    @property
    def key_size(self) -> int:
        return self._point.key_size

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._point

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> bytes:
        raise KeyRefused("a key in a token signs and does nothing else")

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        digest = _digest(bytes(data), signature_algorithm.algorithm)
        raw = self._token.sign(digest, "ECDSA")
        half = len(raw) // 2
        return encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))


class _RsaKey(_InToken, rsa.RSAPrivateKey):
    def __init__(self, token: _Token, public: rsa.RSAPublicKey) -> None:
        self._token, self._modulus = token, public

    @property
    def key_size(self) -> int:
        return self._modulus.key_size

    def public_key(self) -> rsa.RSAPublicKey:
        return self._modulus

    def decrypt(self, ciphertext: bytes, padding: Any) -> bytes:
        raise KeyRefused("a key in a token signs and does nothing else")

    def sign(self, data: Any, padding: Any, algorithm: Any) -> bytes:
        if not isinstance(algorithm, hashes.SHA256) or padding.name != "EMSA-PKCS1-v1_5":
            raise KeyRefused("RSA keys in a token sign with SHA-256 and PKCS #1 v1.5")
        return self._token.sign(bytes(data), "SHA256_RSA_PKCS")


class _EdKey(_InToken, ed25519.Ed25519PrivateKey):
    def __init__(self, token: _Token, public: ed25519.Ed25519PublicKey) -> None:
        self._token, self._point = token, public

    def public_key(self) -> ed25519.Ed25519PublicKey:
        return self._point

    def sign(self, data: Any) -> bytes:
        return self._token.sign(bytes(data), "EDDSA")


def _digest(data: bytes, algorithm: Any) -> bytes:
    if isinstance(algorithm, Prehashed):
        return data
    return hashlib.new(algorithm.name, data).digest()
