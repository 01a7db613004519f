"""What a container is told: its environment, and the $(VAR) references in its command line. [pure]

Follows Kubernetes: envFrom first (later ones win), then env in order; a value may refer to what was defined before
it; `$$(X)` is the text `$(X)`; an unknown reference stays as it is written. ConfigMaps and Secrets are looked up in
a `Library`; what is missing and not optional raises MissingReference, whose message never holds a value.
"""

import json
from binascii import a2b_base64

from edgelite import podservices
from edgelite.localview import usual_volumes, variables
from edgelite.tokens import Tokens

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NANO = 1000000000
SUFFIXES = (
    ("Ki", 1024 * NANO),
    ("Mi", 1024**2 * NANO),
    ("Gi", 1024**3 * NANO),
    ("Ti", 1024**4 * NANO),
    ("Pi", 1024**5 * NANO),
    ("Ei", 1024**6 * NANO),
    ("n", 1),
    ("u", 1000),
    ("m", 1000000),
    ("k", 1000 * NANO),
    ("M", 1000**2 * NANO),
    ("G", 1000**3 * NANO),
    ("T", 1000**4 * NANO),
    ("P", 1000**5 * NANO),
    ("E", 1000**6 * NANO),
)


BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


class MissingReference(Exception):
    """A ConfigMap, a Secret or one of their keys is not here (yet). `volume` names the volume that wants it."""

    def __init__(self, message: str, volume: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.volume = volume


class BadReference(Exception):
    """A reference that no document can ever satisfy here (a field path that does not exist, say)."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NodeFacts:
    """What pods may learn of their node, and what the node allows.

    addresses: as in NodeStatus, [{"type": "InternalIP", "address": ..}, ..]; capacity, allocatable: resource name →
    quantity; boot_id: changes with every reboot, which is how lost sandboxes are noticed; allow_secret_files: Secrets
    may be written to a disk where there is no tmpfs.
    """

    __slots__ = ("addresses", "allocatable", "allow_secret_files", "boot_id", "capacity", "name")

    def __init__(
        self,
        name: str,
        addresses: "list[dict[str, str]] | None" = None,
        allow_secret_files: bool = False,
        capacity: "dict[str, str] | None" = None,
        allocatable: "dict[str, str] | None" = None,
        boot_id: str = "",
    ) -> None:
        self.name = name
        self.addresses = addresses or []
        self.allow_secret_files = allow_secret_files
        self.capacity = capacity or {}
        self.allocatable = allocatable or self.capacity
        self.boot_id = boot_id

    def ips(self) -> "list[str]":
        """The node's IP addresses, internal ones first; pods share them."""
        inner = [a["address"] for a in self.addresses if a.get("type") == "InternalIP"]
        outer = [a["address"] for a in self.addresses if a.get("type") == "ExternalIP"]
        return inner + outer


class Library:
    """The ConfigMaps, Secrets, Services, EndpointSlices and tokens that this node holds; all but the last as the bytes they came in: they are parsed when they are used, so
    that a document costs no more than its bytes."""

    def __init__(self) -> None:
        self._docs: "dict[tuple[str, str, str], bytes]" = {}
        self.tokens = Tokens()
        self.local_api: "Callable[[], tuple[int, str]] | None" = (
            None  # its port and certificate; None: there is none
        )

    def body(self, kind: str, namespace: str, name: str) -> "bytes | None":
        """The document, as it came."""
        return self._docs.get((kind, namespace, name))

    def token(self, key: str) -> str:
        """Raises MissingReference."""
        token = self.tokens.get(key)
        if token is None:
            raise MissingReference("the service account's token has not come yet; the hub was asked for it")
        return token

    def put(self, kind: str, namespace: str, name: str, body: bytes) -> None:
        """`body`: the document, found good by `check_library_document`."""
        self._docs[(kind, namespace, name)] = body

    def drop(self, kind: str, namespace: str, name: str) -> None:
        self._docs.pop((kind, namespace, name), None)

    def names(self, kind: str, namespace: str) -> "list[str]":
        """Of all documents of a kind in a namespace, in order."""
        return sorted(key[2] for key in self._docs if key[:2] == (kind, namespace))

    def has(self, kind: str, namespace: str, name: str) -> bool:
        return (kind, namespace, name) in self._docs

    def contents(self, kind: str, namespace: str, name: str, optional: bool) -> "dict[str, bytes] | None":
        """All keys with their bytes; None when it is absent and optional. Raises MissingReference."""
        body = self._docs.get((kind, namespace, name))
        if body is None:
            if optional:
                return None
            raise MissingReference('%s "%s" not found' % (kind.lower(), name))
        doc = json.loads(body)
        if kind == "Secret":
            return {k: decode64(v) for k, v in (doc.get("data") or {}).items()}
        data = {k: v.encode() for k, v in (doc.get("data") or {}).items()}
        for key, value in (doc.get("binaryData") or {}).items():
            data[key] = decode64(value)
        return data

    def value(self, kind: str, namespace: str, ref: "dict[str, Any]") -> "str | None":
        """The text behind a configMapKeyRef or secretKeyRef; None when it is absent and optional."""
        optional = bool(ref.get("optional"))
        name, key = ref.get("name", ""), ref.get("key", "")
        data = self.contents(kind, namespace, name, optional)
        if data is None:
            return None
        if key not in data:
            if optional:
                return None
            raise MissingReference("couldn't find key %s in %s %s/%s" % (key, kind, namespace, name))
        return _text(data[key], "key %s of %s %s/%s" % (key, kind, namespace, name))


def decode64(text: str) -> bytes:
    """Base64, strictly: binascii would skip what is not of the alphabet. Raises ValueError, without the text."""
    if (
        len(text) % 4
        or not all(c in BASE64 for c in text.rstrip("="))
        or len(text) - len(text.rstrip("=")) > 2
    ):
        raise ValueError("not base64")
    return a2b_base64(text.encode())


def check_library_document(key: str, body: bytes) -> "str | None":
    """What is wrong with a ConfigMap or Secret document, or None."""
    kinds = {"configmap": "ConfigMap", "secret": "Secret"}
    prefix, namespace, name = key.split("/", 2)
    try:
        doc = json.loads(body)
    except ValueError as error:
        return "not JSON: %s" % error
    if not isinstance(doc, dict) or doc.get("kind") != kinds[prefix]:
        return "the document is not a %s" % kinds[prefix]
    if doc.get("ns") != namespace or doc.get("name") != name:
        return "the document's namespace and name are not those of its key"
    for field in ("data", "binaryData"):
        table = doc.get(field) or {}
        if not isinstance(table, dict) or not all(isinstance(v, str) for v in table.values()):
            return "%s has to hold texts" % field
        if field == "binaryData" or prefix == "secret":
            for entry in table:
                try:
                    decode64(table[entry])
                except ValueError:
                    return "%s %s is not base64" % (field, entry)
    return None


def pull_secrets(pod: "dict[str, Any]", library: Library) -> "tuple[dict[str, dict[str, str]], list[str]]":
    """({registry: {"username", "password"}}, names of secrets that could not be used) of imagePullSecrets."""
    found: "dict[str, dict[str, str]]" = {}
    unusable = []
    for ref in (pod.get("spec") or {}).get("imagePullSecrets") or []:
        try:
            data = library.contents("Secret", pod["ns"], ref.get("name", ""), False) or {}
            if ".dockerconfigjson" in data:
                registries = json.loads(data[".dockerconfigjson"])["auths"]
            else:
                registries = json.loads(data[".dockercfg"])
            for registry in registries:
                found[registry] = _login(registries[registry])
        except (MissingReference, ValueError, KeyError, TypeError, AttributeError):
            unusable.append(ref.get("name", ""))
    return found, unusable


def _login(entry: "dict[str, str]") -> "dict[str, str]":
    if entry.get("auth"):
        user, _, password = decode64(entry["auth"]).decode().partition(":")
        return {"username": user, "password": password}
    return {"username": entry["username"], "password": entry["password"]}


def _text(data: bytes, what: str) -> str:
    try:
        text = data.decode()
    except ValueError:
        raise MissingReference("%s is not UTF-8 text, so it cannot be an environment variable" % what)
    if "\x00" in text:
        raise MissingReference("%s holds a NUL byte, so it cannot be an environment variable" % what)
    return text


def expand(text: str, lookup: "Callable[[str], str | None]") -> str:
    """Replaces $(NAME) by lookup(NAME); None leaves the reference as it is; $$ is a literal $."""
    out: "list[str]" = []
    at = 0
    while True:
        dollar = text.find("$", at)
        if dollar < 0 or dollar + 1 >= len(text):
            out.append(text[at:])
            return "".join(out)
        out.append(text[at:dollar])
        after = text[dollar + 1]
        if after == "$":
            out.append("$")
            at = dollar + 2
        elif after == "(":
            close = text.find(")", dollar + 2)
            if close < 0:
                out.append("$(")
                at = dollar + 2
            else:
                value = lookup(text[dollar + 2 : close])
                out.append(text[dollar : close + 1] if value is None else value)
                at = close + 1
        else:
            out.append("$" + after)
            at = dollar + 2


HIDDEN = "(value of a Secret)"
HIDDEN_CHARS_MIN = 4  # shorter ones would blot out any text, and hide nothing


class Environment:
    """A container's environment: ordered pairs, and the names that were left out because they cannot be names."""

    def __init__(self) -> None:
        self._order: "list[str]" = []
        self._values: "dict[str, str]" = {}
        self._secrets: "set[str]" = set()
        self.skipped: "list[str]" = []

    def put(self, name: str, value: str, secret: bool = False) -> None:
        """secret: it comes from a Secret."""
        if name not in self._values:
            self._order.append(name)
        self._values[name] = value
        if secret and len(value) >= HIDDEN_CHARS_MIN:
            self._secrets.update((value, repr(value)[1:-1]))

    def hide(self, text: str) -> str:
        """A message without the values of Secrets: commands and paths are expanded with them, and errors name those."""
        for value in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(value, HIDDEN)
        return text

    def get(self, name: str) -> "str | None":
        return self._values.get(name)

    def pairs(self) -> "list[tuple[str, str]]":
        return [(name, self._values[name]) for name in self._order]

    def expand(self, texts: "list[str]") -> "list[str]":
        return [expand(text, self.get) for text in texts]


def environment(
    pod: "dict[str, Any]", container: "dict[str, Any]", library: Library, node: NodeFacts
) -> Environment:
    """Resolves envFrom and env. Raises MissingReference or BadReference."""
    env = Environment()
    local = []
    if library.local_api is not None and usual_volumes(pod):
        local = variables(pod, container, library.local_api()[0])
    for name, value in podservices.variables(pod, library, bool(local)) + local:
        env.put(name, value)
    for source in container.get("envFrom") or []:
        _take_all(env, source, pod["ns"], library)
    for entry in container.get("env") or []:
        name, value = entry["name"], entry.get("value") or ""
        origin = entry.get("valueFrom")
        if value or not origin:
            env.put(name, expand(value, env.get))
            continue
        found = _resolve(origin, name, pod, container, library, node)
        if found is not None:
            env.put(name, found, origin.get("secretKeyRef") is not None)
    return env


def _take_all(env: Environment, source: "dict[str, Any]", namespace: str, library: Library) -> None:
    prefix = source.get("prefix") or ""
    for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
        ref = source.get(field)
        if ref is None:
            continue
        data = library.contents(kind, namespace, ref.get("name", ""), bool(ref.get("optional")))
        for key in sorted(data or {}):
            name = prefix + key
            if "=" in name or not name:
                env.skipped.append(name)
                continue
            text = _text((data or {})[key], "key %s of %s %s" % (key, kind, ref.get("name")))
            env.put(name, text, kind == "Secret")


def _resolve(
    origin: "dict[str, Any]",
    name: str,
    pod: "dict[str, Any]",
    container: "dict[str, Any]",
    library: Library,
    node: NodeFacts,
) -> "str | None":
    for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
        if origin.get(field) is not None:
            return library.value(kind, pod["ns"], origin[field])
    if origin.get("fieldRef") is not None:
        return field_value(pod, origin["fieldRef"].get("fieldPath", ""), node)
    if origin.get("resourceFieldRef") is not None:
        return resource_value(container, origin["resourceFieldRef"], node)
    raise BadReference("env %s: valueFrom %s is not supported" % (name, ", ".join(sorted(origin))))


def field_value(pod: "dict[str, Any]", path: str, node: NodeFacts) -> str:
    """A fieldRef's value as the downward API gives it. Raises BadReference for a path that it does not have."""
    spec = pod.get("spec") or {}
    ips = node.ips()
    for base, field in (("metadata.labels", "labels"), ("metadata.annotations", "annotations")):
        if path == base:
            table = pod.get(field) or {}
            return "\n".join("%s=%s" % (k, quoted(table[k])) for k in sorted(table))
        if path.startswith(base + "['") and path.endswith("']"):
            return str((pod.get(field) or {}).get(path[len(base) + 2 : -2], ""))
    plain = {
        "metadata.name": pod.get("name", ""),
        "metadata.namespace": pod.get("ns", ""),
        "metadata.uid": pod.get("uid", ""),
        "spec.nodeName": node.name,
        "spec.serviceAccountName": spec.get("serviceAccountName") or "default",
        "status.hostIP": ips[0] if ips else "",
        "status.hostIPs": ",".join(ips),
        "status.podIP": ips[0] if ips else "",
        "status.podIPs": ",".join(ips),
    }
    if path not in plain:
        raise BadReference("fieldPath %s is not one that the downward API has" % path)
    return str(plain[path])


def quoted(text: str) -> str:
    """Go's %q, which the downward API uses for labels and annotations in files."""
    out = ['"']
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\", "\x07": "\\a", "\x08": "\\b"}
    for char in text:
        if char in short:
            out.append(short[char])
        elif ord(char) < 32 or ord(char) == 127:
            out.append("\\x%02x" % ord(char))
        else:
            out.append(char)
    out.append('"')
    return "".join(out)


def quantity(text: "str | int | float") -> int:
    """A Kubernetes quantity in billionths of its unit. Raises ValueError."""
    text = str(text).strip()
    scale = NANO
    for suffix, factor in SUFFIXES:
        if text.endswith(suffix):
            text, scale = text[: -len(suffix)], factor
            break
    else:
        mark = max(text.find("e"), text.find("E"))
        if mark > 0:
            power = int(text[mark + 1 :])
            if not -9 <= power <= 18:
                raise ValueError("quantity %s is out of range" % text)
            text = text[:mark]
            scale = int(NANO * 10**power) if power >= 0 else int(NANO // 10**-power)
    negative = text.startswith("-")
    whole, _, part = (text[1:] if text[:1] in ("+", "-") else text).partition(".")
    if not (whole or part) or not _digits(whole) or not _digits(part):
        raise ValueError("%s is not a quantity" % text)
    value = int(whole or "0") * scale + int(part or "0") * scale // int(10 ** len(part))
    return -value if negative else value


def _digits(text: str) -> bool:
    return all(c in "0123456789" for c in text)


def resource_value(container: "dict[str, Any]", ref: "dict[str, Any]", node: NodeFacts) -> str:
    """A resourceFieldRef's value, in divisors, rounded up. A limit that is not set is what the node can give."""
    side, _, resource = ref.get("resource", "").partition(".")
    if side not in ("limits", "requests") or not resource:
        raise BadReference(
            "resourceFieldRef.resource %s: want limits.<name> or requests.<name>" % ref.get("resource")
        )
    resources = container.get("resources") or {}
    limits = resources.get("limits") or {}
    amount = (resources.get(side) or {}).get(resource)
    if amount is None and side == "requests":
        amount = limits.get(resource)
    if amount is None:
        amount = node.allocatable.get(resource, "0") if side == "limits" else "0"
    try:
        divisor = quantity(ref.get("divisor") or "1") or NANO
        value = quantity(amount)
    except ValueError as error:
        raise BadReference("resourceFieldRef %s: %s" % (ref.get("resource"), error))
    return str((value + divisor - 1) // divisor)


def qos_class(spec: "dict[str, Any]") -> str:
    """Guaranteed, Burstable or BestEffort, by the rules of Kubernetes (cpu and memory only)."""
    guaranteed, any_set = True, False
    for container in (spec.get("containers") or []) + (spec.get("initContainers") or []):
        resources = container.get("resources") or {}
        limits = resources.get("limits") or {}
        requests = resources.get("requests") or {}
        for name in ("cpu", "memory"):
            limit, request = limits.get(name), requests.get(name, limits.get(name))
            if limit is not None or request is not None:
                any_set = True
            if limit is None or request is None or quantity(limit) != quantity(request):
                guaranteed = False
    if not any_set:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"
