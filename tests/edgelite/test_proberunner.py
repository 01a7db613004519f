"""Probes and hooks against real sockets on 127.0.0.1."""

import contextlib
import socket
import ssl
import threading

import pytest

from edgelite import proberunner
from edgelite.loop import Loop, Wait, now
from edgelite.runtimes.base import Runtime, RuntimeFailure
from tests.ports import free_port


class Execs(Runtime):
    def __init__(self, result):
        self.result = result
        self.argv = None

    def exec(self, uid, container, argv, timeout_s):
        self.argv = argv
        yield Wait(-1, 0, 0.0)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def ask(handler, container=None, timeout_s=5.0, runtime=None):
    loop = Loop()
    gen = proberunner.run(
        runtime or Execs((0, b"")), "u1", container or {"name": "app"}, handler, "127.0.0.1", timeout_s
    )
    task = loop.spawn(gen, "probe")
    deadline = now() + 10
    while not task.done:
        assert now() < deadline
        loop.turn(0.05)
    assert task.error is None, task.error
    return task.result


@contextlib.contextmanager
def server(*answers, context=None):
    """Answers one connection after the other with the given bytes (None: says nothing); yields (port, requests)."""
    listener = socket.create_server(("127.0.0.1", 0))
    requests = []
    hold = threading.Event()

    def serve():
        for answer in answers:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):
                if context is not None:
                    sock = context.wrap_socket(sock, server_side=True)
                requests.append(sock.recv(65536))
                if answer is None:
                    hold.wait(10)
                else:
                    sock.sendall(answer)
            sock.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1], requests
    finally:
        hold.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def http(status, *headers):
    return "\r\n".join([f"HTTP/1.1 {status} x", *headers, "Content-Length: 0", "", ""]).encode()


def test_an_answer_in_the_200s_is_a_success_and_the_request_is_whole():
    with server(http(204)) as (port, requests):
        headers = [{"name": "X-A", "value": "1"}, {"name": "Host", "value": "me"}]
        container = {"name": "app", "ports": [{"name": "web", "containerPort": port}]}
        assert ask({"httpGet": {"port": "web", "path": "/ok?a=1", "httpHeaders": headers}}, container) == (
            True,
            "",
        )
    lines = requests[0].decode().split("\r\n")
    assert lines[0] == "GET /ok?a=1 HTTP/1.1"
    assert "X-A: 1" in lines and "Host: me" in lines and "Connection: close" in lines
    assert len([x for x in lines if x.lower().startswith("host:")]) == 1


def test_an_error_status_is_a_failure_with_its_code():
    with server(http(503)) as (port, _):
        assert ask({"httpGet": {"port": port}}) == (False, "HTTP probe failed with statuscode: 503")


def test_redirects_are_followed_on_the_same_host_only():
    with server(http(302, "Location: /there"), http(500)) as (port, requests):
        assert not ask({"httpGet": {"port": port}})[0]
        assert requests[1].startswith(b"GET /there ")
    with server(http(302, "Location: http://elsewhere.example/")) as (port, _):
        assert ask({"httpGet": {"port": port}})[0]


def test_nobody_listening_is_a_failure_that_says_so():
    port = free_port()
    ok, text = ask({"httpGet": {"port": port}})
    assert not ok and "connection refused" in text and f"127.0.0.1:{port}" in text
    ok, text = ask({"tcpSocket": {"port": port}})
    assert not ok and "connection refused" in text


def test_silence_ends_at_the_timeout():
    with server(None) as (port, _):
        began = now()
        ok, text = ask({"httpGet": {"port": port}}, timeout_s=0.2)
    assert not ok and "deadline exceeded" in text
    assert now() - began < 5


def test_garbage_and_endless_heads_are_failures():
    with server(b"SSH-2.0-x\r\n\r\n") as (port, _):
        assert "malformed" in ask({"httpGet": {"port": port}})[1]
    with server(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 30000) as (port, _):
        assert "longer than" in ask({"httpGet": {"port": port}})[1]
    with server(b"") as (port, _):
        assert ask({"httpGet": {"port": port}})[1].endswith("EOF")


def test_a_header_cannot_smuggle_lines():
    handler = {"httpGet": {"port": 1, "httpHeaders": [{"name": "A", "value": "1\r\nB: 2"}]}}
    with server(http(200)) as (port, requests):
        handler["httpGet"]["port"] = port
        assert "line break" in ask(handler)[1]
        assert requests == [] or requests == [b""]
        socket.create_connection(("127.0.0.1", port)).close()


def test_https_does_not_verify(tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path))
    with server(http(200), context=context) as (port, requests):
        assert ask({"httpGet": {"port": port, "scheme": "HTTPS"}}) == (True, "")
        assert requests[0].startswith(b"GET / ")


def certificate(tmp_path):
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    at = datetime.now(UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(at - timedelta(1)).not_valid_after(at + timedelta(1))
    pem = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    pem += key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path / "pem"
    path.write_bytes(pem)
    return str(path)


def test_a_tcp_probe_needs_only_the_connection():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert ask({"tcpSocket": {"port": listener.getsockname()[1]}}) == (True, "")


@pytest.mark.parametrize(
    ("result", "wanted"),
    [
        ((0, b"fine"), (True, "")),
        ((1, b"broken\n"), (False, "broken")),
        ((7, b""), (False, "exit code 7")),
        (RuntimeFailure("Timeout", "killed"), (False, "command timed out after 5s")),
        (RuntimeFailure("NotFound", "no such file: x"), (False, "no such file: x")),
    ],
)
def test_exec_succeeds_with_code_zero(result, wanted):
    runtime = Execs(result)
    assert ask({"exec": {"command": ["a", "b"]}}, runtime=runtime) == wanted
    assert runtime.argv == ["a", "b"]


def test_sleep_sleeps_but_not_beyond_the_timeout():
    began = now()
    assert ask({"sleep": {"seconds": 600}}, timeout_s=0.1) == (True, "")
    assert now() - began < 5


def test_a_handler_that_is_not_supported_is_named():
    assert "no supported handler" in ask({"grpc": {"port": 1}})[1]
