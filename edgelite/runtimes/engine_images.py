"""Images: their names, who may pull them, and pulling."""

import binascii
import json

from edgelite.loop import now as clock
from edgelite.runtimes.base import RuntimeFailure
from edgelite.runtimes.engine import EngineDown, EngineRefused
from edgelite.runtimes.engine_http import BadAnswer, lines_of, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from edgelite.loop import Wait
    from edgelite.runtimes.engine import Engine

PULL_LINE_BYTES_MAX = 1 << 20
HUB = "docker.io"
_HUB_NAMES = ("docker.io", "index.docker.io", "registry-1.docker.io")
_LOWER = "abcdefghijklmnopqrstuvwxyz0123456789"
_WORD = _LOWER + "ABCDEFGHIJKLMNOPQRSTUVWXYZ_"


class Reference:
    """An image's name, taken apart. `registry` and `path` are complete (docker.io, library/nginx)."""

    __slots__ = ("digest", "path", "registry", "tag")

    def __init__(self, registry: str, path: str, tag: str, digest: str) -> None:
        self.registry = registry
        self.path = path
        self.tag = tag
        self.digest = digest

    @property
    def repository(self) -> str:
        return self.registry + "/" + self.path

    @property
    def full(self) -> str:
        return self.repository + ("@" + self.digest if self.digest else ":" + self.tag)

    @property
    def default_policy(self) -> str:
        """As Kubernetes defaults imagePullPolicy."""
        return "Always" if not self.digest and self.tag == "latest" else "IfNotPresent"


def parse_reference(image: str) -> Reference:
    """[registry[:port]/]path[:tag][@algorithm:digest], by the grammar of the distribution project. Raises ValueError."""
    name, _, digest = image.partition("@")
    if "@" in image and not _is_digest(digest):
        raise ValueError("the digest is not of the form sha256:<64 hex digits>")
    slash = name.rfind("/")
    colon = name.rfind(":")
    tag = ""
    if colon > slash:
        name, tag = name[:colon], name[colon + 1 :]
        if not 0 < len(tag) <= 128 or tag[0] not in _WORD or any(c not in _WORD + ".-" for c in tag):
            raise ValueError("the tag %r is not valid" % tag)
    first, _, rest = name.partition("/")
    if rest and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        registry, path = first, rest
    else:
        registry, path = HUB, name
    host, _, port = registry.partition(":")
    if not host or any(c not in _WORD + ".-" for c in host) or (":" in registry and not port.isdigit()):
        raise ValueError("the registry %r is not valid" % registry)
    if not 0 < len(path) <= 255 or not all(_is_component(part) for part in path.split("/")):
        raise ValueError("the name %r may hold lower-case letters, digits and single separators" % path)
    if registry in _HUB_NAMES:
        registry = HUB
        path = path if "/" in path else "library/" + path
    return Reference(registry, path, tag or ("" if digest else "latest"), digest)


def _is_digest(text: str) -> bool:
    algorithm, _, value = text.partition(":")
    lengths = {"sha256": 64, "sha384": 96, "sha512": 128}
    return len(value) == lengths.get(algorithm) and all(c in "0123456789abcdef" for c in value)


def _is_component(text: str) -> bool:
    """Letters and digits, separated by one ".", one or two "_", or any number of "-"."""
    if not text or text[0] not in _LOWER or text[-1] not in _LOWER:
        return False
    for part in text.split("-"):
        plain = part.replace("__", "_").replace("_", ".")
        if (
            any(c not in _LOWER + "." for c in plain)
            or ".." in plain
            or plain[:1] == "."
            or plain[-1:] == "."
        ):
            return False
    return True


def login_for(reference: Reference, logins: "dict[str, dict[str, str]]") -> "dict[str, str] | None":
    """The login of imagePullSecrets that fits best: the longest registry/path prefix, as on a kubelet."""
    best: "tuple[int, dict[str, str]] | None" = None
    for key in logins:
        plain = key.partition("://")[2] or key
        for suffix in ("/v1/", "/v2/", "/v1", "/v2"):
            if plain.endswith(suffix):
                plain = plain[: -len(suffix)]
        plain = plain.rstrip("/")
        host, slash, path = plain.partition("/")
        plain = (HUB if host in _HUB_NAMES else host) + slash + path
        fits = reference.repository == plain or reference.repository.startswith(plain + "/")
        if fits and (best is None or len(plain) > best[0]):
            best = (len(plain), logins[key])
    return None if best is None else best[1]


def auth_header(reference: Reference, login: "dict[str, str]") -> str:
    """X-Registry-Auth: base64url of JSON."""
    server = "https://index.docker.io/v1/" if reference.registry == HUB else reference.registry
    value = {"username": login["username"], "password": login["password"], "serveraddress": server}
    text = binascii.b2a_base64(json.dumps(value).encode(), newline=False).decode()
    return text.replace("+", "-").replace("/", "_")


class Images:
    """What an engine has and gets of images."""

    def __init__(self, engine: "Engine", pull_s: float) -> None:
        self._engine = engine
        self._pull_s = pull_s

    def ensure(
        self, image: str, policy: str, logins: "dict[str, dict[str, str]]"
    ) -> "Generator[Wait, bool, dict[str, Any]]":
        """Generator. The engine's description of the image, which is pulled where the policy says so. Raises RuntimeFailure
        (InvalidImageName, ErrImageNeverPull, ErrImagePull), EngineDown, EngineRefused."""
        try:
            reference = parse_reference(image)
        except ValueError as error:
            text = 'Failed to apply default image tag "%s": %s' % (image, error)
            raise RuntimeFailure("InvalidImageName", text) from error
        policy = policy or reference.default_policy
        found = None if policy == "Always" else (yield from self.find(reference))
        if found is not None:
            return found
        if policy == "Never":
            text = 'Container image "%s" is not present with pull policy of Never' % image
            raise RuntimeFailure("ErrImageNeverPull", text)
        yield from self._pull(reference, logins)
        found = yield from self.find(reference)
        if found is None:
            raise RuntimeFailure("ErrImagePull", "the engine pulled %s, but does not have it" % image)
        return found

    def find(self, reference: Reference) -> "Generator[Wait, bool, dict[str, Any] | None]":
        """Generator. None when the engine does not have it. Raises EngineDown, EngineRefused."""
        try:
            found: "dict[str, Any]" = yield from self._engine.call(
                "GET", "/images/%s/json" % quote(reference.full)
            )
        except EngineRefused as error:
            if error.status == 404:
                return None
            raise
        return found

    def _pull(
        self, reference: Reference, logins: "dict[str, dict[str, str]]"
    ) -> "Generator[Wait, bool, None]":
        login = login_for(reference, logins)
        headers = [] if login is None else [("X-Registry-Auth", auth_header(reference, login))]
        query = [("fromImage", reference.repository), ("tag", reference.digest or reference.tag)]
        deadline = clock() + self._pull_s
        try:
            stream = yield from self._engine.open(
                "POST", "/images/create", query, None, deadline, headers=headers
            )
            try:
                rest = bytearray()
                while True:
                    data = yield from stream.read(deadline)
                    if data is None:
                        text = "the pull did not end within %d s; it goes on with the next try" % self._pull_s
                        raise RuntimeFailure("ErrImagePull", text)
                    if not data:
                        break
                    for line in lines_of(rest, data, PULL_LINE_BYTES_MAX):
                        _progress(line)
                if rest.strip():
                    _progress(bytes(rest))
            finally:
                stream.close()
        except (EngineRefused, EngineDown, BadAnswer) as error:
            raise RuntimeFailure("ErrImagePull", str(error)) from error


def _progress(line: bytes) -> None:
    """Raises RuntimeFailure when a line of a pull's progress is its failure."""
    try:
        found = json.loads(line)
    except ValueError:
        return  # progress is for people; the image is looked for afterwards
    if isinstance(found, dict) and found.get("error"):
        raise RuntimeFailure("ErrImagePull", str(found["error"])[:1024])
