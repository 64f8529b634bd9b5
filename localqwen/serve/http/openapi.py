"""What the server says about itself at `/openapi.json` (OpenAPI 3.1): each API's routes, and those of the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localqwen._version import __version__
from localqwen.serve.anthropic import schema as anthropic_schema
from localqwen.serve.encoding import JSON
from localqwen.serve.ollama import schema as ollama_schema
from localqwen.serve.openai import schema as openai_schema
from localqwen.serve.schema import TEXT, Schema, content, object_of


def description() -> Mapping[str, Any]:
    """Return the whole OpenAPI document."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "localqwen", "version": __version__, "description": "Qwen3 on this machine."},
        "paths": {
            **openai_schema.paths(),
            "/health": {"get": _health()},
            "/metrics": {
                "get": {
                    "summary": "Prometheus",
                    "responses": {"200": content(TEXT, "the response", "text/plain")},
                }
            },
            **ollama_schema.paths(),
            **anthropic_schema.paths(),
        },
        "components": {
            "schemas": {openai_schema.ERROR: openai_schema.error()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _health() -> Schema:
    schema = object_of(status={"enum": ["ok", "dead"]})
    dead = content(schema, "the same, of a server that has died", JSON)
    responses = {"200": content(schema, "the response", JSON), **openai_schema.refused("401", "403"), "503": dead}
    return {"summary": "Whether the server lives", "responses": responses}
