"""The server keeps to what it says of itself at `/openapi.json`, whatever it is sent."""

import itertools
import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from local_server import Running, serving
from schemathesis import GenerationMode, checks

from localqwen.engines.scripted import ScriptedEngine
from localqwen.serve.http import openapi
from localqwen.serve.http.mappers import ANSWERING

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(ScriptedEngine(itertools.repeat("fine"))) as started:
        yield started


DESCRIBED = schemathesis.openapi.from_dict(dict(openapi.description()))
OPERATIONS = [found.ok() for found in DESCRIBED.get_all_operations()]
#: A route that takes no body takes nothing that could be wrong.
CASES = [
    pytest.param(operation, mode, id=f"{operation.label} {mode.value}")
    for operation in OPERATIONS
    for mode in (GenerationMode if list(operation.body) else [GenerationMode.POSITIVE])
]


@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_every_route_answers_as_described(server: Running, operation: Any, mode: GenerationMode) -> None:
    """Also what breaks the description: it is refused in the described way, or was harmless."""

    @settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def answers(case: schemathesis.Case) -> None:
        case.call_and_validate(base_url=server.url, checks=CHECKS)

    answers()


def test_every_answering_route_is_described(server: Running) -> None:
    with urllib.request.urlopen(f"{server.url}/openapi.json") as answer:
        told = json.load(answer)
    assert told == openapi.description()
    assert set(ANSWERING) <= set(told["paths"])
