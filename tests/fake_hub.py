"""As much of the hub's HTTP API as an upload and a look for a repository take, on 127.0.0.1; it keeps what was
committed.
"""

from __future__ import annotations

import base64
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FakeHub:
    """``status`` other than 200 is what every request gets. ``files`` are those of the last commit, by path. Whoever
    asks for a ``gated`` repository without the token hf_friend is turned away.
    """

    status: int = 200
    gated: bool = False
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    created: list[dict] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    summary: str = ""

    def __enter__(self) -> FakeHub:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _do(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                hub.asked.append((self.command, self.path, self.headers.get("Authorization")))
                status, reply = (200, hub._answer(self.path, raw)) if hub.status == 200 else (hub.status, {})
                turned_away = self.path.endswith("/auth-check") and self.headers["Authorization"] != "Bearer hf_friend"
                body = json.dumps(reply).encode()
                self.send_response(403 if turned_away else status)
                if turned_away:
                    self.send_header("X-Error-Code", "GatedRepo")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET = _do

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, path: str, raw: bytes) -> object:
        if path == "/api/repos/create":
            self.created.append(json.loads(raw))
            return {"url": f"{self.url}/me/detox", "id": "me/detox", "name": "me/detox"}
        if path.endswith("/preupload/main"):
            files = json.loads(raw)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if "/commit/main" in path:
            for line in map(json.loads, raw.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                if line["key"] == "header":
                    self.summary = line["value"]["summary"]
            return {"commitOid": "0" * 40, "commitUrl": f"{self.url}/me/detox/commit/{'0' * 40}", "hookOutput": ""}
        if path.endswith("/validate-yaml"):
            return {"errors": [], "warnings": []}
        return {
            "id": "me/detox",
            "sha": "0" * 40,
            "siblings": [],
            "tags": [],
            "private": False,
            "gated": "auto" if self.gated else False,
        }
