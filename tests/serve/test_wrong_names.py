"""Names of models that no model has: 404 on every route that takes one, whatever the text is."""

import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from local_server import Running, serving

from localqwen.engines.scripted import ScriptedEngine
from localqwen.errors import ModelNotFound
from localqwen.serve import model_names

HELLO = [{"role": "user", "content": "hi /no_think"}]
#: Each POST route that takes a model's name, with a body that is complete but for the name.
ROUTES: Mapping[str, Mapping[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "x"},
    "/v1/responses": {"input": "x"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": HELLO},
    "/api/chat": {"messages": HELLO},
    "/api/generate": {"prompt": "x"},
    "/api/show": {},
    "/api/pull": {},
}
MODELS = "/v1/models/"

NAMES = [
    "😀" * 80, "a" * 300, "é" * 200, "a\0b", "\0", "a\nb", "\x1b[31mx", "\u202eabc", "\ufdd0", "../..", "..", ".", "/",
    "//", "~root", "~nosuchuser", "~", "~/x", "~\0", "./x.gguf", "x.gguf", "C:\\x", "\\\\host\\share", "/dev/null",
    "file:///etc/passwd", "hf:", "hf:/", "hf:a", "hf:../..", "hf:./.", "hf:a/..", "hf:../b", "hf:a/.b", "hf:a/b/c",
    "hf:a/b" + "b" * 96, "hf:" + "a" * 97 + "/b", "ms:a/" + "b" * 190, "hf:a/b:" + "q" * 41, "hf:a/b:../..", "hf:😀/b",
    "hf:a/*", "hf:a/b:*", "hf:a/[b]", "hf.co/", "hf.co/😀", "qwen3:" + "9" * 300, "qwen3:4b-" + "q" * 190, ":latest",
    ":latest:latest", "latest", "qwen3:9b", "gpt-4", "demo\0", " demo", "*", "?", "[", "%00", "%2e%2e%2f", "con:",
    "nul", "x" * 8_000_000, "😀" * 600_000,
]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(ScriptedEngine(["fine"] * 10_000), name="scripted") as started:
        yield started


def ask(server: Running, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(method, path, body)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def named(server: Running, route: str, name: str) -> tuple[int, str]:
    """The status and the text of the answer to a request that names a model."""
    if route == MODELS:
        return ask(server, "GET", MODELS + quote(name, safe=""))
    return ask(server, "POST", route, json.dumps({**ROUTES[route], "model": name}).encode())


@pytest.mark.parametrize(
    ("name", "route"),
    [(name, route) for name in NAMES for route in [*ROUTES, MODELS] if route != MODELS or len(name) < 5000],
    ids=lambda value: value[:12].encode("unicode_escape").decode(),
)
def test_a_name_that_no_model_has_is_not_found(server: Running, name: str, route: str) -> None:
    status, said = named(server, route, name)
    assert status == 404
    assert len(said) < 2500


_PIECES = some.sampled_from(
    ["hf:", "ms:", "hf.co/", "/", "..", "~", "qwen3", ":", "4b", "-q4_k_m", ".gguf", "\\", "\0", "a", "é", "😀", "%2f",
     "\x1b", " "]
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(name=some.lists(_PIECES, min_size=1, max_size=8).map("".join) | some.text(min_size=1, max_size=300))
def test_no_text_is_an_error_of_the_server(server: Running, name: str) -> None:
    """A name of a hub's repository is left out where it would be pulled: only the hub knows whether it exists."""
    for route in [*ROUTES, MODELS]:
        if route != "/api/pull" or not _pullable(name):
            assert named(server, route, name)[0] == 404, route


def _pullable(name: str) -> bool:
    try:
        model_names.pullable(name)
    except ModelNotFound:
        return False
    return True


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("written", [b'"\\ud800"', b'"a\\udfffb"', b"7", b"[]", b"{}", b"true"])
def test_what_is_no_text_is_a_wrong_field(server: Running, written: bytes, route: str) -> None:
    """Half a surrogate pair is no text, and is told as such."""
    rest = b"".join(b", %b: %b" % (json.dumps(k).encode(), json.dumps(v).encode()) for k, v in ROUTES[route].items())
    status, said = ask(server, "POST", route, b'{"model": ' + written + rest + b"}")
    assert status == 400
    assert "surrogate" in said or "model" in said
