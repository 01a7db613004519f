"""The authority as replicas share it: sealed under a key file that each of them is given.

The key file holds 32 to 4096 bytes of secret text (white space at its ends does not count), or several such keys, one on
each line: the first seals, each of them opens. The authority's key is encrypted with AES-256-GCM under a key derived from
it by HKDF-SHA-256 with a salt of its own, and bound to the certificate. What is encrypted is the key's record
(`security.keys`), which says whether the key is here or in a token. Whoever has the store and not the key file has the
certificate alone.

Format 1 is one root, format 2 a set in rotation: hubs that know 1 alone refuse to start on it. In a lone hub's data
directory (0600) and its backups the set lies in clear, in the same form.
"""

import os
import secrets
import stat

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from security.authorities import Authorities, Held
from security.ca import CertificateAuthority
from security.errors import SecurityError
from security.keys import IN_MEMORY, KeySource
from security.rotation import ACTIVE, Root, RotationError

SECRET_BYTES_MIN = 32
SECRET_BYTES_MAX = 4096
_INFO = b"cloudhub sealed authority v1"
_SALT_BYTES, _NONCE_BYTES = 16, 12


class KeyFileError(SecurityError):
    """The key file cannot be used, or is not the one that the authority was sealed under."""


class Sealed(msgspec.Struct, frozen=True):
    """An authority at rest: its certificate in clear, its key encrypted. Bytes are base64 in JSON."""

    certificate: str
    salt: bytes
    nonce: bytes
    key: bytes
    v: int = 1


class KeptRoot(msgspec.Struct, frozen=True, omit_defaults=True):
    """A root of a set at rest. `key`: encrypted, with `salt` and `nonce`; without these it is PEM in clear."""

    certificate: str
    phase: str
    since: float
    last: float
    key: bytes
    salt: bytes = b""
    nonce: bytes = b""


class KeptSet(msgspec.Struct, frozen=True, kw_only=True):
    """A set at rest. `certificate`: of the active root, as in format 1."""

    certificate: str
    roots: list[KeptRoot]
    void_tokens: bool = False
    v: int = 2


class _Version(msgspec.Struct, frozen=True):
    v: int = 1


def create_key_file(path: str) -> None:
    """Makes a key file with 32 random bytes, as hex, mode 0600. Raises KeyFileError when there is one, and OSError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as exists:
        raise KeyFileError(
            f"{path} exists and is left alone: a lost key file cannot be made again"
        ) from exists
    with open(fd, "wb") as file:
        file.write(secrets.token_hex(32).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_key_file(path: str) -> bytes:
    """What `path` holds: one key or several (`keys_of`). Raises KeyFileError: missing, open to all, too short or too long."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            secret = file.read(SECRET_BYTES_MAX + 1).strip()
    except OSError as failure:
        raise KeyFileError(
            f"cannot read the key file {path}: {failure.strerror}; every replica needs the same one. Copy it from another"
            f" replica, or make the fleet's first with: cloudhub key create {path}"
        ) from failure
    if mode & stat.S_IRWXO:
        raise KeyFileError(f"the key file {path} is open to everybody (mode {mode & 0o777:o}): chmod 600 it")
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        raise KeyFileError(
            f"the key file {path} holds {len(secret)} bytes; {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} of secret are"
            f" needed (cloudhub key create makes one)"
        )
    return secret


def keys_of(secret: bytes) -> tuple[bytes, ...]:
    """The keys that a key file's text holds, the first being the one that seals. Where each line is long enough to be a
    key, each is one; what was sealed under all the lines together opens still."""
    lines = tuple(line for line in (raw.strip() for raw in secret.splitlines()) if line)
    if len(lines) > 1 and all(len(line) >= SECRET_BYTES_MIN for line in lines):
        return (*lines, secret)
    return (secret,)


def seal(authority: CertificateAuthority, secret: bytes) -> bytes:
    """One root as JSON that may lie in the store. `secret`: what a key file holds."""
    certificate = authority.root_pem
    salt, nonce, key = _encrypt(certificate, authority.key_record().encode(), secret)
    return msgspec.json.encode(Sealed(certificate, salt, nonce, key))


def unseal(
    data: bytes, secret: bytes, trust_domain: str, now: float, source: KeySource = IN_MEMORY
) -> CertificateAuthority:
    """The active root again. Raises as `unseal_set`."""
    return unseal_set(data, secret, trust_domain, now, source).active


def seal_set(authorities: Authorities, secret: bytes | None) -> bytes:
    """A set as JSON; `secret` None: with its keys in clear, for a directory or file of mode 0600. A set of one root takes
    format 1 where it is sealed, which every release reads."""
    if secret is not None and len(authorities.held) == 1:
        return seal(authorities.active, secret)
    roots = []
    for held in authorities.held:
        salt, nonce, key = (
            _encrypt(held.ca.root_pem, held.ca.key_record().encode(), secret)
            if secret is not None
            else (b"", b"", held.ca.key_record().encode())
        )
        root = held.root
        roots.append(KeptRoot(held.ca.root_pem, root.phase, root.since, root.last, key, salt, nonce))
    kept = KeptSet(certificate=authorities.active.root_pem, roots=roots, void_tokens=authorities.void_tokens)
    return msgspec.json.encode(kept)


def unseal_set(
    data: bytes, secret: bytes | None, trust_domain: str, now: float, source: KeySource = IN_MEMORY
) -> Authorities:
    """The set again; `source` opens keys in tokens. Raises KeyFileError for another key file, CAError for what `CertificateAuthority.load` finds of the
    active root, RotationError for a set that is not in order."""
    kept = _decode(data)
    if isinstance(kept, Sealed):
        kept = KeptSet(
            certificate=kept.certificate,
            roots=[KeptRoot(kept.certificate, ACTIVE, 0.0, 0.0, kept.key, kept.salt, kept.nonce)],
        )
    names = ("the authority's certificate", "its key")
    held = []
    for root in kept.roots:
        key = _decrypt(root, secret) if root.salt else root.key
        valid_at = now if root.phase == ACTIVE else 0.0  # one that has ended is removed by the rotation
        ca = CertificateAuthority.load(root.certificate.encode(), key, trust_domain, valid_at, names, source)
        since = root.since or ca.not_before
        held.append(Held(ca, Root(ca.root_sha256.hex(), root.phase, since, ca.not_after, root.last)))
    if not held:
        raise RotationError("the authorities in the store are none: restore a backup")
    return Authorities(tuple(held), kept.void_tokens)


def certificate_of(data: bytes) -> str:
    """The certificate (PEM) of a sealed authority, of a set that of the active one; no key file is needed. Raises
    KeyFileError."""
    return _decode(data).certificate


def _decode(data: bytes) -> "Sealed | KeptSet":
    try:
        version = msgspec.json.decode(data, type=_Version).v
        if version == 1:
            return msgspec.json.decode(data, type=Sealed)
        if version == 2:
            return msgspec.json.decode(data, type=KeptSet)
    except msgspec.MsgspecError as damaged:
        raise KeyFileError(
            f"the sealed authority in the store is damaged ({damaged}): restore a backup"
        ) from damaged
    raise KeyFileError(
        f"the sealed authority has format {version}, this hub knows 1 and 2: start a newer hub"
    )


def _encrypt(certificate: str, key: bytes, secret: bytes) -> tuple[bytes, bytes, bytes]:
    """(salt, nonce, encrypted key)"""
    salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_NONCE_BYTES)
    derived = _derive(keys_of(secret)[0], salt)
    return salt, nonce, AESGCM(derived).encrypt(nonce, key, certificate.encode())


def _decrypt(root: KeptRoot, secret: bytes | None) -> bytes:
    if secret is None:
        raise KeyFileError("the authority is sealed: give its key file with --key-file")
    return _open(root, secret)[1]


def resealed(data: bytes, secret: bytes) -> bytes | None:
    """Sealed authorities under the first key of a key file, None where they are so already. Raises KeyFileError."""
    kept = _decode(data)
    changed = False

    def sealed_anew(root: "Sealed | KeptRoot") -> dict[str, bytes]:
        nonlocal changed
        number, key = _open(root, secret)
        changed = changed or number > 0
        salt, nonce, text = _encrypt(root.certificate, key, secret)
        return {"salt": salt, "nonce": nonce, "key": text}

    new: Sealed | KeptSet
    if isinstance(kept, Sealed):
        new = msgspec.structs.replace(kept, **sealed_anew(kept))
    else:
        roots = [msgspec.structs.replace(root, **sealed_anew(root)) for root in kept.roots]
        new = msgspec.structs.replace(kept, roots=roots)
    return msgspec.json.encode(new) if changed else None


def _open(root: "Sealed | KeptRoot", secret: bytes) -> tuple[int, bytes]:
    """Which of the key file's keys opens an authority's key, and that key as PEM. Raises KeyFileError."""
    for number, candidate in enumerate(keys_of(secret)):
        try:
            aes = AESGCM(_derive(candidate, root.salt))
            return number, aes.decrypt(root.nonce, root.key, root.certificate.encode())
        except (InvalidTag, ValueError):
            continue  # perhaps the next one
    raise KeyFileError(
        "the key file is not the one that this fleet's authority is sealed under: give this replica the key file of"
        " the others"
    )


def _derive(secret: bytes, salt: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=_INFO).derive(secret)
