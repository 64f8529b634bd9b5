"""A hub on this machine's loopback: the parts of Hugging Face's HTTP API that the real client uses, and its faults; and
the two calls of ModelScope's that its client makes.

Model information with the size and digest of every file; `resolve` with ETag, X-Repo-Commit and the X-Linked headers,
which for large files redirects to another host as the real one does; Range. Files are given as bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

PIECE = 16 << 10


@dataclass
class Faults:
    """What the server does wrong. Statuses are answered instead of the thing; `times` limits how often (-1: always)."""

    api_status: int = 0
    resolve_status: int = 0
    file_status: int = 0
    error_code: str = ""
    times: int = -1
    bytes_per_second: float = 0
    cut_after: int = -1  # bytes of a body, then the connection is closed
    stall_after: int = -1  # bytes of a body, then nothing comes any more
    corrupt_at: int = -1  # this byte of a file is flipped
    declare_more: int = 0  # the declared size is larger than the file by this
    no_range: bool = False
    not_a_hub: bool = False


@dataclass
class Seen:
    """What was asked for. `sent` counts bytes of large files."""

    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    tokens_at_storage: list[str] = field(default_factory=list)
    sent: int = 0


def digest(path: str, data: bytes) -> tuple[str, bool]:
    """The hub's name for the bytes, and whether it keeps them as a large file."""
    if path.endswith((".gguf", ".safetensors")):
        return hashlib.sha256(data).hexdigest(), True
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), False


class HubServer:
    """Serves `repositories`: name -> path -> bytes. Every change of them is a new commit."""

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        self.repositories = {name: dict(files) for name, files in repositories.items()}
        self.gated: dict[str, str] = {}  # repository -> the token that opens it
        self.faults = Faults()
        self.seen = Seen()
        self._stop = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.port = self._server.server_port

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def commit(self, repository: str) -> str:
        state = sorted((path, digest(path, data)[0]) for path, data in self.repositories[repository].items())
        return hashlib.sha1(repr(state).encode()).hexdigest()

    def reset(self) -> None:
        self.faults, self.seen = Faults(), Seen()

    def fails(self) -> bool:
        """Counts a fault that is limited in number."""
        if self.faults.times == 0:
            return False
        self.faults.times -= 1
        return True

    def wait(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        # Little of what is sent may wait in the kernel, so that a client that dies has received most of it.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.seen.requests.append(f"{self.command} {path}")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if self.hub.faults.not_a_hub:
                self._send(200, b"<html>please log in</html>", {"Content-Type": "text/html"})
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/([^/]+))?", path):
                self._information(*found.groups())
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._resolve(*found.groups())
            elif found := re.fullmatch(r"/storage/([0-9a-f]{64})", path):
                self._storage(found.group(1))
            elif found := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo/files", path):
                self._modelscope_files(found.group(1))
            elif found := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo", path):
                self._modelscope_file(found.group(1))
            else:
                self._error(404, "")

    def _modelscope_files(self, repository: str) -> None:
        """ModelScope's list of files: every one with its sha256."""
        if repository not in self.hub.repositories:
            self._send(404, b'{"Code": 10010205001, "Success": false, "Message": "no such model"}', {})
            return
        files = [
            {"Path": path, "Name": path, "Size": len(data), "Type": "blob", "Sha256": hashlib.sha256(data).hexdigest()}
            for path, data in self.hub.repositories[repository].items()
        ]
        body = {"Code": 200, "Success": True, "Data": {"Files": files}}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _modelscope_file(self, repository: str) -> None:
        asked = parse_qs(self.path.partition("?")[2])
        data = self.hub.repositories.get(repository, {}).get(asked.get("FilePath", [""])[0])
        if data is None:
            self._error(404, "")
            return
        self.hub.seen.ranges.append(self.headers.get("Range", ""))
        self._file(data, {})

    def _information(self, repository: str, revision: str | None) -> None:
        if not self._may(repository, self.hub.faults.api_status):
            return
        commit = self.hub.commit(repository)
        if revision not in (None, "main", commit):
            self._error(404, "RevisionNotFound")
            return
        files = self.hub.repositories[repository].items()
        body = {"id": repository, "sha": commit, "siblings": [self._sibling(*file) for file in files]}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _sibling(self, path: str, data: bytes) -> dict[str, Any]:
        name, large = digest(path, data)
        size = len(data) + self.hub.faults.declare_more
        described: dict[str, Any] = {"rfilename": path, "size": size, "blobId": name[:40]}
        return described | ({"lfs": {"sha256": name, "size": size, "pointerSize": 130}} if large else {})

    def _resolve(self, repository: str, revision: str, path: str) -> None:
        if not self._may(repository, self.hub.faults.resolve_status):
            return
        commit, files = self.hub.commit(repository), self.hub.repositories[repository]
        if revision not in ("main", commit) or path not in files:
            self._error(404, "EntryNotFound" if revision in ("main", commit) else "RevisionNotFound")
            return
        name, large = digest(path, files[path])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{name}"'}
        if not large:
            self._file(files[path], headers)
            return
        headers |= {"X-Linked-Size": str(len(files[path])), "X-Linked-Etag": f'"{name}"'}
        self._send(302, b"", headers | {"Location": f"http://localhost:{self.hub.port}/storage/{name}"})

    def _storage(self, name: str) -> None:
        self.hub.seen.tokens_at_storage.append(self.headers.get("Authorization", ""))
        self.hub.seen.ranges.append(self.headers.get("Range", ""))
        if self.hub.faults.file_status and self.hub.fails():
            self._error(self.hub.faults.file_status, "")
            return
        for files in self.hub.repositories.values():
            for path, data in files.items():
                if digest(path, data)[0] == name:
                    self._file(data, {"ETag": f'"{name}"'})
                    return
        self._error(404, "EntryNotFound")

    def _file(self, data: bytes, headers: Mapping[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(asked.group(1)) if asked and not self.hub.faults.no_range else 0
        if begin >= len(data) > 0:
            self._error(416, "")
            return
        total = len(data)
        self.send_response(206 if begin else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - begin))
        self.end_headers()
        if self.command == "GET":
            self._body(data, begin)

    def _body(self, data: bytes, begin: int) -> None:
        faults, seen = self.hub.faults, self.hub.seen  # those of now: a test may begin anew while this one sends
        if 0 <= faults.corrupt_at < len(data) and self.hub.fails():
            at = faults.corrupt_at
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        end = len(data)
        cut = faults.cut_after >= 0 and self.hub.fails()
        if cut:
            end = min(end, begin + faults.cut_after)
        for position in range(begin, end, PIECE):
            piece = data[position : min(end, position + PIECE)]
            if 0 <= faults.stall_after <= position - begin:
                self.hub.wait(30)
                return
            self.wfile.write(piece)
            seen.sent += len(piece)
            if faults.bytes_per_second:
                time.sleep(len(piece) / faults.bytes_per_second)
        if cut:
            self.close_connection = True
            self.connection.close()

    def _may(self, repository: str, status: int) -> bool:
        if status and self.hub.fails():
            self._error(status, self.hub.faults.error_code)
            return False
        if repository not in self.hub.repositories:
            self._error(401 if "Authorization" not in self.headers else 404, "RepoNotFound")
            return False
        token = self.hub.gated.get(repository)
        if token and self.headers.get("Authorization") != f"Bearer {token}":
            self._error(401 if "Authorization" not in self.headers else 403, "GatedRepo")
            return False
        return True

    def _error(self, status: int, code: str) -> None:
        self._send(status, b'{"error": "as asked"}', {"X-Error-Code": code} if code else {})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(repositories: Mapping[str, Mapping[str, bytes]]) -> Iterator[HubServer]:
    with HubServer(repositories) as hub:
        yield hub
