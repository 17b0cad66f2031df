"""S3 as a real server speaks it: whole objects, verified both ways, and refusals that say what to do and no key."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import socketserver
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from blocks import s3 as s3_module
from blocks.object_store import ObjectDamagedError
from blocks.s3 import S3Bucket
from deployments.embedded import S3Server, _free_port, embedded_s3, stop_local_servers
from tasks.domain.errors import PipelineError, TerminalError, TransientError

CONTENT = bytes(range(256)) * 4_000
#: Larger than one piece.
LARGE = bytes(range(256)) * 40_000
#: What is wrong, by its name or as a status; with a number: so many times.
Fault = str | int | tuple[int, int]


def changed(bucket: S3Bucket, /, **changes: Any) -> S3Bucket:
    """Return the same bucket as somebody else sees it who has other settings."""
    return S3Bucket.model_validate({**{name: getattr(bucket, name) for name in S3Bucket.model_fields}, **changes})


def told(call: Callable[[], object]) -> str:
    """Return all that a failing call shows, the traceback and what it was made from included."""
    with pytest.raises(PipelineError) as failed:
        call()
    return "".join(traceback.format_exception(failed.value))


# the verbs


@pytest.mark.parametrize("content", [b"", b"x", CONTENT], ids=["empty", "byte", "megabyte"])
def test_an_object_comes_back_as_it_was_stored(bucket: S3Bucket, content: bytes) -> None:
    assert bucket.get("a/b.bin") is None
    assert bucket.head("a/b.bin") is None
    bucket.put("a/b.bin", content)
    assert bucket.get("a/b.bin") == content
    found = bucket.head("a/b.bin")
    assert found is not None
    assert (found.name, found.size_bytes) == ("a/b.bin", len(content))


def test_a_file_goes_up_and_comes_down_with_its_size_and_checksum(bucket: S3Bucket, tmp_path: Path) -> None:
    (tmp_path / "up").write_bytes(CONTENT)
    bucket.put("file", tmp_path / "up")
    assert bucket.download("file", tmp_path / "down") == (len(CONTENT), zlib.crc32(CONTENT))
    assert (tmp_path / "down").read_bytes() == CONTENT
    assert bucket.download("nothing", tmp_path / "none") is None


def test_an_object_is_replaced_by_a_later_one(bucket: S3Bucket) -> None:
    bucket.put("name", b"first")
    bucket.put("name", b"second")
    assert bucket.get("name") == b"second"


def test_a_part_of_an_object_is_read_without_the_rest(bucket: S3Bucket) -> None:
    bucket.put("name", b"0123456789")
    assert bucket.get("name", start=2, length=3) == b"234"
    assert bucket.get("name", start=7) == b"789"
    assert bucket.get("name", start=8, length=100) == b"89"
    assert bucket.get("name", start=10) == b""
    assert bucket.get("nothing", start=1) is None


def test_only_the_first_to_store_a_name_that_must_be_absent_does_so(bucket: S3Bucket) -> None:
    assert bucket.put_if_absent("lock", b"first")
    assert not bucket.put_if_absent("lock", b"second")
    assert bucket.get("lock") == b"first"
    bucket.delete_objects(["lock"])
    assert bucket.put_if_absent("lock", b"third")


def test_of_many_who_store_an_absent_name_at_once_one_does(bucket: S3Bucket) -> None:
    won: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: won.append(n) if bucket.put_if_absent("lock", b"%d" % n) else None)
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(won) == 1
    assert bucket.get("lock") == b"%d" % won[0]


def test_a_listing_has_every_object_of_a_prefix_over_many_pages_and_no_other(bucket: S3Bucket) -> None:
    names = sorted(f"run/{number:04d}" for number in range(1_050))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: bucket.put(name, b"x"), names))
    bucket.put("run2/0000", b"xy")
    assert [found.name for found in bucket.list_objects("run/")] == names
    assert [(found.name, found.size_bytes) for found in bucket.list_objects("run2")] == [("run2/0000", 2)]
    assert bucket.list_folders() == ["run", "run2"]
    bucket.delete_under("run/")
    bucket.delete_under("run/")
    assert [found.name for found in bucket.list_objects()] == ["run2/0000"]


def test_deleting_takes_what_is_named_and_is_safe_to_repeat(bucket: S3Bucket) -> None:
    for name in ("a", "b", "ab"):
        bucket.put(name, b"x")
    bucket.delete_objects(["a", "not there"])
    bucket.delete_objects(["a"])
    bucket.delete_objects([])
    assert [found.name for found in bucket.list_objects()] == ["ab", "b"]


def test_a_prefix_hides_what_lies_beside_it(bucket: S3Bucket) -> None:
    inner, outer = changed(bucket, prefix=f"/{bucket.prefix}/inner/"), changed(bucket, prefix=f"{bucket.prefix}/inne")
    inner.put("name", b"inner")
    assert bucket.get("inner/name") == b"inner"
    assert [found.name for found in inner.list_objects()] == ["name"]
    assert list(outer.list_objects()) == []


def test_a_bucket_that_serves_is_said_to_and_keeps_nothing_of_the_check(bucket: S3Bucket) -> None:
    assert bucket.bucket in bucket.check()
    assert list(bucket.list_objects()) == []


def test_threads_share_one_block(bucket: S3Bucket) -> None:
    def work(number: int) -> None:
        for _ in range(5):
            bucket.put(f"{number}", b"%d" % number)
            assert bucket.get(f"{number}") == b"%d" % number

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(list(bucket.list_objects())) == 8


# refusals


def test_a_wrong_secret_is_a_persons_task_and_is_not_shown(bucket: S3Bucket, caplog: pytest.LogCaptureFixture) -> None:
    wrong = changed(bucket, secret_key=SecretStr("wrong-secret-of-mine"))
    with caplog.at_level(logging.INFO):
        for call in (
            lambda: wrong.put("name", b"x"),
            lambda: wrong.get("name"),
            lambda: wrong.head("name"),
            lambda: list(wrong.list_objects()),
            lambda: wrong.delete_objects(["name"]),
            wrong.check,
        ):
            words = told(call)
            assert "TerminalError" in words
            assert "CRYPTIQUE_S3_SECRET_KEY" in words
            assert "wrong-secret-of-mine" not in words
            assert wrong.access_key is not None
            assert wrong.access_key.get_secret_value() not in words
    assert "wrong-secret-of-mine" not in caplog.text


def test_an_unknown_access_key_is_a_persons_task(bucket: S3Bucket) -> None:
    words = told(changed(bucket, access_key=SecretStr("nobodys-key")).check)
    assert "CRYPTIQUE_S3_ACCESS_KEY" in words
    assert "nobodys-key" not in words


def test_a_key_that_may_only_read_is_told_so_by_the_check(s3: S3Server, bucket: S3Bucket, tmp_path: Path) -> None:
    """A server of its own, whose second key is a reader's."""
    folder = tmp_path / "s3"
    folder.mkdir()
    (folder / "identity.json").write_text(
        '{"identities": ['
        '{"name": "owner", "credentials": [{"accessKey": "owner", "secretKey": "owner-secret"}], '
        '"actions": ["Admin", "Read", "Write", "List", "Tagging"]}, '
        '{"name": "reader", "credentials": [{"accessKey": "reader", "secretKey": "reader-secret"}], '
        '"actions": ["Read", "List"]}]}'
    )
    with embedded_s3(tmp_path) as server:
        owner = changed(
            bucket,
            endpoint=server.endpoint,
            access_key=SecretStr(server.access_key),
            secret_key=SecretStr(server.secret_key),
        )
        reader = changed(owner, access_key=SecretStr("reader"), secret_key=SecretStr("reader-secret"))
        owner.put("name", b"x")
        assert reader.get("name") == b"x"
        for call in (reader.check, lambda: reader.delete_objects(["name"]), lambda: reader.put("name", b"y")):
            words = told(call)
            assert "TerminalError" in words
            assert "list, read, write and delete" in words
        assert owner.get("name") == b"x"


def test_no_keys_at_all_is_a_persons_task(bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    with pytest.raises(TerminalError, match="there are no keys"):
        changed(bucket, access_key=None, secret_key=None).check()


def test_without_keys_of_ours_those_of_the_machine_serve(
    s3: S3Server, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    assert changed(bucket, access_key=None, secret_key=None).check()


def test_one_key_without_the_other_is_refused(bucket: S3Bucket) -> None:
    with pytest.raises(ValidationError, match="go together"):
        changed(bucket, secret_key=None)


def test_a_bucket_that_is_not_there_is_a_persons_task(bucket: S3Bucket) -> None:
    missing = changed(bucket, bucket="no-such-bucket")
    for call in (lambda: missing.put("a", b"x"), lambda: missing.get("a"), missing.list_folders, missing.check):
        with pytest.raises(TerminalError, match=r"no bucket no-such-bucket at http.*make it"):
            call()


@pytest.mark.parametrize("name", ["UPPER", "under_score", "a b c", "..."])
def test_a_name_that_no_bucket_can_have_is_a_persons_task(bucket: S3Bucket, name: str) -> None:
    with pytest.raises(TerminalError):
        changed(bucket, bucket=name).check()


def test_a_server_that_is_down_is_for_the_retry_and_its_address_is_named(bucket: S3Bucket) -> None:
    silent = changed(bucket, endpoint=f"http://127.0.0.1:{_free_port()}", attempts=2)
    for call in (lambda: silent.put("a", b"x"), lambda: silent.get("a"), lambda: list(silent.list_objects())):
        with pytest.raises(TransientError, match=r"does not answer.*CRYPTIQUE_S3_ENDPOINT"):
            call()


def test_a_host_that_nobody_knows_is_a_persons_task(bucket: S3Bucket) -> None:
    with pytest.raises(TerminalError, match="no host of the name"):
        changed(bucket, endpoint="http://s3.invalid", attempts=1).check()


@pytest.mark.parametrize("endpoint", ["s3.example", "ftp://s3.example", "http://", "https://[", "http://host:port"])
def test_what_is_no_address_is_a_persons_task(bucket: S3Bucket, endpoint: str) -> None:
    with pytest.raises(TerminalError, match="CRYPTIQUE_S3_ENDPOINT"):
        changed(bucket, endpoint=endpoint, attempts=1).check()


# damage


#: What is larger than this has a middle in which a connection can be cut.
_MIDDLE_BYTES = 100_000


class _Between(BaseHTTPRequestHandler):
    """Passes requests on to the real server and spoils what comes back, or what goes there, as a bad wire would."""

    protocol_version = "HTTP/1.1"
    server: _Spoiler

    def _pass_on(self) -> None:
        import http.client

        length = int(self.headers.get("Content-Length") or 0)
        if self.server.fault == "cut up once" and length > _MIDDLE_BYTES:
            self.server.fault = ""
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        self.server.seen += 1
        fault = self.server.fault
        if isinstance(fault, int):
            self.send_response(fault)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "no upload" and self.command == "POST":
            page = b"<Error><Code>NoSuchUpload</Code><Message>gone</Message></Error>"
            self.send_response(404)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)
            return
        if fault == "hang":
            self.server.released.wait(60)
            self.close_connection = True
            return
        if fault == "web page":
            page = b"<!doctype html><html><p>welcome</html>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)
            return
        if fault == "spoil up" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        if isinstance(fault, tuple) and self.server.seen <= fault[1]:
            self.send_response(fault[0])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = http.client.HTTPConnection(*self.server.behind)
        # The address that was signed stays the one that is asked for.
        connection.request(self.command, self.path, body or None, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        if fault == "lost answer" and self.command == "POST" and "uploadId" in self.path:
            self.server.fault = "no upload"
            self.close_connection = True
            return
        if fault == "spoil down" and content:
            content = bytes([content[0] ^ 1]) + content[1:]
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "date"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        if fault == "cut once":
            self.server.fault = ""
            fault = "cut"
        if fault == "cut":
            content = content[: len(content) // 2]
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(content)
        connection.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Spoiler(ThreadingHTTPServer):
    daemon_threads = True
    seen = 0

    def __init__(self, endpoint: str, fault: Fault) -> None:
        host, port = endpoint.removeprefix("http://").split(":")
        self.behind = (host, int(port))
        self.fault = fault
        self.released = threading.Event()
        super().__init__(("127.0.0.1", 0), _Between)

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that gave up


@contextmanager
def spoiled(bucket: S3Bucket, fault: Fault, **changes: Any) -> Iterator[tuple[S3Bucket, _Spoiler]]:
    assert bucket.endpoint is not None
    with _Spoiler(bucket.endpoint, fault) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        through = changed(bucket, **{"endpoint": f"http://127.0.0.1:{server.server_port}", "attempts": 2, **changes})
        try:
            yield through, server
        finally:
            through.close()
            server.released.set()
            server.shutdown()
            thread.join()


def test_an_object_that_arrives_with_another_bit_is_not_believed(bucket: S3Bucket, tmp_path: Path) -> None:
    bucket.put("name", CONTENT)
    with spoiled(bucket, "spoil down") as (through, _):
        with pytest.raises(ObjectDamagedError):
            through.get("name")
        with pytest.raises(ObjectDamagedError):
            through.download("name", tmp_path / "file")
    assert bucket.get("name") == CONTENT


def test_an_object_that_was_spoiled_on_its_way_is_not_stored(bucket: S3Bucket) -> None:
    with spoiled(bucket, "spoil up") as (through, _), pytest.raises(PipelineError):
        through.put("name", CONTENT)
    assert bucket.get("name") is None


def test_an_answer_that_breaks_off_is_for_the_retry(bucket: S3Bucket, tmp_path: Path) -> None:
    bucket.put("name", CONTENT)
    with spoiled(bucket, "cut") as (through, _):
        with pytest.raises(TransientError):
            through.get("name")
        with pytest.raises(TransientError):
            through.download("name", tmp_path / "file")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_tried_again_and_then_left_to_the_retry(bucket: S3Bucket, status: int) -> None:
    with spoiled(bucket, status) as (through, server):
        with pytest.raises(TransientError):
            through.put("name", b"x")
        assert server.seen == 2


@pytest.mark.parametrize("status", [301, 400, 403, 405, 501, 507])
def test_what_no_retry_helps_is_a_persons_task(bucket: S3Bucket, status: int) -> None:
    with spoiled(bucket, status) as (through, _), pytest.raises(TerminalError):
        through.put("name", b"x")


def test_a_server_that_hangs_is_for_the_retry(bucket: S3Bucket) -> None:
    with spoiled(bucket, "hang", read_timeout_seconds=0.2, attempts=1) as (through, _), pytest.raises(TransientError):
        through.get("name")


def test_a_web_page_is_no_bucket(bucket: S3Bucket) -> None:
    with spoiled(bucket, "web page") as (through, _):
        for call in (
            through.check,
            lambda: list(through.list_objects()),
            lambda: through.put("a", b"x"),
            lambda: through.delete_objects(["a"]),
        ):
            with pytest.raises((TransientError, TerminalError), match=str(through.endpoint)):
                call()


def test_something_that_speaks_no_http_is_an_error_of_ours(bucket: S3Bucket) -> None:
    class Stranger(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"SSH-2.0-OpenSSH\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            port = server.server_address[1]
            with pytest.raises((TransientError, TerminalError)):
                changed(bucket, endpoint=f"http://127.0.0.1:{port}", attempts=1).check()
            with pytest.raises((TransientError, TerminalError)):
                changed(bucket, endpoint=f"https://127.0.0.1:{port}", attempts=1).check()
        finally:
            server.shutdown()
            thread.join()


# objects in pieces


def sent(bucket: S3Bucket, content: bytes = LARGE) -> None:
    with bucket.writing("name") as sink:
        sink.write(content)


def test_a_large_object_goes_up_in_pieces_and_comes_back(bucket: S3Bucket) -> None:
    sent(bucket)
    blocks = bucket.stream("name")
    assert blocks is not None
    assert b"".join(blocks) == LARGE
    assert bucket.unfinished_uploads() == []


def test_pieces_grow_so_that_any_object_has_room_in_ten_thousand(
    bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sum(s3_module._piece_bytes(number) for number in range(10_000)) > 800 << 30
    assert s3_module._piece_bytes(9_999) == 128 << 20
    monkeypatch.setattr(s3_module, "_PIECES_OF_A_SIZE", 1)
    sent(bucket, LARGE * 3)
    assert bucket.get("name") == LARGE * 3


def test_an_upload_whose_last_answer_was_lost_is_proved_by_a_look_at_the_object(bucket: S3Bucket) -> None:
    with spoiled(bucket, "lost answer") as (through, server):
        sent(through)
        assert server.fault == "no upload"
    assert bucket.get("name") == LARGE


def test_an_upload_that_was_given_up_meanwhile_is_for_the_retry(bucket: S3Bucket) -> None:
    def send() -> None:
        with bucket.writing("name") as sink:
            sink.write(LARGE)
            for upload in bucket.unfinished_uploads():
                bucket.abort_upload(upload)

    with pytest.raises(TransientError, match="given up"):
        send()
    assert bucket.get("name") is None


def test_pieces_that_are_spoiled_on_their_way_are_refused_and_nothing_is_left(bucket: S3Bucket) -> None:
    with spoiled(bucket, "spoil up") as (through, _), pytest.raises(PipelineError):
        sent(through)
    assert bucket.get("name") is None


def test_an_upload_that_is_cut_in_the_middle_of_a_piece_is_sent_again(bucket: S3Bucket) -> None:
    with spoiled(bucket, "cut up once") as (through, server):
        sent(through)
        assert server.fault == ""
    assert b"".join(bucket.stream("name") or ()) == LARGE
    assert bucket.unfinished_uploads() == []


def test_a_storm_that_ends_is_outlived(bucket: S3Bucket) -> None:
    with spoiled(bucket, (503, 2), attempts=4) as (through, server):
        sent(through)
        assert server.seen > 2
    assert bucket.get("name") == LARGE


def test_a_reading_that_is_cut_goes_on_where_it_was(bucket: S3Bucket) -> None:
    bucket.put("name", LARGE)
    with spoiled(bucket, "cut once") as (through, server):
        blocks = through.stream("name")
        assert blocks is not None
        assert b"".join(blocks) == LARGE
        assert server.seen == 2


@pytest.mark.parametrize(("what", "words"), [("replaced", "replaced"), ("deleted", "deleted")])
def test_an_object_that_changes_while_it_is_read_is_not_patched_together(
    bucket: S3Bucket, what: str, words: str
) -> None:
    bucket.put("name", LARGE)
    with spoiled(bucket, "cut once") as (through, _):
        blocks = through.stream("name")
        assert blocks is not None
        next(blocks)
        if what == "replaced":
            bucket.put("name", LARGE[::-1])
        else:
            bucket.delete_objects(["name"])
        with pytest.raises(ObjectDamagedError, match=words):
            list(blocks)


# how the server keeps what is written


def test_what_is_written_is_encrypted_and_of_the_class_that_was_asked_for(bucket: S3Bucket) -> None:
    asking = changed(bucket, encryption="AES256", storage_class="STANDARD_IA")
    asking.put("small", CONTENT)
    asking.put_if_absent("absent", CONTENT)
    sent(asking)
    for name in ("small", "absent", "name"):
        told = bucket._head(name)
        assert told is not None
        assert (told["ServerSideEncryption"], told.get("StorageClass")) == ("AES256", "STANDARD_IA")
    assert bucket.get("name") == LARGE


def test_a_server_that_does_not_encrypt_as_asked_is_a_persons_task_and_keeps_nothing(bucket: S3Bucket) -> None:
    asking = changed(bucket, encryption="aws:kms:dsse", kms_key_id="key")
    for call in (lambda: asking.put("name", CONTENT), lambda: sent(asking)):
        with pytest.raises(TerminalError, match="CRYPTIQUE_BACKUP_ENCRYPTION"):
            call()
        assert bucket.get("name") is None


def test_a_storage_class_that_is_not_there_is_a_persons_task(bucket: S3Bucket) -> None:
    with pytest.raises(TerminalError, match="CRYPTIQUE_BACKUP_STORAGE_CLASS"):
        changed(bucket, storage_class="NONSENSE").put("name", CONTENT)
    with pytest.raises(ValidationError, match="read back"):
        changed(bucket, storage_class="DEEP_ARCHIVE")
    with pytest.raises(ValidationError, match="kms_key_id"):
        changed(bucket, kms_key_id="key")


# secrets


def test_no_secret_is_in_what_a_block_shows(bucket: S3Bucket) -> None:
    bucket.check()  # the client is made
    assert bucket.secret_key is not None
    assert bucket.access_key is not None
    for shown in (repr(bucket), str(bucket), bucket.model_dump_json(), str(bucket.model_dump())):
        assert bucket.secret_key.get_secret_value() not in shown
        assert bucket.access_key.get_secret_value() not in shown


# the local server


def test_objects_and_keys_outlive_a_killed_server_and_a_port_that_a_stranger_took(tmp_path: Path, s3: S3Server) -> None:
    def look(server: S3Server) -> S3Bucket:
        return S3Bucket(
            endpoint=server.endpoint,
            bucket=server.bucket,
            access_key=SecretStr(server.access_key),
            secret_key=SecretStr(server.secret_key),
        )

    with embedded_s3(tmp_path) as server:
        look(server).put("name", CONTENT)
        os.kill(json.loads((tmp_path / "s3" / "server.json").read_text())["pid"], signal.SIGKILL)
    port = int(server.endpoint.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)), embedded_s3(tmp_path) as again:
        assert again.endpoint != server.endpoint
        assert (again.access_key, again.secret_key) == (server.access_key, server.secret_key)
        assert again.secret_key != s3.secret_key
        assert look(again).get("name") == CONTENT
        assert again.secret_key not in repr(again)
    assert stop_local_servers(tmp_path) == []
