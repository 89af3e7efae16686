"""A real HTTP server on 127.0.0.1 that answers as a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    at: float


@dataclass
class Reply:
    """What to answer. ``body`` may be JSON, text or bytes. ``promise`` more bytes than come; ``reset`` hangs up;
    ``drip`` is a wait before every byte.
    """

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    after: float = 0.0
    promise: int = 0
    reset: bool = False
    drip: float = 0.0


Answer = Callable[[Asked], Reply]


class FakeService:
    """The server; ``answer`` decides what each request gets, ``asked`` holds them all."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.answer: Answer = lambda _: Reply({})
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _do(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked = Asked(
                    self.command, self.path, dict(self.headers), json.loads(raw) if raw else None, time.monotonic()
                )
                with service._lock:
                    service.asked.append(asked)
                    service.at_once += 1
                    service.most_at_once = max(service.most_at_once, service.at_once)
                try:
                    self._send(service.answer(asked))
                except OSError:  # whoever asked has gone
                    self.close_connection = True
                finally:
                    with service._lock:
                        service.at_once -= 1

            do_POST = do_GET = _do

            def _send(self, reply: Reply) -> None:
                time.sleep(reply.after)
                if reply.reset:
                    linger = struct.pack("ii", 1, 0)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.connection.shutdown(socket.SHUT_RD)
                    self.connection.close()
                    self.close_connection = True
                    return
                body = reply.body
                if not isinstance(body, bytes):
                    body = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body) + reply.promise))
                self.end_headers()
                for byte in body if reply.drip else ():
                    time.sleep(reply.drip)
                    self.wfile.write(bytes([byte]))
                self.wfile.write(b"" if reply.drip else body)
                self.close_connection = bool(reply.promise)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                pass  # a client that hangs up is no news

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def one_by_one(self, replies: Iterable[Reply]) -> None:
        """Answer with these in turn, and the last of them for ever."""
        rest = list(replies)
        lock = threading.Lock()

        def answer(_: Asked) -> Reply:
            with lock:
                return rest.pop(0) if len(rest) > 1 else rest[0]

        self.answer = answer

    @property
    def texts(self) -> list[str]:
        """What was to be judged, by whichever of the three protocols, in the order of arrival."""
        return [text_of(asked) for asked in self.asked]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def text_of(asked: Asked) -> str:
    """The text that a request wants judged."""
    if "comment" in asked.body:
        return str(asked.body["comment"]["text"])
    if "input" in asked.body:
        return str(asked.body["input"])
    lines = asked.body["messages"][-1]["content"].split("\n")
    return "\n".join(lines[1:-1])


def analysed(value: Any, *, attributes: Iterable[str], **others: Any) -> dict[str, Any]:
    """Perspective's answer with ``value`` for every attribute, or that of ``others``."""
    return {
        "attributeScores": {
            name: {
                "spanScores": [{"begin": 0, "end": 3, "score": {"value": value, "type": "PROBABILITY"}}],
                "summaryScore": {"value": others.get(name, value), "type": "PROBABILITY"},
            }
            for name in attributes
        },
        "languages": ["en"],
        "detectedLanguages": ["en"],
    }


def google_error(message: str, *details: dict[str, Any], code: int = 400) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": "INVALID_ARGUMENT", "details": list(details)}}


def moderated(**scores: Any) -> dict[str, Any]:
    return {
        "id": "modr-1",
        "model": "guard",
        "results": [{"flagged": False, "categories": {}, "category_scores": scores}],
    }


def chatted(content: Any, *, finish: str = "stop", **message: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
        ],
    }
