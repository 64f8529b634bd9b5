"""Everything that takes sampling from a user accepts the values of SAMPLING_RANGES and no others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import click
import pytest

from localqwen.chat.messages import Overrides, Request
from localqwen.chat.sampling import Presets, sampling_for
from localqwen.cli import config
from localqwen.cli.options import Settings, answer_options
from localqwen.cli.repl.commands import _SETTABLE
from localqwen.engines.engine import SAMPLING_RANGES, Sampling
from localqwen.errors import ConfigError, UsageError
from localqwen.serve.anthropic import messages as anthropic
from localqwen.serve.http import openapi
from localqwen.serve.ollama import chat as ollama
from localqwen.serve.openai import chat as openai
from localqwen.serve.openai import completions, responses

#: Field -> the values just inside of its range, and those just outside.
BOUNDS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "temperature": ((0, 100), (-0.001, 100.001)),
    "top_p": ((0, 1), (-0.001, 1.001)),
    "top_k": ((0, 2147483647), (-2, 2147483648)),
    "min_p": ((0, 1), (-0.001, 1.001)),
    "presence_penalty": ((-100, 100), (-100.001, 100.001)),
    "frequency_penalty": ((-100, 100), (-100.001, 100.001)),
    "repetition_penalty": ((1e-9, 100), (0, -1, 100.001)),
}
HELLO = [{"role": "user", "content": "Hello!"}]


def refuse(door: Callable[[str, Any], object], name: str, value: Any) -> None:
    """Pass if the door refuses the value by its name."""
    with pytest.raises((UsageError, click.BadParameter)) as error:
        door(name, value)
    message = error.value.format_message() if isinstance(error.value, click.BadParameter) else error.value.message
    assert name in message.lower().replace("-", "_").replace("repeat", "repetition")


def by_sampling(name: str, value: Any) -> Any:
    return getattr(Sampling(**{name: value}), name)


def by_request(name: str, value: Any) -> Any:
    """The Python API, models.toml and everything that goes through a Request."""
    request = Request([], prompt="x", sampling=Overrides(**{name: value}))
    return getattr(sampling_for(request, Presets(), thinking=False, phase=Overrides()), name)


def by_openai(name: str, value: Any) -> Any:
    return getattr(openai.read({"messages": HELLO, name: value}).request.sampling, name)


def by_completions(name: str, value: Any) -> Any:
    return getattr(completions.read({"prompt": "Hello!", name: value}).request.sampling, name)


def by_responses(name: str, value: Any) -> Any:
    return getattr(responses.read({"input": "Hello!", name: value}).request.sampling, name)


def by_ollama(name: str, value: Any) -> Any:
    body = {"model": "demo", "messages": HELLO, "options": {OLLAMA.get(name, name): value}}
    return getattr(ollama.read(body).request.sampling, name)


def by_anthropic(name: str, value: Any) -> Any:
    body = {"model": "demo", "max_tokens": 9, "messages": HELLO, name: value}
    return getattr(anthropic.read(body).request.sampling, name)


@click.command()
@answer_options
def answered(settings: Settings) -> Settings:
    return settings


def by_flag(name: str, value: Any) -> Any:
    flag = f"--{name.replace('_', '-')}"
    return getattr(answered.main([flag, str(value)], standalone_mode=False), name)


def by_environment(name: str, value: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(f"LOCALQWEN_{name.upper()}", str(value))
        return config.defaults(answered, None)[name]


def by_set(name: str, value: Any) -> Any:
    return _SETTABLE[name](name, str(value))


OLLAMA = {"repetition_penalty": "repeat_penalty"}
FLAGS = ("temperature", "top_p", "top_k", "min_p", "presence_penalty")
#: Each with the fields that it takes.
DOORS: Mapping[Callable[[str, Any], Any], tuple[str, ...]] = {
    by_sampling: tuple(BOUNDS),
    by_request: tuple(BOUNDS),
    by_openai: tuple(BOUNDS),
    by_completions: tuple(BOUNDS),
    by_responses: tuple(BOUNDS),
    by_ollama: tuple(BOUNDS),
    by_anthropic: ("temperature", "top_p", "top_k"),
    by_flag: FLAGS,
    by_environment: FLAGS,
    by_set: tuple(BOUNDS),
}
EACH = [pytest.param(door, name, id=f"{door.__name__}-{name}") for door, names in DOORS.items() for name in names]


def test_every_range_is_checked_here() -> None:
    assert set(BOUNDS) == set(SAMPLING_RANGES)
    assert set(BOUNDS) | {"seed"} == set(Sampling.__dataclass_fields__) == set(Overrides.__dataclass_fields__)
    assert set(FLAGS) == set(SAMPLING_RANGES) & {parameter.name for parameter in answered.params}


@pytest.mark.parametrize(("door", "name"), EACH)
def test_each_door_accepts_what_is_just_inside_of_a_range(door: Callable[[str, Any], Any], name: str) -> None:
    for value in BOUNDS[name][0]:
        assert door(name, value) == value


@pytest.mark.parametrize(("door", "name"), EACH)
def test_each_door_refuses_what_is_just_outside_of_a_range(door: Callable[[str, Any], Any], name: str) -> None:
    for value in (*BOUNDS[name][1], math.inf, -math.inf, math.nan):
        if name != "top_k" or math.isfinite(value):
            refuse(door, name, value)


@pytest.mark.parametrize("value", ["hot", None, 2.5, math.nan])
def test_a_whole_number_is_no_other_value(value: Any) -> None:
    with pytest.raises(UsageError, match=r"top_k is .*, it must be a whole number from 0 to 2,147,483,647"):
        Sampling(top_k=value)


def test_minus_one_is_another_word_for_all_tokens_in_openais_bodies_alone() -> None:
    assert by_openai("top_k", -1) == 0
    assert allows(schema("/v1/chat/completions")["top_k"], -1)
    assert not allows(schema("/api/chat")["top_k"], -1)
    assert not allows(schema("/v1/messages")["top_k"], -1)
    for door in (by_sampling, by_ollama, by_anthropic, by_flag, by_set):
        refuse(door, "top_k", -1)


def test_a_repetition_penalty_out_of_range_says_what_switches_it_off() -> None:
    with pytest.raises(UsageError, match="repetition_penalty is 0, it must be a number above 0, at most 100") as error:
        Sampling(repetition_penalty=0)
    assert error.value.hint == "1.0 switches it off"


def test_a_wrong_variable_is_named_with_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALQWEN_TEMPERATURE", "101")
    with pytest.raises(ConfigError, match=r"LOCALQWEN_TEMPERATURE: 101\.0 is not in the range 0<=x<=100"):
        config.defaults(answered, None)


def schema(path: str) -> Mapping[str, Any]:
    body = openapi.description()["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    properties: Mapping[str, Any] = body["properties"]
    return properties["options"]["properties"] if "options" in properties else properties


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/api/chat", "/api/generate", "/v1/messages"]
)
def test_the_schema_of_every_route_has_the_same_bounds(path: str) -> None:
    known = schema(path)
    names = ("temperature", "top_p", "top_k") if path == "/v1/messages" else tuple(BOUNDS)
    for name in names:
        found = known[OLLAMA.get(name, name) if path.startswith("/api/") else name]
        inside, outside = BOUNDS[name]
        assert found["type"] == ["integer" if name == "top_k" else "number", "null"]
        assert all(allows(found, value) for value in inside)
        assert not any(allows(found, value) for value in outside)


def allows(found: Mapping[str, Any], value: float) -> bool:
    """By JSON schema."""
    above = found.get("exclusiveMinimum", -math.inf)
    return bool(above < value and found.get("minimum", -math.inf) <= value <= found["maximum"])
