"""The server under attack, as the attacks see it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from attacks.client import Response, ask
from attacks.gguf_file import Gguf
from attacks.questions import Question
from attacks.server import Server
from attacks.watching import Watch

#: A list of nine hundred numbers: an answer of thousands of tokens, whatever the model would like to say.
_NUMBERS = {"type": "array", "minItems": 900, "items": {"type": "integer", "minimum": 0, "maximum": 9}}


@dataclass
class Target:
    """`good` is the intact model; `patience` is how many seconds a response may take before it counts as silence."""

    server: Server
    good: Gguf
    content: bytes
    patience: float
    watch: Watch | None = None
    killed: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, path: str, body: bytes | dict[str, Any] | None = None, *, method: str = "") -> Response:
        """Send one request."""
        return ask(self.server.address, path, body, patience=self.patience, method=method)

    def question(self, question: Question) -> Response:
        """Send one question."""
        return self.ask(*question)

    @contextmanager
    def model(self, name: str, content: bytes) -> Iterator[str]:
        """Write a model into the home, and unload and remove it at the end of the block."""
        path = self.server.models / f"{name}.gguf"
        path.write_bytes(content)
        try:
            yield name
        finally:
            unload = {"model": name, "keep_alive": 0, "stream": False}
            ask(self.server.address, "/api/generate", unload, patience=min(self.patience, 10.0))
            path.unlink(missing_ok=True)

    def between_good_requests(self) -> Any:
        """Return a block in which the good client waits."""
        return self.watch.between if self.watch else nullcontext()

    def may_kill_good(self) -> bool:
        """Return whether the good model's process may be killed now: a model that dies three times in ten minutes is
        set aside, which is right. A true answer counts as a kill."""
        now = time.monotonic()
        with self.lock:
            self.killed = [moment for moment in self.killed if now - moment < 660]
            if len(self.killed) >= 1:
                return False
            self.killed.append(now)
            return True


def short(name: str, tag: str) -> Question:
    """Return a question with a short answer, whose text no other question has."""
    body = {"model": name, "prompt": f"{tag}: 1 2 3", "max_tokens": 8, "temperature": 0}
    return "/v1/completions", body


def endless(name: str, tag: str, *, stream: bool = True) -> Question:
    """Return a question whose answer has thousands of tokens."""
    schema = {"name": "numbers", "schema": _NUMBERS}
    return "/v1/chat/completions", {
        "model": name, "messages": [{"role": "user", "content": f"{tag} count /no_think"}], "max_tokens": 6000,
        "stream": stream,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }  # fmt: skip


def long_prompt(name: str, tag: str) -> Question:
    """Return a question whose prompt nearly fills the demo's context."""
    body = {"model": name, "prompt": tag + " one two" * 900, "max_tokens": 4, "temperature": 0}
    return "/v1/completions", body
