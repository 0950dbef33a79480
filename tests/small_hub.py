"""A server on this machine that speaks as much of the Hugging Face Hub as an upload needs, and keeps what it gets."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_test"


@dataclass
class SmallHub:
    """`refusals`: a status for the paths that begin so. `files`: contents by the name of a file, after a commit."""

    address: str = ""
    role: str = "write"
    refusals: dict[str, int] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    card: str = ""
    created: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    def answer(self, path: str, body: bytes, token: str) -> tuple[int, object]:
        """Status and document."""
        self.requests.append(path)
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        for beginning, status in self.refusals.items():
            if path.startswith(beginning):
                return status, {"error": "You don't have the rights to do this"}
        if path == "/api/whoami-v2":
            return 200, {"name": "joe", "type": "user", "auth": {"accessToken": {"role": self.role}}}
        if path == "/api/validate-yaml":
            self.card = json.loads(body)["content"]
            return 200, {}
        if path == "/api/repos/create":
            self.created = json.loads(body)
            return 200, {"url": f"{self.address}/joe/{self.created['name']}"}
        if "/preupload/" in path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {"commitOid": "0" * 40, "commitUrl": f"{self.address}/joe/small/commit/0", "success": True}
        return 404, {"error": f"unknown path {path}"}


@contextmanager
def small_hub() -> Iterator[SmallHub]:
    hub = SmallHub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            status, document = hub.answer(self.path, self.rfile.read(length), self.headers.get("Authorization", ""))
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
