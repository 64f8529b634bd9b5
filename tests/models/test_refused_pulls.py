"""A quantization that a repository does not have is refused before a byte of weights is loaded, on both hubs."""

import http.client
import importlib.util
import json
from collections.abc import Iterator

import pytest
from hub_server import HubServer
from hub_server import serving as hub_serving
from huggingface_hub import constants
from local_server import serving

from localqwen.engines.scripted import ScriptedEngine
from localqwen.errors import HubRefused, LocalqwenError, ModelNotFound
from localqwen.models import converted, names, pull

WEIGHTS = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": bytes(1000)}
REPOSITORIES = {
    "some/Gguf": {"a-q4_k_m.gguf": bytes(1000), "a-Q8_0.gguf": bytes(1001), "a-mxfp4.gguf": bytes(9), "README.md": b""},
    "some/Unnamed": {"model.gguf": bytes(1000)},
    "some/Split": {
        **{f"Q4_K_M/a-Q4_K_M-0000{part}-of-00003.gguf": bytes(part) for part in (1, 3)},
        **{f"a-Q8_0-0000{part}-of-00002.gguf": bytes(part) for part in (1, 2)},
    },
    "some/Weights": WEIGHTS,
    "some/Mlx": {**WEIGHTS, "config.json": b'{"quantization": {"bits": 4, "group_size": 64}}'},
    "Qwen/Qwen3-4B-GGUF": {"Qwen3-4B-Q8_0.gguf": bytes(1000)},
    "Qwen/Qwen3-4B-MLX-4bit": {"README.md": b""},
    "Qwen/Qwen3-235B-A22B-GGUF": {"Q4_K_M/Qwen3-235B-A22B-Q4_K_M-00001-of-00005.gguf": bytes(1000)},
}


@pytest.fixture(scope="module")
def served() -> Iterator[HubServer]:
    with hub_serving(REPOSITORIES) as server:
        yield server


@pytest.fixture
def hub(served: HubServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub that is checked in the end: it was asked what repositories hold, and for nothing of it."""
    served.reset()
    monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", served.endpoint)
    yield served
    assert all("/resolve/" not in each and "repo?" not in each for each in served.seen.requests)
    assert (served.seen.sent, served.seen.ranges) == (0, [])


CASES = [
    ("some/Gguf:q5_k_m", ModelNotFound, "it has mxfp4, q4_k_m, q8_0"),
    ("some/Gguf:q4_k", ModelNotFound, "it has mxfp4, q4_k_m, q8_0"),
    ("some/Gguf:4bit", ModelNotFound, "it has mxfp4, q4_k_m, q8_0"),
    ("some/Unnamed:q4_k_m", ModelNotFound, "it has model.gguf"),
    ("some/Split:q4_k_m", HubRefused, "2 of 3 parts"),
    ("some/Split:q5_0", ModelNotFound, "it has q4_k_m, q8_0"),
    ("some/Weights:q9_z", ModelNotFound, "q4_k_m"),
    ("some/Weights:4bit", ModelNotFound, "q4_k_m"),
    ("some/Weights:q8_0-x", ModelNotFound, "q4_k_m"),
    ("some/Mlx:8bit", ModelNotFound, "q4_k_m"),
    ("some/None:q4_k_m", HubRefused, ""),
]


@pytest.mark.parametrize(("name", "kind", "said"), CASES)
@pytest.mark.parametrize("source", ["hf", "ms"])
def test_of_a_repository(hub: HubServer, source: str, name: str, kind: type[LocalqwenError], said: str) -> None:
    if source == "ms" and importlib.util.find_spec("modelscope_hub") is None:
        pytest.skip("ModelScope's client is not installed")
    with pytest.raises(kind) as caught:
        pull.plan(names.parse(f"{source}:{name}"))
    assert said in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("qwen3:4b-q4_k_m", "it has q8_0: localqwen pull hf:Qwen/Qwen3-4B-GGUF:"),
        ("qwen3:4b-4bit", "has no file for qwen3:4b-4bit"),
        ("qwen3:235b-a22b-q4_k_m", "lists 1 of 5 parts"),
    ],
)
def test_of_a_name_whose_repository_has_changed(hub: HubServer, name: str, said: str) -> None:
    with pytest.raises(HubRefused) as caught:
        pull.plan(names.parse(name))
    assert said in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("name", ["qwen3:4b-q9_0", "qwen3:4b-9bit", "qwen3:4b-awq"])
def test_of_a_name_that_says_another_quantization(hub: HubServer, name: str) -> None:
    with pytest.raises(ModelNotFound, match="qwen3:4b"):
        pull.plan(names.parse(name))
    assert hub.seen.requests == []


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("hf.co/some/Gguf:q5_k_m", 404, "it has mxfp4, q4_k_m, q8_0"),
        ("hf.co/some/Weights:q9_z", 404, "q4_k_m"),
        ("hf.co/some/Split:q4_k_m", 502, "2 of 3 parts"),
        ("qwen3:4b-q9_0", 404, "q4_k_m"),
        ("qwen3:4b", 502, "it has q8_0"),
    ],
)
def test_over_http_with_a_status_of_its_own(hub: HubServer, name: str, status: int, said: str, stream: bool) -> None:
    with serving(ScriptedEngine([])) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("POST", "/api/pull", json.dumps({"model": name, "stream": stream}))
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
    assert answer.status == status
    assert said in text


def test_what_a_repository_has_is_planned(hub: HubServer) -> None:
    def files(name: str) -> list[str]:
        return sorted(file.path for file in pull.plan(names.parse(name)).files)

    assert files("hf:some/Gguf:Q8_0") == ["a-Q8_0.gguf"]
    assert files("hf:some/Gguf") == ["a-q4_k_m.gguf"]
    assert files("hf:some/Unnamed") == ["model.gguf"]
    assert files("hf:some/Split:q8_0") == ["a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf"]
    assert files("hf:some/Weights:q4_k") == sorted(WEIGHTS)
    assert {"q4_k_m", "q8_0", "q4_k"} <= set(converted.quantizations())
