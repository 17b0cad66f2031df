"""The proxy file: nginx itself takes it, and what it lets through has the headers and the TLS that it promises."""

from __future__ import annotations

import base64
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

PROXY = Path(__file__).resolve().parents[2] / "deployments" / "proxy" / "nginx.conf"
USER = "someone:a-long-password-of-a-test"
TEXT = PROXY.read_text(encoding="utf-8")


def values(directive: str) -> list[str]:
    return re.findall(rf"^\s*{directive}\s+(.+);$", TEXT, re.MULTILINE)


def test_the_proxy_file_offers_no_old_tls_and_every_cipher_is_forward_secret_and_authenticated() -> None:
    assert values("ssl_protocols") == ["TLSv1.2 TLSv1.3"]
    (ciphers,) = values("ssl_ciphers")
    assert all(re.fullmatch(r"ECDHE-(ECDSA|RSA)-(AES(128|256)-GCM|CHACHA20)-\w+", one) for one in ciphers.split(":"))
    # What this machine's OpenSSL makes of the same words.
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ciphers(ciphers)


def test_no_place_of_the_proxy_file_adds_a_header_and_so_forgets_the_common_ones() -> None:
    before_servers = TEXT.split("    server {")[0]
    assert before_servers.count("add_header") == TEXT.count("add_header ") == len(values("add_header")) == 4


class _Backend(BaseHTTPRequestHandler):
    """Answers with who asked and how, as the proxy told it; speaks the websocket's first words."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.headers.get("Upgrade") == "websocket":
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.end_headers()
            self.close_connection = True
            return
        told = f"{self.headers['Host']} {self.headers['X-Forwarded-For']} {self.headers['X-Forwarded-Proto']}".encode()
        self.send_response(200)
        self.send_header("X-Frame-Options", "SAMEORIGIN")
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@dataclass(frozen=True)
class Proxy:
    http_port: int
    https_port: int

    def get(self, path: str = "/", host: str = "rag.example", **headers: str) -> tuple[HTTPResponse, bytes]:
        return self._ask(
            HTTPSConnection("127.0.0.1", self.https_port, context=unverified(), timeout=20), path, host, headers
        )

    def get_plain(self, path: str, host: str) -> tuple[HTTPResponse, bytes]:
        return self._ask(HTTPConnection("127.0.0.1", self.http_port, timeout=20), path, host, {})

    def post(self, body: bytes, host: str = "rag.example") -> HTTPResponse:
        connection = HTTPSConnection("127.0.0.1", self.https_port, context=unverified(), timeout=20)
        connection.request("POST", "/", body=body, headers={"Host": host})
        return connection.getresponse()

    @staticmethod
    def _ask(connection: HTTPConnection, path: str, host: str, headers: dict[str, str]) -> tuple[HTTPResponse, bytes]:
        connection.request("GET", path, headers={"Host": host, **headers})
        answer = connection.getresponse()
        return answer, b"" if answer.status == 101 else answer.read()


def unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The file as it is, but for ports, paths and the user that a test can't have; before it a real backend."""
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        pytest.skip("no nginx on this machine: apt-get install nginx-light")
    folder = tmp_path_factory.mktemp("proxy")
    backend = ThreadingHTTPServer(("127.0.0.1", 0), _Backend)
    threading.Thread(target=backend.serve_forever, daemon=True).start()
    key, certificate = str(folder / "privkey.pem"), str(folder / "fullchain.pem")
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=rag.example -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    user, _, password = USER.partition(":")
    hashed = subprocess.run(
        ["openssl", "passwd", "-apr1", password], check=True, capture_output=True, text=True
    ).stdout.strip()
    (folder / "prefect.htpasswd").write_text(f"{user}:{hashed}\n", encoding="utf-8")
    folder.chmod(0o755)
    http_port, https_port = free_port(), free_port()
    changes = {
        "listen 80": f"listen 127.0.0.1:{http_port}",
        "listen 443": f"listen 127.0.0.1:{https_port}",
        "/etc/nginx/tls": str(folder),
        "/etc/nginx/prefect.htpasswd": str(folder / "prefect.htpasswd"),
        "/run/nginx.pid": str(folder / "nginx.pid"),
        "/var/log/nginx": str(folder),
        "127.0.0.1:8600": f"127.0.0.1:{backend.server_port}",
        "127.0.0.1:4200": f"127.0.0.1:{backend.server_port}",
        "worker_processes auto": "user root; worker_processes 1" if os.geteuid() == 0 else "worker_processes 1",
    }
    text = TEXT
    for was, becomes in changes.items():
        assert was in text
        text = text.replace(was, becomes)
    file = folder / "nginx.conf"
    file.write_text(text, encoding="utf-8")
    tested = subprocess.run([nginx, "-t", "-c", str(file)], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    assert "[warn]" not in tested.stderr
    running = subprocess.Popen([nginx, "-c", str(file), "-g", "daemon off;"], cwd=folder)
    try:
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", https_port), timeout=1).close()
                break
            except OSError:
                assert running.poll() is None
                assert time.monotonic() < until
                time.sleep(0.02)
        yield Proxy(http_port, https_port)
    finally:
        running.terminate()
        running.wait(20)
        backend.shutdown()
        backend.server_close()


@pytest.mark.long
def test_every_answer_has_the_headers_once_whatever_the_service_or_the_proxy_says(proxy: Proxy) -> None:
    for host, status in (("rag.example", 200), ("prefect.example", 401)):
        answer, _ = proxy.get(host=host)
        assert answer.status == status
        assert answer.headers.get_all("Strict-Transport-Security") == ["max-age=63072000; includeSubDomains"]
        assert answer.headers.get_all("X-Content-Type-Options") == ["nosniff"]
        assert answer.headers.get_all("X-Frame-Options") == ["DENY"]
        assert "/" not in (answer.headers["Server"] or "")


@pytest.mark.long
def test_a_client_can_not_claim_to_be_another(proxy: Proxy) -> None:
    _, told = proxy.get(**{"X-Forwarded-For": "203.0.113.7"})
    assert told == b"rag.example 127.0.0.1 https"


@pytest.mark.long
def test_prefect_answers_only_those_with_a_password_and_its_websockets_pass(proxy: Proxy) -> None:
    shown = {"Authorization": "Basic " + base64.b64encode(USER.encode()).decode()}
    wrong = {"Authorization": "Basic " + base64.b64encode(b"someone:else").decode()}
    assert proxy.get(host="prefect.example", **wrong)[0].status == 401
    assert proxy.get(host="prefect.example", **shown)[0].status == 200
    upgraded, _ = proxy.get(host="prefect.example", Upgrade="websocket", Connection="Upgrade", **shown)
    assert upgraded.status == 101


@pytest.mark.long
def test_plain_http_is_sent_to_https_and_other_names_get_nothing(proxy: Proxy) -> None:
    answer, _ = proxy.get_plain("/health/live?x=1", "rag.example")
    assert (answer.status, answer.headers["Location"]) == (308, "https://rag.example/health/live?x=1")
    with pytest.raises(OSError, match="closed connection"):
        proxy.get_plain("/", "elsewhere.example")


@pytest.mark.long
def test_what_is_too_large_is_refused(proxy: Proxy) -> None:
    assert proxy.post(b"x" * 1_000_000).status == 204
    assert proxy.post(b"x" * 1_100_000).status == 413


@pytest.mark.long
def test_tls_1_1_is_refused_and_1_2_and_1_3_are_spoken(proxy: Proxy) -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = unverified()
        context.minimum_version = context.maximum_version = version
        with socket.create_connection(("127.0.0.1", proxy.https_port), timeout=20) as plain:
            assert context.wrap_socket(plain).version() == version.name.replace("_", ".")
    # With a client that may speak TLS 1.1, which an ordinary one may not any more.
    old = unverified()
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", proxy.https_port), timeout=20) as plain,
        pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"),
    ):
        old.wrap_socket(plain)
