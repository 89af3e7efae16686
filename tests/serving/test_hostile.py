"""What no honest client sends: each gets a well-formed refusal in its format, and the server goes on answering."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import time
from io import BytesIO
from typing import Any

import pytest
from serving_server import Answered, Letters, ThreadServer, analyze

ANALYZE = "/v1alpha1/comments:analyze"
PATHS = {ANALYZE: "perspective", "/v1/moderations": "openai", "/classify": "plain", "/score": "plain"}
GOOD = json.dumps(analyze("x")).encode()
DEEP = 100_000


def with_text(text: bytes) -> bytes:
    """A body that has everything for all formats, and ``text`` as its JSON text."""
    return b'{"comment": {"text": ' + text + b'}, "requestedAttributes": {"TOXICITY": {}}}'


# No format takes any of these.
BODIES: dict[str, bytes] = {
    "cut off in an object": GOOD[:-1],
    "cut off in a text": GOOD[:20],
    "a bracket": b"{",
    "no JSON": b"comment=x",
    "a word": b"nonsense",
    "two objects": GOOD + GOOD,
    "something after": GOOD + b"x",
    "a list": b"[" + GOOD + b"]",
    "a text": b'"x"',
    "a number": b"3",
    "null": b"null",
    "true": b"true",
    "single quotes": b"{'comment': {'text': 'x'}}",
    "a comma too many": GOOD[:-1] + b",}",
    "a comment": b"{/* */}",
    "NaN": b'{"input": NaN, "texts": NaN, "inputs": NaN}',
    "Infinity": with_text(b"Infinity"),
    "-Infinity": b'{"requestedAttributes": {"TOXICITY": {"scoreThreshold": -Infinity}}}',
    "a key twice": b'{"comment": {"text": "x"}, "comment": {"text": "y"}, "requestedAttributes": {"TOXICITY": {}}}',
    "a key twice below": b'{"texts": ["x"], "comment": {"text": "x", "text": "y"}}',
    "brackets": b"[" * DEEP,
    "brackets that close": b"[" * DEEP + b"]" * DEEP,
    "objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep below a field": b'{"texts": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "a number of 10,000 digits": b'{"texts": ' + b"9" * 10_000 + b"}",
    "an exponent": b'{"texts": 1e999999}',
    "UTF-16": json.dumps(analyze("x")).encode("utf-16"),
    "UTF-32": json.dumps(analyze("x")).encode("utf-32"),
    "a byte order mark": b"\xef\xbb\xbf" + GOOD,
    "Latin-1": with_text('"für"'.encode("latin-1")),
    "an overlong form": with_text(b'"\xc0\xae"'),
    "a surrogate in UTF-8": with_text(b'"\xed\xa0\x80"'),
    "a control character": with_text(b'"a\x00b"'),
    "a line end in a text": with_text(b'"a\nb"'),
    "an escape that isn't one": with_text(b'"\\x41"'),
    "half an escape": with_text(b'"\\u00"'),
    "gzip that isn't declared": gzip.compress(GOOD),
    "zeros": b"\x00" * 1000,
    "an unknown field": b'{"nonsense": 1}',
    "a proto": b'{"__proto__": {"text": "x"}, "constructor": {}}',
}
# These are wrong in one format.
WRONG: list[tuple[str, Any]] = [
    (ANALYZE, analyze(3)),
    (ANALYZE, analyze(["x"])),
    (ANALYZE, analyze({"text": "x"})),
    (ANALYZE, analyze(True)),
    (ANALYZE, {**analyze("x"), "comment": "x"}),
    (ANALYZE, {**analyze("x"), "comment": ["x"]}),
    (ANALYZE, {**analyze("x"), "comment": {"text": "x", "type": "MARKDOWN"}}),
    (ANALYZE, {**analyze("x"), "comment": {"text": "x", "extra": 1}}),
    (ANALYZE, {**analyze("x"), "requestedAttributes": ["TOXICITY"]}),
    (ANALYZE, {**analyze("x"), "requestedAttributes": "TOXICITY"}),
    (ANALYZE, {**analyze("x"), "requestedAttributes": {"TOXICITY": 1}}),
    (ANALYZE, {**analyze("x"), "requestedAttributes": {"TOXICITY": {"scoreThreshold": "high"}}}),
    (ANALYZE, {**analyze("x"), "requestedAttributes": {"": {}}}),
    (ANALYZE, {**analyze("x"), "requestedAttributes": {"T" * 100_000: {}}}),
    (ANALYZE, {**analyze("x"), "requestedAttributes": {f"A{n}": {} for n in range(10_000)}}),
    (ANALYZE, analyze("x", languages="en")),
    (ANALYZE, analyze("x", languages=[3])),
    (ANALYZE, analyze("x", doNotStore="yes")),
    (ANALYZE, analyze("x", spanAnnotations=1)),
    (ANALYZE, analyze("x", clientToken=5)),
    (ANALYZE, analyze("x", context={"entries": "x"})),
    (ANALYZE, analyze("x", judge=["letters"])),
    (ANALYZE, analyze("\ud800")),
    (ANALYZE, analyze("a\udc00b")),
    ("/v1/moderations", {"input": {"text": "x"}}),
    ("/v1/moderations", {"input": [["x"]]}),
    ("/v1/moderations", {"input": ["x", None]}),
    ("/v1/moderations", {"input": [1, 2, 3]}),
    ("/v1/moderations", {"input": "\udfff"}),
    ("/classify", {"inputs": {"text": "x"}}),
    ("/classify", {"inputs": ["x", 1]}),
    ("/classify", {"inputs": "x", "parameters": []}),
    ("/classify", {"inputs": "x", "parameters": {"top_k": 1.5}}),
    ("/score", {"texts": "x"}),
    ("/score", {"texts": [None]}),
    ("/score", {"texts": ["x"], "label": 1}),
    ("/score", {"texts": ["x"] * 1000}),
    ("/score", {"texts": ["x", "\ud83d"]}),
]


def assert_refused(found: Answered, path: str) -> None:
    """A 4xx in the format of ``path``, which is JSON and quotes nothing."""
    assert 400 <= found.status < 500, found
    assert found.headers["content-type"] == "application/json"
    error = found.body["error"]
    if PATHS[path] == "perspective":
        assert error["code"] == found.status
        assert isinstance(error["message"], str)
        assert error["status"].isupper()
    elif PATHS[path] == "openai":
        assert set(error) == {"message", "type", "param", "code"}
    else:
        assert isinstance(error, str)
        assert found.body["error_type"]
    assert len(found.data) < 1000


def assert_answers(server: ThreadServer) -> None:
    found = server.ask(ANALYZE, analyze("xa"))
    assert found.body["attributeScores"]["TOXICITY"]["summaryScore"]["value"] == 0.5


def test_there_are_fifty_of_them() -> None:
    assert len(BODIES) * len(PATHS) + len(WRONG) >= 50
    assert len(BODIES) + len(WRONG) >= 50


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_request_is_refused_by_every_path(server: ThreadServer, letters: Letters, name: str) -> None:
    for path in PATHS:
        assert_refused(server.ask(path, BODIES[name]), path)
    assert letters.batches == []
    assert_answers(server)


@pytest.mark.parametrize(("path", "body"), WRONG, ids=lambda value: str(value)[:50])
def test_a_field_of_another_type_is_refused(server: ThreadServer, letters: Letters, path: str, body: Any) -> None:
    assert_refused(server.ask(path, body), path)
    assert letters.batches == []
    assert_answers(server)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "application/xml"}, 415),
        ({"Content-Type": "application/jsonx"}, 415),
        ({"Content-Type": "application/json; charset=utf-16"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
        ({"Content-Encoding": "br"}, 415),
        ({"Content-Encoding": "identity, gzip"}, 415),
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_headers_of_another_kind_are_refused(
    server: ThreadServer, letters: Letters, path: str, headers: dict[str, str], status: int
) -> None:
    found = server.ask(path, GOOD, headers=headers)
    assert found.status == status
    assert_refused(found, path)
    assert letters.batches == []


@pytest.mark.parametrize("kind", ["application/json", "application/json;charset=UTF-8", "application/problem+json", ""])
def test_json_by_any_of_its_names_is_taken(server: ThreadServer, kind: str) -> None:
    assert server.ask(ANALYZE, GOOD, headers={"Content-Type": kind}).status == 200


def test_a_gzip_bomb_is_not_opened(server: ThreadServer) -> None:
    bomb = BytesIO()
    with gzip.GzipFile(fileobj=bomb, mode="wb") as file:
        for _ in range(100):
            file.write(b" " * 1_000_000)
    for path in PATHS:
        found = server.ask(path, bomb.getvalue(), headers={"Content-Encoding": "gzip"})
        assert found.status == 415
        assert_refused(found, path)
    assert_answers(server)


@pytest.mark.parametrize("path", PATHS)
def test_ten_megabytes_are_refused_before_they_are_read(server: ThreadServer, path: str) -> None:
    line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    line.putrequest("POST", path)
    line.putheader("Content-Type", "application/json")
    line.putheader("Content-Length", str(10_000_000))
    line.endheaders()
    found = line.getresponse()
    answer = Answered(found.status, {k.lower(): v for k, v in found.getheaders()}, found.read())
    line.close()
    assert answer.status == 413
    assert_refused(answer, path)
    # A client that writes everything before it reads gets its answer too.
    assert server.ask(path, b" " * 10_000_000).status == 413
    assert_answers(server)


def test_ten_megabytes_in_chunks_are_not_kept(server: ThreadServer) -> None:
    """Without a length nobody knows before how much will come."""
    head = f"POST {ANALYZE} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    found = server.raw(head.encode() + chunk * 160 + b"0\r\n\r\n")
    assert b" 413 " in found.partition(b"\r\n")[0]
    assert_answers(server)


# Requests in which two servers may see two different ones, and others that are no HTTP.
HOST = b"Host: localhost\r\n"
POST = b"POST /score HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
BODY = b'{"texts": ["x"]}'
SMUGGLED = b"GET /judges HTTP/1.1\r\n" + HOST + b"\r\n"
NO_HTTP: dict[str, bytes] = {
    "two lengths": POST + b"Content-Length: 16\r\nContent-Length: 0\r\n\r\n" + BODY,
    "two lengths in one": POST + b"Content-Length: 16, 0\r\n\r\n" + BODY,
    "a length and chunks": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunks in disguise": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunks twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "a blank before the colon": POST + b"Content-Length : 16\r\n\r\n" + BODY,
    "a header that goes on": POST + b"Content-Length:\r\n 16\r\n X: \r\n\r\n" + BODY,
    "a negative length": POST + b"Content-Length: -1\r\n\r\n" + BODY,
    "a length with a sign": POST + b"Content-Length: +16\r\n\r\n" + BODY,
    "a length in hexadecimal": POST + b"Content-Length: 0x10\r\n\r\n" + BODY,
    "a huge length": POST + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n" + BODY,
    "a broken chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + BODY,
    "a chunk of a negative size": POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + BODY,
    "a chunk too long": POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\n" + HOST + b"Host: evil.example\r\n\r\n",
    "a zero in a header": b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n",
    "a line end alone": b"GET /healthz HTTP/1.1\rHost: localhost\r\r",
    "no version": b"GET /healthz\r\n\r\n",
    "HTTP/9.9": b"GET /healthz HTTP/9.9\r\n" + HOST + b"\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
    "noise": bytes(range(256)) * 10,
    "headers without end": b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
    "a thousand headers": b"GET /healthz HTTP/1.1\r\n"
    + HOST
    + b"X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 10_000
    + b"\r\n",
    "a path without end": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "an absolute address of another host": b"GET http://evil.example/judges HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "CONNECT": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
}


@pytest.mark.parametrize("name", NO_HTTP)
def test_what_is_no_http_gets_one_refusal_and_the_line_is_closed(
    server: ThreadServer, letters: Letters, name: str
) -> None:
    found = server.raw(NO_HTTP[name])
    # One answer, whatever hid behind the first request; or none, where the line says nothing that can be answered.
    assert found.count(b"HTTP/1.1 ") <= 1, found
    assert b'"judges"' not in found
    if found:
        status, _, rest = found.partition(b"\r\n")
        assert status.split(b" ")[1][:1] == b"4", found
        assert "error" in json.loads(rest.partition(b"\r\n\r\n")[2])
    else:
        assert name == "a line end alone"
    assert letters.batches == []
    assert_answers(server)


def test_requests_in_a_row_on_one_line_are_answered_in_their_order(server: ThreadServer) -> None:
    bodies = [json.dumps({"texts": [f"{'x' * n}aa"]}).encode() for n in range(20)]
    requests = b"".join(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body for body in bodies)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line:
        line.sendall(requests)
        found = b""
        while found.count(b'"values"') < 20:
            found += line.recv(65536)
    values = [float(part.split(b"]")[0]) for part in found.split(b'"values":[')[1:]]
    assert values == pytest.approx([n / (n + 2) for n in range(20)])


def test_who_sends_a_byte_now_and_then_is_cut_off(serve: Any, letters: Letters) -> None:
    server = serve(letters, body_seconds=0.5)

    def drip(data: bytes) -> tuple[float, bytes]:
        begun, found = time.monotonic(), b""
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as line:
            try:
                for byte in data:
                    line.sendall(bytes([byte]))
                    time.sleep(0.05)
            except ConnectionError:
                pass
            try:
                while piece := line.recv(65536):
                    found += piece
            except ConnectionError:
                pass
        return time.monotonic() - begun, found

    # In the headers: the line is closed. In the body: 408, and the line is closed.
    seconds, found = drip(b"POST /score HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 60)
    assert seconds < 5
    assert found == b""
    for silent in (b"", b"P"):
        begun = time.monotonic()
        assert server.raw(silent, half_close=False) == b""
        assert time.monotonic() - begun < 5
    head = POST + b"Content-Length: 60\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as line:
        line.sendall(head + b"{")
        assert b" 408 " in line.recv(65536)
    # After an answer, the next headers have their time too, and a connection that is used in time goes on.
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as line:
        for _ in range(3):
            line.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY)
            found = b""
            while b'"values"' not in found:
                found += line.recv(65536)
            time.sleep(0.3)
        line.sendall(b"GET /heal")
        assert line.recv(65536) == b""
    assert_answers(server)


def test_hundreds_of_open_lines_do_not_keep_others_from_their_answer(server: ThreadServer) -> None:
    lines = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(300)]
    try:
        for line in lines:
            line.sendall(b"POST /score HTTP/1.1\r\n")
        assert_answers(server)
    finally:
        for line in lines:
            line.close()


def test_all_that_in_a_row_leaves_the_server_as_it_was(server: ThreadServer, letters: Letters) -> None:
    for body in BODIES.values():
        for path in PATHS:
            server.ask(path, body)
    for data in NO_HTTP.values():
        server.raw(data)
    assert letters.batches == []
    assert server.server.batcher.waiting == 0
    assert server.server.idle
    assert_answers(server)
