"""Carries out probes and lifecycle hooks: exec through the runtime, HTTP and TCP over sockets on the loop.

No call blocks: names are not resolved (`podreview` refuses them), TLS is driven without waiting, and everything ends at
its deadline. Certificates are not verified, as in Kubernetes. At most BODY_MAX bytes of an answer are read.
"""

import errno
import os
import socket

from edgelite import __version__
from edgelite.loop import POLLIN, POLLOUT, Wait, now
from edgelite.podreview import port_of
from edgelite.runtimes.base import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Generator
    from typing import Any

    from edgelite.runtimes.base import Runtime

    Task = Generator[Wait, bool, tuple[bool, str]]

BODY_MAX = 10 * 1024
REDIRECTS_MAX = 10


class Failed(Exception):
    """A connection or an answer that did not come about; the text is for the event."""


def run(
    runtime: "Runtime",
    uid: str,
    container: "dict[str, Any]",
    handler: "dict[str, Any]",
    pod_ip: str,
    timeout_s: float,
) -> "Task":
    """Generator. One probe or hook; returns (succeeded, what is to be said of a failure)."""
    deadline = now() + timeout_s
    try:
        if handler.get("exec") is not None:
            return (yield from _exec(runtime, uid, container, handler["exec"], timeout_s))
        if handler.get("httpGet") is not None:
            return (yield from _http(container, handler["httpGet"], pod_ip, deadline))
        if handler.get("tcpSocket") is not None:
            action = handler["tcpSocket"]
            host, port = _host(action, pod_ip), port_of(action.get("port"), container)
            sock = yield from _connect(host, port, deadline)
            sock.close()
            return True, ""
        if handler.get("sleep") is not None:
            yield Wait(-1, 0, min(deadline, now() + float(handler["sleep"].get("seconds") or 0)))
            return True, ""
    except Failed as error:
        return False, str(error)
    return False, "no supported handler in it (want exec, httpGet, tcpSocket or sleep)"


def _exec(
    runtime: "Runtime", uid: str, container: "dict[str, Any]", action: "dict[str, Any]", timeout_s: float
) -> "Task":
    argv = action.get("command") or []
    try:
        code, output = yield from runtime.exec(uid, container["name"], argv, timeout_s)
    except RuntimeFailure as error:
        if error.reason == "Timeout":
            return False, "command timed out after %gs" % timeout_s
        return False, error.message
    if code == 0:
        return True, ""
    return False, output[:BODY_MAX].decode("utf-8", "replace").strip() or "exit code %d" % code


def _host(action: "dict[str, Any]", pod_ip: str) -> str:
    return action.get("host") or pod_ip or "127.0.0.1"


def _connect(host: str, port: "int | None", deadline: float) -> "Generator[Wait, bool, socket.socket]":
    if port is None:
        raise Failed("the port is not one of the container's")
    if host == "localhost":
        host = "127.0.0.1"
    where = "[%s]:%d" % (host, port) if ":" in host else "%s:%d" % (host, port)
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        error = sock.connect_ex((host, port))
        if error in (errno.EINPROGRESS, errno.EWOULDBLOCK):
            if not (yield Wait(sock.fileno(), POLLOUT, deadline)):
                raise Failed("dial tcp %s: i/o timeout" % where)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise Failed("dial tcp %s: connect: %s" % (where, os.strerror(error).lower()))
    except OSError as failure:
        sock.close()
        raise Failed("dial tcp %s: %s" % (where, failure))
    except BaseException:
        sock.close()
        raise
    return sock


def _http(container: "dict[str, Any]", action: "dict[str, Any]", pod_ip: str, deadline: float) -> "Task":
    host, port = _host(action, pod_ip), port_of(action.get("port"), container)
    scheme = (action.get("scheme") or "HTTP").lower()
    path = action.get("path") or "/"
    if not path.startswith("/"):
        path = "/" + path
    for _ in range(REDIRECTS_MAX):
        url = "%s://%s:%s%s" % (scheme, host, port, path)
        try:
            head = yield from _exchange(scheme, host, port, _request(host, port, path, action), deadline)
            code, location = _parse(head)
        except Failed as error:
            raise Failed('Get "%s": %s' % (url, error))
        if 300 <= code < 400 and location:
            local = _local(location, scheme, host, port)
            if local is None:
                return True, ""  # another host: Kubernetes calls that a success too
            path = local
            continue
        if 200 <= code < 400:
            return True, ""
        return False, "HTTP probe failed with statuscode: %d" % code
    return False, 'Get "%s": stopped after %d redirects' % (path, REDIRECTS_MAX)


def _request(host: str, port: "int | None", path: str, action: "dict[str, Any]") -> bytes:
    headers = [(h["name"], h.get("value") or "") for h in action.get("httpHeaders") or []]
    given = {name.lower() for name, _ in headers}
    shown = "[%s]" % host if ":" in host else host
    defaults = [
        ("Host", "%s:%s" % (shown, port)),
        ("User-Agent", "kube-probe/edgelite-" + __version__),
        ("Accept", "*/*"),
    ]
    headers = [(n, v) for n, v in defaults if n.lower() not in given] + headers + [("Connection", "close")]
    lines = ["GET %s HTTP/1.1" % path] + ["%s: %s" % header for header in headers]
    if any("\r" in line or "\n" in line for line in lines):
        raise Failed("a header or the path holds a line break")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _parse(head: bytes) -> "tuple[int, str]":
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or len(words[1]) != 3 or not words[1].isdigit():
        raise Failed("malformed HTTP response")
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "location":
            return int(words[1]), value.strip()
    return int(words[1]), ""


def _local(location: str, scheme: str, host: str, port: "int | None") -> "str | None":
    """The path of a redirect that stays on this host, else None."""
    if location.startswith("/") and not location.startswith("//"):
        return location
    for prefix in ("%s://%s:%s" % (scheme, host, port), "%s://%s" % (scheme, host)):
        if location == prefix or location.startswith(prefix + "/"):
            return location[len(prefix) :] or "/"
    return None


def _exchange(
    scheme: str, host: str, port: "int | None", request: bytes, deadline: float
) -> "Generator[Wait, bool, bytes]":
    """Sends the request and reads until the head of the answer is complete, and returns that."""
    sock: "socket.socket | ssl.SSLSocket" = yield from _connect(host, port, deadline)
    try:
        if scheme == "https":
            sock = yield from _wrap(sock, deadline)
        yield from _send(sock, request, deadline)
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = yield from _try(sock, lambda: sock.recv(4096), POLLIN, deadline)
            if not chunk:
                raise Failed("EOF")
            data += chunk
            if len(data) > BODY_MAX:
                raise Failed("the head of the answer is longer than %d bytes" % BODY_MAX)
        return data.partition(b"\r\n\r\n")[0]
    except OSError as error:
        raise Failed(str(error))
    finally:
        sock.close()


def _send(sock: socket.socket, data: bytes, deadline: float) -> "Generator[Wait, bool, None]":
    left = memoryview(data)

    def send() -> int:
        return sock.send(left)

    while left:
        sent = yield from _try(sock, send, POLLOUT, deadline)
        left = left[sent:]


def _wrap(sock: socket.socket, deadline: float) -> "Generator[Wait, bool, ssl.SSLSocket]":
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # a probe asks whether it answers, not who it is
    secure = context.wrap_socket(sock, do_handshake_on_connect=False)
    try:
        yield from _try(secure, secure.do_handshake, POLLIN, deadline)
    except BaseException:
        secure.close()
        raise
    return secure


def _try(
    sock: "socket.socket", call: "Callable[[], Any]", events: int, deadline: float
) -> "Generator[Wait, bool, Any]":
    """Repeats a non-blocking call until it is done. Raises Failed at the deadline, OSError as the call does."""
    import ssl

    while True:
        wanted = events
        try:
            return call()
        except ssl.SSLWantReadError:
            wanted = POLLIN
        except ssl.SSLWantWriteError:
            wanted = POLLOUT
        except BlockingIOError:
            pass
        if not (yield Wait(sock.fileno(), wanted, deadline)):
            raise Failed("context deadline exceeded (Client.Timeout exceeded while awaiting headers)")
